"""The sheet "what belongs to which layer": frames of the clip, each layer tinted and outlined in its own color."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from neural_fields.atlas.uv_maps import Maps
from neural_fields.imaging.contact_sheet import (
    Color,
    choose_object_color,
    contact_sheet,
    draw_objects,
    write_frame_number,
)


@dataclass(frozen=True)
class LayerSheetSettings:
    """Holds the looks of the sheet."""

    frame_count: int = 9  # frames that are spread over the clip, the first and the last among them
    more_frames: int = 3  # further ones at which a mask jumps
    columns: int = 3
    width_px: int = 400  # of one frame
    min_weight: float = 0.5  # a pixel shows the layer that has at least this weight
    row_px: int = 30  # height of a line of the legend


DEFAULTS = LayerSheetSettings()


@dataclass(frozen=True)
class LayerSheet:
    """Holds the sheet, the numbers of its frames in the source, and the colors of the layers by their names."""

    picture: UInt8[np.ndarray, "height width 3"]
    numbers: tuple[int, ...]
    colors: dict[str, Color]

    def draw_legend(self, settings: LayerSheetSettings = DEFAULTS) -> UInt8[np.ndarray, "rows width 3"]:
        """Draws the sheet with a legend below it. Names in other scripts than ASCII become numbers of layers."""
        lines = [
            (name if name.isascii() else f"layer {number}", color)
            for number, (name, color) in enumerate(self.colors.items(), start=1)
        ]
        legend = np.full((settings.row_px * (len(lines) + 1), self.picture.shape[1], 3), 24, np.uint8)
        lines.append(("no color: background", (24, 24, 24)))
        for row, (text, color) in enumerate(lines):
            top = row * settings.row_px
            cv2.rectangle(legend, (8, top + 6), (26, top + 24), color, cv2.FILLED)
            cv2.putText(legend, text, (36, top + 21), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (235, 235, 235), 1, cv2.LINE_AA)
        return np.concatenate([self.picture, legend])


def draw_layer_sheet(
    frames: UInt8[np.ndarray, "time height width 3"],
    numbers: range,
    maps: Maps,
    objects: Sequence[str],
    named: Sequence[int] = (),
    settings: LayerSheetSettings = DEFAULTS,
) -> LayerSheet:
    """Draws what belongs to which layer.

    Args:
        frames: RGB of the run; may be memory-mapped.
        numbers: the numbers of these frames in the source.
        maps: baked maps of the run.
        objects: names of the layers that are drawn, front to back.
        named: frames of the run that are to be among those shown, with the next ones.
        settings: the looks.
    """
    count = min(settings.frame_count, len(numbers))
    times = set(np.linspace(0, len(numbers) - 1, count).round().astype(int).tolist())
    more = [after for t in named for after in (t, t + 1) if after < len(numbers)]
    times |= set(more[: settings.more_frames])
    height = round(frames.shape[1] * settings.width_px / frames.shape[2])
    size = (settings.width_px, height)
    pictures = []
    for t in sorted(times):
        picture = cv2.resize(np.ascontiguousarray(frames[t]), size, interpolation=cv2.INTER_AREA)
        weights = [maps.read_layer_weight_small(t, layer) for layer in range(len(objects))]
        draw_objects(picture, [cv2.resize(weight, size) >= settings.min_weight for weight in weights])
        write_frame_number(picture, numbers[t])
        pictures.append(picture)
    return LayerSheet(
        picture=contact_sheet(pictures, min(settings.columns, len(pictures)), settings.width_px),
        numbers=tuple(numbers[t] for t in sorted(times)),
        colors={name: choose_object_color(layer) for layer, name in enumerate(objects)},
    )

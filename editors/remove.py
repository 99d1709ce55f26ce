"""Remove: a layer is not shown any more; what is behind it is.

What other frames show of the layers behind comes from their canonical pictures. What no frame shows there is inpainted
once, on the still picture, and so the same in every frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import Bool

from editors.base import EditorResult, Report, Source
from editors.completion import complete
from editors.stack import Effects
from neural_fields import canonical
from neural_fields.canonical import Overlay
from neural_fields.errors import bad_input

SEEN = 0.5  # coverage from which a texel is known
SHOWN = 0.02  # of a pixel: with less of a layer nothing of it is taken off
MOST = 0.5  # share of what would be seen that may be made up before it is said


@dataclass(frozen=True, kw_only=True)
class Remove:
    """Take a layer off the video and show what was behind it."""

    name: ClassVar[str] = "remove"

    grow: float = 3.0
    """Pixels of the video by which the layer is widened, so that soft edges and halos go with it."""

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """The layers taken off, and what no frame shows behind them.

        Raises:
            UserError: the layer at the back, a mask, or a width that is none.
        """
        back = source.maps.layers[-1]
        if back in source.layers:
            raise bad_input(
                f"nothing is behind {back}",
                where=str(source.run.canonical),
                why=f"the layers of this run, front to back: {', '.join(source.maps.layers)}",
                fix=f"unwrap edit {source.run.path} --editor replace --picture FILE puts something in its place",
            )
        if source.mask is not None:
            raise bad_input("a layer is removed as a whole", why="--mask is of no use", fix="leave --mask out")
        if not 0 <= self.grow <= 100:
            raise bad_input(f"--grow {self.grow:g}", why="it counts pixels from 0 to 100", fix="--grow 3")
        overlays, notes = {}, []
        for number, layer in enumerate(source.maps.layers):
            if layer in source.layers or number <= min(map(source.maps.layers.index, source.layers)):
                continue
            report("looking behind", number, len(source.maps.layers))
            overlay, made_up = _behind(source, layer)
            if overlay is not None:
                overlays[layer] = overlay
            if made_up > MOST:
                notes.append(f"{made_up:.0%} of what would be seen of {layer} is in no frame: it is made up")
        notes.append("shadows and reflections belong to what they fall on, and stay")
        return EditorResult(overlays, tuple(notes), effects=Effects(hidden=source.layers, grow=self.grow))


def _behind(source: Source, layer: str) -> tuple[Overlay | None, float]:
    """What is made up of a layer where the removed ones hid it in every frame, and its share of what they hid."""
    picture = source.pictures[layer]
    hidden = _hidden_texels(source, layer, picture.size)
    seen = canonical.pristine(source.run.canonical, layer).rgba[3].numpy() > SEEN
    missing = hidden & ~seen
    if not missing.any() or not seen.any():
        return None, 0.0
    rgb = complete(np.ascontiguousarray(picture.array()[..., :3]), seen, missing)
    alpha = missing.astype(np.float32)[..., None]
    overlay = Overlay(np.concatenate([rgb, alpha], axis=-1) * alpha, picture.box)
    return overlay, float(missing.sum() / hidden.sum())


def _hidden_texels(source: Source, layer: str, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Texels of a layer that some frame would show without the removed layers in front of it."""
    maps, box = source.maps, source.pictures[layer].box
    index, removed = maps.layers.index(layer), [maps.layers.index(name) for name in source.layers]
    found = np.zeros((size[1], size[0]), np.uint8)
    around = np.ones((7, 7), np.uint8)
    for t in range(maps.frame_count):
        weight = sum(maps.layer_weight_small(t, number) for number in removed if number < index)
        inside = cv2.dilate((np.asarray(weight) > SHOWN).astype(np.uint8), around) > 0
        uv = maps.uv_small(t, index)[inside]
        x = np.floor((uv[:, 0] - box.u0) / box.width * size[0]).astype(int)
        y = np.floor((uv[:, 1] - box.v0) / box.height * size[1]).astype(int)
        kept = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
        found[y[kept], x[kept]] = 1
    # Texels may be finer than the pixels that look at them.
    step = max(3, 2 * round(max(size) / max(maps.size)) + 1)
    return cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((step, step), np.uint8)) > 0

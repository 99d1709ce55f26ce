"""`style`: repaints the canonical picture of a layer with a trained style network.

The network gets the entire picture at once: instance normalization depends on the whole input, so separate tiles would
not match. Texels that no frame shows are first filled smoothly from their surroundings, so that they do not bleed into
the visible part. Because of the normalization, the network gets a frame of the clip beside each picture: a dark object
alone would be painted bright.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from jaxtyping import Bool, Float

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.options.effects import StyleOptions
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.files import sha256_file
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.imaging.push_pull import pull_push


@dataclass(frozen=True)
class StyleEditSettings:
    """Settings of how pictures are given to the style network."""

    default_side_px: int = 1280  # default side of the largest picture; larger ones are scaled down
    min_coverage: float = 0.5  # least coverage of a texel whose color is that of the video
    gap_px: int = 32  # gap between a picture and the frame beside it, filled smoothly
    margin_texels: int = 16  # margin around the visible part in the network's input


DEFAULTS = StyleEditSettings()


@dataclass(frozen=True, kw_only=True)
class Style(StyleOptions, PlanarEditor):
    """Repaint the canonical picture with a trained style network (Johnson et al. 2016)."""

    def edit(
        self, source: EditSource, report: ProgressReporter, settings: StyleEditSettings = DEFAULTS
    ) -> EditorResult:
        """Makes one overlay per layer, opaque in the editable region.

        Args:
            source: the run, and the layers to paint.
            report: called with the progress.
            settings: preparation of the network's input.

        Raises:
            UserError: weights that are not those of a style network, or nothing to edit (exit 3).
        """
        from editors.effects.style_network import read_style_network, stylize_picture

        stylize = partial(stylize_picture, read_style_network(self.weights))
        regions = {layer: source.read_region(layer) for layer in source.layers}
        parts = {layer: StyleInput.from_layer(source, layer, settings) for layer in source.layers}
        beside = source.read_frame(source.frame_count // 2).astype(np.float32) / 255
        length = max(part.length for part in parts.values())
        longest = max(max(part.rgb.shape[:2]) for part in parts.values())
        side = self.side or min(longest, settings.default_side_px)
        overlays = {}
        for done, (layer, part) in enumerate(parts.items()):
            report(Progress("painting", done, len(parts)))
            color = part.paint(stylize, beside, side / length, settings)
            alpha = self.strength * regions[layer][..., None]
            rgba = np.concatenate([np.where(alpha > 0, color, 0), alpha], axis=-1)
            overlays[layer] = Overlay(rgba.astype(np.float32), source.pictures[layer].box)
        report(Progress("painting", len(parts), len(parts)))
        smaller = f"the largest picture was painted with its longer side at {side} of {longest} pixels"
        details = {"network": {"file": self.weights.name, "sha256": sha256_file(self.weights)}, "side": side}
        return EditorResult(overlays, (smaller,) if side < longest else (), details)


@dataclass(frozen=True)
class StyleInput:
    """Holds the network's input for a layer.

    Attributes:
        rgb: the part of the layer's picture around its visible texels; the others are filled smoothly.
        rows: rows of this part in the whole picture.
        columns: columns of this part in the whole picture.
        whole: the whole picture, filled.
        length: the longer side of `rgb`, in uv units.
    """

    rgb: Float[np.ndarray, "_ _ 3"]
    rows: slice
    columns: slice
    whole: Float[np.ndarray, "height width 3"]
    length: float

    @classmethod
    def from_layer(cls, source: EditSource, layer: str, settings: StyleEditSettings = DEFAULTS) -> StyleInput:
        """Prepares the canonical picture of a layer.

        Args:
            source: the run.
            layer: name of the layer.
            settings: the margin around visible texels.
        """
        picture = source.pictures[layer]
        seen = source.run.canonical(layer).rgba[..., 3] >= settings.min_coverage
        texel = picture.box.width / picture.size[0]
        return cls.from_picture(np.ascontiguousarray(picture.rgba[..., :3]), seen, texel, settings)

    @classmethod
    def from_picture(
        cls,
        rgb: Float[np.ndarray, "height width 3"],
        visible_mask: Bool[np.ndarray, "height width"],
        texel_size: float,
        settings: StyleEditSettings = DEFAULTS,
    ) -> StyleInput:
        """Prepares a picture.

        Args:
            rgb: RGB of the whole picture in [0, 1].
            visible_mask: texels that frames show.
            texel_size: width of a texel in uv units.
            settings: the margin around visible texels.

        Returns:
            The part around the visible texels; the whole picture if there are none.
        """
        whole = pull_push(rgb, visible_mask) if visible_mask.any() else rgb
        left, top, width, height = cv2.boundingRect(visible_mask.astype(np.uint8))
        margin = settings.margin_texels
        rows = slice(max(0, top - margin), top + height + margin) if width else slice(0, visible_mask.shape[0])
        columns = slice(max(0, left - margin), left + width + margin) if width else slice(0, visible_mask.shape[1])
        rgb = np.ascontiguousarray(whole[rows, columns])
        return cls(rgb, rows, columns, whole, texel_size * max(rgb.shape[:2]))

    def paint(
        self,
        stylize: Callable[[np.ndarray], np.ndarray],
        beside: Float[np.ndarray, "_ _ 3"],
        pixels_per_unit: float,
        settings: StyleEditSettings = DEFAULTS,
    ) -> Float[np.ndarray, "height width 3"]:
        """Paints this part of the whole picture in the network's style.

        Args:
            stylize: repaints a picture by the style network.
            beside: a frame that the network gets beside it, RGB in [0, 1].
            pixels_per_unit: pixels of the network's input per uv unit; the same for all layers, so that all strokes
                have the same size.
            settings: the gap between the two.

        Returns:
            The whole picture, with this part painted.
        """
        height, width = self.rgb.shape[:2]
        scale = pixels_per_unit * self.length / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = _resize_picture(self.rgb, size)
        scale = pixels_per_unit * 2 / max(beside.shape[:2])
        frame_size = max(1, round(beside.shape[1] * scale)), max(1, round(beside.shape[0] * scale))
        frame = _resize_picture(beside, frame_size)

        # Both on one canvas, the picture in its corner and the frame along its longer side.
        down = picture.shape[1] >= picture.shape[0]
        gap = settings.gap_px
        top, left = (picture.shape[0] + gap, 0) if down else (0, picture.shape[1] + gap)
        canvas_size = max(picture.shape[0], top + frame.shape[0]), max(picture.shape[1], left + frame.shape[1])
        canvas, known = np.zeros((*canvas_size, 3), np.float32), np.zeros(canvas_size, bool)
        for one, row, column in ((picture, 0, 0), (frame, top, left)):
            area = slice(row, row + one.shape[0]), slice(column, column + one.shape[1])
            canvas[area], known[area] = one, True

        found = stylize(pull_push(canvas, known))[: size[1], : size[0]]
        result = self.whole.copy()
        result[self.rows, self.columns] = np.clip(_resize_picture(found, (width, height)), 0, 1)
        return result


def _resize_picture(picture: Float[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float[np.ndarray, "_ _ 3"]:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    smaller = size[0] < picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)

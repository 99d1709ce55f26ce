"""Rendering an edit: a lookup in the painted overlays and a blend. No network runs.

    out = source + sum_i weight_i * alpha_i * (gain_i * edit_i - observed_i)

where `observed_i` is what layer i contributes to the source pixel: the model's colour of the layer plus what the model
missed of the pixel, so that the contributions of all layers add up to the source exactly. A pixel without an edit under
it stays the source's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.baking import Maps, scattered
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.coords import Box
from neural_fields.pictures import premultiplied, straight

ALONE = 0.996  # a layer with this weight or more is all there is in a pixel
INVISIBLE = 0.5 / 255  # an edit of less opacity than this changes no 8-bit value


@dataclass(frozen=True)
class EditTexture:
    """An overlay ready for lookup: premultiplied, with halved copies for places where it is seen smaller."""

    levels: tuple[Float[np.ndarray, "_ _ 4"], ...]  # each half the size of the one before
    reach: UInt8[np.ndarray, "height width"]  # 255 where the overlay, or its surroundings, are not transparent
    box: Box


def prepare(overlay: Overlay) -> EditTexture:
    """An overlay ready for `render_frame`."""
    levels = [np.ascontiguousarray(premultiplied(overlay.rgba), np.float32)]
    while min(levels[-1].shape[:2]) >= 8 and len(levels) < 5:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    opaque = (overlay.rgba[..., 3] > 0).astype(np.uint8) * 255
    # A lookup at the size of the fit steps over texels; the surroundings make sure that no edit slips through.
    margin = max(5, round(0.02 * max(opaque.shape))) | 1
    return EditTexture(tuple(levels), cv2.dilate(opaque, np.ones((margin, margin), np.uint8)), overlay.box)


class Renderer:
    """Puts overlays on source frames.

    Args:
        maps: the baked maps of the run.
        canonicals: the exported canonical image of every layer, for pixels that layers share.
        overlays: what to put on, by layer.
    """

    def __init__(self, maps: Maps, canonicals: Mapping[str, CanonicalImage], overlays: Mapping[str, Overlay]) -> None:
        self.maps = maps
        self.edits = {maps.layers.index(name): prepare(overlay) for name, overlay in overlays.items()}
        self.canonicals = [(canonicals[name].array()[..., :3].copy(), canonicals[name].box) for name in maps.layers]

    def render(
        self, frames: Iterable[tuple[int, UInt8[np.ndarray, "height width 3"]]]
    ) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Edited frames for (frame index of the run, source frame) pairs."""
        for t, frame in frames:
            yield self.render_frame(t, frame)

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """One frame with the overlays on it, at the size of `source`."""
        changes = []
        for layer, edit in self.edits.items():
            part = self._touched(t, layer, edit, source.shape)
            if part is not None:
                changes.append((part, self._change(t, layer, edit, source, part)))
        if not any(change.any() for _, change in changes):
            return source
        rows, columns = (_hull([part[axis] for part, _ in changes]) for axis in (0, 1))
        total = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.float32)
        for (own_rows, own_columns), change in changes:
            total[_inside(own_rows, rows), _inside(own_columns, columns)] += change
        result = source.copy()
        # Rounds and saturates; 8-bit values are exact in float32, so a change of zero gives the pixel itself.
        result[rows, columns] = cv2.add(np.ascontiguousarray(source[rows, columns]), total, dtype=cv2.CV_8U)
        return result

    def overlay_in_frame(
        self, t: int, layer: int, size: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "height width 4"], Float[np.ndarray, "height width 3"]]:
        """The overlay of a layer as it lies in a frame: straight RGBA, and its colour under the layer's light."""
        rgba = straight(_lookup(self.edits[layer], self.maps.uv(t, layer, size)))
        return rgba, rgba[..., :3] * self.maps.gain(t, layer, size)

    def _touched(self, t: int, layer: int, edit: EditTexture, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
        """The part (rows, columns) of the frame that holds every pixel the edit may change."""
        x, y = _texel_positions(self.maps.uv_small(t, layer), edit.box, edit.reach.shape)
        reach = cv2.remap(edit.reach, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        touched = (reach > 0) & (self.maps.layer_weight_small(t, layer) > 0)
        rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
        if not len(rows):
            return None
        return _scaled(rows, touched.shape[0], shape[0]), _scaled(columns, touched.shape[1], shape[1])

    def _change(
        self, t: int, layer: int, edit: EditTexture, source: np.ndarray, part: tuple[slice, slice]
    ) -> Float[np.ndarray, "rows columns 3"]:
        """What one layer's edit adds to a part of the source, in 8-bit units.

        Colour planes are kept apart: numpy and OpenCV run along whole planes much faster than along three channels.
        """
        size = (source.shape[1], source.shape[0])
        *colors, alpha = cv2.split(_lookup(edit, self.maps.uv_part(t, layer, size, part)))
        weight = self.maps.layer_weight(t, layer, size, part)
        strength = weight * alpha
        unseen = strength < INVISIBLE
        strength[unseen] = 0
        light = weight * np.float32(255)
        light[unseen] = 0
        gains = cv2.split(self.maps.gain(t, layer, size, part)) if self.maps.has_gain else ()
        changes = []
        for number, observed in enumerate(cv2.split(source[part])):
            lit = light * colors[number]
            if gains:
                lit *= gains[number]
            changes.append(lit - cv2.multiply(observed, strength, dtype=cv2.CV_32F))
        shared = np.nonzero((strength > 0) & (weight < ALONE))
        if len(shared[0]):
            excess = 255 * strength[shared][:, None] * self._unmixed(t, layer, shared, part, size)
            for number, change in enumerate(changes):
                change[shared] -= excess[:, number]
        return cv2.merge(changes)

    def _unmixed(
        self, t: int, layer: int, pixels: tuple[np.ndarray, ...], part: tuple[slice, slice], size: tuple[int, int]
    ) -> Float[np.ndarray, "n 3"]:
        """In pixels that layers share: the model's colour of this layer less the model's colour of the pixel."""
        y, x = pixels[0] + part[0].start, pixels[1] + part[1].start
        samples = self.maps.at(t, x.astype(np.float32), y.astype(np.float32), size)
        lit = np.stack(
            [
                _canonical_colors(image, box, uv) * gain
                for (image, box), uv, gain in zip(self.canonicals, samples.uv, samples.gain, strict=True)
            ]
        )
        return lit[layer] - (lit * samples.weight[..., None]).sum(0)


def _hull(parts: Sequence[slice]) -> slice:
    """The smallest range that holds all of `parts`."""
    return slice(min(part.start for part in parts), max(part.stop for part in parts))


def _inside(part: slice, whole: slice) -> slice:
    """Where `part` lies within `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)


def _scaled(indices: np.ndarray, stored: int, wanted: int) -> slice:
    """The range that holds `indices` of a side of `stored` pixels, on a side of `wanted` pixels, with a margin."""
    scale = wanted / stored
    start = int((indices[0] - 2) * scale)
    return slice(max(0, start), min(wanted, int(np.ceil((indices[-1] + 3) * scale))))


def _texel_positions(
    uv: Float[np.ndarray, "*n 2"], box: Box, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Sample positions (0 is the centre of the first texel) of uv in an image of shape (height, width) over `box`."""
    x = (uv[..., 0] - np.float32(box.u0)) * np.float32(shape[1] / box.width) - np.float32(0.5)
    y = (uv[..., 1] - np.float32(box.v0)) * np.float32(shape[0] / box.height) - np.float32(0.5)
    return x, y


def _lookup(edit: EditTexture, uv: Float[np.ndarray, "rows columns 2"]) -> Float[np.ndarray, "rows columns 4"]:
    """Premultiplied RGBA of the overlay; transparent outside its box."""
    x, y = _texel_positions(uv, edit.box, edit.levels[0].shape)
    level = min(_level(x, y), len(edit.levels) - 1)
    if level:
        x, y = _texel_positions(uv, edit.box, edit.levels[level].shape)
    return cv2.remap(edit.levels[level], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _level(x: Float[np.ndarray, "rows columns"], y: Float[np.ndarray, "rows columns"]) -> int:
    """How often to halve the overlay so that neighbouring pixels are at most about 1.5 texels apart."""
    if x.shape[1] < 2:
        return 0
    steps = np.hypot(np.diff(x[::8], axis=1), np.diff(y[::8], axis=1))
    return max(0, round(float(np.log2(max(1e-6, float(np.median(steps)))))))


def _canonical_colors(
    image: Float[np.ndarray, "height width 3"], box: Box, uv: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 3"]:
    x, y = _texel_positions(uv, box, image.shape)
    return scattered(image, x, y)

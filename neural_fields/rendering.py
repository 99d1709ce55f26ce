"""Rendering an edit: a lookup in the painted overlays and a blend. No network runs.

    out = source + sum_i weight_i * alpha_i * (gain_i * edit_i - observed_i)

where `observed_i` is what layer i contributes to the source pixel: the model's colour of the layer plus what the model
missed of the pixel, so that the contributions of all layers add up to the source. A pixel without an edit under it
stays the source's, bit for bit.

A frame is worked on in bands of rows, and of a band only the columns that the edit may reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.coords import Box
from neural_fields.lookup import scattered
from neural_fields.pictures import straight

ALONE = 0.996  # a layer with this weight or more is all there is in a pixel
BAND = 64
REACH = 2  # pixels of the fit around those touched that are looked at too

Part = tuple[slice, slice]  # rows and columns of a frame


@dataclass(frozen=True)
class EditTexture:
    """An overlay ready for lookup: premultiplied, with halved copies for places where it is seen smaller."""

    levels: tuple[Float[np.ndarray, "_ _ 4"], ...]  # each half the size of the one before; colours up to 255
    reach: UInt8[np.ndarray, "height width"]  # 255 where the overlay, or its surroundings, are not transparent
    box: Box


def prepare(overlay: Overlay) -> EditTexture:
    """An overlay ready for `render_frame`."""
    bright = cv2.cvtColor(255 * overlay.rgba[..., 3], cv2.COLOR_GRAY2RGBA)  # of which the fourth channel is one
    levels = [cv2.multiply(overlay.rgba, bright)]
    while min(levels[-1].shape[:2]) >= 8 and len(levels) < 5:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    opaque = (overlay.rgba[..., 3] > 0).astype(np.uint8) * 255
    # A lookup at the size of the fit steps over texels; the surroundings make sure that no edit slips through.
    margin = max(5, round(0.02 * max(opaque.shape))) | 1
    return EditTexture(tuple(levels), cv2.dilate(opaque, np.ones((margin, margin), np.uint8)), overlay.box)


@dataclass(frozen=True)
class Excess:
    """In pixels that layers share: the model's colour of one layer less the model's colour of the pixel.

    At the size of the fit, where it is smooth enough, and in 8-bit units.
    """

    values: Float[np.ndarray, "height width 4"]  # the fourth channel is empty
    corner: tuple[int, int]  # (row, column) of the first value in the frame


@dataclass(frozen=True)
class Look:
    """What is known of a layer's edit in a frame, at the size of the fit."""

    t: int
    layer: int
    level: int  # which copy of the overlay to look up
    touched: UInt8[np.ndarray, "height width"]  # other than zero where the edit may change the frame
    mixed: UInt8[np.ndarray, "height width"]  # other than zero where layers share such a pixel, and around it
    excess: Excess | None


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
        self.canonicals = [(canonicals[name].array(), canonicals[name].box) for name in maps.layers]

    def render(
        self, frames: Iterable[tuple[int, UInt8[np.ndarray, "height width 3"]]]
    ) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Edited frames for (frame index of the run, source frame) pairs."""
        for t, frame in frames:
            yield self.render_frame(t, frame)

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """One frame with the overlays on it, at the size of `source`."""
        size = (source.shape[1], source.shape[0])
        looks = [look for layer in self.edits if (look := self._look(t, layer, size)) is not None]
        result = source
        for band, rows in _bands(self.maps.size[1], size[1]):
            changes = []
            for look in looks:
                columns = _columns(look.touched[band], size[0])
                change = self._change(look, size, band, (rows, columns)) if columns else None
                if columns and change is not None:
                    changes.append(((rows, columns), change))
            for part, change in _apart(changes):
                result = source.copy() if result is source else result
                result[part] = _over(source[part], change)
        return result

    def overlay_in_frame(
        self, t: int, layer: int, size: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "height width 4"], Float[np.ndarray, "height width 3"]]:
        """The overlay of a layer as it lies in a frame: straight RGBA, and its colour under the layer's light."""
        uv, edit = self.maps.uv(t, layer, size), self.edits[layer]
        level = _level(_texel_positions(uv, edit.box, edit.levels[0].shape))
        rgba = straight(_lookup(edit, uv, level) / np.array([255, 255, 255, 1], np.float32))
        return rgba, rgba[..., :3] * self.maps.gain(t, layer, size)

    def _look(self, t: int, layer: int, size: tuple[int, int]) -> Look | None:
        """What is known of a layer's edit in a frame before any pixel of it is made; None if it changes no pixel."""
        edit = self.edits[layer]
        texels = _texel_positions(self.maps.uv_small(t, layer), edit.box, edit.reach.shape)
        reach = cv2.remap(edit.reach, texels, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        weight = self.maps.weight_bytes(t, layer)
        touched = cv2.bitwise_and(reach, weight)  # of a byte that is 0 or 255 and another: zero where either is
        left, top, width, height = cv2.boundingRect(touched)
        if not width:
            return None
        level = _level(texels[top : top + height, left : left + width] * np.float32(self.maps.size[0] / size[0]))
        mixed = cv2.bitwise_and(touched, cv2.compare(weight, round(255 * ALONE), cv2.CMP_LT))
        mixed = cv2.dilate(mixed, np.ones((3, 3), np.uint8))  # enlarging looks at the neighbours too
        return Look(t, layer, level, touched, mixed, self._excess(t, layer, mixed))

    def _excess(self, t: int, layer: int, mixed: UInt8[np.ndarray, "height width"]) -> Excess | None:
        """What `mixed` pixels need to be told apart into layers; None if there are none."""
        left, top, width, height = cv2.boundingRect(mixed)
        if not width:
            return None
        values = np.zeros((height, width, 4), np.float32)
        x, y = cv2.findNonZero(mixed[top : top + height, left : left + width]).reshape(-1, 2).T
        samples = self.maps.at_pixels(t, x + left, y + top)
        lit = [
            _canonical_colors(image, box, uv) * gain
            for (image, box), uv, gain in zip(self.canonicals, samples.uv, samples.gain, strict=True)
        ]
        seen = sum(color * weight[:, None] for color, weight in zip(lit, samples.weight, strict=True))
        values[y, x, :3] = 255 * (lit[layer] - seen)
        return Excess(values, (top, left))

    def _change(
        self, look: Look, size: tuple[int, int], band: slice, part: Part
    ) -> Float[np.ndarray, "rows columns 4"] | None:
        """What an edit does to a part of the source: what it adds (RGB), and how much of the source it hides.

        None if it does nothing. Colours are in 8-bit units. Four channels at a time are what OpenCV is quickest at.
        """
        uv = self.maps.uv_part(look.t, look.layer, size, part)
        light = self.maps.light(look.t, look.layer, size, part)
        change = cv2.multiply(_lookup(self.edits[look.layer], uv, look.level), light)
        strength = cv2.extractChannel(change, 3)
        if not cv2.countNonZero(strength):
            return None
        columns = _columns(look.mixed[band], size[0])
        if look.excess is not None and columns is not None:
            columns = slice(max(columns.start, part[1].start), min(columns.stop, part[1].stop))
            excess = self.maps.enlarged(look.excess.values, look.excess.corner, size, (part[0], columns))
            here = change[:, _inside(columns, part[1])]
            shares = cv2.cvtColor(strength[:, _inside(columns, part[1])], cv2.COLOR_GRAY2RGBA)
            here -= cv2.multiply(excess, shares)
        return change


def _over(
    source: UInt8[np.ndarray, "rows columns 3"], change: Float[np.ndarray, "rows columns 4"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The source under a change.

    Rounds and saturates; 8-bit values are exact in float32, so where the change is zero the source comes back.
    """
    kept = cv2.cvtColor(cv2.subtract(1.0, cv2.extractChannel(change, 3)), cv2.COLOR_GRAY2RGB)
    seen = cv2.multiply(source, kept, dtype=cv2.CV_32F)
    return cv2.add(seen, cv2.cvtColor(change, cv2.COLOR_RGBA2RGB), dtype=cv2.CV_8U)


def _apart(changes: Sequence[tuple[Part, np.ndarray]]) -> Sequence[tuple[Part, np.ndarray]]:
    """The changes if their parts lie apart; their sum over the whole of it where some overlap."""
    if not any(_overlap(one, other) for (one, _), (other, _) in combinations(changes, 2)):
        return changes
    rows, columns = (_hull([part[axis] for part, _ in changes]) for axis in (0, 1))
    total = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 4), np.float32)
    for (own_rows, own_columns), change in changes:
        total[_inside(own_rows, rows), _inside(own_columns, columns)] += change
    return [((rows, columns), total)]


def _overlap(one: Part, other: Part) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _hull(parts: Sequence[slice]) -> slice:
    """The smallest range that holds all of `parts`."""
    return slice(min(part.start for part in parts), max(part.stop for part in parts))


def _inside(part: slice, whole: slice) -> slice:
    """Where `part` lies within `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)


def _bands(stored: int, wanted: int) -> Iterator[tuple[slice, slice]]:
    """Bands of rows: rows of the fit that may reach into one, and the rows of the frame that it has.

    What is looked up and blended for one band stays in the processor's cache; whole frames do not.
    """
    scale = wanted / stored
    height = max(1, round(BAND / scale))
    for start in range(0, stored, height):
        stop = min(stored, start + height)
        rows = slice(round(start * scale), round(stop * scale))
        if rows.stop > rows.start:
            yield slice(max(0, start - REACH), stop + REACH), rows


def _columns(touched: UInt8[np.ndarray, "rows columns"], wanted: int) -> slice | None:
    """The columns of a frame that may change, from those touched at the size of the fit."""
    left, _, width, _ = cv2.boundingRect(touched)
    if not width:
        return None
    scale = wanted / touched.shape[1]
    return slice(max(0, int((left - REACH) * scale)), min(wanted, math.ceil((left + width + REACH) * scale)))


def _texel_positions(uv: Float[np.ndarray, "*n 2"], box: Box, shape: tuple[int, ...]) -> Float[np.ndarray, "*n 2"]:
    """Sample positions (0 is the centre of the first texel) of uv in an image of shape (height, width) over `box`."""
    x, y = shape[1] / box.width, shape[0] / box.height
    linear = np.array([[x, 0, -box.u0 * x - 0.5], [0, y, -box.v0 * y - 0.5]])
    return cv2.transform(uv, linear)  # fifty times as fast as numpy along an axis of two


def _lookup(
    edit: EditTexture, uv: Float[np.ndarray, "rows columns 2"], level: int
) -> Float[np.ndarray, "rows columns 4"]:
    """Premultiplied colours in 8-bit units and alpha of the overlay; transparent outside its box."""
    image = edit.levels[min(level, len(edit.levels) - 1)]
    texels = _texel_positions(uv, edit.box, image.shape)
    return cv2.remap(image, texels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _level(texels: Float[np.ndarray, "rows columns 2"]) -> int:
    """How often to halve the overlay so that neighbouring pixels are at most about 1.5 texels apart."""
    if texels.shape[1] < 2:
        return 0
    rows, columns = (max(1, side // 16) for side in texels.shape[:2])
    x, y = (texels[::rows, 1::columns] - texels[::rows, :-1:columns]).reshape(-1, 2).T
    squares = np.sort(x * x + y * y)  # np.median takes longer than a remap
    return max(0, round(0.5 * math.log2(max(1e-12, float(squares[len(squares) // 2])))))


def _canonical_colors(
    image: Float[np.ndarray, "height width 4"], box: Box, uv: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 3"]:
    texels = _texel_positions(uv[:, None], box, image.shape)[:, 0]
    return scattered(image, texels[:, 0], texels[:, 1])[:, :3]

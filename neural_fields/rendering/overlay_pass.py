"""The pass that puts painted overlays on frames: a lookup in the overlays and a blend. No network runs.

    out = source + sum_i weight_i * alpha_i * (gain_i * edit_i - observed_i)

where `observed_i` is what layer i contributes to the source pixel: the model's color of the layer plus the residual
of the model in that pixel, so that the contributions of all layers add up to the source. A pixel that no edit covers
keeps the value of the source, bit for bit.

A frame is processed in bands of rows, and of a band only the columns that the edit may reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.prefetch import map_in_threads
from neural_fields.imaging.alpha import unpremultiply
from neural_fields.imaging.resampling import RIM, copy_first_channels, sample_bilinear
from neural_fields.imaging.tiles import (
    Part,
    bounding_part,
    enclosing_range,
    parts_overlap,
    row_bands,
    to_global_range,
    to_local_range,
)
from neural_fields.rendering.base import Canonicals, OverlayOptions, RenderPass


@dataclass(frozen=True)
class OverlaySettings:
    """Settings of the overlay pass."""

    full_weight: float = 0.996  # where a layer has at least this weight, it alone fills the pixel
    reach_px: int = 2  # touched pixels of the maps may change the frame up to this many pixels of the maps around them
    max_levels: int = 5  # most levels of an overlay's pyramid, each half the size of the one before
    min_level_px: int = 8  # a level whose shorter side is smaller, in texels, is not halved again
    # Side of the square around opaque texels that is touched, as a share of the longer side, ...
    dilation_share: float = 0.02
    min_dilation_px: int = 5  # ... and at least this many texels
    band_rows: int = 64  # rows of a frame that are processed together, so that they stay in the CPU cache

    @property
    def margin_px(self) -> int:
        """Pixels of the maps to keep around the touched ones, for the interpolation of the outermost ones."""
        return self.reach_px + 1


DEFAULTS = OverlaySettings()


@dataclass(frozen=True)
class OverlayPyramid:
    """An overlay ready for lookup: premultiplied, with a pyramid of halved copies for where it appears smaller."""

    levels: tuple[Float[np.ndarray, "_ _ 4"], ...]  # each half the size of the one before; colors up to 255
    opaque_mask: UInt8[np.ndarray, "height width"]  # 255 where the overlay is not transparent
    reach_texels: int  # side of the square around these texels that may be changed, at least
    box: Box

    def find_touchable_mask(self, level: int) -> UInt8[np.ndarray, "height width"]:
        """Finds the texels that the overlay may change: 255 where it is not transparent, and around there.

        Args:
            level: of the pyramid, in which neighboring lookups are about a texel apart: the farther apart they are, the
                more surroundings make sure that no paint slips through between them.
        """
        side = max(self.reach_texels, 4 << level) | 1
        if side not in self._touchable_masks:
            self._touchable_masks[side] = cv2.dilate(self.opaque_mask, np.ones((side, side), np.uint8))
        return self._touchable_masks[side]

    _touchable_masks: dict[int, UInt8[np.ndarray, "height width"]] = field(default_factory=dict, repr=False)  # by side


def build_overlay_pyramid(overlay: Overlay, settings: OverlaySettings = DEFAULTS) -> OverlayPyramid:
    """Builds the pyramid of an overlay and the mask of the texels that it may change."""
    bright = cv2.cvtColor(255 * overlay.rgba[..., 3], cv2.COLOR_GRAY2RGBA)  # its fourth channel is one
    levels = [cv2.multiply(overlay.rgba, bright)]
    while min(levels[-1].shape[:2]) >= settings.min_level_px and len(levels) < settings.max_levels:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    opaque = (overlay.rgba[..., 3] > 0).astype(np.uint8) * 255
    side = max(settings.min_dilation_px, round(settings.dilation_share * max(opaque.shape)))
    return OverlayPyramid(tuple(levels), opaque, side, overlay.box)


@dataclass(frozen=True)
class LayerFrameState:
    """The edit of one layer in one frame, at the size of the maps and around the pixels that it touches."""

    layer: int
    corner: tuple[int, int]  # (row, column) in the rimmed maps of the first value of each of these arrays:
    touched: UInt8[np.ndarray, "height width"]  # not zero where the edit may change the frame
    shared: UInt8[np.ndarray, "height width"]  # not zero in and around touched pixels that layers share
    light: Float[np.ndarray, "height width 4"]  # weight times gain of the layer, and its weight
    texels: Float[np.ndarray, "height width 4"]  # positions (x, y, x, y) in `image`
    image: Float[np.ndarray, "_ _ 4"]  # the level of the overlay to look up


@dataclass(frozen=True)
class ColorExcess:
    """In pixels that layers share: the model's color of each layer minus the model's color of the pixel.

    At the size of the maps, where it is smooth enough, and in 8-bit units.
    """

    corner: tuple[int, int]  # (row, column) in the rimmed maps of the first values
    of_layer: Mapping[int, Float[np.ndarray, "height width 4"]]  # the fourth channel is empty


class OverlayPass(RenderPass):
    """Puts overlays on source frames.

    Args:
        maps: the baked maps of the run.
        canonicals: the exported canonical picture of every layer, for pixels that layers share.
        overlays: the paint, by layer.
        options: strength, blend mode and light of the paint; by default plain and lit.
        settings: thresholds and margins of the lookup.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        overlays: Mapping[str, Overlay],
        options: OverlayOptions | None = None,
        settings: OverlaySettings = DEFAULTS,
    ) -> None:
        self.maps = maps
        self.options = options or OverlayOptions()
        self.settings = settings
        self.pyramids = {
            maps.layers.index(name): build_overlay_pyramid(overlay, settings) for name, overlay in overlays.items()
        }
        self.canonicals = [(canonicals[name].rgba, canonicals[name].box) for name in maps.layers]

    @property
    def changes_something(self) -> bool:
        """Whether any layer has an overlay."""
        return bool(self.pyramids)

    @property
    def blends_with_layer(self) -> bool:
        """Whether the paint is blended with the pixels of the frame, which already have the shading."""
        return self.options.blend is not None

    def canonicals_at(self, t: int) -> Canonicals:
        """Returns the canonical pictures of all layers before the overlays, as frame `t` shows them."""
        return self.canonicals if self.options.canonicals_at is None else self.options.canonicals_at(t)

    def affected_mask(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns where an overlay is not transparent and its layer is visible."""
        found = np.zeros((size[1], size[0]), bool)
        for layer in self.pyramids if self.options.strength(t) > 0 else ():
            overlay, _ = self.warp_overlay(t, layer, size)
            found |= (overlay[..., 3] > 0) & (self.maps.read_weights(t, size)[layer] > 0)
        return found

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with the overlays on it, at the size of `source`."""
        strength = self.options.strength(t)
        if strength <= 0:
            return source
        size = (source.shape[1], source.shape[0])
        states = [
            state for layer in self.pyramids if (state := self._layer_state(t, layer, size, strength)) is not None
        ]
        excess = self._color_excess(t, states)
        render_band = partial(self._render_band, states, excess, source)
        result = source
        for patches in map_in_threads(render_band, row_bands(self.maps.size[1], size[1], self.settings.band_rows)):
            for part, patch in patches:
                result = source.copy() if result is source else result
                result[part] = patch
        return result

    def _render_band(
        self,
        states: Sequence[LayerFrameState],
        excess: ColorExcess | None,
        source: UInt8[np.ndarray, "height width 3"],
        rows: slice,
    ) -> list[tuple[Part, UInt8[np.ndarray, "_ _ 3"]]]:
        """Returns the parts of a band of rows that the edits change, with what they are then."""
        size = (source.shape[1], source.shape[0])
        changes = []
        for state in states:
            part = self._touched_part(state.touched, state.corner, size, rows)
            if part is not None:
                changes.append((part, self._compute_change(state, excess, source, part)))
        if any(parts_overlap(one, other) for (one, _), (other, _) in combinations(changes, 2)):
            # Summed over the hull of all parts.
            high, wide = (enclosing_range([part[axis] for part, _ in changes]) for axis in (0, 1))
            total = np.zeros((high.stop - high.start, wide.stop - wide.start, 4), np.float32)
            for (own_rows, own_columns), change in changes:
                total[to_local_range(own_rows, high), to_local_range(own_columns, wide)] += change
            changes = [((high, wide), total)]
        patches = []
        for part, change in changes:
            hidden_share = cv2.extractChannel(change, 3)
            if not cv2.countNonZero(hidden_share):
                continue
            # Rounds and saturates; 8-bit values are exact in float32, so where the change is zero the source stays.
            kept = cv2.cvtColor(cv2.subtract(1.0, hidden_share), cv2.COLOR_GRAY2RGB)
            seen = cv2.multiply(source[part], kept, dtype=cv2.CV_32F)
            patches.append((part, cv2.add(seen, cv2.cvtColor(change, cv2.COLOR_RGBA2RGB), dtype=cv2.CV_8U)))
        return patches

    def warp_overlay(
        self, t: int, layer: int, size: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "height width 4"], Float[np.ndarray, "height width 3"]]:
        """Returns the overlay of a layer warped to a frame: straight RGBA, and its color times the layer's gain.

        Args:
            t: frame of the run.
            layer: number of the layer.
            size: (width, height) of the frame.
        """
        uv, edit = self.maps.read_uv(t, layer, size), self.pyramids[layer]
        level = _pyramid_level(_texel_positions(uv, edit.box, edit.levels[0].shape))
        image = edit.levels[min(level, len(edit.levels) - 1)]
        texels = _texel_positions(uv, edit.box, image.shape)
        # Transparent outside of its box.
        paint = cv2.remap(image, texels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        rgba = unpremultiply(paint / np.array([255, 255, 255, 1], np.float32))
        return rgba, rgba[..., :3] * self.maps.read_gain(t, layer, size)

    def find_level(self, t: int, layer: int, size: tuple[int, int]) -> int | None:
        """Returns the level of the pyramid in which a frame looks the edit of a layer up; None: it shows none of it.

        Args:
            t: frame of the run.
            layer: number of the layer.
            size: (width, height) of the frame.
        """
        state = self._layer_state(t, layer, size, 1.0)
        if state is None:
            return None
        return next(level for level, image in enumerate(self.pyramids[layer].levels) if image is state.image)

    def _layer_state(self, t: int, layer: int, size: tuple[int, int], strength: float) -> LayerFrameState | None:
        """Prepares the edit of a layer for a frame; None if it changes no pixel."""
        edit, (uv, weight) = self.pyramids[layer], self.maps.read_rimmed(t, layer)
        margin = self.settings.margin_px
        seen = bounding_part(weight, margin)
        if seen is None:
            return None
        texels = _texel_positions(uv[seen], edit.box, edit.opaque_mask.shape)
        # Lookups at the size of the maps step over texels.
        touchable = edit.find_touchable_mask(_pyramid_level(texels, weight[seen]))
        reach = cv2.remap(touchable, texels, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        touched = cv2.bitwise_and(reach, weight[seen])  # of a byte that is 0 or 255 and another: zero where either is
        near = bounding_part(touched, margin)
        if near is None:
            return None
        touched, texels = touched[near], texels[near]
        level = min(len(edit.levels) - 1, _pyramid_level(texels, weight[seen][near], self.maps.size[0] / size[0]))
        if level:
            texels = _texel_positions(uv[seen][near], edit.box, edit.levels[level].shape)
        rows, columns = (to_global_range(inner, outer) for inner, outer in zip(near, seen, strict=True))
        full_weight = round(255 * self.settings.full_weight)
        mixed = cv2.bitwise_and(touched, cv2.compare(weight[rows, columns], full_weight, cv2.CMP_LT))
        mixed = cv2.dilate(mixed, np.ones((3, 3), np.uint8))  # interpolation reads the neighbors too
        light = self.maps.read_light(t, layer, rows, columns, lit=self.options.lit and not self.blends_with_layer)
        if strength < 1:
            light = cv2.multiply(light, (strength,) * 4)
        corner = (rows.start, columns.start)
        return LayerFrameState(layer, corner, touched, mixed, light, cv2.merge([texels, texels]), edit.levels[level])

    def _color_excess(self, t: int, states: Sequence[LayerFrameState]) -> ColorExcess | None:
        """Computes by how much the layers differ in the pixels that they share; None if they share none."""
        width, height = (side + 2 * RIM for side in self.maps.size)
        own = np.zeros((len(states), height, width), np.uint8)
        for plane, state in zip(own, states, strict=True):
            (row, column), (rows, columns) = state.corner, state.shared.shape
            plane[row : row + rows, column : column + columns] = state.shared
        mixed = own.max(axis=0, initial=0)
        near = bounding_part(mixed, self.settings.margin_px)
        if near is None:
            return None
        rows, columns = near
        x, y = cv2.findNonZero(mixed[near]).reshape(-1, 2).T
        uvs, weights, gains = self.maps.read_samples(t, x + columns.start, y + rows.start)
        lit = []  # the color of each layer under its light
        for (image, box), uv, gain in zip(self.canonicals_at(t), uvs, gains, strict=True):
            texel_x, texel_y = (plane.reshape(-1) for plane in cv2.split(_texel_positions(uv[None], box, image.shape)))
            lit.append(sample_bilinear(image, texel_x, texel_y) * gain)
        seen = sum(color * _repeat_channels(weight) for color, weight in zip(lit, weights, strict=True))
        of_layer, place = {}, y * (columns.stop - columns.start) + x
        for plane, state in zip(own, states, strict=True):
            values = np.zeros((*mixed[near].shape, 4), np.float32)
            shared = (plane[near].reshape(-1).take(place) > 0).astype(np.float32)
            values.reshape(-1, 4)[place] = (lit[state.layer] - seen) * _repeat_channels(255 * shared)
            cv2.insertChannel(np.zeros(values.shape[:2], np.float32), values, 3)
            of_layer[state.layer] = values
        return ColorExcess((rows.start, columns.start), of_layer)

    def _touched_part(
        self, touched: UInt8[np.ndarray, "height width"], corner: tuple[int, int], size: tuple[int, int], rows: slice
    ) -> Part | None:
        """Returns the part of a band of rows of a frame that touched pixels of the maps may change; None: no part."""
        scale_x, scale_y = (wanted / stored for wanted, stored in zip(size, self.maps.size, strict=True))
        reach = self.settings.reach_px
        # The position of the first value in the frame without its rim, and the values that may reach into the band.
        down, across = corner[0] - RIM, corner[1] - RIM
        first = max(0, int(rows.start / scale_y) - reach - down)
        last = max(first, math.ceil(rows.stop / scale_y) + reach - down)
        left, top, width, height = cv2.boundingRect(touched[first:last]) if first < len(touched) else (0, 0, 0, 0)
        if not width:
            return None
        left, top = left + across, top + first + down
        return (
            slice(
                max(rows.start, int((top - reach) * scale_y)),
                min(rows.stop, math.ceil((top + height + reach) * scale_y)),
            ),
            slice(max(0, int((left - reach) * scale_x)), min(size[0], math.ceil((left + width + reach) * scale_x))),
        )

    def _compute_change(
        self,
        state: LayerFrameState,
        excess: ColorExcess | None,
        source: UInt8[np.ndarray, "height width 3"],
        part: Part,
    ) -> Float[np.ndarray, "rows columns 4"]:
        """Computes what an edit adds to a part of the source (RGB), and how much of the source it hides.

        Colors are in 8-bit units. Four channels at a time are what OpenCV is quickest at.
        """
        size = (source.shape[1], source.shape[0])
        texels = copy_first_channels(self.maps.resample_part(state.texels, state.corner, size, part), 2)
        light = self.maps.resample_part(state.light, state.corner, size, part)
        change = cv2.remap(state.image, texels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        # The excess of the layer, and where in the part it has any.
        shared: Part | None = None
        mixed = self._touched_part(state.shared, state.corner, size, part[0])
        if excess is not None and mixed is not None and parts_overlap(mixed, part):
            rows, columns = mixed[0], slice(max(mixed[1].start, part[1].start), min(mixed[1].stop, part[1].stop))
            values = self.maps.resample_part(excess.of_layer[state.layer], excess.corner, size, (rows, columns))
            shared = (to_local_range(rows, part[0]), to_local_range(columns, part[1]))
        if self.blends_with_layer:
            excess_part = None if shared is None else (shared, values[..., :3])
            change = self._blend_paint(change, source[part], part, excess_part)
        change = cv2.multiply(change, light, dst=change)
        if shared is not None:
            here = change[shared]
            here -= cv2.multiply(values, cv2.cvtColor(cv2.extractChannel(here, 3), cv2.COLOR_GRAY2RGBA))
        return change

    def _blend_paint(
        self,
        paint: Float[np.ndarray, "rows columns 4"],
        seen: UInt8[np.ndarray, "rows columns 3"],
        part: Part,
        excess: tuple[Part, Float[np.ndarray, "_ _ 3"]] | None,
    ) -> Float[np.ndarray, "rows columns 4"]:
        """Blends premultiplied paint in 8-bit units with what a part of the frame shows of the layer.

        That is the frame, and in a rectangle of the part, where layers share pixels, the excess of the layer with it.
        """
        assert self.options.blend is not None
        under = seen.astype(np.float32)
        if excess is not None:
            under[excess[0]] += excess[1]
        alpha = paint[..., 3:]
        top = np.clip(paint[..., :3] / np.maximum(255 * alpha, 1e-3), 0, 1)
        mixed = 255 * self.options.blend(top, np.clip(under / 255, 0, 1))
        return np.concatenate([mixed * alpha, alpha], axis=-1).astype(np.float32)


def _texel_positions(uv: Float[np.ndarray, "*n 2"], box: Box, shape: tuple[int, ...]) -> Float[np.ndarray, "*n 2"]:
    """Computes the positions (0 is the center of the first texel) of uv in an image of (height, width) over `box`."""
    x, y = shape[1] / box.width, shape[0] / box.height
    linear = np.array([[x, 0, -box.u0 * x - 0.5], [0, y, -box.v0 * y - 0.5]])
    return cv2.transform(uv, linear)  # fifty times as fast as numpy along an axis of two


def _pyramid_level(
    texels: Float[np.ndarray, "rows columns 2"],
    weight: UInt8[np.ndarray, "rows columns"] | None = None,
    step: float = 1.0,
) -> int:
    """Returns how often to halve the overlay so that neighboring pixels are at most about 1.5 texels apart.

    Args:
        texels: positions of neighboring samples.
        weight: of the layer in the samples: where it is hardly seen, its positions mean little.
        step: samples from one pixel to the next.
    """
    if texels.shape[1] < 2:
        return 0
    rows, columns = (max(1, side // 16) for side in texels.shape[:2])
    x, y = (texels[::rows, 1::columns] - texels[::rows, :-1:columns]).reshape(-1, 2).T
    squares = x * x + y * y
    if weight is not None:
        is_seen = (np.minimum(weight[::rows, 1::columns], weight[::rows, :-1:columns]) > 127).reshape(-1)
        squares = squares[is_seen] if is_seen.any() else squares
    squares = np.sort(squares)  # np.median takes longer than a remap
    return max(0, round(0.5 * math.log2(max(1e-12, step**2 * float(squares[len(squares) // 2])))))


def _repeat_channels(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 4"]:
    """Repeats each value for four channels; multiplying by them takes a tenth of the time of broadcasting."""
    return cv2.merge([values] * 4).reshape(-1, 4)

"""The pass that puts painted overlays on frames: a lookup in the overlays and a blend. No network runs.

    out = source + sum_i weight_i * alpha_i * (gain_i * edit_i - observed_i)

where `observed_i` is what layer i contributes to the source pixel: the model's color of the layer plus the residual
of the model in that pixel, so that the contributions of all layers add up to the source. A pixel that no edit covers
keeps the value of the source, bit for bit.

A frame is processed in bands of rows, and of a band only the columns that the edit may reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_fields.atlas.canonical import CanonicalImage, find_texel_positions
from neural_fields.atlas.placed_picture import Paint
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.prefetch import map_in_threads
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.resampling import RIM, copy_first_channels, sample_area
from neural_fields.imaging.tiles import (
    Part,
    bounding_part,
    enclosing_range,
    parts_overlap,
    row_bands,
    to_global_range,
    to_local_range,
)
from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.rendering.base import Canonicals, OverlayOptions, RenderPass
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.motion_blur import measure_shutter_motion, move_places
from neural_fields.rendering.picture_lookup import Level, PictureLookup, measure_steps


@dataclass(frozen=True)
class OverlaySettings:
    """Settings of the overlay pass."""

    full_weight: float = 0.996  # where a layer has at least this weight, it alone fills the pixel
    reach_px: int = 2  # touched pixels of the maps may change the frame up to this many pixels of the maps around them
    min_painted_weight: float = 0.25  # from this weight of a layer on, a painted frame shows the paint on it as it is
    band_rows: int = 64  # rows of a frame that are processed together, so that they stay in the CPU cache

    @property
    def margin_px(self) -> int:
        """Pixels of the maps to keep around the touched ones, for the interpolation of the outermost ones."""
        return self.reach_px + 1


DEFAULTS = OverlaySettings()


@dataclass(frozen=True)
class LayerFrameState:
    """The paint on one patch of a layer in one frame, at the size of the maps and around the pixels that it touches."""

    layer: int
    corner: tuple[int, int]  # (row, column) in the rimmed maps of the first value of each of these arrays:
    touched: UInt8[np.ndarray, "height width"]  # not zero where the edit may change the frame
    shared: UInt8[np.ndarray, "height width"]  # not zero in and around touched pixels that layers share
    light: Float[np.ndarray, "height width 4"]  # weight times gain of the layer, and its weight, by strength
    level: Level  # of the copy of the picture to look up
    # Positions in it, in which 0 is the center of its first pixel, and by how much they move within the shutter.
    places: Float[np.ndarray, "_ _ 4"]
    taps: int = 1  # lookups for each pixel along its motion

    @cached_property
    def weight(self) -> Float[np.ndarray, "height width"]:
        """The weight of the layer, times the strength of the edit."""
        return cv2.extractChannel(self.light, 3)


@dataclass(frozen=True)
class ColorExcess:
    """In pixels that layers share: the model's color of each layer minus the model's color of the pixel.

    At the size of the maps, where it is smooth enough, and in 8-bit units.
    """

    corner: tuple[int, int]  # (row, column) in the rimmed maps of the first values
    of_state: Sequence[Float[np.ndarray, "height width 4"]]  # the fourth channel is empty


class OverlayPass(RenderPass):
    """Puts overlays on source frames.

    Args:
        maps: the baked maps of the run.
        canonicals: the exported canonical picture of every layer, for pixels that layers share.
        overlays: the paint, by layer.
        options: strength, blend mode and light of the paint; by default plain and lit.
        frames: number in the source of each frame of the run; those that were painted themselves show that paint. If
            empty, all frames look the paint up.
        settings: thresholds and margins of the lookup.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        overlays: Mapping[str, Paint],
        options: OverlayOptions | None = None,
        frames: Sequence[int] = (),
        settings: OverlaySettings = DEFAULTS,
    ) -> None:
        self.maps = maps
        self.options = options or OverlayOptions()
        self.settings = settings
        self.lookups = {maps.layers.index(name): PictureLookup.build(paint) for name, paint in overlays.items()}
        self.painted_frames = {
            (maps.layers.index(name), frames.index(one.frame)): one
            for name, paint in overlays.items()
            for one in paint.frames
            if one.frame in frames and self.options.blend is None
        }
        self.canonicals = [(canonicals[name].rgba, canonicals[name].box) for name in maps.layers]

    @property
    def changes_something(self) -> bool:
        """Whether any layer has an overlay."""
        return bool(self.lookups)

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
        for layer in self.lookups if self.options.strength(t) > 0 else ():
            if (layer, t) in self.painted_frames:
                black = np.zeros((size[1], size[0], 3), np.uint8)
                white = np.full((size[1], size[0], 3), 255, np.uint8)
                for plain in (black, white):
                    found |= (self._show_as_painted(plain, t, layer, 1.0) != plain).any(axis=-1)
            if self._is_shown_as_painted(t, layer):
                continue
            overlay, _ = self.warp_overlay(t, layer, size)
            shown = overlay[..., 3] > 0
            if reach_px := measure_shutter_motion(self.maps, t, layer, self.options.shutter)[1]:
                side = 2 * math.ceil((reach_px + 1) * size[0] / self.maps.size[0]) + 1
                shown = cv2.dilate(shown.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
            found |= shown & (self.maps.read_weights(t, size)[layer] > 0)
        return found

    def render_frame(
        self, t: int, source: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with the overlays on it, at the size of `source`."""
        strength = self.options.strength(t)
        if strength <= 0:
            return source
        size = (source.shape[1], source.shape[0])
        edges = edges or FrameEdges(t, source)
        looked_up = [layer for layer in self.lookups if not self._is_shown_as_painted(t, layer)]
        states = [state for layer in looked_up for state in self._find_states(t, layer, size, strength)]
        excess = self._color_excess(t, states)
        for state in states:
            edges.guide_weight(self.maps, state.layer)  # threads below would each find it
        if states and self.has_compiled_loops:
            result = self._render_at_once(states, excess, source, edges)
        else:
            result = self._render_in_steps(states, excess, source, edges)
        for layer in self.lookups:
            if (layer, t) in self.painted_frames:
                result = self._show_as_painted(result, t, layer, strength)
        return result

    @property
    def has_compiled_loops(self) -> bool:
        """Whether compiled loops do the work of this pass."""
        return can_compile_loops() and not self.blends_with_layer

    def _render_at_once(
        self,
        states: Sequence[LayerFrameState],
        excess: ColorExcess | None,
        source: UInt8[np.ndarray, "height width 3"],
        edges: FrameEdges,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with the edits on it, by compiled loops where the edits do not overlap."""
        size = (source.shape[1], source.shape[0])
        result = source.copy()

        def render_band(rows: slice) -> int:
            parts = [self._touched_part(state.touched, state.corner, size, rows) for state in states]
            known = [part for part in parts if part is not None]
            if any(parts_overlap(one, other) for one, other in combinations(known, 2)):
                patches = self._render_band(states, excess, source, edges, rows)
                for part, patch in patches:
                    result[part] = patch
                return len(patches)
            count = 0
            for number, (state, place) in enumerate(zip(states, parts, strict=True)):
                if place is not None:
                    own = None if excess is None else (excess.corner, excess.of_state[number])
                    count += self._put_state(state, own, source, edges, result, place)
            return count

        bands = row_bands(self.maps.size[1], size[1], self.settings.band_rows)
        return result if sum(map_in_threads(render_band, bands)) else source

    def _put_state(
        self,
        state: LayerFrameState,
        excess: tuple[tuple[int, int], Float[np.ndarray, "_ _ 4"]] | None,
        source: UInt8[np.ndarray, "height width 3"],
        edges: FrameEdges,
        result: UInt8[np.ndarray, "height width 3"],
        part: Part,
    ) -> int:
        """Puts paint on a part of a frame with a compiled loop; returns the number of pixels with paint."""
        from neural_fields.rendering.blend_kernels import put_paint  # numba takes a second

        image = self.lookups[state.layer].read_copy(state.level)
        steps, *excesses = self._locate_samples(state.corner, excess, source)
        sides, places, guide = list_sides(part), state.places, self._locate_guide(state, edges)
        return put_paint(source, result, sides, steps, places, state.light, image, *excesses, *guide, state.taps)

    def _locate_samples(
        self,
        corner: tuple[int, int],
        excess: tuple[tuple[int, int], Float[np.ndarray, "_ _ 4"]] | None,
        source: UInt8[np.ndarray, "height width 3"],
    ) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "_ _ 4"], Float[np.ndarray, "2"]]:
        """Returns what compiled loops need to find the samples of the maps for a pixel: see `put_paint`."""
        steps = [self.maps.size[0] / source.shape[1], self.maps.size[1] / source.shape[0]]
        start = [RIM - 0.5 - corner[1], RIM - 0.5 - corner[0]]
        if excess is None:
            return np.array([*steps, *start]), np.zeros((0, 0, 4), np.float32), np.zeros(2)
        (row, column), values = excess
        return np.array([*steps, *start]), values, np.array([RIM - 0.5 - column, RIM - 0.5 - row])

    def _locate_guide(
        self, state: LayerFrameState, edges: FrameEdges
    ) -> tuple[
        UInt8[np.ndarray, "height width 3"],
        Float[np.ndarray, "_ _ 2"],
        Int[np.ndarray, "_ 2"],
        Float[np.ndarray, "_ _ 4"],
        Int[np.ndarray, "2"],
        Float[np.ndarray, "2"],
    ]:
        """Returns what compiled loops need to refine weights: see `put_paint`."""
        guide, settings = edges.guide_weight(self.maps, state.layer), edges.settings
        shares = np.array([settings.guided_share, settings.full_weight])
        if guide is None:
            nothing = (np.zeros((0, 0, 2), np.float32), np.zeros((0, 2), int), np.zeros((0, 0, 4), np.float32))
            return edges.frame, *nothing, np.zeros(2, int), shares
        return edges.frame, guide.outlines, guide.spans, guide.factors, np.subtract(state.corner, guide.corner), shares

    def _render_in_steps(
        self,
        states: Sequence[LayerFrameState],
        excess: ColorExcess | None,
        source: UInt8[np.ndarray, "height width 3"],
        edges: FrameEdges,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with the edits on it, by OpenCV."""
        size = (source.shape[1], source.shape[0])
        render_band = partial(self._render_band, states, excess, source, edges)
        result = source
        for patches in map_in_threads(render_band, row_bands(self.maps.size[1], size[1], self.settings.band_rows)):
            for part, patch in patches:
                result = source.copy() if result is source else result
                result[part] = patch
        return result

    def _is_shown_as_painted(self, t: int, layer: int) -> bool:
        """Returns whether all that a frame shows of a layer's paint is what was painted on that frame."""
        return (layer, t) in self.painted_frames and self.painted_frames[layer, t].is_whole

    def _show_as_painted(
        self, frame: UInt8[np.ndarray, "height width 3"], t: int, layer: int, strength: float
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with what was painted on it, where it shows the layer: opaque paint as it is.

        Args:
            frame: stays as it is.
            t: number of the frame in the run.
            layer: number of the layer.
            strength: of the paint, 0 to 1.
        """
        paint, size = self.painted_frames[layer, t], (frame.shape[1], frame.shape[0])
        (left, top), (right, bottom) = (np.array(paint.box).reshape(2, 2) * size).tolist()
        rows = slice(max(0, math.floor(top)), min(size[1], math.ceil(bottom)))
        columns = slice(max(0, math.floor(left)), min(size[0], math.ceil(right)))
        # The center of pixel j of the frame lies at (j + 0.5 - left) / pixel - 0.5 in the picture.
        high, wide = paint.rgba.shape[:2]
        rgba = premultiply(paint.rgba)
        pixel = np.array([(right - left) / wide, (bottom - top) / high])
        if pixel.min() < 0.9:  # finer than the frame
            wide, high = max(1, round(right - left)), max(1, round(bottom - top))
            rgba = resize_image(rgba, (wide, high))
            pixel = np.array([(right - left) / wide, (bottom - top) / high])
        x = (np.arange(columns.start, columns.stop) + 0.5 - left) / pixel[0] - 0.5
        y = (np.arange(rows.start, rows.stop) + 0.5 - top) / pixel[1] - 0.5
        at = [np.ascontiguousarray(part, np.float32) for part in np.meshgrid(x, y)]
        found = cv2.remap(np.ascontiguousarray(rgba), *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        weight = self.maps.read_layer_weight(t, layer, size, (rows, columns))
        found = found * (strength * np.clip(weight / self.settings.min_painted_weight, 0, 1))[..., None]
        result = frame.copy()
        mixed = frame[rows, columns] * (1 - found[..., 3:]) + 255 * found[..., :3]
        result[rows, columns] = np.rint(mixed).clip(0, 255)
        return result

    def _render_band(
        self,
        states: Sequence[LayerFrameState],
        excess: ColorExcess | None,
        source: UInt8[np.ndarray, "height width 3"],
        edges: FrameEdges,
        rows: slice,
    ) -> list[tuple[Part, UInt8[np.ndarray, "_ _ 3"]]]:
        """Returns the parts of a band of rows that the edits change, with what they are then."""
        size = (source.shape[1], source.shape[0])
        changes = []
        for number, state in enumerate(states):
            part = self._touched_part(state.touched, state.corner, size, rows)
            if part is not None:
                own_excess = None if excess is None else (excess.corner, excess.of_state[number])
                changes.append((part, self._compute_change(state, own_excess, source, edges, part)))
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
        uv, lookup = self.maps.read_uv(t, layer, size), self.lookups[layer]
        total = np.zeros((size[1], size[0], 4), np.float32)
        for patch in lookup.patches:
            places = patch.find_places(uv)
            level = lookup.choose_level(measure_steps(places))
            paint = lookup.look_up(level, lookup.scale_places(level, places))
            paint *= places[..., 2:] / np.array([255, 255, 255, 1], np.float32)
            light = patch.find_light(uv)
            total += paint if light is None else paint * light
        rgba = unpremultiply(total)
        return rgba, rgba[..., :3] * self.maps.read_gain(t, layer, size)

    def find_level(self, t: int, layer: int, size: tuple[int, int]) -> Level | None:
        """Returns the copy of its picture in which a frame looks the paint of a layer up; None: it shows none of it.

        Args:
            t: frame of the run.
            layer: number of the layer.
            size: (width, height) of the frame.
        """
        states = list(self._find_states(t, layer, size, 1.0))
        return states[0].level if states else None

    def _find_states(self, t: int, layer: int, size: tuple[int, int], strength: float) -> Iterator[LayerFrameState]:
        """Prepares the paint of a layer for a frame: for each patch of the plane that changes a pixel.

        Args:
            t: frame of the run.
            layer: number of the layer.
            size: (width, height) of the frame.
            strength: of the paint, 0 to 1.
        """
        lookup, (uv, weight) = self.lookups[layer], self.maps.read_rimmed(t, layer)
        motion, reach_px = measure_shutter_motion(self.maps, t, layer, self.options.shutter)
        margin = self.settings.margin_px + reach_px
        seen = bounding_part(weight, margin)
        if seen is None:
            return
        frame_seen = seen
        for patch in lookup.patches:
            near = patch.find_part(uv[frame_seen], margin)
            if near is None:
                continue
            rows, columns = (to_global_range(inner, outer) for inner, outer in zip(near, frame_seen, strict=True))
            seen = (rows, columns)
            places = patch.find_places(uv[seen])
            # Lookups at the size of the maps step over pixels of the picture.
            mask = lookup.find_touchable_mask(max(measure_steps(places, weight[seen])))
            shrink = np.array([mask.shape[1], mask.shape[0]]) / lookup.size
            at = cv2.transform(places, np.array([[shrink[0], 0, 0, -0.5], [0, shrink[1], 0, -0.5]]))
            reach = cv2.remap(mask, at, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
            shown = cv2.extractChannel(places, 2)
            reach = cv2.bitwise_and(reach, cv2.compare(shown, 0, cv2.CMP_GT))
            if reach_px:
                reach = cv2.dilate(reach, np.ones((2 * reach_px + 1,) * 2, np.uint8))
            touched = cv2.bitwise_and(reach, weight[seen])  # zero where either is: one is 0 or 255
            near = bounding_part(touched, margin)
            if near is None:
                continue
            touched, places = touched[near], places[near]
            rows, columns = (to_global_range(inner, outer) for inner, outer in zip(near, seen, strict=True))
            step_x, step_y = measure_steps(places, weight[rows, columns])
            scale = self.maps.size[0] / size[0]
            level = lookup.choose_level((step_x * scale, step_y * scale))
            at = lookup.scale_places(level, places)
            mixed = self._find_shared(touched, weight[rows, columns])
            light = self.maps.read_light(t, layer, rows, columns, lit=self.options.lit and not self.blends_with_layer)
            own_light = patch.find_light(uv[rows, columns])
            if own_light is not None and self.options.lit and not self.blends_with_layer:
                light = cv2.multiply(light, own_light)
            if patch.affine is None:
                light = cv2.multiply(light, cv2.merge([shown[near]] * 4))
            if strength < 1:
                light = cv2.multiply(light, (strength,) * 4)
            yield LayerFrameState(
                layer,
                (rows.start, columns.start),
                touched,
                mixed,
                light,
                level,
                *move_places(
                    patch, lookup, level, at, uv[rows, columns], None if motion is None else motion[rows, columns]
                ),
            )

    def _find_shared(
        self, touched: UInt8[np.ndarray, "height width"], weight: UInt8[np.ndarray, "height width"]
    ) -> UInt8[np.ndarray, "height width"]:
        """Finds the touched pixels of the maps that a layer shares with others, and those around them."""
        full_weight = round(255 * self.settings.full_weight)
        mixed = cv2.bitwise_and(touched, cv2.compare(weight, full_weight, cv2.CMP_LT))
        return cv2.dilate(mixed, np.ones((3, 3), np.uint8))  # interpolation reads the neighbors too

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
            texel_x, texel_y = (
                plane.reshape(-1)
                for plane in cv2.split(find_texel_positions(uv[None], box, (image.shape[1], image.shape[0])))
            )
            pixel = 2 / max(self.maps.size) * image.shape[1] / box.width  # of the maps, in texels
            lit.append(sample_area(image, texel_x, texel_y, pixel) * gain)
        seen = sum(color * _repeat_channels(weight) for color, weight in zip(lit, weights, strict=True))
        of_state, place = [], y * (columns.stop - columns.start) + x
        for plane, state in zip(own, states, strict=True):
            values = np.zeros((*mixed[near].shape, 4), np.float32)
            shared = (plane[near].reshape(-1).take(place) > 0).astype(np.float32)
            values.reshape(-1, 4)[place] = (lit[state.layer] - seen) * _repeat_channels(255 * shared)
            cv2.insertChannel(np.zeros(values.shape[:2], np.float32), values, 3)
            of_state.append(values)
        return ColorExcess((rows.start, columns.start), of_state)

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
        excess: tuple[tuple[int, int], Float[np.ndarray, "_ _ 4"]] | None,
        source: UInt8[np.ndarray, "height width 3"],
        edges: FrameEdges,
        part: Part,
    ) -> Float[np.ndarray, "rows columns 4"]:
        """Computes what an edit adds to a part of the source (RGB), and how much of the source it hides.

        Colors are in 8-bit units. Four channels at a time are what OpenCV is quickest at.
        """
        size = (source.shape[1], source.shape[0])
        placed = self.maps.resample_part(state.places, state.corner, size, part)
        light, places = self.maps.resample_part(state.light, state.corner, size, part), copy_first_channels(placed, 2)
        lookup, moments = self.lookups[state.layer], (np.arange(state.taps) + 0.5) / state.taps - 0.5
        change = lookup.look_up(state.level, places + np.float32(moments[0]) * placed[..., 2:])
        for moment in moments[1:]:
            change += lookup.look_up(state.level, places + np.float32(moment) * placed[..., 2:])
        if state.taps > 1:
            change /= np.float32(state.taps)
        # The excess of the layer, and where in the part it has any.
        shared: Part | None = None
        mixed = self._touched_part(state.shared, state.corner, size, part[0])
        if excess is not None and mixed is not None and parts_overlap(mixed, part):
            rows, columns = mixed[0], slice(max(mixed[1].start, part[1].start), min(mixed[1].stop, part[1].stop))
            values = self.maps.resample_part(excess[1], excess[0], size, (rows, columns))
            shared = (to_local_range(rows, part[0]), to_local_range(columns, part[1]))
        guide = edges.guide_weight(self.maps, state.layer)
        if guide is not None and mixed is not None and parts_overlap(mixed, part):
            # The edges of the frame change the weight in pixels that are shared, and what others show of them.
            coarse, fine = edges.refine_weight(self.maps, guide, part)
            is_mixed = edges.is_mixed(coarse)
            light = light * np.where(is_mixed, fine / np.maximum(coarse, 1e-6), 1)[..., None].astype(np.float32)
            if shared is not None:
                rest = np.where(is_mixed, (1 - fine) / np.maximum(1 - coarse, 1e-6), 1)[shared]
                values = values * rest[..., None].astype(np.float32)
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


def list_sides(part: Part) -> Int[np.ndarray, "4"]:
    """Returns top, bottom, left and right of a part of a frame."""
    rows, columns = part
    return np.array([rows.start, rows.stop, columns.start, columns.stop])


def _repeat_channels(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 4"]:
    """Repeats each value for four channels; multiplying by them takes a tenth of the time of broadcasting."""
    return cv2.merge([values] * 4).reshape(-1, 4)

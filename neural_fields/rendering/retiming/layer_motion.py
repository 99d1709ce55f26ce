"""The motion of a layer from one frame to the next: computed from its maps, checked and refined on the frames.

A point of a layer has one uv, and the maps of two frames give its position in each. That motion is used where the
frame shows the layer. A model may have represented the same content twice, or blur what it cannot explain; so where
the two frames differ along the motion, it is interpolated from the surroundings instead, and the rest is estimated
with optical flow. Beyond the visible pixels the motion continues as an affine one (`uv_extrapolation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap, extrapolate_uv
from neural_fields.atlas.uv_maps import Maps
from neural_fields.data.flow.compute import compute_pair_flow
from neural_fields.imaging.push_pull import pull_push


@dataclass(frozen=True)
class LayerMotionSettings:
    """Settings of the motion of layers."""

    grid_step_px: int = 6  # pixels of the maps from one point of the grid to the next
    grid_margin_share: float = 0.1  # how far the grid reaches beyond the frame, as a share of the longer side
    map_samples: int = 320  # samples of a map along its longer side; enough, as maps are smooth
    max_bend: float = 0.5  # longest bend of a path, as a share of the step to the next frame
    compared_px: int = 480  # longer side at which frames are compared
    compared_window_px: int = 7  # side of the window over which differences of frames are averaged
    compared_blur_px: int = 3  # side of the box that smooths frames before they are compared
    max_difference: float = 16.0  # where frames differ more along a motion, in 8-bit units, its surroundings replace it
    max_flow_ratio: float = 0.85  # flow is used only where it reduces the difference below this share
    flow_blur_px: int = 5  # side of the box that smooths the flow and its confidence
    min_confidence: float = 0.5  # flow is used at pixels with more than this confidence
    backdrop: float = 128.0  # 8-bit gray behind transparent pixels while frames are compared


DEFAULTS = LayerMotionSettings()


@dataclass(frozen=True)
class LayerMotion:
    """The motion of a layer from a frame to the next, in pixels of the maps, at the points of a grid.

    Attributes:
        step: the displacement to the next frame.
        bend: the change of the step from one pair of frames to the next.
        counts: the weight of each of the two frames when the colors of the layer are interpolated.
    """

    step: Float[np.ndarray, "rows columns 2"]
    bend: Float[np.ndarray, "rows columns 2"]
    counts: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class LayerAppearance:
    """Holds the appearance of a layer in a frame: premultiplied color in 8-bit units, opacity, and their confidence."""

    rgba: Float[np.ndarray, "height width 4"]
    confidence: Float[np.ndarray, "height width"]

    def resize_to(self, size: tuple[int, int]) -> LayerAppearance:
        """Returns the same at a smaller size (width, height)."""
        if (self.confidence.shape[1], self.confidence.shape[0]) == size:
            return self
        return LayerAppearance(
            *(cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in (self.rgba, self.confidence))
        )


@dataclass(frozen=True)
class MotionGrid:
    """The points in a frame and around it at which motion is computed.

    Attributes:
        size: (width, height) of the frame.
        settings: the distance of the points and the margin around the frame.
    """

    size: tuple[int, int]
    settings: LayerMotionSettings = DEFAULTS

    @cached_property
    def points(self) -> Float[np.ndarray, "rows columns 2"]:
        """Positions in pixels."""
        step = self.settings.grid_step_px
        x, y = (
            np.arange(self.first_position, side - self.first_position + step, step, dtype=np.float64)
            for side in self.size
        )
        return np.stack(np.meshgrid(x, y), axis=-1)

    @property
    def first_position(self) -> float:
        """The first position on both axes."""
        step, margin = self.settings.grid_step_px, self.settings.grid_margin_share
        return -float(step * max(1, round(margin * max(self.size) / step)))

    def interpolate_at(
        self, plane: Float[np.ndarray, "rows columns c"], places: Float[np.ndarray, "h w 2"]
    ) -> Float[np.ndarray, "h w c"]:
        """Interpolates values of up to four channels between the points; beyond them the last ones continue."""
        count = plane.shape[-1]
        four = np.concatenate([plane] * (4 // count), axis=-1).astype(np.float32)
        samples = ((places - self.first_position) / self.settings.grid_step_px).astype(np.float32)
        return cv2.remap(four, samples, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., :count]


class LayerMotionEstimator:
    """Computes the motion of the layers of a run.

    Args:
        maps: the baked maps of the run.
        settings: grid, thresholds and sizes.
    """

    def __init__(self, maps: Maps, settings: LayerMotionSettings = DEFAULTS) -> None:
        self.maps = maps
        self.settings = settings
        self.grid = MotionGrid(maps.size, settings)
        shrink = min(1.0, settings.compared_px / max(maps.size))
        self.compared = (max(1, round(maps.size[0] * shrink)), max(1, round(maps.size[1] * shrink)))
        self._map = lru_cache(maxsize=5 * len(maps.layers))(self._extrapolate_map)

    def estimate_motion(
        self, layer: int, t: int, share: float, appearances: tuple[LayerAppearance, LayerAppearance]
    ) -> LayerMotion:
        """Computes the motion of a layer from frame `t` to the next.

        Across a change of charts the maps of the two frames cannot be compared: the motion then is that of the frames
        before or after.

        Args:
            layer: index of the layer, front to back.
            t: number of the frame in the run.
            share: time of the output frame, as a share (0 to 1) of the way to the next frame.
            appearances: what the two frames show of the layer.
        """
        settings = self.settings
        if not self._same_chart(layer, t, t + 1):
            if share < 0.5:
                return LayerMotion(self._step_from_maps(layer, t - 1), self._zero_step(), (1.0, 0.0))
            return LayerMotion(self._step_from_maps(layer, t + 1), self._zero_step(), (0.0, 1.0))
        step, known, bend = self._motion_from_maps(layer, t)
        if not known.any():
            return LayerMotion(step, bend)

        # The motion of the maps counts where the frames are alike along it; elsewhere it continues from around.
        one, other = (appearance.resize_to(self.compared) for appearance in appearances)
        difference = self._sample_on_grid(_color_difference(one, self._warp_back(other, step), settings))
        doubtful = known & (difference > settings.max_difference)
        believed = known & (cv2.dilate(doubtful.astype(np.uint8), np.ones((3, 3))) == 0)
        step = self._extrapolate_step(step, believed if believed.any() else known)
        bend = bend * believed[..., None]

        # The rest is estimated with flow, and counts where it makes the frames more alike.
        moved = self._warp_back(other, step)
        first, second = (
            np.clip(_over_backdrop(appearance, settings.backdrop), 0, 255).astype(np.uint8)
            for appearance in (one, moved)
        )
        rest, ok = compute_pair_flow(first, second)
        ok &= (one.confidence > settings.min_confidence) & (one.rgba[..., 3] > EXTRAPOLATION.min_map_weight)
        if not ok.any():
            return LayerMotion(step, bend)
        rest *= np.array(self.maps.size, np.float32) / np.array(self.compared, np.float32)
        blur = (settings.flow_blur_px, settings.flow_blur_px)
        rest = self._sample_on_grid(cv2.blur(pull_push(rest, ok), blur))
        again = self._warp_back(other, step + rest)
        new_difference = _color_difference(one, again, settings)
        is_better = new_difference < settings.max_flow_ratio * _color_difference(one, moved, settings)
        better = self._sample_on_grid(is_better.astype(np.float32))
        known = self._sample_on_grid(_shared_opacity(one, again), cv2.BORDER_CONSTANT) > settings.min_confidence
        if known.any():
            better = cv2.blur(pull_push(better[..., None], known)[..., 0], blur)
        return LayerMotion((step + better[..., None] * rest).astype(np.float32), bend)

    def _step_from_maps(self, layer: int, t: int) -> np.ndarray:
        """Computes the step from a frame to the next by the maps alone; zero where they do not give one."""
        step, known, _ = self._motion_from_maps(layer, t)
        return self._extrapolate_step(step, known)

    def _motion_from_maps(self, layer: int, t: int) -> tuple[np.ndarray, Bool[np.ndarray, "rows columns"], np.ndarray]:
        """Computes the step from frame `t` to the next, where it is known, and the bend; zero where it is unknown."""
        settings = self.settings
        still, nowhere = self._zero_step(), np.zeros(self.grid.points.shape[:2], bool)
        found: list[_SubsampledMap | None] = []
        for k in range(t - 1, t + 3):
            is_usable = 0 <= k < self.maps.frame_count and self._same_chart(layer, t, k)
            found.append(self._map(layer, k) if is_usable else None)
        before, one, other, after = found
        if one is None or other is None:
            return still, nowhere, still
        weight = self._sample_on_grid(self.maps.read_layer_weight_small(t, layer), cv2.BORDER_CONSTANT)
        seen = weight >= EXTRAPOLATION.min_map_weight
        points = self.grid.points[seen]
        uv = one.at(points)
        there, off = other.solve(uv, points)
        step, known = there - points, off < EXTRAPOLATION.max_error_px
        if not known.any():
            return still, nowhere, still
        bends = []
        for extended, start in ((before, points - step), (after, there + step)):
            if extended is not None:
                place, lost = extended.solve(uv, start)
                bends.append((place - start) * (lost < EXTRAPOLATION.max_error_px)[:, None])
        bend = np.mean(bends, axis=0) if bends else np.zeros_like(step)
        length = np.linalg.norm(bend, axis=1)
        max_length = settings.max_bend * np.linalg.norm(step, axis=1)
        bend *= np.minimum(1, max_length / np.maximum(length, 1e-9))[:, None]
        steps, bent, mask = still.copy(), still.copy(), nowhere.copy()
        steps[seen], bent[seen], mask[seen] = step, bend, known
        return pull_push(steps, mask), mask, pull_push(bent, mask)

    def _warp_back(self, appearance: LayerAppearance, step: np.ndarray) -> LayerAppearance:
        """Warps what the later frame shows to the earlier one, at the size at which frames are compared."""
        (width, height), scale = self.compared, np.array(self.compared) / self.maps.size
        centers = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
        places = (centers + self.grid.interpolate_at(step, centers / scale) * scale - 0.5).astype(np.float32)
        rgba = cv2.remap(appearance.rgba, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        sure = cv2.remap(appearance.confidence, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return LayerAppearance(rgba, sure)

    def _sample_on_grid(self, plane: np.ndarray, beyond: int = cv2.BORDER_REPLICATE) -> np.ndarray:
        """Samples values of a frame of any size at the points of the grid."""
        places = self.grid.points * (np.array([plane.shape[1], plane.shape[0]]) / self.maps.size) - 0.5
        return cv2.remap(plane, places.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=beyond)

    def _extrapolate_step(self, step: np.ndarray, known: Bool[np.ndarray, "rows columns"]) -> np.ndarray:
        """Keeps a step where it is known, and continues it smoothly elsewhere."""
        found = extrapolate_uv((self.grid.points + step).astype(np.float32), known)
        if found is None:
            return pull_push(step, known) if known.any() else step
        return (found.uv - self.grid.points).astype(np.float32)

    def _zero_step(self) -> Float[np.ndarray, "rows columns 2"]:
        return np.zeros_like(self.grid.points, np.float32)

    def _same_chart(self, layer: int, one: int, other: int) -> bool:
        """Returns whether two frames show a layer by the same part of its canonical plane."""
        name = self.maps.layers[layer]
        own = [chart for series in self.maps.charts for chart in series if chart.layer == name]
        return len(own) < 2 or any(chart.first <= min(one, other) and max(one, other) <= chart.last for chart in own)

    def _extrapolate_map(self, layer: int, t: int) -> _SubsampledMap | None:
        """Extrapolates the map of a layer in a frame; None if too little of the layer is visible."""
        stride = max(1, round(max(self.maps.size) / self.settings.map_samples))
        every = (slice(stride // 2, None, stride),) * 2
        uv, weight = self.maps.read_uv_small(t, layer)[every], self.maps.read_layer_weight_small(t, layer)[every]
        found = extrapolate_uv(np.ascontiguousarray(uv), weight >= EXTRAPOLATION.min_map_weight)
        return None if found is None else _SubsampledMap(found, stride)


@dataclass(frozen=True)
class _SubsampledMap:
    """A map of every `stride`-th pixel of a frame; its methods take and return pixels of the frame."""

    found: ExtrapolatedMap
    stride: int

    def at(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Returns the uv of any positions."""
        return self.found.sample_uv(self._to_samples(points))

    def solve(
        self, uv: Float[np.ndarray, "n 2"], start: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Finds the positions of some uv, and their errors in pixels."""
        places, off = self.found.solve_positions(uv, self._to_samples(start))
        return (places - 0.5) * self.stride + self.stride // 2 + 0.5, off * self.stride

    def _to_samples(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        return (points - 0.5 - self.stride // 2) / self.stride + 0.5


def _shared_opacity(one: LayerAppearance, other: LayerAppearance) -> Float[np.ndarray, "height width"]:
    """Returns how much of each pixel both appearances know, and one of them shows."""
    return one.confidence * other.confidence * np.maximum(one.rgba[..., 3], other.rgba[..., 3])


def _color_difference(
    one: LayerAppearance, other: LayerAppearance, settings: LayerMotionSettings
) -> Float[np.ndarray, "height width"]:
    """Computes the mean difference of two appearances around each pixel, in 8-bit units."""
    shared, window = _shared_opacity(one, other), (settings.compared_window_px, settings.compared_window_px)
    blur = (settings.compared_blur_px, settings.compared_blur_px)
    smooth = [cv2.blur(_over_backdrop(appearance, settings.backdrop), blur) for appearance in (one, other)]
    off = cv2.transform(cv2.absdiff(*smooth), np.full((1, 3), 1 / 3, np.float32))
    return cv2.blur(off * shared, window) / np.maximum(cv2.blur(shared, window), 0.1)


def _over_backdrop(appearance: LayerAppearance, gray: float) -> Float[np.ndarray, "height width 3"]:
    """Composites an appearance over gray."""
    return cv2.transform(appearance.rgba, np.hstack([np.eye(3), np.full((3, 1), -gray), np.full((3, 1), gray)]))

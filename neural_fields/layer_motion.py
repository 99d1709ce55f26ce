"""How a layer moves from one frame to the next: by its maps, checked and refined by what the frames show.

A point of a layer has one uv, and the maps of two frames say where it lies in each. That is followed where the frame
shows the layer. A fit may have found room for the same thing twice, or smear what it cannot explain; so where the two
frames do not look alike along the motion, it is taken from the surroundings instead, and what is left is looked for
with optical flow. Beyond what is seen the motion goes on as an affine one (`extended_map.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.baking import Maps
from neural_fields.data.flow import flow_between
from neural_fields.extended_map import ExtendedMap, extend
from neural_fields.planar.placement import pull_push
from neural_fields.reshaping import LOST, SEEN

STEP = 6  # pixels of the fit from one point to the next where motion is worked out; enlarged between them
BEYOND = 0.1  # of the longer side: how far beyond the frame that is done
SAMPLES = 320  # of a map along the longer side that are looked at: it is smoother than that
BENT = 0.5  # of the way to the next frame: a path is not bent more
COMPARED = 480  # pixels along the longer side at which frames are compared
AROUND = 7  # pixels that are compared at once
UNLIKE = 16.0  # of 255: a mean difference from which a motion is not believed
BETTER = 0.85  # of the difference: what flow leaves of it, to be believed
GREY = 128.0  # behind what a layer shows, while it is compared


@dataclass(frozen=True)
class Motion:
    """How a layer moves from a frame to the next, in pixels of the fit, at the points of a `Grid` in the first.

    Attributes:
        step: to the next frame.
        bend: how much the step changes from one pair of frames to the next.
        counts: how much each of the two frames is to be asked what the layer looks like.
    """

    step: Float[np.ndarray, "rows columns 2"]
    bend: Float[np.ndarray, "rows columns 2"]
    counts: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class LayerLook:
    """What a frame shows of a layer: premultiplied colour in 8-bit units and opacity, and how sure they are."""

    rgba: Float[np.ndarray, "height width 4"]
    sure: Float[np.ndarray, "height width"]

    def at_size(self, size: tuple[int, int]) -> LayerLook:
        """The same at a smaller size (width, height)."""
        if (self.sure.shape[1], self.sure.shape[0]) == size:
            return self
        return LayerLook(*(cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in (self.rgba, self.sure)))


@dataclass(frozen=True)
class Grid:
    """Points of a frame and around it, where motion is worked out."""

    size: tuple[int, int]

    @cached_property
    def points(self) -> Float[np.ndarray, "rows columns 2"]:
        """Positions in pixels."""
        x, y = (np.arange(self.first, side - self.first + STEP, STEP, dtype=np.float64) for side in self.size)
        return np.stack(np.meshgrid(x, y), axis=-1)

    @property
    def first(self) -> float:
        """The first position on both axes."""
        return -float(STEP * max(1, round(BEYOND * max(self.size) / STEP)))

    def at(
        self, plane: Float[np.ndarray, "rows columns c"], places: Float[np.ndarray, "h w 2"]
    ) -> Float[np.ndarray, "h w c"]:
        """Values of four channels or less between the points; beyond them the last ones go on."""
        count = plane.shape[-1]
        four = np.concatenate([plane] * (4 // count), axis=-1).astype(np.float32)
        samples = ((places - self.first) / STEP).astype(np.float32)
        return cv2.remap(four, samples, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., :count]


class Motions:
    """How the layers of a run move."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.grid = Grid(maps.size)
        shrink = min(1.0, COMPARED / max(maps.size))
        self.compared = (max(1, round(maps.size[0] * shrink)), max(1, round(maps.size[1] * shrink)))
        self._map = lru_cache(maxsize=5 * len(maps.layers))(self._extended)

    def between(self, layer: int, t: int, share: float, parts: tuple[LayerLook, LayerLook]) -> Motion:
        """How a layer moves from frame `t` to the next, to be looked at after a share of the time.

        Across a change of charts the maps say nothing: it goes on as in the frames before, or comes as in those after.

        Args:
            parts: what the two frames show of it.
        """
        if self._same_chart(layer, t, t + 1):
            return self._seen(layer, t, parts)
        if share < 0.5:
            return Motion(self._alone(layer, t - 1), self._still(), (1.0, 0.0))
        return Motion(self._alone(layer, t + 1), self._still(), (0.0, 1.0))

    def _alone(self, layer: int, t: int) -> np.ndarray:
        """The step from a frame to the next by the maps alone; at rest where they do not tell."""
        step, known, _ = self._by_maps(layer, t)
        return self._goes_on(step, known)

    def _seen(self, layer: int, t: int, parts: tuple[LayerLook, LayerLook]) -> Motion:
        """The motion by the maps where the frames look alike along it, else as around; refined by flow."""
        step, known, bend = self._by_maps(layer, t)
        if not known.any():
            return Motion(step, bend)
        one, other = (part.at_size(self.compared) for part in parts)
        doubtful = known & (self._on_grid(_unlike(one, self._moved(other, step))) > UNLIKE)
        believed = known & (cv2.dilate(doubtful.astype(np.uint8), np.ones((3, 3))) == 0)
        step, bend = self._goes_on(step, believed if believed.any() else known), bend * believed[..., None]
        moved = self._moved(other, step)
        rest, ok = flow_between(_shown(one), _shown(moved))
        ok &= (one.sure > 0.5) & (one.rgba[..., 3] > SEEN)
        if not ok.any():
            return Motion(step, bend)
        rest *= np.array(self.maps.size, np.float32) / np.array(self.compared, np.float32)
        rest = self._on_grid(cv2.blur(pull_push(rest, ok), (5, 5)))
        again = self._moved(other, step + rest)
        better = self._on_grid((_unlike(one, again) < BETTER * _unlike(one, moved)).astype(np.float32))
        known = self._on_grid(_shared(one, again), cv2.BORDER_CONSTANT) > 0.5
        if known.any():
            better = cv2.blur(pull_push(better[..., None], known)[..., 0], (5, 5))
        return Motion((step + better[..., None] * rest).astype(np.float32), bend)

    def _by_maps(self, layer: int, t: int) -> tuple[np.ndarray, Bool[np.ndarray, "rows columns"], np.ndarray]:
        """The step from frame `t` to the next, where it is known, and the bend; at rest where the maps do not tell."""
        still, nowhere = self._still(), np.zeros(self.grid.points.shape[:2], bool)
        frames = [
            k if 0 <= k < self.maps.frame_count and self._same_chart(layer, t, k) else None for k in range(t - 1, t + 3)
        ]
        found = [None if k is None else self._map(layer, k) for k in frames]
        before, one, other, after = found
        if one is None or other is None:
            return still, nowhere, still
        seen = self._on_grid(self.maps.layer_weight_small(t, layer), cv2.BORDER_CONSTANT) >= SEEN
        points = self.grid.points[seen]
        uv = one.at(points)
        there, off = other.solve(uv, points)
        step, known = there - points, off < LOST
        if known.sum() < 12:
            return still, nowhere, still
        bends = []
        for extended, start in ((before, points - step), (after, there + step)):
            if extended is not None:
                place, lost = extended.solve(uv, start)
                bends.append((place - start) * (lost < LOST)[:, None])
        bend = np.mean(bends, axis=0) if bends else np.zeros_like(step)
        length = np.linalg.norm(bend, axis=1)
        bend *= np.minimum(1, BENT * np.linalg.norm(step, axis=1) / np.maximum(length, 1e-9))[:, None]
        steps, bent, mask = still.copy(), still.copy(), nowhere.copy()
        steps[seen], bent[seen], mask[seen] = step, bend, known
        return pull_push(steps, mask), mask, pull_push(bent, mask)

    def _moved(self, part: LayerLook, step: np.ndarray) -> LayerLook:
        """What the later frame shows, where the earlier one has it; at the size of comparing."""
        (width, height), scale = self.compared, np.array(self.compared) / self.maps.size
        centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
        places = (centres + self.grid.at(step, centres / scale) * scale - 0.5).astype(np.float32)
        look = cv2.remap(part.rgba, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return LayerLook(look, cv2.remap(part.sure, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))

    def _on_grid(self, plane: np.ndarray, beyond: int = cv2.BORDER_REPLICATE) -> np.ndarray:
        """Values of a frame of any size, at the points of the grid."""
        places = self.grid.points * (np.array([plane.shape[1], plane.shape[0]]) / self.maps.size) - 0.5
        return cv2.remap(plane, places.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=beyond)

    def _goes_on(self, step: np.ndarray, known: Bool[np.ndarray, "rows columns"]) -> np.ndarray:
        """A step where it is known, going on smoothly elsewhere."""
        found = extend((self.grid.points + step).astype(np.float32), known)
        if found is None:
            return pull_push(step, known) if known.any() else step
        return (found.uv - self.grid.points).astype(np.float32)

    def _still(self) -> Float[np.ndarray, "rows columns 2"]:
        return np.zeros_like(self.grid.points, np.float32)

    def _same_chart(self, layer: int, one: int, other: int) -> bool:
        """Whether two frames show a layer by the same part of its canonical plane."""
        name = self.maps.layers[layer]
        own = [chart for series in self.maps.charts for chart in series if chart.layer == name]
        return len(own) < 2 or any(chart.first <= min(one, other) and max(one, other) <= chart.last for chart in own)

    def _extended(self, layer: int, t: int) -> _Sampled | None:
        stride = max(1, round(max(self.maps.size) / SAMPLES))
        every = (slice(stride // 2, None, stride),) * 2
        uv, weight = self.maps.uv_small(t, layer)[every], self.maps.layer_weight_small(t, layer)[every]
        found = extend(np.ascontiguousarray(uv), weight >= SEEN)
        return None if found is None else _Sampled(found, stride)


@dataclass(frozen=True)
class _Sampled:
    """A map of every so many pixels of a frame, asked and answering in pixels of the frame."""

    found: ExtendedMap
    stride: int

    def at(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """uv of any positions."""
        return self.found.at(self._inwards(points))

    def solve(
        self, uv: Float[np.ndarray, "n 2"], start: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Positions that show some uv, and how many pixels they are off."""
        places, off = self.found.solve(uv, self._inwards(start))
        return (places - 0.5) * self.stride + self.stride // 2 + 0.5, off * self.stride

    def _inwards(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        return (points - 0.5 - self.stride // 2) / self.stride + 0.5


def _shared(one: LayerLook, other: LayerLook) -> Float[np.ndarray, "height width"]:
    """How much of each pixel both looks know, and one of them shows."""
    return one.sure * other.sure * np.maximum(one.rgba[..., 3], other.rgba[..., 3])


def _unlike(one: LayerLook, other: LayerLook) -> Float[np.ndarray, "height width"]:
    """How much two looks differ, as a mean around each pixel, in 8-bit units."""
    shared, near = _shared(one, other), (AROUND, AROUND)
    off = cv2.absdiff(cv2.blur(_over_grey(one), (3, 3)), cv2.blur(_over_grey(other), (3, 3)))
    off = cv2.transform(off, np.full((1, 3), 1 / 3, np.float32))
    return cv2.blur(off * shared, near) / np.maximum(cv2.blur(shared, near), 0.1)


def _over_grey(part: LayerLook) -> Float[np.ndarray, "height width 3"]:
    return cv2.transform(part.rgba, np.hstack([np.eye(3), np.full((3, 1), -GREY), np.full((3, 1), GREY)]))


def _shown(part: LayerLook) -> np.ndarray:
    return np.clip(_over_grey(part), 0, 255).astype(np.uint8)

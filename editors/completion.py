"""Completion: what no frame shows of a picture, made of patches of what is known of it.

Coarse to fine, every patch that reaches into a hole looks for the known patch most like it (Barnes et al.,
"PatchMatch", SIGGRAPH 2009, section 3), and every pixel of the hole takes the mean of what the patches over it say
(Wexler et al., "Space-Time Completion of Video", PAMI 2007, section 3). Unlike smoothing it goes on with texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from neural_fields.planar.placement import pull_push

RADIUS = 3  # of a patch: 7 x 7 pixels
COARSEST = 3.0  # pixels from the middle of a hole to its edge at which it is first filled smoothly
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # to neighbours: down, right
SEARCHES = 5  # looks for better patches in a round: neighbours', and random ones nearer and nearer
DOUBT = 1.3  # by which patches count less for each pixel deeper in the hole (Wexler et al., 3.2)
ROUNDS = (20, 8, 5, 3)  # of looking and averaging, from the coarsest size on; the last holds for finer ones
MARGIN = 1.5  # times the size of the hole: how far around it patches are taken from, and no less than LEAST pixels
LEAST = 48
WORKED = 900  # pixels of the longer side above which holes are completed at a smaller size

Rgb = Float[np.ndarray, "height width 3"]
Mask = Bool[np.ndarray, "height width"]


def complete(rgb: Rgb, known: Mask, missing: Mask, seed: int = 0) -> Rgb:
    """A picture with what is missing filled in from what is known; all else stays.

    Args:
        rgb: colours in [0, 1]; anything where they are not known.
        known: what patches may be taken from.
        missing: what to fill; not known.
        seed: of the random search; the same makes the same picture.
    """
    result = rgb.copy()
    if not missing.any() or not known.any():
        return result
    rows, columns = _around(missing)
    part, there, hole = rgb[rows, columns], known[rows, columns] & ~missing[rows, columns], missing[rows, columns]
    if not there.any():  # a hole larger than all that is known around it
        result[missing] = pull_push(rgb, known & ~missing)[missing]
        return result
    filled = _filled(part, there, hole, np.random.default_rng(seed))
    result[rows, columns] = np.where(hole[..., None], filled, part)
    return result


def _around(missing: Mask) -> tuple[slice, slice]:
    """The rows and columns that a hole is completed from."""
    found = []
    for axis in (1, 0):
        places = np.nonzero(missing.any(axis=axis))[0]
        margin = max(LEAST, round(MARGIN * (places[-1] - places[0] + 1)))
        found.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin))
    return found[0], found[1]


def _filled(rgb: Rgb, known: Mask, hole: Mask, generator: np.random.Generator) -> Rgb:
    """The picture filled, coarse to fine."""
    sizes = _sizes(hole)
    filled, field = None, None
    for level, size in enumerate(sizes):
        small = _Level.of(rgb, known, hole, size)
        if small is None:
            continue
        if filled is None:
            current = small.grown()
        else:
            current = np.where(
                small.hole[..., None], cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR), small.rgb
            )
        if field is not None:
            # Matches are enlarged rather than colours: an enlarged picture is soft and would look for soft patches.
            field = small.enlarged(*field)
            current = small.average(current, small.sound(field[0]))
        for _ in range(ROUNDS[min(level, len(ROUNDS) - 1)]):
            nearest = small.look(current, field, generator)
            field = (nearest, small)
            current = small.average(current, nearest)
        filled = current
    if filled is None:
        return pull_push(rgb, known)
    if filled.shape != rgb.shape:
        filled = cv2.resize(filled, rgb.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(filled, 0, 1).astype(np.float32)


def _sizes(hole: Mask) -> list[tuple[int, int]]:
    """The sizes (width, height) at which a hole is filled, the coarsest first."""
    height, width = hole.shape
    deepest = float(cv2.distanceTransform(np.pad(hole.astype(np.uint8), 1), cv2.DIST_L2, 3).max())
    finest = min(1.0, WORKED / max(height, width))
    scales = [finest]
    while deepest * scales[-1] > COARSEST and min(height, width) * scales[-1] > 8 * RADIUS:
        scales.append(scales[-1] / 2)
    return [(max(1, round(width * scale)), max(1, round(height * scale))) for scale in reversed(scales)]


@dataclass(frozen=True, eq=False)
class _Level:
    """A picture at one size, and its patches by their middles."""

    rgb: Rgb
    known: Mask
    hole: Mask
    targets: Int[np.ndarray, "targets 2"]  # rows and columns of patches that reach into the hole
    sources: Int[np.ndarray, "sources 2"]  # of those that are known whole
    number: Int[np.ndarray, "height width"]  # of the target at a place; -1 where there is none
    trust: Float[np.ndarray, " targets"]  # in what a target says: the less, the deeper it lies in the hole

    @staticmethod
    def of(rgb: Rgb, known: Mask, hole: Mask, size: tuple[int, int]) -> _Level | None:
        """The picture at a size (width, height); None where no patch is known whole."""
        share = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        colours = cv2.resize(rgb * known[..., None], size, interpolation=cv2.INTER_AREA)
        small_known = share > 0.99
        small_hole = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.01
        small_known &= ~small_hole
        plain = np.where(small_known[..., None], colours / np.maximum(share, 1e-6)[..., None], 0).astype(np.float32)
        square = np.ones((2 * RADIUS + 1,) * 2, np.uint8)
        inner = np.zeros(small_hole.shape, np.uint8)
        inner[RADIUS:-RADIUS, RADIUS:-RADIUS] = 1
        sources = cv2.erode(small_known.astype(np.uint8), square, borderValue=0) & inner
        targets = cv2.dilate(small_hole.astype(np.uint8), square) & inner
        if not sources.any() or not targets.any():
            return None
        places = np.argwhere(targets > 0)
        number = np.full(small_hole.shape, -1, np.int64)
        number[places[:, 0], places[:, 1]] = np.arange(len(places))
        depth = cv2.distanceTransform(np.pad(small_hole.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        trust = np.maximum(DOUBT ** -depth[places[:, 0], places[:, 1]], 1e-9).astype(np.float32)
        return _Level(plain, small_known, small_hole, places, np.argwhere(sources > 0), number, trust)

    def grown(self) -> Rgb:
        """The hole filled ring by ring: each pixel is the middle of the known patch most like what is around it.

        As Efros and Leung, "Texture Synthesis by Non-parametric Sampling" (ICCV 1999), with the best patch alone.
        """
        current, told = self.rgb.copy(), self.known.copy()
        every = self._patches(current, self.sources).reshape(len(self.sources), -1)
        open_places = self.hole & (self.number >= 0)
        around = np.ones((3, 3), np.uint8)
        while (ring := open_places & ~told & (cv2.dilate(told.astype(np.uint8), around) > 0)).any():
            places = np.argwhere(ring)
            seen = np.repeat(self._patches(told[..., None].repeat(3, -1).astype(np.float32), places)[..., :1], 3, -1)
            seen = seen.reshape(len(places), -1)
            wanted = self._patches(current, places).reshape(len(places), -1) * seen
            unlike = seen @ (every**2).T - 2 * wanted @ every.T  # but for what all sources have alike
            best = self.sources[unlike.argmin(axis=1)]
            current[places[:, 0], places[:, 1]] = current[best[:, 0], best[:, 1]]
            told |= ring
        return pull_push(current, told)  # a patch too near to the picture's edge is no target

    def look(
        self, current: Rgb, field: tuple[np.ndarray, _Level] | None, generator: np.random.Generator
    ) -> Int[np.ndarray, "targets 2"]:
        """The known patch most like each target, as far as it is found."""
        wanted = self._patches(current, self.targets)
        best = (
            self.sources[generator.integers(len(self.sources), size=len(self.targets))] if field is None else field[0]
        )
        best, allowed = self.sound(best), self.allowed
        least = self._unlike(current, wanted, best)
        reach = max(self.known.shape)
        for search in range(SEARCHES):
            far = 1 << max(0, 2 - search)
            candidates = [self._of_neighbours(best, far * down, far * right) for down, right in STEPS]
            spread = max(1, int(reach * 0.4**search))
            candidates.append(best + generator.integers(-spread, spread + 1, size=best.shape))
            candidates.append(self.sources[generator.integers(len(self.sources), size=len(best))])
            for candidate in candidates:
                inside: np.ndarray = np.all((candidate >= 0) & (candidate < self.known.shape), axis=1)
                candidate = np.where(inside[:, None], candidate, best)
                candidate = np.where(allowed[candidate[:, 0], candidate[:, 1]][:, None], candidate, best)
                unlike = self._unlike(current, wanted, candidate)
                better = unlike < least
                best, least = np.where(better[:, None], candidate, best), np.where(better, unlike, least)
        return best

    def average(self, current: Rgb, nearest: Int[np.ndarray, "targets 2"]) -> Rgb:
        """The hole as the patches over it say, those at its edge first."""
        weight = self.trust
        total = np.zeros((*self.hole.shape, 4), np.float32)
        for down in range(-RADIUS, RADIUS + 1):
            for right in range(-RADIUS, RADIUS + 1):
                # The middles of targets are all different, so each offset adds to every pixel at most once.
                rows, columns = self.targets[:, 0] + down, self.targets[:, 1] + right
                said = current[nearest[:, 0] + down, nearest[:, 1] + right]
                total[rows, columns, :3] += weight[:, None] * said
                total[rows, columns, 3] += weight
        told = self.hole & (total[..., 3] > 0)
        return np.where(told[..., None], total[..., :3] / np.maximum(total[..., 3:], 1e-9), current).astype(np.float32)

    def enlarged(self, nearest: Int[np.ndarray, "n 2"], coarse: _Level) -> tuple[np.ndarray, _Level]:
        """Matches found at a coarser size, at this one."""
        scale = np.array(self.known.shape) / np.array(coarse.known.shape)
        there = np.minimum((self.targets / scale).astype(int), np.array(coarse.known.shape) - 1)
        number = coarse.number[there[:, 0], there[:, 1]]
        lost = number < 0
        place = np.where(lost[:, None], there, nearest[np.maximum(number, 0)])
        moved = np.rint((place - there) * scale).astype(int) + self.targets
        return np.clip(moved, 0, np.array(self.known.shape) - 1), self

    @cached_property
    def allowed(self) -> Mask:
        """Where the middles of known patches are."""
        found = np.zeros(self.known.shape, bool)
        found[self.sources[:, 0], self.sources[:, 1]] = True
        return found

    def sound(self, places: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 2"]:
        """Places that are no middles of known patches moved to the nearest that is."""
        fine = self.allowed[places[:, 0], places[:, 1]]
        return places if fine.all() else np.where(fine[:, None], places, self._nearest_source(places))

    def _nearest_source(self, places: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 2"]:
        """The middle of a known patch that is nearest to each place."""
        from scipy.spatial import cKDTree

        return self.sources[cKDTree(self.sources).query(places)[1]]

    def _of_neighbours(self, best: Int[np.ndarray, "n 2"], down: int, right: int) -> Int[np.ndarray, "n 2"]:
        """What the neighbours of targets found, moved back by as much."""
        places = self.targets + np.array([down, right])
        inside = ((places >= 0) & (places < self.known.shape)).all(axis=1)
        places = np.where(inside[:, None], places, self.targets)
        number = self.number[places[:, 0], places[:, 1]]
        return np.where((number >= 0)[:, None], best[np.maximum(number, 0)] - np.array([down, right]), best)

    def _unlike(
        self, current: Rgb, wanted: Float[np.ndarray, "n pixels 3"], places: Int[np.ndarray, "n 2"]
    ) -> Float[np.ndarray, " n"]:
        return ((self._patches(current, places) - wanted) ** 2).sum(axis=(1, 2))

    def _patches(self, current: Rgb, places: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, "n pixels 3"]:
        width = current.shape[1]
        offsets = np.arange(-RADIUS, RADIUS + 1)
        index = (offsets[:, None] * width + offsets).reshape(-1)
        return current.reshape(-1, 3)[(places[:, 0] * width + places[:, 1])[:, None] + index]

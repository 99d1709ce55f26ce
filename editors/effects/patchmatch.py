"""Inpaints the holes of a picture with patches of its known parts.

From coarse to fine, each patch that reaches into a hole is matched with the most similar known patch (Barnes et al.,
"PatchMatch", SIGGRAPH 2009, section 3), and every pixel of the hole takes the mean of the patches that cover it (Wexler
et al., "Space-Time Completion of Video", PAMI 2007, section 3). Unlike smooth filling, this continues texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.imaging.push_pull import pull_push


@dataclass(frozen=True)
class CompletionSettings:
    """Settings of the completion of holes."""

    patch_radius_px: int = 3  # patches have 7 x 7 pixels
    max_coarse_depth_px: float = 3.0  # depth of a hole at the size at which it is first filled
    searches: int = 5  # searches in a round: matches of neighbors, and random ones at shrinking distances
    search_shrinkage: float = 0.4  # factor of the distance of random patches, from search to search
    depth_doubt: float = 1.3  # factor of a patch's weight per pixel of depth in the hole (Wexler et al., 3.2)
    rounds: tuple[int, ...] = (
        20,
        8,
        5,
        3,
    )  # of search and averaging, from the coarsest size on; the last for all finer
    margin_share: float = 1.5  # of the size of the hole: how far around it patches are taken from, but at least
    min_margin_px: int = 48
    max_side_px: int = 900  # holes with a longer side are completed at a smaller size


DEFAULTS = CompletionSettings()

RgbPicture = Float[np.ndarray, "height width 3"]
PixelMask = Bool[np.ndarray, "height width"]


def complete_picture(
    rgb: RgbPicture,
    known: PixelMask,
    missing: PixelMask,
    seed: int = 0,
    report: ProgressReporter = report_nothing,
    settings: CompletionSettings = DEFAULTS,
) -> RgbPicture:
    """Fills the missing part of a picture from its known part.

    Args:
        rgb: colors in [0, 1]; any value where they are not known.
        known: pixels that patches may be taken from.
        missing: pixels to fill; disjoint from `known`.
        seed: seed of the random search; the same seed gives the same picture.
        report: called after each round of the search, as the stage "filling".
        settings: patch size, and length of the search.

    Returns:
        The picture with the missing pixels filled; all others are unchanged.
    """
    result = rgb.copy()
    if not missing.any() or not known.any():
        return result
    # Only the surroundings of the hole take part.
    window = []
    for axis in (1, 0):
        places = np.nonzero(missing.any(axis=axis))[0]
        margin = max(settings.min_margin_px, round(settings.margin_share * (places[-1] - places[0] + 1)))
        window.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin))
    rows, columns = window
    part, there, hole = rgb[rows, columns], known[rows, columns] & ~missing[rows, columns], missing[rows, columns]
    if not there.any():  # a hole larger than all that is known around it
        result[missing] = pull_push(rgb, known & ~missing)[missing]
        return result
    filled = _fill_hole(part, there, hole, np.random.default_rng(seed), report, settings)
    result[rows, columns] = np.where(hole[..., None], filled, part)
    return result


def _fill_hole(
    rgb: RgbPicture,
    known: PixelMask,
    hole: PixelMask,
    generator: np.random.Generator,
    report: ProgressReporter,
    settings: CompletionSettings,
) -> RgbPicture:
    """Fills a hole, coarse to fine."""
    height, width = hole.shape
    deepest = float(cv2.distanceTransform(np.pad(hole.astype(np.uint8), 1), cv2.DIST_L2, 3).max())
    scales = [min(1.0, settings.max_side_px / max(height, width))]
    smallest_side = 8 * settings.patch_radius_px
    while deepest * scales[-1] > settings.max_coarse_depth_px and min(height, width) * scales[-1] > smallest_side:
        scales.append(scales[-1] / 2)

    filled: RgbPicture | None = None
    nearest: Int[np.ndarray, "targets 2"] | None = None
    coarse: _Level | None = None
    for number, scale in enumerate(reversed(scales)):
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        level = _Level.make(rgb, known, hole, size, settings)
        if level is None:
            continue
        if filled is None:
            current = level.fill_from_rim()
        else:
            larger = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR)
            current = np.where(level.hole[..., None], larger, level.rgb)
        if nearest is not None and coarse is not None:
            # Matches are enlarged rather than colors: an enlarged picture is soft and would match soft patches.
            nearest = level.enlarge_matches(nearest, coarse)
            current = level.blend_patches(current, level.snap_to_sources(nearest))
        rounds = settings.rounds[min(number, len(settings.rounds) - 1)]
        # A size takes about as long as four of the one before.
        report_size = report_part(report, "filling", *(0.25 ** (len(scales) - done) for done in (number, number + 1)))
        for done in range(rounds):
            nearest = level.find_matches(current, nearest, generator)
            current = level.blend_patches(current, nearest)
            report_size(Progress("filling", done + 1, rounds))
        filled, coarse = current, level
    if filled is None:
        return pull_push(rgb, known)
    if filled.shape != rgb.shape:
        filled = cv2.resize(filled, rgb.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(filled, 0, 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Level:
    """Holds a picture at one size, and the centers of its patches.

    Attributes:
        rgb: colors; 0 where they are not known.
        known: pixels whose color is known.
        hole: pixels to fill.
        targets: (row, column) of the centers of patches that reach into the hole.
        sources: (row, column) of the centers of patches that are entirely known.
        number: index of the target at each pixel; -1 where there is none.
        trust: weight of each target; smaller deeper in the hole.
        settings: settings of the completion.
    """

    rgb: RgbPicture
    known: PixelMask
    hole: PixelMask
    targets: Int[np.ndarray, "targets 2"]
    sources: Int[np.ndarray, "sources 2"]
    number: Int[np.ndarray, "height width"]
    trust: Float[np.ndarray, " targets"]
    settings: CompletionSettings

    @staticmethod
    def make(
        rgb: RgbPicture, known: PixelMask, hole: PixelMask, size: tuple[int, int], settings: CompletionSettings
    ) -> _Level | None:
        """Resizes a picture to `size` (width, height).

        Args:
            rgb: the picture at its full size.
            known: its pixels that may be copied.
            hole: its pixels to fill.
            size: (width, height) of the level in pixels.
            settings: settings of the completion.

        Returns:
            The level; None if no patch is entirely known.
        """
        share = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        colors = cv2.resize(rgb * known[..., None], size, interpolation=cv2.INTER_AREA)
        small_known = share > 0.99
        small_hole = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.01
        small_known &= ~small_hole
        plain = np.where(small_known[..., None], colors / np.maximum(share, 1e-6)[..., None], 0).astype(np.float32)
        radius = settings.patch_radius_px
        square = np.ones((2 * radius + 1,) * 2, np.uint8)
        inner = np.zeros(small_hole.shape, np.uint8)
        inner[radius:-radius, radius:-radius] = 1
        sources = cv2.erode(small_known.astype(np.uint8), square, borderValue=0) & inner
        targets = cv2.dilate(small_hole.astype(np.uint8), square) & inner
        if not sources.any() or not targets.any():
            return None
        places = np.argwhere(targets > 0)
        number = np.full(small_hole.shape, -1, np.int64)
        number[places[:, 0], places[:, 1]] = np.arange(len(places))
        depth = cv2.distanceTransform(np.pad(small_hole.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        doubt = settings.depth_doubt ** -depth[places[:, 0], places[:, 1]]
        trust = np.maximum(doubt, 1e-9).astype(np.float32)
        return _Level(plain, small_known, small_hole, places, np.argwhere(sources > 0), number, trust, settings)

    def fill_from_rim(self) -> RgbPicture:
        """Fills the hole ring by ring: each pixel is the center of the known patch most similar to its surroundings.

        This is Efros and Leung, "Texture Synthesis by Non-parametric Sampling" (ICCV 1999), with the best patch only.
        """
        current, done = self.rgb.copy(), self.known.copy()
        every = self._take_patches(current, self.sources).reshape(len(self.sources), -1)
        open_places = self.hole & (self.number >= 0)
        around = np.ones((3, 3), np.uint8)
        while (ring := open_places & ~done & (cv2.dilate(done.astype(np.uint8), around) > 0)).any():
            places = np.argwhere(ring)
            done_patches = self._take_patches(done[..., None].repeat(3, -1).astype(np.float32), places)
            seen = np.repeat(done_patches[..., :1], 3, -1).reshape(len(places), -1)
            wanted = self._take_patches(current, places).reshape(len(places), -1) * seen
            distance = seen @ (every**2).T - 2 * wanted @ every.T  # but for what all sources have in common
            best = self.sources[distance.argmin(axis=1)]
            current[places[:, 0], places[:, 1]] = current[best[:, 0], best[:, 1]]
            done |= ring
        return pull_push(current, done)  # a patch too near to the picture's edge is no target

    def find_matches(
        self, current: RgbPicture, start: Int[np.ndarray, "targets 2"] | None, generator: np.random.Generator
    ) -> Int[np.ndarray, "targets 2"]:
        """Searches for the known patch most similar to each target.

        Args:
            current: the picture as filled so far.
            start: initial matches; None for random ones.
            generator: random generator of the candidates.
        """
        wanted = self._take_patches(current, self.targets)
        if start is None:
            start = self.sources[generator.integers(len(self.sources), size=len(self.targets))]
        best = self.snap_to_sources(start)
        least = self._patch_distance(current, wanted, best)
        for search in range(self.settings.searches):
            candidates = []
            # What neighbors of the targets found, moved back by as much.
            far = 1 << max(0, 2 - search)
            for down, right in ((0, far), (far, 0), (0, -far), (-far, 0)):
                places = self.targets + np.array([down, right])
                within = ((places >= 0) & (places < self.known.shape)).all(axis=1)
                places = np.where(within[:, None], places, self.targets)
                number = self.number[places[:, 0], places[:, 1]]
                neighbors = best[np.maximum(number, 0)] - np.array([down, right])
                candidates.append(np.where((number >= 0)[:, None], neighbors, best))
            spread = max(1, int(max(self.known.shape) * self.settings.search_shrinkage**search))
            candidates.append(best + generator.integers(-spread, spread + 1, size=best.shape))
            candidates.append(self.sources[generator.integers(len(self.sources), size=len(best))])
            for candidate in candidates:
                inside: np.ndarray = np.all((candidate >= 0) & (candidate < self.known.shape), axis=1)
                candidate = np.where(inside[:, None], candidate, best)
                allowed = self.source_mask[candidate[:, 0], candidate[:, 1]]
                candidate = np.where(allowed[:, None], candidate, best)
                distance = self._patch_distance(current, wanted, candidate)
                better = distance < least
                best, least = np.where(better[:, None], candidate, best), np.where(better, distance, least)
        return best

    def blend_patches(self, current: RgbPicture, nearest: Int[np.ndarray, "targets 2"]) -> RgbPicture:
        """Fills the hole with the weighted mean of the patches that match the targets covering it."""
        weight, radius = self.trust, self.settings.patch_radius_px
        total = np.zeros((*self.hole.shape, 4), np.float32)
        for down in range(-radius, radius + 1):
            for right in range(-radius, radius + 1):
                # The middles of targets are all different, so each offset adds to every pixel at most once.
                rows, columns = self.targets[:, 0] + down, self.targets[:, 1] + right
                matched = current[nearest[:, 0] + down, nearest[:, 1] + right]
                total[rows, columns, :3] += weight[:, None] * matched
                total[rows, columns, 3] += weight
        covered = self.hole & (total[..., 3] > 0)
        mean = total[..., :3] / np.maximum(total[..., 3:], 1e-9)
        return np.where(covered[..., None], mean, current).astype(np.float32)

    def enlarge_matches(self, nearest: Int[np.ndarray, "n 2"], coarse: _Level) -> Int[np.ndarray, "targets 2"]:
        """Converts matches from a coarser level to this one."""
        scale = np.array(self.known.shape) / np.array(coarse.known.shape)
        there = np.minimum((self.targets / scale).astype(int), np.array(coarse.known.shape) - 1)
        number = coarse.number[there[:, 0], there[:, 1]]
        lost = number < 0
        place = np.where(lost[:, None], there, nearest[np.maximum(number, 0)])
        moved = np.rint((place - there) * scale).astype(int) + self.targets
        return np.clip(moved, 0, np.array(self.known.shape) - 1)

    @cached_property
    def source_mask(self) -> PixelMask:
        """The centers of known patches."""
        found = np.zeros(self.known.shape, bool)
        found[self.sources[:, 0], self.sources[:, 1]] = True
        return found

    def snap_to_sources(self, places: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 2"]:
        """Moves each position to the nearest center of a known patch."""
        from scipy.spatial import cKDTree

        fine = self.source_mask[places[:, 0], places[:, 1]]
        if fine.all():
            return places
        return np.where(fine[:, None], places, self.sources[cKDTree(self.sources).query(places)[1]])

    def _patch_distance(
        self, current: RgbPicture, wanted: Float[np.ndarray, "n pixels 3"], places: Int[np.ndarray, "n 2"]
    ) -> Float[np.ndarray, " n"]:
        return ((self._take_patches(current, places) - wanted) ** 2).sum(axis=(1, 2))

    def _take_patches(self, current: RgbPicture, places: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, "n pixels 3"]:
        width, radius = current.shape[1], self.settings.patch_radius_px
        offsets = np.arange(-radius, radius + 1)
        index = (offsets[:, None] * width + offsets).reshape(-1)
        return current.reshape(-1, 3)[(places[:, 0] * width + places[:, 1])[:, None] + index]

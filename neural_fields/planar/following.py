"""Following a region of one frame through a clip: where it lies, and what passes in front of it.

Going outwards from the frame that the region was drawn on, (1) the flow of what is seen of it predicts its place in the
next frame; (2) long-range flow between the drawn frame, warped by that prediction, and the next one puts it right, so
that errors do not add up; (3) where the colours of the two disagree under the same light, something is in front. Then
all frames are placed once more (`placement.place`), and what is in front is found against the median of all frames.

The canonical plane of the region is the plane of the drawn frame, as in RNA (Lee et al., "RNA: Video Editing with
ROI-based Neural Atlas", 2024), so that an edit is drawn where it is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.coords import Box
from neural_fields.data.clip import Clip
from neural_fields.data.flow import FlowField
from neural_fields.data.region import Corners, RegionTrack, carried, pixel_xy, quad_area, quad_mask
from neural_fields.planar.covering import WEAK, around, in_front, light, mapped, without_specks
from neural_fields.planar.initialise import MAX_MAGNIFICATION, LayerGeometry, ransac, scale
from neural_fields.planar.placement import View, make_view, place

MIN_MATCHES = 24  # fewer matched pixels than this move nothing
MAX_MATCHES = 1500
WORTH = 0.95  # how much closer to the matches a freer transform must lie to be taken
FAR = 3.0  # pixels: matches further away than this from a transform are none of its business
RING = 12  # pixels around the region whose motion is taken where nothing of it is seen
ASTRAY = 0.015  # frame lengths: flow that leads further away from the prediction is that of something else
FURTHEST = 0.15  # frame lengths: long-range flow that moves a corner so far from the prediction has lost the region
HIDDEN = 0.1  # with less than this share of it in sight the region counts as hidden
ROUNDS = 8  # of Gauss-Newton
TRUST = 1.0  # pixels by which a corner may be misplaced where flow put it
CORRELATED = 25  # so many neighbouring pixels and channels err alike, and count as one
SETTLING = 6  # times that a place is put right again where much is covered
WELL_SEEN = 0.8  # of the region: its place is certain
SAMPLES = 60  # frames that the median is taken of
MARGIN = 6  # pixels around the region that its canonical image also covers


@dataclass(frozen=True)
class Followed:
    """A region in every frame."""

    track: RegionTrack
    seen: Bool[np.ndarray, "time height width"]  # the region less what is in front of it, at the size of the frames

    @property
    def shares(self) -> Float[np.ndarray, " time"]:
        """How much of what the frame has room for of the region is seen, 0 to 1."""
        size = (self.seen.shape[2], self.seen.shape[1])
        room = [quad_mask(self.track.quad(t), size).sum() for t in range(len(self.seen))]
        return self.seen.sum((1, 2)) / np.maximum(1, room)


def follow(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    corners: Corners,
    frame: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Followed:
    """Follows the region with `corners` (xy units) on frame `frame` of the clip through all frames.

    `flow` may be at another size than the frames; None is a clip of one frame. `progress` is called with (frames done,
    frames in all).
    """
    size = (frames.shape[2], frames.shape[1])
    if flow is None:
        track = RegionTrack(frame, corners, np.tile(np.eye(3), (len(frames), 1, 1)))
        return Followed(track, np.stack([quad_mask(corners, size)] * len(frames)))
    scene = _Scene(frames, flow, corners, frame)
    drawn = scene.picture(frame)
    track, seen = _first_pass(scene, drawn, progress)
    median = _usual(scene, track, seen)
    track, seen = _second_pass(scene, track, seen, median)
    seen = without_specks(track, seen)
    out = np.zeros(frames.shape[:3], bool)
    for t, shown in enumerate(seen):
        if shown.sum() >= max(MIN_MATCHES, HIDDEN * quad_area(track.quad(t), flow.size)):
            front = quad_mask(track.quad(t), flow.size) & ~shown
            covered = cv2.resize(front.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5
            out[t] = quad_mask(track.quad(t), size) & ~covered
    return Followed(track, out)


def region_geometry(
    clip: Clip, visible: Float[np.ndarray, "time h w"], track: RegionTrack, grid: tuple[int, int]
) -> LayerGeometry:
    """The geometry of a region's layer: uv are the xy of the frame that it was drawn on.

    Args:
        visible: 0 to 1, where the region is seen, at the size of `clip.flow` (or of the frames, without flow).
        grid: (columns, rows) of the residual.
    """
    size = (visible.shape[2], visible.shape[1])
    rim = MARGIN * 2 / max(size)
    (u0, v0), (u1, v1) = track.corners.min(0) - rim, track.corners.max(0) + rim
    box = Box(float(u0), float(v0), float(u1), float(v1))
    if clip.flow is None:
        still = np.tile(np.eye(3, dtype=np.float32), (len(visible), 1, 1))
        return LayerGeometry(still, np.zeros((len(visible), grid[1], grid[0], 2), np.float32), box, 1.0)
    transforms = track.transforms
    steps = [np.linalg.inv(after) @ before for before, after in pairwise(transforms)]
    # The transforms are better than another fit: they stay, and flow only adds the shifts.
    placed = place(lambda t: make_view(clip.frames[t], visible[t]), steps, track.frame, lambda xy, uv, before: before)
    residual = np.stack([cv2.resize(one.shift, grid, interpolation=cv2.INTER_AREA) for one in placed])
    seen = visible.any((1, 2))
    zoom = scale(transforms[seen]) if seen.any() else np.ones(1)
    finer = float((1 / np.percentile(zoom, 10)).clip(1, MAX_MAGNIFICATION))
    return LayerGeometry(transforms.astype(np.float32), residual, box, finer)


@dataclass(frozen=True)
class _Scene:
    """A clip at the size of its flow, and the region in it."""

    frames: np.ndarray
    flow: FlowField
    corners: Corners
    reference: int

    def picture(self, t: int) -> Float[np.ndarray, "height width 3"]:
        """A frame as RGB in [0, 1]."""
        frame = np.ascontiguousarray(self.frames[t])
        if (frame.shape[1], frame.shape[0]) != self.flow.size:
            frame = cv2.resize(frame, self.flow.size, interpolation=cv2.INTER_AREA)
        return frame.astype(np.float32) / 255

    def view(self, t: int, seen: Bool[np.ndarray, "height width"]) -> View:
        """What a frame shows of the region."""
        return make_view(np.asarray(self.frames[t]), seen.astype(np.float32))


# --- the way there --------------------------------------------------------------------------------------------------


def _first_pass(
    scene: _Scene, canonical: np.ndarray, progress: Callable[[int, int], None]
) -> tuple[RegionTrack, Bool[np.ndarray, "time height width"]]:
    """Each frame by the flow of the one before, put right by the flow from the canonical picture; and what is seen."""
    count, first = len(scene.frames), scene.reference
    transforms = np.tile(np.eye(3), (count, 1, 1))
    width, height = scene.flow.size
    seen = np.zeros((count, height, width), bool)
    whole = quad_mask(scene.corners, scene.flow.size)
    seen[first] = _not_covered(scene, first, np.eye(3), canonical)
    start = make_view((canonical * 255).round().clip(0, 255).astype(np.uint8), whole.astype(np.float32))
    for done, t in enumerate([*range(first + 1, count), *range(first - 1, -1, -1)]):
        before = t - 1 if t > first else t + 1
        to_here = _step(scene, before, t, seen[before], carried(np.linalg.inv(transforms[before]), scene.corners))
        predicted = transforms[before] @ np.linalg.inv(to_here)
        quad = quad_mask(carried(np.linalg.inv(predicted), scene.corners), scene.flow.size)
        found = _aligned(scene, t, predicted, start, quad)
        transforms[t], seen[t] = max(
            (_settled(scene, t, place, canonical) for place in (found, predicted)), key=lambda one: one[1].sum()
        )
        progress(done + 1, count)
    return RegionTrack(first, scene.corners, transforms), seen


def _second_pass(
    scene: _Scene, track: RegionTrack, seen: Bool[np.ndarray, "time height width"], median: np.ndarray
) -> tuple[RegionTrack, Bool[np.ndarray, "time height width"]]:
    """Each frame put right against the median; where much is covered, also from between the frames that show it well.

    Of two places the one is taken in which more of the region looks as it should.
    """
    shares = np.array(
        [mask.sum() / max(1, quad_mask(track.quad(t), scene.flow.size).sum()) for t, mask in enumerate(seen)]
    )
    shares[scene.reference] = 1.0
    transforms, found = track.transforms.copy(), seen.copy()
    for t in range(len(seen)):
        starts = [] if t == scene.reference else [track.transforms[t]]
        if shares[t] < WELL_SEEN and (between := _between(track, shares, t)) is not None:
            starts.append(between)
        best = -1
        for start in starts:
            place, shown = _settled(scene, t, start, median)
            if shown.sum() > best:
                transforms[t], found[t], best = place, shown, shown.sum()
        if not starts:
            found[t] = _not_covered(scene, t, transforms[t], median)
    return RegionTrack(track.frame, track.corners, transforms), found


def _settled(
    scene: _Scene, t: int, start: np.ndarray, canonical: np.ndarray
) -> tuple[np.ndarray, Bool[np.ndarray, "height width"]]:
    """A place put right, and what is seen of the region there.

    Where much is covered it is put right again and again, unless less of the region is seen that way: a wrong place
    takes parts of the region for something in front.
    """
    best, shown = start, _not_covered(scene, t, start, canonical)
    for turn in range(SETTLING):
        place = _refined(scene, t, best, canonical, shown)
        now = _not_covered(scene, t, place, canonical)
        if turn and now.sum() < 0.98 * shown.sum():
            break
        best, shown = place, now
        if shown.sum() > WELL_SEEN * quad_area(carried(np.linalg.inv(best), scene.corners), scene.flow.size):
            break
    return best, shown


def _between(track: RegionTrack, shares: Float[np.ndarray, " time"], t: int) -> np.ndarray | None:
    """The transform of a frame whose corners lie between those of the nearest frames that show the region well."""
    sure = np.flatnonzero(shares >= WELL_SEEN)
    earlier, later = sure[sure < t], sure[sure > t]
    if not len(earlier) or not len(later):
        return None
    a, b = int(earlier[-1]), int(later[0])
    corners = track.quad(a) + (t - a) / (b - a) * (track.quad(b) - track.quad(a))
    return cv2.getPerspectiveTransform(corners.astype(np.float32), track.corners.astype(np.float32))


def _step(scene: _Scene, before: int, t: int, seen: Bool[np.ndarray, "height width"], quad: Corners) -> np.ndarray:
    """The motion of the region from one frame to its neighbour, in xy units, by optical flow.

    Where too little of it is seen, it is taken to move with what surrounds it.
    """
    pair, ahead = min(before, t), t > before
    vectors = (scene.flow.forward if ahead else scene.flow.backward)[pair].astype(np.float32)
    ok = np.asarray((scene.flow.forward_ok if ahead else scene.flow.backward_ok)[pair])
    kind, chosen = "affine", seen & ok
    if chosen.sum() < max(MIN_MATCHES, HIDDEN * quad_area(quad, scene.flow.size)):
        whole = quad_mask(quad, scene.flow.size).astype(np.uint8)
        ring = cv2.dilate(whole, np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)) > whole
        kind, chosen = "similarity", ring & ok
    if chosen.sum() < MIN_MATCHES:
        return np.eye(3)
    width, height = scene.flow.size
    start = pixel_xy(width, height)[chosen]
    return _fit(start, start + vectors[chosen] * (2 / max(width, height)), kind, 2 / max(width, height))


def _aligned(
    scene: _Scene, t: int, predicted: np.ndarray, drawn: View, quad: Bool[np.ndarray, "height width"]
) -> np.ndarray:
    """The transform of a frame by long-range flow from the drawn frame; as predicted where that finds nothing."""
    area = int(quad.sum())
    if area < MIN_MATCHES:
        return predicted
    pixel = 2 / max(scene.flow.size)

    def fit(xy: np.ndarray, uv: np.ndarray, before: np.ndarray) -> np.ndarray:
        near = np.linalg.norm(carried(before, xy) - uv, axis=1) < 2 * ASTRAY  # what passes in front moves otherwise
        if near.sum() < MIN_MATCHES:
            return before
        return _fit(carried(before, xy)[near], uv[near], _freedom(near.sum() / area), pixel) @ before

    views = (drawn, scene.view(t, quad))
    found = place(views.__getitem__, [np.linalg.inv(predicted)], 0, fit)[1].transform
    return found if _leap(found, predicted, scene.corners) < FURTHEST else predicted


def _freedom(share: float) -> str:
    """How freely a region may move when this share of it can be seen: what is hidden must not run away."""
    return "homography" if share > 0.6 else "affine" if share > 0.3 else "similarity"


def _refined(
    scene: _Scene, t: int, transform: np.ndarray, canonical: np.ndarray, seen: Bool[np.ndarray, "height width"]
) -> np.ndarray:
    """A transform moved until the frame looks like the canonical picture where the region is seen, but for a rim.

    Gauss-Newton on where the four corners lie, with weights that let go of what never fits, and with the place found
    by flow as a prior: what is hidden stays where it was.
    """
    quad = quad_mask(scene.corners, scene.flow.size)
    rows, columns = around(quad)
    inside, target = quad[rows, columns], canonical[rows, columns]
    pixel = 2 / max(scene.flow.size)
    moves = _corner_moves(scene.corners, pixel_xy(*scene.flow.size)[rows, columns])
    picture, total, start = scene.picture(t), np.zeros(8), transform
    hidden = quad_mask(carried(np.linalg.inv(transform), scene.corners), scene.flow.size) & ~seen
    sure = seen & (cv2.dilate(hidden.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
    for _ in range(ROUNDS):
        x, y = mapped(np.linalg.inv(transform), scene.flow.size, (rows, columns))
        frame = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        known = cv2.remap(sure.astype(np.float32), x, y, cv2.INTER_LINEAR, borderValue=0)
        used = inside & (known > 0.99)
        if used.sum() < MIN_MATCHES:
            break
        frame = frame / light(frame, target, used)
        slope = [(np.gradient(frame, axis=axis) + np.gradient(target, axis=axis))[used] / 2 for axis in (1, 0)]
        gap = (target - frame)[used]
        spread = max(0.01, 1.5 * float(np.median(np.abs(gap))))
        weight = (1 + (gap / (2.5 * spread)) ** 2) ** -2 / (spread**2 * CORRELATED)
        slopes = np.stack(slope, -1) / pixel  # [n, 3, 2], colour for one xy unit
        jacobian = np.einsum("nca,kna->knc", slopes, moves[:, used])
        normal = np.einsum("knc,nc,lnc->kl", jacobian, weight, jacobian, optimize=True)
        right = np.einsum("knc,nc,nc->k", jacobian, weight, gap, optimize=True)
        prior = 1 / (TRUST * pixel) ** 2
        change = np.linalg.solve(normal + prior * np.eye(8), right - prior * total)
        total += change
        moved = scene.corners + change.reshape(4, 2)
        transform = cv2.getPerspectiveTransform(moved.astype(np.float32), scene.corners.astype(np.float32)) @ transform
        if np.abs(change).max() < 0.01 * pixel:
            break
    return transform / transform[2, 2] if _leap(transform, start, scene.corners) < FURTHEST else start


def _corner_moves(corners: Corners, xy: Float[np.ndarray, "rows columns 2"]) -> Float[np.ndarray, "8 rows columns 2"]:
    """How far each point of the plane moves when one coordinate of one corner does."""
    moves = []
    for k in range(8):
        there = corners.copy()
        there.flat[k] += 1e-3
        matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), there.astype(np.float32))
        moves.append((carried(matrix, xy) - xy) / 1e-3)
    return np.stack(moves)


def _leap(found: np.ndarray, predicted: np.ndarray, corners: Corners) -> float:
    """How far the corners in a frame lie from where they were predicted, in frame lengths; infinite for no place."""
    if not np.isfinite(found).all() or abs(np.linalg.det(found)) < 1e-6:
        return np.inf
    here, there = (carried(np.linalg.inv(matrix), corners) for matrix in (found, predicted))
    return float(np.linalg.norm(here - there, axis=1).max()) / 2


def _fit(start: Float[np.ndarray, "n 2"], end: Float[np.ndarray, "n 2"], freest: str, pixel: float) -> np.ndarray:
    """The stiffest transform between matched points that lies nearly as close to them as the freest one does.

    A homography of a small region bends with every error of the flow, and its corners run away.
    """
    kinds = ["similarity", "affine", "homography"]
    del kinds[kinds.index(freest) + 1 :]
    chosen = np.random.default_rng(len(start)).permutation(len(start))[:MAX_MATCHES]
    a, b = (np.ascontiguousarray(points[chosen], np.float64) for points in (start, end))
    found = [ransac(a, b, kind, pixel) for kind in kinds]
    gaps = [np.minimum(np.linalg.norm(carried(m, a) - b, axis=1), FAR * pixel).mean() for m in found]
    return next(m for m, gap in zip(found, gaps, strict=True) if WORTH * gap <= min(gaps))


# --- what is in front -----------------------------------------------------------------------------------------------


def _not_covered(
    scene: _Scene, t: int, transform: np.ndarray, canonical: np.ndarray
) -> Bool[np.ndarray, "height width"]:
    """Where a frame shows the region."""
    quad = quad_mask(carried(np.linalg.inv(transform), scene.corners), scene.flow.size)
    return quad & ~in_front(scene.picture(t), transform, canonical, quad)


def _usual(scene: _Scene, track: RegionTrack, seen: Bool[np.ndarray, "time height width"]) -> np.ndarray:
    """The region as most frames show it, on the pixels of the drawn frame.

    Of the median of what was taken for the region and the median of all that was there, the one counts that more
    frames look like: where the region was drawn over something, all that looks like the drawn frame is that thing.
    """
    drawn = scene.picture(scene.reference)
    chosen = np.unique(np.linspace(0, len(seen) - 1, min(SAMPLES, len(seen))).round().astype(int))
    rows, columns = around(quad_mask(scene.corners, scene.flow.size))
    everywhere = np.ones(seen.shape[1:], np.float32)
    pictures, trusted, there = [], [], []
    for t in chosen.tolist():
        x, y = mapped(np.linalg.inv(track.transforms[t]), scene.flow.size, (rows, columns))
        picture = cv2.remap(scene.picture(t), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        own = cv2.remap(seen[t].astype(np.float32), x, y, cv2.INTER_LINEAR, borderValue=0) > 0.5
        pictures.append(picture / light(picture, drawn[rows, columns], own))
        trusted.append(own)
        there.append((cv2.remap(everywhere, x, y, cv2.INTER_LINEAR, borderValue=0) > 0.99) & bool(own.any()))
    stack = np.stack(pictures)
    out = drawn.copy()
    best = np.zeros(out[rows, columns].shape[:2], int)
    for known in (np.stack(trusted), np.stack(there)):
        middle = _median(stack, known)
        votes = ((np.abs(stack - middle).max(-1) < WEAK) & np.stack(there)).sum(0)
        better = known.any(0) & (votes > best)
        out[rows, columns] = np.where(better[..., None], middle, out[rows, columns])
        best = np.maximum(best, votes * better)
    return out.astype(np.float32)


def _median(stack: Float[np.ndarray, "time h w 3"], known: Bool[np.ndarray, "time h w"]) -> Float[np.ndarray, "h w 3"]:
    """The median over time of what is known; 0 where nothing is."""
    filled = np.where((known | ~known.any(0))[..., None], stack, np.nan)
    return np.nanmedian(filled, axis=0).astype(np.float32)

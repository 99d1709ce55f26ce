"""Tracks a region of one frame through a clip: its placement in every frame, and the occluders in front of it.

Going outwards from the frame that the region was drawn on, (1) the flow of what is visible of it predicts its place in
the next frame; (2) long-range flow between the drawn frame, warped by that prediction, and the next one corrects it, so
that errors do not add up; (3) where the colors of the two disagree under the same light, something is in front. Then
all frames are placed once more (`placement.place`), and occluders are found against the median of all frames.

The canonical plane of the region is the plane of the drawn frame, as in RNA (Lee et al., "RNA: Video Editing with
ROI-based Neural Atlas", 2024), so that an edit is drawn where it is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core.box import Box
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.roi import (
    Corners,
    RegionTrack,
    apply_homography,
    compute_quad_area,
    draw_quad_mask,
    pixel_positions,
)
from neural_fields.imaging.ransac import find_transform_or_identity
from neural_fields.planar.init.frame_registration import FrameView, PlacementSettings, make_frame_view, place_frames
from neural_fields.planar.init.geometry import GeometrySettings, LayerGeometry, estimate_magnification
from neural_fields.planar.init.occluders import (
    OcclusionSettings,
    estimate_light,
    find_occluders,
    map_window,
    remove_specks,
    window_around,
)


@dataclass(frozen=True)
class RegionTrackingSettings:
    """Settings of the tracking of a region. A frame length is the longer side of the frame."""

    max_match_error_px: float = 3.0  # matches further from a transform are outliers
    # Of the region in sight; with less an affine transform at most is fitted: what is hidden must not run away.
    min_homography_share: float = 0.6
    ring_px: int = 12  # around the region, whose motion is taken where nothing of the region is visible
    max_stray: float = 0.015  # frame lengths; flow further from the prediction is that of something else
    min_visible_share: float = 0.1  # of the region; with less it counts as hidden
    first_placement: PlacementSettings = field(  # regions may be small: all pixels are matched
        default_factory=lambda: PlacementSettings(lattice_px=1)
    )
    good_visible_share: float = 0.8  # of the region; with more its placement is certain
    max_refinements: int = 6  # of a placement where much is covered
    gauss_newton_steps: int = 8  # of a refinement
    min_step_px: float = 0.01  # of a corner; a smaller Gauss-Newton step is the last one
    corner_prior_px: float = 1.0  # by which flow may have misplaced a corner (standard deviation)
    correlated_samples: int = 25  # so many neighboring pixels and channels err alike, and count as one
    min_color_sigma: float = 0.01  # of color differences in [0, 1]
    color_sigma_factor: float = 1.5  # times the median difference gives their sigma
    robust_sigmas: float = 2.5  # width of the robust weight of a color difference
    max_median_frames: int = 60  # that the median is taken of
    margin_px: int = 6  # around the region that its canonical picture also covers
    occlusion: OcclusionSettings = field(default_factory=OcclusionSettings)
    # Of the layer that is made of the region; its numbers of matches and its error ratio are those of the region, too.
    geometry: GeometrySettings = field(default_factory=GeometrySettings)


DEFAULTS = RegionTrackingSettings()


@dataclass(frozen=True)
class TrackedRegion:
    """Holds a region in every frame."""

    track: RegionTrack
    visibility: Bool[
        np.ndarray, "time height width"
    ]  # the region less what is in front of it, at the size of the frames

    @property
    def visible_shares(self) -> Float[np.ndarray, " time"]:
        """The visible share of the region inside the frame, 0 to 1."""
        size = (self.visibility.shape[2], self.visibility.shape[1])
        room = [draw_quad_mask(self.track.compute_quad(t), size).sum() for t in range(len(self.visibility))]
        return self.visibility.sum((1, 2)) / np.maximum(1, room)


def track_region(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    corners: Corners,
    frame: int,
    report: ProgressReporter = report_nothing,
    settings: RegionTrackingSettings = DEFAULTS,
) -> TrackedRegion:
    """Tracks a region of one frame through all frames of a clip.

    Args:
        frames: the clip.
        flow: may be at another size than the frames; None for a clip of one frame.
        corners: of the region in `frame`, in xy units.
        frame: number of the frame that the region was drawn on.
        report: called after each frame.
        settings: of the tracking.
    """
    size = (frames.shape[2], frames.shape[1])
    if flow is None:
        track = RegionTrack(frame, corners, np.tile(np.eye(3), (len(frames), 1, 1)))
        return TrackedRegion(track, np.stack([draw_quad_mask(corners, size)] * len(frames)))
    clip = _TrackedClip(frames, flow, corners, frame, settings)
    track, seen = _track_by_flow(clip, report_part(report, "following", 0.0, 0.6))
    report_refined = report_part(report, "following", 0.6, 1.0)
    median = _compute_median_image(clip, track, seen)

    # Each placement is refined against the median image. Where much is covered, a placement between those of the frames
    # that show the region well is tried too. Of the two, the one in which more of the region looks as it should counts.
    areas = [max(1, draw_quad_mask(track.compute_quad(t), flow.size).sum()) for t in range(len(seen))]
    shares = np.array([mask.sum() / area for mask, area in zip(seen, areas, strict=True)])
    shares[frame] = 1.0
    sure = np.flatnonzero(shares >= settings.good_visible_share)
    transforms, found = track.transforms.copy(), seen.copy()
    for t in range(len(seen)):
        starts = [] if t == frame else [track.transforms[t]]
        earlier, later = sure[sure < t], sure[sure > t]
        if shares[t] < settings.good_visible_share and len(earlier) and len(later):
            a, b = int(earlier[-1]), int(later[0])
            between = track.compute_quad(a) + (t - a) / (b - a) * (track.compute_quad(b) - track.compute_quad(a))
            starts.append(cv2.getPerspectiveTransform(between.astype(np.float32), corners.astype(np.float32)))
        best = -1
        for start in starts:
            transform, visible = _refine_placement(clip, t, start, median)
            if visible.sum() > best:
                transforms[t], found[t], best = transform, visible, visible.sum()
        if not starts:
            found[t] = clip.visibility_mask(t, transforms[t], median)
        report_refined(Progress("following", t + 1, len(seen)))
    track = RegionTrack(frame, corners, transforms)

    seen = remove_specks(track, found, settings.occlusion)
    out = np.zeros(frames.shape[:3], bool)
    for t, visible in enumerate(seen):
        min_area = max(
            settings.geometry.min_matches,
            settings.min_visible_share * compute_quad_area(track.compute_quad(t), flow.size),
        )
        if visible.sum() >= min_area:
            front = draw_quad_mask(track.compute_quad(t), flow.size) & ~visible
            covered = cv2.resize(front.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5
            out[t] = draw_quad_mask(track.compute_quad(t), size) & ~covered
    return TrackedRegion(track, out)


def compute_region_geometry(
    clip: ClipDataset,
    visible: Float[np.ndarray, "time h w"],
    track: RegionTrack,
    grid: tuple[int, int],
    settings: RegionTrackingSettings = DEFAULTS,
) -> LayerGeometry:
    """Computes the geometry of a region's layer: uv are the xy of the frame that it was drawn on.

    Args:
        clip: the frames, and their flow.
        visible: 0 to 1, the visibility of the region, at the size of `clip.flow` (or of the frames, without flow).
        track: the region in every frame.
        grid: (columns, rows) of the residual.
        settings: margin, placement and largest magnification.
    """
    size = (visible.shape[2], visible.shape[1])
    rim = settings.margin_px * 2 / max(size)
    (u0, v0), (u1, v1) = track.corners.min(0) - rim, track.corners.max(0) + rim
    box = Box(float(u0), float(v0), float(u1), float(v1))
    if clip.flow is None:
        still = np.tile(np.eye(3, dtype=np.float32), (len(visible), 1, 1))
        return LayerGeometry(still, np.zeros((len(visible), grid[1], grid[0], 2), np.float32), box, 1.0)
    transforms = track.transforms
    steps = [np.linalg.inv(after) @ before for before, after in pairwise(transforms)]

    def view_frame(t: int) -> FrameView:
        return make_frame_view(clip.frames[t], visible[t])

    def keep_transform(xy: np.ndarray, uv: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Returns the tracked transform: it is better than another fit, and flow only adds the shifts.

        Args:
            xy: points of a frame; not read.
            uv: where they are on the plane; not read.
            predicted: the tracked transform.
        """
        return predicted

    placed = place_frames(view_frame, steps, track.frame, keep_transform, settings=settings.geometry.placement)
    residual = np.stack([cv2.resize(frame.shift, grid, interpolation=cv2.INTER_AREA) for frame in placed])
    magnification = estimate_magnification(transforms[visible.any((1, 2))], settings.geometry)
    return LayerGeometry(transforms.astype(np.float32), residual, box, magnification)


@dataclass(frozen=True)
class _TrackedClip:
    """A clip at the size of its flow, and the region in it."""

    frames: np.ndarray
    flow: FlowField
    corners: Corners
    reference: int  # the frame that the region was drawn on
    settings: RegionTrackingSettings

    @property
    def pixel_size(self) -> float:
        """The side of a pixel in xy units."""
        return 2 / max(self.flow.size)

    def read_picture(self, t: int) -> Float[np.ndarray, "height width 3"]:
        """Returns a frame as RGB in [0, 1]."""
        frame = np.ascontiguousarray(self.frames[t])
        if (frame.shape[1], frame.shape[0]) != self.flow.size:
            frame = cv2.resize(frame, self.flow.size, interpolation=cv2.INTER_AREA)
        return frame.astype(np.float32) / 255

    def compute_quad(self, transform: np.ndarray) -> Corners:
        """Returns the corners of the region, in xy units, in a frame with this transform to the drawn frame."""
        return apply_homography(np.linalg.inv(transform), self.corners)

    def visibility_mask(self, t: int, transform: np.ndarray, canonical: np.ndarray) -> Bool[np.ndarray, "height width"]:
        """Returns the pixels of a frame that show the region.

        Args:
            t: number of the frame.
            transform: xy units of the frame to those of the canonical picture.
            canonical: RGB of the region.
        """
        quad = draw_quad_mask(self.compute_quad(transform), self.flow.size)
        return quad & ~find_occluders(self.read_picture(t), transform, canonical, quad, self.settings.occlusion)


# --- from frame to frame --------------------------------------------------------------------------------------------


def _track_by_flow(
    clip: _TrackedClip, report: ProgressReporter
) -> tuple[RegionTrack, Bool[np.ndarray, "time height width"]]:
    """Places each frame by the flow of the one before, corrected by the flow from the drawn frame.

    Returns:
        The track, and the visibility of the region at the size of the flow.
    """
    settings, count, first = clip.settings, len(clip.frames), clip.reference
    transforms = np.tile(np.eye(3), (count, 1, 1))
    width, height = clip.flow.size
    seen = np.zeros((count, height, width), bool)
    drawn = clip.read_picture(first)
    seen[first] = clip.visibility_mask(first, np.eye(3), drawn)
    whole = draw_quad_mask(clip.corners, clip.flow.size)
    start = make_frame_view((drawn * 255).round().clip(0, 255).astype(np.uint8), whole.astype(np.float32))
    for done, t in enumerate([*range(first + 1, count), *range(first - 1, -1, -1)]):
        before = t - 1 if t > first else t + 1
        to_here = _fit_motion(clip, before, t, seen[before], clip.compute_quad(transforms[before]))
        predicted = transforms[before] @ np.linalg.inv(to_here)
        # Long-range flow from the drawn frame, unless it finds nothing.
        found = predicted
        quad = draw_quad_mask(clip.compute_quad(predicted), clip.flow.size)
        area = int(quad.sum())
        if area >= settings.geometry.min_matches:
            views = (start, make_frame_view(np.asarray(clip.frames[t]), quad.astype(np.float32)))
            fit = partial(_fit_correction, area=area, pixel=clip.pixel_size, settings=settings)
            pairs = [np.linalg.inv(predicted)]
            placement = settings.first_placement
            placed = place_frames(views.__getitem__, pairs, 0, fit, settings=placement)[1].transform
            if _is_regular(placed):
                found = placed
        # Of the two the one is taken that shows more of the region.
        candidates = [_refine_placement(clip, t, transform, drawn) for transform in (found, predicted)]
        transforms[t], seen[t] = max(candidates, key=lambda candidate: candidate[1].sum())
        report(Progress("following", done + 1, count))
    return RegionTrack(first, clip.corners, transforms), seen


def _fit_motion(
    clip: _TrackedClip, before: int, t: int, seen: Bool[np.ndarray, "height width"], quad: Corners
) -> np.ndarray:
    """Fits the motion of the region from frame `before` to its neighbor `t`, in xy units, to optical flow.

    Where too little of the region is visible, it is taken to move with what surrounds it.
    """
    settings, size = clip.settings, clip.flow.size
    pair, is_forward = min(before, t), t > before
    vectors = (clip.flow.forward if is_forward else clip.flow.backward)[pair].astype(np.float32)
    ok = np.asarray((clip.flow.forward_ok if is_forward else clip.flow.backward_ok)[pair])
    kind, chosen = "affine", seen & ok
    if chosen.sum() < max(settings.geometry.min_matches, settings.min_visible_share * compute_quad_area(quad, size)):
        whole = draw_quad_mask(quad, size).astype(np.uint8)
        side = 2 * settings.ring_px + 1
        ring = cv2.dilate(whole, np.ones((side, side), np.uint8)) > whole
        kind, chosen = "similarity", ring & ok
    if chosen.sum() < settings.geometry.min_matches:
        return np.eye(3)
    start = pixel_positions(*size)[chosen]
    return _fit_stiffest(start, start + vectors[chosen] * clip.pixel_size, kind, clip.pixel_size, settings)


def _fit_correction(
    xy: np.ndarray, uv: np.ndarray, predicted: np.ndarray, area: int, pixel: float, settings: RegionTrackingSettings
) -> np.ndarray:
    """Fits what long-range flow adds to a predicted transform; returns the prediction where too little matches it.

    Args:
        xy: points of the frame.
        uv: the same points on the drawn frame, by flow.
        predicted: the transform from xy to uv.
        area: pixels of the region.
        pixel: xy units.
        settings: how far flow may be from the prediction, and how freely the region may move.
    """
    near = (
        np.linalg.norm(apply_homography(predicted, xy) - uv, axis=1) < 2 * settings.max_stray
    )  # occluders move otherwise
    if near.sum() < settings.geometry.min_matches:
        return predicted
    freest = "homography" if near.sum() > settings.min_homography_share * area else "affine"
    return _fit_stiffest(apply_homography(predicted, xy)[near], uv[near], freest, pixel, settings) @ predicted


def _fit_stiffest(
    start: Float[np.ndarray, "n 2"],
    end: Float[np.ndarray, "n 2"],
    freest: str,
    pixel: float,
    settings: RegionTrackingSettings,
) -> np.ndarray:
    """Fits the stiffest transform to matched points that is nearly as close to them as the freest one.

    A homography of a small region bends with every error of the flow, and its corners run away.
    """
    kinds = ["similarity", "affine", "homography"]
    del kinds[kinds.index(freest) + 1 :]
    chosen = np.random.default_rng(len(start)).permutation(len(start))[: settings.geometry.max_matches]
    a, b = (np.ascontiguousarray(points[chosen], np.float64) for points in (start, end))
    found = [find_transform_or_identity(a, b, kind, pixel) for kind in kinds]
    limit = settings.max_match_error_px * pixel
    errors = [np.minimum(np.linalg.norm(apply_homography(matrix, a) - b, axis=1), limit).mean() for matrix in found]
    best = min(errors)
    return next(m for m, error in zip(found, errors, strict=True) if settings.geometry.max_error_ratio * error <= best)


# --- against the median ---------------------------------------------------------------------------------------------


def _compute_median_image(
    clip: _TrackedClip, track: RegionTrack, seen: Bool[np.ndarray, "time height width"]
) -> Float[np.ndarray, "height width 3"]:
    """Computes the region as most frames show it, on the pixels of the drawn frame.

    Of the median of what was taken for the region and the median of all that was there, the one counts that more
    frames look like: where the region was drawn over something, all that looks like the drawn frame is that thing.
    """
    settings, size = clip.settings, clip.flow.size
    drawn = clip.read_picture(clip.reference)
    chosen = np.linspace(0, len(seen) - 1, min(settings.max_median_frames, len(seen))).round().astype(int)
    rows, columns = window_around(draw_quad_mask(clip.corners, size), settings.occlusion)
    everywhere = np.ones(seen.shape[1:], np.float32)
    pictures, trusted, there = [], [], []
    for t in np.unique(chosen).tolist():
        x, y = map_window(np.linalg.inv(track.transforms[t]), size, (rows, columns))
        picture = cv2.remap(clip.read_picture(t), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        own = cv2.remap(seen[t].astype(np.float32), x, y, cv2.INTER_LINEAR, borderValue=0) > 0.5
        pictures.append(picture / estimate_light(picture, drawn[rows, columns], own, settings.occlusion))
        trusted.append(own)
        there.append((cv2.remap(everywhere, x, y, cv2.INTER_LINEAR, borderValue=0) > 0.99) & bool(own.any()))
    stack = np.stack(pictures)
    out = drawn.copy()
    most_votes = np.zeros(out[rows, columns].shape[:2], int)
    for known in (np.stack(trusted), np.stack(there)):
        # The median of what is known; 0 where nothing is.
        filled = np.where((known | ~known.any(0))[..., None], stack, np.nan)
        median = np.nanmedian(filled, axis=0).astype(np.float32)
        is_like = np.abs(stack - median).max(-1) < settings.occlusion.weak_difference
        votes = (is_like & np.stack(there)).sum(0)
        better = known.any(0) & (votes > most_votes)
        out[rows, columns] = np.where(better[..., None], median, out[rows, columns])
        most_votes = np.maximum(most_votes, votes * better)
    return out.astype(np.float32)


# --- one placement --------------------------------------------------------------------------------------------------


def _refine_placement(
    clip: _TrackedClip, t: int, start: np.ndarray, canonical: np.ndarray
) -> tuple[np.ndarray, Bool[np.ndarray, "height width"]]:
    """Refines the transform of a frame against a canonical picture; also returns the visibility of the region there.

    Where much seems covered it is refined again: a wrong placement takes parts of the region for something in front.
    """
    settings = clip.settings
    transform, visible = start, clip.visibility_mask(t, start, canonical)
    for _ in range(settings.max_refinements):
        transform = _minimize_color_difference(clip, t, transform, canonical, visible)
        visible = clip.visibility_mask(t, transform, canonical)
        if visible.sum() > settings.good_visible_share * compute_quad_area(
            clip.compute_quad(transform), clip.flow.size
        ):
            break
    return transform, visible


def _minimize_color_difference(
    clip: _TrackedClip, t: int, transform: np.ndarray, canonical: np.ndarray, seen: Bool[np.ndarray, "height width"]
) -> np.ndarray:
    """Moves a transform until the frame looks like the canonical picture where the region is visible, but for a rim.

    Gauss-Newton on the positions of the four corners, with weights that let go of what never fits, and with the
    placement found by flow as a prior: what is hidden stays where it was.
    """
    settings, corners, pixel = clip.settings, clip.corners, clip.pixel_size
    quad = draw_quad_mask(corners, clip.flow.size)
    rows, columns = window_around(quad, settings.occlusion)
    inside, target = quad[rows, columns], canonical[rows, columns]
    # How far each point of the plane moves when one coordinate of one corner does: [8, rows, columns, 2].
    xy = pixel_positions(*clip.flow.size)[rows, columns]
    moves_of_coordinates = []
    for k in range(8):
        nudged = corners.copy()
        nudged.flat[k] += 1e-3
        matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), nudged.astype(np.float32))
        moves_of_coordinates.append((apply_homography(matrix, xy) - xy) / 1e-3)
    moves = np.stack(moves_of_coordinates)
    # The pixels of the frame that show the region, but for a rim of one pixel beside what hides it.
    hidden = draw_quad_mask(clip.compute_quad(transform), clip.flow.size) & ~seen
    sure = seen & (cv2.dilate(hidden.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
    picture, total, start = clip.read_picture(t), np.zeros(8), transform
    for _ in range(settings.gauss_newton_steps):
        x, y = map_window(np.linalg.inv(transform), clip.flow.size, (rows, columns))
        frame = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        known = cv2.remap(sure.astype(np.float32), x, y, cv2.INTER_LINEAR, borderValue=0)
        used = inside & (known > 0.99)
        if used.sum() < settings.geometry.min_matches:
            break
        frame = frame / estimate_light(frame, target, used, settings.occlusion)
        slope = [(np.gradient(frame, axis=axis) + np.gradient(target, axis=axis))[used] / 2 for axis in (1, 0)]
        gap = (target - frame)[used]
        sigma = max(settings.min_color_sigma, settings.color_sigma_factor * float(np.median(np.abs(gap))))
        robust = (1 + (gap / (settings.robust_sigmas * sigma)) ** 2) ** -2
        weight = robust / (sigma**2 * settings.correlated_samples)
        slopes = np.stack(slope, -1) / pixel  # [n, 3, 2], color for one xy unit
        jacobian = np.einsum("nca,kna->knc", slopes, moves[:, used])
        normal = np.einsum("knc,nc,lnc->kl", jacobian, weight, jacobian, optimize=True)
        right = np.einsum("knc,nc,nc->k", jacobian, weight, gap, optimize=True)
        prior = 1 / (settings.corner_prior_px * pixel) ** 2
        change = np.linalg.solve(normal + prior * np.eye(8), right - prior * total)
        total += change
        moved = corners + change.reshape(4, 2)
        transform = cv2.getPerspectiveTransform(moved.astype(np.float32), corners.astype(np.float32)) @ transform
        if np.abs(change).max() < settings.min_step_px * pixel:
            break
    return transform / transform[2, 2] if _is_regular(transform) else start


def _is_regular(transform: np.ndarray) -> bool:
    """Tells whether a transform is finite and has an inverse."""
    return bool(np.isfinite(transform).all() and abs(np.linalg.det(transform)) >= 1e-6)

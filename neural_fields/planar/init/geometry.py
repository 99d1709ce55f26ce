"""Geometry first: an atlas placed by optical flow, homographies and weighted averages before any gradient step.

For each layer: (1) the flow inside its mask gives a homography (background) or an affine transform (front layers)
between neighboring frames, by RANSAC; (2) chained outwards from a reference frame they predict the placement of every
frame, and long-range flow corrects it (`frame_registration.py`); (3) what flow adds to the transforms is kept on a
coarse grid; (4) the canonical picture is the weighted mean of the frames. Deformable Sprites (Ye et al. 2022) groups
and aligns by the same two stages; everything here is closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Float

from neural_fields.atlas.chart import LayerChart
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.memmap import RELEASE_INTERVAL, release_memory
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.imaging.ransac import find_transform_or_identity
from neural_fields.planar.init.charts import (
    ChartSettings,
    Span,
    SpanGeometry,
    compute_unexplained_error,
    divide_into_charts,
    lay_out_charts,
)
from neural_fields.planar.init.frame_registration import (
    FramePlacement,
    FrameView,
    PlacementSettings,
    apply_transform,
    make_frame_view,
    place_frames_in_turns,
)
from neural_fields.planar.init.visibility import LayerVisibility

FIT_WORK = 0.1  # of fitting a transform to the flow of a pair, against placing a frame: for the progress


@dataclass(frozen=True)
class GeometrySettings:
    """Settings of the closed-form geometry of a layer."""

    min_matches: int = 24  # flow vectors: with fewer no transform is fitted
    max_matches: int = 1000  # flow vectors that a transform is fitted to, chosen at random
    min_match_share: float = 0.9  # of a pixel that the layer must fill for its flow vector to be used
    max_error_ratio: float = 0.95  # a freer transform is taken if its error is below this share of a similarity's
    max_match_error_px: float = 8.0  # matches further from a transform are outliers
    coarse_stride: int = 2  # frames; enough to see what one image can explain
    min_reference_area: float = 0.9  # of its largest area that a front layer must have in its reference frame
    max_reach: float = 5.0  # frame lengths between a chained frame and the reference frame
    max_magnification: float = 5.0  # a chained frame may be this many times larger or smaller than the reference frame
    magnification_percentile: float = 10.0  # of the zoom over the frames: where the layer is seen nearly largest
    min_early_clip: int = 40  # frames; of shorter clips no frames are placed before the others
    max_box_points: float = 4e6  # that a canonical box is measured from
    box_margin_px: float = 8.0  # around the points that a canonical box holds
    box_outlier_percent: float = 0.01  # of the points, on each side, that a canonical box leaves out
    placement: PlacementSettings = field(default_factory=PlacementSettings)  # of frames by long-range flow
    charts: ChartSettings = field(default_factory=ChartSettings)  # that a layer is divided into


DEFAULTS = GeometrySettings()


@dataclass(frozen=True)
class LayerGeometry:
    """Holds the placement of a layer: a transform and a grid of shifts for each frame, and the box that they fill."""

    homography: Float[np.ndarray, "time 3 3"]  # xy units to uv units
    residual: Float[np.ndarray, "time rows columns 2"]  # uv units, spans the frame
    box: Box
    magnification: float  # uv units a texel must resolve, relative to one pixel of the reference frame (>= 1: finer)
    charts: tuple[LayerChart, ...] = ()  # the charts of the plane that belong to spans of frames; none: one for all


def compute_layer_geometry(
    clip: ClipDataset,
    visible: LayerVisibility,
    is_background: bool,
    grid: tuple[int, int],
    cuts: tuple[int, ...] = (),
    report: ProgressReporter = report_nothing,
    settings: GeometrySettings = DEFAULTS,
) -> Iterator[LayerGeometry]:
    """Computes the geometry of one layer, that of some frames first.

    Args:
        clip: the frames and their flow.
        visible: the visibility of the layer, at the size of `clip.flow` (or of the frames, without flow).
        is_background: the background may be warped by a homography, a front layer by an affine transform.
        grid: (columns, rows) of the residual.
        cuts: the first frames of all shots but the first.
        report: called after each frame.
        settings: of the fit, of the placement and of the charts.

    Yields:
        Where the layer has one chart, the geometry of the frames that `choose_early_frames` says, if there are any, as
        if the clip had no others; then that of all frames, on the same plane.
    """
    if clip.flow is None or len(visible) < 2:
        yield _make_still_geometry(visible, grid, settings)
        return
    count_work = _WorkCount(len(visible), settings, report)
    pairs = _PairTransforms(clip.flow, visible, settings, count_work)
    frames = clip.frames if clip.flow_frames is None else clip.flow_frames
    place_in_turns = partial(_place_span_in_turns, frames, pairs, is_background, grid, count_work)
    early = choose_early_frames(len(visible), settings)
    coarse = visible.halve_size()  # enough to see what one image can explain
    turns: dict[Span, Iterator[SpanGeometry]] = {}

    @cache
    def begin_span(span: Span) -> SpanGeometry:
        is_whole = span == (0, len(visible) - 1)
        turns[span] = place_in_turns(visible, range(span[0], span[1] + 1), early if is_whole else range(0))
        return next(turns[span])

    def place_coarsely(span: Span) -> SpanGeometry:
        is_short = span[1] - span[0] < 3 * settings.coarse_stride
        return next(place_in_turns(coarse, range(span[0], span[1] + 1, 1 if is_short else settings.coarse_stride)))

    def compute_error(part: SpanGeometry) -> float:
        return compute_unexplained_error(part, lambda t: frames[t], coarse, settings.charts)

    shots = list(zip((0, *cuts), (*(cut - 1 for cut in cuts), len(visible) - 1), strict=True))
    spans = divide_into_charts(shots, begin_span, place_coarsely, compute_error, settings.charts)
    parts = [begin_span(span) for span in spans]
    if early and len(parts) == 1:
        found, start = _join_spans(parts, visible, pairs), early.start - parts[0].first
        part, chart = slice(start, start + len(early)), LayerChart(0, len(early) - 1, found.box)
        yield replace(found, homography=found.homography[part], residual=found.residual[part], charts=(chart,))
    yield _join_spans([next(turns[span], part) for span, part in zip(spans, parts, strict=True)], visible, pairs)


def choose_early_frames(frame_count: int, settings: GeometrySettings = DEFAULTS) -> range:
    """Chooses the frames of a clip that are placed first, so that there is something to see of it: the middle half.

    Frames are placed outwards from one near the middle, so that the order of their placement is as it would be.

    Args:
        frame_count: of the clip.
        settings: of which clips.
    """
    quarter = frame_count // 4
    return range(quarter, frame_count - quarter) if frame_count >= settings.min_early_clip else range(0)


def _join_spans(parts: Sequence[SpanGeometry], visible: LayerVisibility, pairs: _PairTransforms) -> LayerGeometry:
    """Joins the spans of a layer to its geometry, with their planes side by side."""
    settings = pairs.settings
    finer = []
    for part in parts:
        is_seen = visible.select_span(part.first, part.last).areas_px > 0
        finer.append(estimate_magnification(part.homography[is_seen], settings))
    moved, charts, box = lay_out_charts(parts, finer, settings.charts.gap_px * 2 / max(pairs.flow.size))
    homography = np.concatenate([part.homography for part in moved]).astype(np.float32)
    residual = np.concatenate([part.residual for part in moved])
    return LayerGeometry(homography, residual, box, finer[0] if len(parts) == 1 else 1.0, charts)


def _place_span_in_turns(
    frames: np.ndarray,
    pairs: _PairTransforms,
    is_background: bool,
    grid: tuple[int, int],
    count_work: Callable[[float], None],
    visible: LayerVisibility,
    span: range,
    early: range = range(0),
) -> Iterator[SpanGeometry]:
    """Places the frames of a span on a plane of their own, looking at them at the size of `visible`.

    Those that are early come first, if any.
    """
    settings, size = pairs.settings, pairs.flow.size
    seen = visible.select_span(span.start, span[-1], span.step)
    if len(seen) == 1:
        still = _make_still_geometry(seen, grid, settings)
        yield SpanGeometry(span.start, still.homography, still.residual, still.box)
        return

    # The reference frame: the middle one, or, of those where a front layer is nearly largest, the nearest to it.
    reference = len(seen) // 2
    if not is_background and seen.areas_px.max() > 0:
        large = np.flatnonzero(seen.areas_px >= settings.min_reference_area * seen.areas_px.max())
        reference = int(large[np.abs(large - reference).argmin()])

    def view_frame(index: int) -> FrameView:
        t = span[index]
        if t % RELEASE_INTERVAL == 0:
            release_memory(frames)
        count_work(seen.size[0] * seen.size[1] / (size[0] * size[1]))
        return make_frame_view(frames[t], seen[index])

    kind, steps = choose_transforms(pairs, span, reference, is_background)
    fit = partial(_fit_unless_few, kind=kind, pixel=2 / max(size), settings=settings)
    turns: list[Sequence[int]] = [range(len(span))]
    if early:  # and what lies between them and the reference frame
        first = range(min(early.start - span.start, reference), max(early.stop - span.start, reference + 1))
        turns = [first, [*range(first.start), *range(first.stop, len(span))]]
    found: dict[int, FramePlacement] = {}
    for placed in place_frames_in_turns(view_frame, steps, reference, fit, turns, grid, settings.placement):
        found |= placed
        reached = range(min(found), max(found) + 1)
        transforms = np.stack([found[index].transform for index in reached])
        if not _is_sane(transforms, size, settings):
            # The clip moves far: limit the zoom and the reach of its similarities.
            linear = transforms[:, :2, :2]
            zoom = np.sqrt(np.abs(np.linalg.det(linear))).clip(1e-9)
            limited = zoom.clip(1 / settings.max_magnification, settings.max_magnification)
            reach = 2 * settings.max_reach
            transforms[:, :2, :2] = linear * (limited / zoom)[:, None, None]
            transforms[:, :2, 2] = transforms[:, :2, 2].clip(-reach, reach)
        residual = np.stack([found[index].shift for index in reached])
        of_reached = visible.select_span(span[reached.start], span[reached[-1]], span.step)
        box = _measure_box(of_reached, transforms, residual, settings)
        yield SpanGeometry(span[reached.start], transforms, residual, box, span.step)


class _WorkCount:
    """Reports the share of the work on a layer that is done; its unit is a frame that is placed at full size.

    Of long clips up to three divisions are placed coarsely. What was not needed of it makes the count jump at the end.
    """

    def __init__(self, frame_count: int, settings: GeometrySettings, report: ProgressReporter) -> None:
        divisions = 3 if frame_count >= 2 * settings.charts.frames_per_chart else 0
        self._expected = frame_count * (1 + FIT_WORK + divisions / (4 * settings.coarse_stride))
        self._report = report
        self._done = 0.0

    def __call__(self, work: float) -> None:
        """Adds work that begins; two threads do it at once, and a lost addition does not matter."""
        self._report(Progress("geometry", min(999, int(1000 * self._done / self._expected)), 1000))
        self._done += work


def _make_still_geometry(visible: LayerVisibility, grid: tuple[int, int], settings: GeometrySettings) -> LayerGeometry:
    """Returns the geometry of a clip without motion: every frame is placed as the first one is."""
    count = len(visible)
    identity = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    residual = np.zeros((count, grid[1], grid[0], 2), np.float32)
    return LayerGeometry(identity, residual, _measure_box(visible, identity, residual, settings), 1.0)


# --- transforms between frames --------------------------------------------------------------------------------------


class _PairTransforms:
    """Transforms from each frame of a clip to the next, in xy units, each fitted once for each kind."""

    def __init__(
        self,
        flow: FlowField,
        visible: LayerVisibility,
        settings: GeometrySettings,
        count_work: Callable[[float], None] = lambda work: None,
    ) -> None:
        self.flow = flow
        self.visible = visible
        self.settings = settings
        self.count_work = count_work
        self.found: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, t: int, kind: str) -> Float[np.ndarray, "3 3"]:
        """Returns the transform from frame t to t + 1; the identity where too few flow vectors can be trusted."""
        if t % RELEASE_INTERVAL == 0:
            release_memory(self.flow.forward)
            release_memory(self.flow.forward_ok)
        if (t, kind) in self.found:
            return self.found[t, kind]
        self.count_work(FIT_WORK)
        width, height = self.flow.size
        transform = np.eye(3)
        rows, columns = np.nonzero(self.flow.forward_ok[t] & (self.visible[t] > self.settings.min_match_share))
        if len(rows) >= self.settings.min_matches:
            chosen = np.random.default_rng(t).permutation(len(rows))[: self.settings.max_matches]
            rows, columns = rows[chosen], columns[chosen]
            start = np.stack([columns, rows], -1) + 0.5
            end = start + self.flow.forward[t][rows, columns]
            center, pixel = np.array([width, height]) / 2, 2 / max(width, height)
            a, b = ((points - center) * pixel for points in (start, end))
            a, b = np.ascontiguousarray(a[:, None]), np.ascontiguousarray(b[:, None])
            transform = _fit_transform(a, b, kind, pixel, self.settings)
        self.found[t, kind] = transform
        return transform


def choose_transforms(
    pairs: _PairTransforms, frames: Sequence[int], reference: int, is_background: bool
) -> tuple[str, list[np.ndarray]]:
    """Chooses the kind of transform for a layer; returns it and the transforms [3, 3] from each frame to the next.

    The richest kind whose chain stays sane is taken: small errors of a homography's perspective part multiply along a
    chain until a frame is torn apart, which a similarity cannot do. Transforms are in xy units.

    Args:
        pairs: the transforms between all neighboring frames of the clip.
        frames: the frames to go through.
        reference: which of the frames the others are placed around.
        is_background: whether a homography may be taken.
    """
    kinds = ("homography", "affine", "similarity") if is_background else ("affine", "similarity")
    for kind in kinds:
        steps = []
        for a, b in pairwise(frames):
            step = np.eye(3)
            for t in range(a, b):
                step = pairs(t, kind) @ step
            steps.append(step)
        # Their chain: the transforms from every frame to the reference frame.
        chain = [np.eye(3)] * (len(steps) + 1)
        for index in range(reference + 1, len(chain)):
            chain[index] = chain[index - 1] @ np.linalg.pinv(steps[index - 1])
        for index in range(reference - 1, -1, -1):
            chain[index] = chain[index + 1] @ steps[index]
        scaled = [matrix / matrix[2, 2] if abs(matrix[2, 2]) > 1e-9 else np.eye(3) for matrix in chain]
        if _is_sane(np.stack(scaled), pairs.flow.size, pairs.settings):
            break
    return kind, steps


def _fit_transform(
    start: np.ndarray, end: np.ndarray, kind: str, pixel: float, settings: GeometrySettings
) -> np.ndarray:
    """Fits a transform of `kind` to matched points, or a similarity where that is nearly as close to them.

    A freer transform always comes a little closer: to parts of an object that no mask names, say, and drifts with them.
    """
    stiff = find_transform_or_identity(start, end, "similarity", pixel)
    if kind == "similarity":
        return stiff
    free = find_transform_or_identity(start, end, kind, pixel)
    limit = settings.max_match_error_px * pixel
    stiff_error = np.minimum(np.linalg.norm(apply_transform(stiff, start[:, 0]) - end[:, 0], axis=1), limit).mean()
    free_error = np.minimum(np.linalg.norm(apply_transform(free, start[:, 0]) - end[:, 0], axis=1), limit).mean()
    return free if free_error < settings.max_error_ratio * stiff_error else stiff


def _fit_unless_few(
    xy: np.ndarray, uv: np.ndarray, predicted: np.ndarray, kind: str, pixel: float, settings: GeometrySettings
) -> np.ndarray:
    """Fits a transform of `kind` to matched points; returns the prediction where there are too few of them."""
    if len(xy) < settings.min_matches / settings.placement.lattice_px**2:  # of so many pixels one is matched
        return predicted
    chosen = np.random.default_rng(len(xy)).permutation(len(xy))[: settings.max_matches]
    start, end = (np.ascontiguousarray(points[chosen, None], np.float64) for points in (xy, uv))
    return _fit_transform(start, end, kind, pixel, settings)


def _is_sane(chained: np.ndarray, size: tuple[int, int], settings: GeometrySettings) -> bool:
    """Tells whether every frame lies near the reference frame, unfolded and of comparable size."""
    box = coords.frame_box(*size)
    corners = np.array([[box.u0, box.v0, 1], [box.u1, box.v0, 1], [box.u1, box.v1, 1], [box.u0, box.v1, 1]])
    placed = np.einsum("tij,cj->tci", chained, corners)
    depth = placed[..., 2]  # a corner is magnified by its inverse
    if not np.isfinite(placed).all() or (depth < 1 / settings.max_magnification).any():
        return False
    xy = placed[..., :2] / depth[..., None]
    x, y = xy[..., 0], xy[..., 1]
    area = 0.5 * (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)
    relative = area / (box.width * box.height)
    zoom = settings.max_magnification**2
    is_near = (np.abs(xy) < 2 * settings.max_reach).all()
    return bool(is_near and (relative > 1 / zoom).all() and (relative < zoom).all())


# --- the canonical box ----------------------------------------------------------------------------------------------


def _measure_box(
    visible: LayerVisibility, homography: np.ndarray, residual: np.ndarray, settings: GeometrySettings
) -> Box:
    """Measures the box that holds the layer in all frames, less the outermost points, plus a margin of a few pixels."""
    width, height = visible.size
    xy = coords.frame_xy(width, height).numpy()
    step = max(2, round((len(visible) * width * height / settings.max_box_points) ** 0.5))
    kept = []
    for t in range(len(visible)):
        shift = cv2.resize(residual[t], (width, height), interpolation=cv2.INTER_LINEAR)
        seen = visible[t] > 0.5
        kept.append((apply_transform(homography[t], xy) + shift)[::step, ::step][seen[::step, ::step]])
    points = np.concatenate(kept)
    if not len(points):
        return coords.frame_box(width, height)
    margin = 2 * settings.box_margin_px / max(width, height)
    outliers = settings.box_outlier_percent
    low, high = np.percentile(points, [outliers, 100 - outliers], axis=0)
    reach = 2 * settings.max_reach
    low, high = np.clip(low - margin, -reach, reach), np.clip(high + margin, -reach, reach)
    return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def estimate_magnification(transforms: Float[np.ndarray, "n 3 3"], settings: GeometrySettings = DEFAULTS) -> float:
    """Estimates the largest magnification of a layer relative to the reference frame.

    Args:
        transforms: from the frames that show the layer to the canonical plane, in xy and uv units.
        settings: the percentile of the zoom, and the largest magnification.

    Returns:
        The magnification at the center of the frame, 1 to `settings.max_magnification`; 1 without frames.
    """
    if not len(transforms):
        return 1.0
    zoom = np.sqrt(np.abs(np.linalg.det(transforms) / transforms[:, 2, 2] ** 3))
    return float((1 / np.percentile(zoom, settings.magnification_percentile)).clip(1, settings.max_magnification))

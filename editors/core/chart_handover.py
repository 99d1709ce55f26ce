"""How charts that are neighbors in time are related, by the frames in which they meet.

A point of one chart is found in the frame that shows it, follows the optical flow into the frame of the other chart,
and from there lies on that chart's plane. Charts that overlap in time share a frame and need no flow. An object in
front of the layer does not interrupt this: the maps give the position of the layer behind it, and the flow is
extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.chart import Chart, choose_handover_frames
from neural_fields.atlas.layer_sight import LayerSight, see_layer
from neural_fields.data.flow.compute import consistency_mask
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.init.frame_registration import extrapolate_shifts
from neural_fields.tracking.points import DEFAULTS as TRACKING


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of the alignment of two charts by their pictures."""

    min_shared_share: float = 0.3  # of a patch that both charts show, for their pictures to be aligned
    min_likeness: float = 0.8  # correlation of aligned pictures below which the flow is kept
    max_correction_knots: float = 2.0  # by an alignment; more is a mistake


DEFAULTS = AlignmentSettings()


@dataclass(frozen=True)
class ChartStep:
    """Describes a step from one chart of a series to a neighboring one, and the frames in which they meet."""

    start: Chart
    end: Chart
    from_frame: int
    to_frame: int


@dataclass(frozen=True)
class Handover:
    """Describes how the frames in which two charts meet are related.

    Attributes:
        start: what the first frame says about its chart.
        end: what the second says about its own.
        there: flow from the first frame to the second, in pixels of the maps.
        back: flow from the second to the first.
        is_known: of the second frame: 1 where the flow is known, else 0.
    """

    start: LayerSight
    end: LayerSight
    there: Float[np.ndarray, "height width 2"]
    back: Float[np.ndarray, "height width 2"]
    is_known: Float[np.ndarray, "height width"]


def name_series(series: tuple[Chart, ...]) -> str:
    """Names charts that continue each other, for messages."""
    names = list(dict.fromkeys(chart.layer for chart in series))
    return names[0] if len(names) == 1 else "the clip"


def order_steps(series: tuple[Chart, ...], painted: list[bool]) -> Iterator[ChartStep]:
    """Orders the steps from each painted chart to the unpainted charts that are nearest to it, nearer ones first."""
    count = len(series)
    sources = [index for index in range(count) if painted[index]]
    nearest = {i: min(sources, key=lambda source: (abs(source - i), source)) for i in range(count)}
    for index in sorted((i for i in range(count) if not painted[i]), key=lambda i: abs(nearest[i] - i)):
        before = index - 1 if nearest[index] < index else index + 1
        start, end = series[before], series[index]
        yield ChartStep(start, end, *choose_handover_frames(start, end))


def align_textures(
    run: PlanarRun,
    step: ChartStep,
    uv: Float[np.ndarray, "rows columns 2"],
    before: Float[np.ndarray, "rows columns 2"],
    settings: AlignmentSettings = DEFAULTS,
) -> Float[np.ndarray, "rows columns 2"]:
    """Corrects where points of the second chart lie on the first, by the pictures of both charts.

    A picture of a chart is a mean of its frames, with less noise than the flow between two of them (Evangelidis and
    Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization", 2008).

    Args:
        run: the open run.
        step: from chart to chart.
        uv: points of the second chart.
        before: where they lie on the first, by the flow.
        settings: limits of what counts as a correction.

    Returns:
        Where they lie on the first; as before where the pictures do not tell.
    """
    rows, columns = uv.shape[:2]
    pictures = []
    for chart, places in ((step.end, uv), (step.start, before)):
        rgba = run.canonical(chart.layer).sample_rgba(places.astype(np.float32))
        gray = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2GRAY)
        pictures.append((np.ascontiguousarray(255 * gray), (rgba[..., 3] > 0.5).astype(np.uint8)))
    (wanted, own_mask), (found, mask) = pictures
    both = own_mask & mask
    if both.mean() < settings.min_shared_share or min(rows, columns) < 16:
        return before
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-5)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        likeness, warp = cv2.findTransformECC(wanted, found, start, cv2.MOTION_AFFINE, criteria, both, 3)
    except cv2.error:  # it did not converge, or there is no texture
        return before
    knots = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).astype(np.float32)
    shift = cv2.transform(knots, warp.astype(np.float64)) - knots
    farthest = float(np.linalg.norm(shift, axis=-1).max())
    if likeness < settings.min_likeness or farthest > settings.max_correction_knots:
        return before
    down, right = np.gradient(before, axis=(0, 1))
    return before + shift[..., :1] * right + shift[..., 1:] * down


def meet_charts(run: PlanarRun, step: ChartStep) -> Handover | None:
    """Relates the frames in which two charts meet.

    Returns:
        None: a frame hardly shows its chart, or hardly anything matches.
    """
    maps = run.maps
    width, height = maps.size
    start, end = (
        see_layer(maps, t, maps.layers.index(chart.layer))
        for t, chart in ((step.from_frame, step.start), (step.to_frame, step.end))
    )
    if start is None or end is None:
        return None
    if step.from_frame == step.to_frame:
        still = np.zeros((height, width, 2), np.float32)
        return Handover(start, end, still, still, np.ones((height, width), np.float32))
    frames: list[UInt8[np.ndarray, "height width"]] = [
        cv2.cvtColor(np.array(run.video.frames[t]), cv2.COLOR_RGB2GRAY) for t in (step.from_frame, step.to_frame)
    ]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    there, back = dis.calc(frames[0], frames[1], None), dis.calc(frames[1], frames[0], None)
    weights = [
        maps.read_layer_weight_small(t, maps.layers.index(chart.layer))
        for t, chart in ((step.from_frame, step.start), (step.to_frame, step.end))
    ]
    # Where something is in front, the flow is that thing's: the layer's own goes on smoothly behind it.
    results, known = [], np.ones((height, width), np.float32)
    for flow, other, own, far in ((there, back, *weights), (back, there, *reversed(weights))):
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        reached = cv2.remap(far, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
        trusted = consistency_mask(flow, other) & (np.minimum(own, reached) >= TRACKING.min_weight)
        if trusted.mean() < TRACKING.min_trusted_share:
            return None
        gap = cv2.distanceTransform((~trusted).astype(np.uint8), cv2.DIST_L2, 3)
        known = (gap <= TRACKING.max_flow_gap * max(width, height)).astype(np.float32)
        results.append(np.where(trusted[..., None], flow, extrapolate_shifts(flow, trusted)).astype(np.float32))
    return Handover(start, end, results[0], results[1], known)

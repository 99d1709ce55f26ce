"""Measures tracking: points move along the optical flow, and their canonical points should not change.

The flow has errors too, which grow with the number of frames: the figures are disagreements of flow and maps, not the
drift of an edit against the truth, which is unknown for real clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.compute import FlowField
from neural_fields.imaging.resampling import sample_bilinear


@dataclass(frozen=True)
class DriftSettings:
    """Settings of the comparison of flow and canonical coordinates."""

    span_frames: int = 8  # frames over which a point is followed; over more, the errors of chained flow are too large
    points: int = 2500  # number of points that start in a frame
    # A point that ends within this share of the longer side (8.5 px of 854) of where flow has it stays put: a mark that
    # slides less in 8 frames hardly shows it.
    max_gap_share: float = 1 / 100
    # Least value of that limit, in pixels: chained flow itself errs by this much in small frames.
    flow_error_px: float = 3.0
    min_weight: float = 0.5  # a point belongs to the layer that has more than this weight


DEFAULTS = DriftSettings()


@dataclass(frozen=True)
class Drift:
    """Holds the disagreement of flow and canonical positions, in pixels of the maps; None without tracked points."""

    next_frame: float | None  # median error after one frame
    span: int  # number of frames after which `far` and `steady` are measured
    far: float | None  # median error after `span` frames
    steady: float | None  # share of the points whose error after `span` frames is within the tolerance
    points: int  # number of points that were followed for `span` frames


def measure_flow_trust(flow: FlowField) -> list[float]:
    """Computes for each pair of neighboring frames the share of pixels whose forward and backward flow agree."""
    return [float(np.asarray(ok).mean()) for ok in flow.forward_ok]


def measure_drift(
    maps: Maps,
    flow: FlowField,
    starts: int,
    report: ProgressReporter = report_nothing,
    settings: DriftSettings = DEFAULTS,
) -> dict[str, Drift]:
    """Measures the `Drift` of every layer.

    Args:
        maps: baked maps of the run.
        flow: flow between all frames of the run.
        starts: number of frames, spread over the clip, in which points start.
        report: called after each of them, as the stage "report".
        settings: number of points, span and limits.

    Returns:
        The drift of each layer, by its name.
    """
    count = maps.frame_count
    span = min(settings.span_frames, count - 1)
    first = np.unique(np.linspace(0, count - 1 - span, min(starts, count - span)).round().astype(int))

    # Points start evenly over each of these frames, at sample positions (0 is the center of the first pixel).
    size = np.array(maps.size, np.float32)
    step = max(1.0, np.sqrt(maps.size[0] * maps.size[1] / settings.points))
    x, y = np.meshgrid(*(np.arange(step / 2 - 0.5, side - 0.5, step) for side in maps.size))
    grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    scale = np.array(flow.size, np.float32) / size
    found = []  # from each: the layer of the points, and their gaps one frame and `span` frames later (nan: lost)
    for start in first.tolist():
        at = grid
        origin, weight = _sample_maps(maps, start, at)
        owner = weight.argmax(0)
        alive = weight.max(0) > settings.min_weight
        after_one = np.full(len(at), np.nan)
        for t in range(start, start + span):
            x, y = ((at + np.float32(0.5)) * scale - np.float32(0.5)).T
            vector = sample_bilinear(np.asarray(flow.forward[t], np.float32), x, y)
            # All four pixels around it have consistent flow.
            trusted = sample_bilinear(np.asarray(flow.forward_ok[t], np.float32), x, y) > 0.99
            to = at + vector / scale
            inside = (to >= 0).all(1) & (to <= size - 1).all(1)
            at = to.astype(np.float32)
            alive &= trusted & inside
            if t == start:
                after_one = _measure_gap(maps, t + 1, at, origin, owner, alive, settings)
        after_span = after_one
        if span != 1:
            after_span = _measure_gap(maps, start + span, at, origin, owner, alive, settings)
        found.append((owner, after_one, after_span))
        report(Progress("report", len(found), len(first)))
    layer, near, far = (np.concatenate([part[i] for part in found]) for i in range(3))

    limit = max(settings.max_gap_share * max(maps.size), settings.flow_error_px)
    drift = {}
    for number, name in enumerate(maps.layers):
        one, many = (gap[(layer == number) & np.isfinite(gap)] for gap in (near, far))
        drift[name] = Drift(
            next_frame=float(np.median(one)) if len(one) else None,
            span=span,
            far=float(np.median(many)) if len(many) else None,
            steady=float((many <= limit).mean()) if len(many) else None,
            points=len(many),
        )
    return drift


def _measure_gap(
    maps: Maps,
    t: int,
    at: Float[np.ndarray, "n 2"],
    origin: Float[np.ndarray, "layers n 2"],
    layer: Int[np.ndarray, " n"],
    alive: Bool[np.ndarray, " n"],
    settings: DriftSettings,
) -> Float[np.ndarray, " n"]:
    """Measures the pixels between where the flow has a point in frame `t` and where its canonical point is.

    The canonical difference becomes a distance in the frame through the local Jacobian of the map.

    Args:
        maps: baked uv maps and weights of the run.
        t: number of the frame in the run.
        at: positions of the points by the flow, in samples of the maps.
        origin: canonical coordinates of the points in the frame that they started in.
        layer: the layer of each point.
        alive: which points can be trusted so far.
        settings: least weight of a followed point.

    Returns:
        nan where a point is lost.
    """
    here, weight = _sample_maps(maps, t, at)
    kept = alive & (weight[layer, np.arange(len(at))] > settings.min_weight)
    own = np.arange(len(at))
    beside, below = (_sample_maps(maps, t, at + np.array(step, np.float32))[0] for step in ((1, 0), (0, 1)))
    right, down = (other[layer, own] - here[layer, own] for other in (beside, below))
    gone = origin[layer, own] - here[layer, own]
    det = right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0]
    det = np.where(np.abs(det) > 1e-12, det, np.nan)
    dx = (gone[:, 0] * down[:, 1] - gone[:, 1] * down[:, 0]) / det
    dy = (right[:, 0] * gone[:, 1] - right[:, 1] * gone[:, 0]) / det
    return np.where(kept, np.hypot(dx, dy), np.nan)


def _sample_maps(
    maps: Maps, t: int, at: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "layers n 2"], Float[np.ndarray, "layers n"]]:
    """Samples canonical coordinates and weights of every layer at positions in frame `t`."""
    x, y = np.ascontiguousarray(at.T)
    samples = maps.sample_at_points(t, x, y, maps.size)
    return samples.uv, samples.weight

"""Metrics of points: how well they are tracked, and how far a trained canonical plane is from the true one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float

THRESHOLDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # pixels: Doersch et al., "TAP-Vid" (2022), section 3.3


@dataclass(frozen=True)
class TrackingScore:
    """Holds the metrics of tracked points; shares are 0 to 1, and nan where no point counts."""

    delta: float  # share of the visible points within 1, 2, 4, 8, 16 px, averaged (TAP-Vid: < delta_avg)
    delta_256: float  # the same with both frames scaled to 256 x 256, as in TAP-Vid
    occlusion: float  # share of frames in which a point is correctly found visible or hidden
    jaccard: float  # TAP-Vid's average Jaccard, which combines position and visibility
    median: float  # median distance of the visible points, in pixels
    mean: float

    def as_dict(self) -> dict[str, float | None]:
        """Returns the figures rounded, for JSON."""
        return {key: round(value, 4) if math.isfinite(value) else None for key, value in asdict(self).items()}


def measure_tracking(
    positions: Float[np.ndarray, "points frames 2"],
    visible: Bool[np.ndarray, "points frames"],
    true_positions: Float[np.ndarray, "points frames 2"],
    true_visible: Bool[np.ndarray, "points frames"],
    queries: Bool[np.ndarray, "points frames"],
    size: tuple[int, int],
) -> TrackingScore:
    """Computes TAP-Vid's measures (Doersch et al. 2022, section 3.3), all points and frames pooled.

    Args:
        positions: positions of the tracked points, in pixels of frames of `size`.
        visible: whether the tracked points are visible.
        true_positions: positions of the true points, in the same pixels.
        true_visible: whether the true points are visible.
        queries: the frames in which each point was given; they do not count.
        size: (width, height) of the frames, in pixels.

    Returns:
        The metrics.

    Example:
        >>> points, seen = np.zeros((1, 3, 2)), np.ones((1, 3), bool)
        >>> score = measure_tracking(points + [3, 0], seen, points, seen, np.zeros((1, 3), bool), (64, 64))
        >>> score.median, score.delta
        (3.0, 0.6)
    """
    tap_size = np.array((256, 256))  # (width, height) at which TAP-Vid measures
    counted = ~queries
    distance = np.linalg.norm(positions - true_positions, axis=-1)
    stretched = np.linalg.norm((positions - true_positions) * (tap_size / size), axis=-1)
    seen = true_visible & counted
    jaccards = []
    for limit in THRESHOLDS:
        hit = seen & visible & (distance < limit)
        false_alarm = visible & counted & ~hit
        total = int(seen.sum()) + int(false_alarm.sum())
        jaccards.append(int(hit.sum()) / total if total else math.nan)
    return TrackingScore(
        delta=_mean_share_within(distance[seen]),
        delta_256=_mean_share_within(stretched[seen]),
        occlusion=float((visible == true_visible)[counted].mean()) if counted.any() else math.nan,
        jaccard=float(np.mean(jaccards)),
        median=float(np.median(distance[seen])) if seen.any() else math.nan,
        mean=float(distance[seen].mean()) if seen.any() else math.nan,
    )


def measure_uv_error(
    uv: Float[np.ndarray, "points 2"], truth: Float[np.ndarray, "points 2"], freedom: str = "affine"
) -> Float[np.ndarray, " points"]:
    """Computes the distances of trained to true uv after the transform that brings them closest.

    A canonical plane is only determined up to a transform. It is fitted to all points by least squares, then once more
    without the points that are further away than three medians, so that a few folded points do not bend it.

    Args:
        uv: the trained uv of the points.
        truth: the true uv of the same points.
        freedom: the kind of transform: "similarity" (rotation, zoom, translation) or "affine".

    Returns:
        The distances, in true uv units.
    """
    used = np.ones(len(uv), bool)
    for _ in range(2):
        x, y = uv[used].astype(np.float64).T
        targets = truth[used].astype(np.float64)
        one, zero = np.ones_like(x), np.zeros_like(x)
        if freedom == "affine":
            matrix = np.linalg.lstsq(np.stack([x, y, one], 1), targets, rcond=None)[0].T
        else:
            rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
            a, b, c, d = np.linalg.lstsq(rows, targets.T.ravel(), rcond=None)[0]
            matrix = np.array([[a, -b, c], [b, a, d]])
        moved = uv @ matrix[:, :2].T + matrix[:, 2]
        distance = np.linalg.norm(moved - truth, axis=1)
        used = distance <= max(3 * float(np.median(distance)), 1e-9)
    return distance


def measure_uv_slip(
    uv: Float[np.ndarray, "points 2"], truth: Float[np.ndarray, "points 2"], cell: float
) -> Float[np.ndarray, " most"]:
    """Computes the uv errors that remain after an affine fit in each square: the distances by which points slide.

    A canonical plane may be bent in any smooth way and still keep its points: one that looks like another frame than
    the truth's differs from it by that frame's perspective and waves. What no smooth map takes away is that one
    canonical point is several true ones, in several frames. Squares with fewer than 8 points are left out.

    Args:
        uv: the trained uv of the points.
        truth: the true uv of the same points.
        cell: side of a square, in uv units.

    Returns:
        The error of each point in a square with at least 8 points, in uv units.
    """
    square = np.floor(uv / cell).astype(np.int64)
    _, index, count = np.unique(square, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    inside = (uv / cell - square - 0.5).astype(np.float64)
    basis = np.concatenate([inside, np.ones((len(uv), 1))], axis=1)
    normal, right = np.zeros((len(count), 3, 3)), np.zeros((len(count), 3, 2))
    np.add.at(normal, index, basis[:, :, None] * basis[:, None, :])
    np.add.at(right, index, basis[:, :, None] * truth[:, None, :].astype(np.float64))
    solved = np.linalg.solve(normal + 1e-9 * np.eye(3), right)
    distance = np.linalg.norm(np.einsum("ni,nij->nj", basis, solved[index]) - truth, axis=1)
    return distance[count[index] >= 8]


def _mean_share_within(distance: Float[np.ndarray, " n"]) -> float:
    """Computes the share of distances below each threshold, averaged."""
    return float(np.mean([(distance < limit).mean() for limit in THRESHOLDS])) if len(distance) else math.nan

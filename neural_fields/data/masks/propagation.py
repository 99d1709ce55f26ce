"""Mask propagation: the evidence of a clip about its masks, from votes of other frames and from the motion of pixels.

Masks are propagated from frame to frame in two ways. Along the optical flow, each pixel moves separately: pieces that
flicker get no votes. With a single similarity for the object, pieces of the background slide off the object and get no
votes either, even if all masks contain them. The motion evidence compares the motion of a pixel with the homography of
the background and with the similarity of the object, and learns from the masks how to weigh both in this clip; it is
neutral for a static object. After Bai et al. 2009, "Video SnapCut", and Wang et al. 2017, "Selective Video Object
Cutout", which propagate masks by flow and evaluate them locally; here, all steps are in closed form.

Distances are pixels of the given arrays; log odds are natural logarithms, positive for the object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.imaging.ransac import find_transform

Masks = Bool[np.ndarray, "time height width"]
VotePlanes = tuple[np.ndarray, np.ndarray]  # of each pixel of a frame: the votes for the object, and all votes


@dataclass(frozen=True)
class VoteSettings:
    """Holds the settings of the votes and of the motion odds."""

    # Votes.
    vote_decay: float = 0.83  # factor of a mask's vote per frame of distance

    # Transforms, fitted to the flow by RANSAC.
    max_matches: int = 1500  # most flow vectors to which a transform is fitted
    tolerance_px: float = 1.0  # largest error of a vector that agrees with a transform

    # Motion odds, from a histogram of how much nearer a pixel is to one motion than to the other.
    noise_ref: float = 1.0  # added to both distances; in pixels of a clip whose shorter side is 240
    bins: int = 16  # bins of the histogram
    max_log_ratio: float = 3.5  # log ratio of the two distances at which the histogram ends
    span_frames: int = 6  # frames before and after a frame from which its histogram is learned
    bin_blur: float = 1.0  # standard deviation of the Gaussian that smooths the histogram, in bins
    min_bin_share: float = 0.01  # added to both shares of a bin, so that no motion alone is a proof


DEFAULTS = VoteSettings()


@dataclass(frozen=True)
class NeighborFlow:
    """Holds the flow of neighboring frames at the size of the masks, and the pixels where both directions agree."""

    forward: Float[np.ndarray, "pairs height width 2"]
    backward: Float[np.ndarray, "pairs height width 2"]
    forward_ok: Bool[np.ndarray, "pairs height width"]
    backward_ok: Bool[np.ndarray, "pairs height width"]


def fit_motion(
    where: Masks, flow: NeighborFlow, kind: str, settings: VoteSettings = DEFAULTS
) -> list[Float[np.ndarray, "3 3"]]:
    """Fits the motion of a part of the picture from each frame to the next, over the flow in it.

    Args:
        where: the part in each frame: the mask of an object, or what is outside all masks.
        flow: at the size of the masks, in pixels.
        kind: similarity (of an object, by RANSAC) or homography (of the background, by MAGSAC).
        settings: number and tolerance of the matches.

    Returns:
        A matrix for each pair of frames, in pixels.
    """
    found = []
    for mask, vectors, ok in zip(where[:-1], flow.forward, flow.forward_ok, strict=True):
        start, end = _sample_matches(mask & ok, vectors, settings.max_matches)
        # Parts without trusted vectors stay where they are: votes for a place are better than none.
        found.append(_fit_transform(start, end, kind, settings))
    return found


def _sample_matches(where: np.ndarray, vectors: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws at most `most` of the pixels in `where`, and returns them and where the flow takes them."""
    rows, columns = np.nonzero(where)
    chosen = np.random.default_rng(len(rows)).permutation(len(rows))[:most]
    start = np.stack([columns[chosen], rows[chosen]], -1).astype(np.float32)
    return start, start + vectors[rows[chosen], columns[chosen]]


def compute_flow_votes(
    masks: Masks, known: Masks, flow: NeighborFlow, settings: VoteSettings = DEFAULTS
) -> Float[np.ndarray, "time height width"]:
    """Computes the share of the other frames' masks, propagated along the flow, that contain each pixel.

    Args:
        masks: masks of the object, one for each frame.
        known: the pixels whose mask may vote; a layer in front hides the others.
        flow: at the size of the masks, in pixels.
        settings: weights of the votes.

    Returns:
        Shares from 0 to 1; 0.5 without votes.
    """
    column, row = _pixel_positions(masks.shape[1:])

    def carry_along_flow(values: VotePlanes, to: int, of: int) -> VotePlanes:
        """Takes votes to a neighboring frame along the flow.

        Args:
            values: of frame `of`.
            to: number of the frame that they are wanted in.
            of: number of its neighbor that has them.
        """
        later = to > of
        vectors = flow.backward[of] if later else flow.forward[to]
        ok = flow.backward_ok[of] if later else flow.forward_ok[to]
        dx, dy = cv2.split(vectors)
        x, y = column + dx, row + dy
        first, second = (cv2.remap(v, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) * ok for v in values)
        return first, second

    return _collect_votes(masks, known, carry_along_flow, settings)


def compute_object_votes(
    masks: Masks, known: Masks, transforms: list[Float[np.ndarray, "3 3"]], settings: VoteSettings = DEFAULTS
) -> Float[np.ndarray, "time height width"]:
    """Computes the same shares as `compute_flow_votes`, with masks propagated by a single transform of the object.

    Args:
        masks: masks of the object, one for each frame.
        known: the pixels whose mask may vote.
        transforms: transforms from each frame to the next, in pixels (`fit_motion`).
        settings: weights of the votes.

    Returns:
        Shares from 0 to 1; 0.5 without votes.
    """
    size = (masks.shape[2], masks.shape[1])

    def carry_with_object(values: VotePlanes, to: int, of: int) -> VotePlanes:
        """Takes votes to a neighboring frame by the motion of the object.

        Args:
            values: of frame `of`.
            to: number of the frame that they are wanted in.
            of: number of its neighbor that has them.
        """
        matrix = transforms[of] if to > of else np.linalg.inv(transforms[to])
        first, second = (cv2.warpAffine(v, matrix[:2], size, flags=cv2.INTER_LINEAR) for v in values)
        return first, second

    return _collect_votes(masks, known, carry_with_object, settings)


def _collect_votes(
    masks: np.ndarray,
    known: np.ndarray,
    carry: Callable[[VotePlanes, int, int], VotePlanes],
    settings: VoteSettings,
) -> np.ndarray:
    """Adds up votes from before and after, fading with every frame, without the frame's own.

    `carry(values, to, of)` takes the votes of one frame to a neighboring one.
    """
    inside, all_votes = np.zeros(masks.shape, np.float32), np.zeros(masks.shape, np.float32)
    for order in (range(len(masks)), range(len(masks) - 1, -1, -1)):
        carried: VotePlanes | None = None
        for frame in order:
            own = (masks[frame] & known[frame]).astype(np.float32), known[frame].astype(np.float32)
            if carried is not None:
                moved = carry(carried, frame, frame - order.step)
                for plane, votes, total in zip(moved, own, (inside, all_votes), strict=True):
                    plane *= settings.vote_decay
                    total[frame] += plane
                    votes += plane
            carried = own
    return (inside + 1e-6) / (all_votes + 2e-6)  # without votes, half


def _pixel_positions(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sample positions of every column, x in a row, and of every row, y in a column."""
    return np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32)[:, None]


def measure_motion_distance(
    flow: NeighborFlow, transforms: list[Float[np.ndarray, "3 3"]]
) -> Float[np.ndarray, "time height width"]:
    """Measures how far the flow of each pixel is from a motion, both directions averaged.

    Args:
        flow: in pixels.
        transforms: of the motion, from each frame to the next, in pixels.

    Returns:
        Distances in pixels; 0 without trusted flow.
    """
    height, width = flow.forward.shape[1:3]
    x, y = _pixel_positions((height, width))
    away = np.zeros((2, len(transforms) + 1, height, width), np.float32)
    weights = np.zeros(away.shape[1:], np.float32)
    for pair, transform in enumerate(transforms):
        for frame, sign, vectors, ok in (
            (pair, 1, flow.forward[pair], flow.forward_ok[pair]),
            (pair + 1, -1, flow.backward[pair], flow.backward_ok[pair]),
        ):
            matrix = (transform if sign > 0 else np.linalg.inv(transform)).astype(np.float32)
            # Plane by plane: many times faster than matrices of three numbers a pixel.
            to_x, to_y, depth = (row[0] * x + (row[1] * y + row[2]) for row in matrix)
            dx, dy = cv2.split(vectors)
            away[0, frame] += sign * ok * (x + dx - to_x / depth)
            away[1, frame] += sign * ok * (y + dy - to_y / depth)
            weights[frame] += ok
    away /= np.maximum(weights, 1e-6)
    return np.sqrt(away[0] ** 2 + away[1] ** 2)


def compute_motion_odds(
    masks: Masks,
    outside: Masks,
    to_background: Float[np.ndarray, "time height width"],
    to_object: Float[np.ndarray, "time height width"],
    unit: float,
    settings: VoteSettings = DEFAULTS,
) -> Float[np.ndarray, "time height width"]:
    """Computes the log odds that a pixel moves like the object, and not like the background.

    The meaning of a motion is learned from the masks.

    Args:
        masks: masks of the object, one for each frame.
        outside: the pixels outside the masks of all layers.
        to_background: distance of each pixel's flow from the motion of the background (`measure_motion_distance`).
        to_object: distance from the motion of the object.
        unit: pixels of a clip whose shorter side is 240 per pixel of the distances.
        settings: the histogram.

    Returns:
        Log odds, positive for the object.
    """
    # A histogram of how much nearer the pixels of the object, and those outside, are to the object's motion.
    bins, noise = settings.bins, settings.noise_ref
    nearer = np.log((unit * to_background + noise) / (unit * to_object + noise))
    cells = ((nearer / settings.max_log_ratio + 1) * (bins / 2)).clip(0, bins - 1).astype(np.int64)
    counts = np.zeros((len(masks), 2, bins))
    for frame, cell in enumerate(cells):
        counts[frame, 0] = np.bincount(cell[masks[frame]], minlength=bins)
        counts[frame, 1] = np.bincount(cell[outside[frame]], minlength=bins)
    from scipy import ndimage  # only masks with several parts need it, and it takes a tenth of a second

    counts = ndimage.uniform_filter1d(counts, 2 * settings.span_frames + 1, axis=0, mode="nearest")
    counts = ndimage.gaussian_filter1d(counts, settings.bin_blur, axis=2, mode="nearest")
    share = counts / np.maximum(counts.sum(2, keepdims=True), 1e-6)
    odds = np.log((share[:, 0] + settings.min_bin_share) / (share[:, 1] + settings.min_bin_share))
    return np.stack([table[cell] for table, cell in zip(odds, cells, strict=True)]).astype(np.float32)


def _fit_transform(start: np.ndarray, end: np.ndarray, kind: str, settings: VoteSettings) -> np.ndarray:
    """Fits a transform to matches; the identity where none is found that has an inverse."""
    matrix = find_transform(start, end, kind, settings.tolerance_px, max_iterations=500, confidence=0.99)
    return np.eye(3) if matrix is None or abs(np.linalg.det(matrix)) < 1e-9 else matrix

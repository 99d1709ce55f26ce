"""What a clip says about its masks: votes of other frames, and how each pixel moves.

Masks are carried from frame to frame in two ways. Along the optical flow, where every pixel goes its own way: what only
flickers gets no votes. And by one similarity for the whole object: what belongs to the background slides off the object
there, however steadily it is in the masks, and gets no votes either. The motion evidence asks how far a pixel moves
from the background's homography and from the object's similarity, and learns from the masks what that means in this
clip: an object that stands still makes it say nothing. After Bai et al. 2009, "Video SnapCut", and Wang et al. 2017,
"Selective Video Object Cutout", which carry masks by flow and judge them locally; everything here is closed form.

Distances are pixels of the arrays that are given; log odds are natural logarithms, positive for the object.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

FADE = 0.83  # a mask's vote counts this much less with every frame it is carried
OBJECT_TOLERANCE, BACKGROUND_TOLERANCE = 1.5, 0.7  # pixels, of RANSAC
MOST_MATCHES = 1500
NOISE = 1.0  # pixels: distances below it are all alike
BINS, MOST_NEARER = 16, 3.5  # of the histogram of how much nearer a pixel is to one motion; a logarithm
SPAN = 6  # frames before and after that a histogram is learnt from
CAUTION = 0.01  # added to both shares of a bin: no motion is proof

Masks = Bool[np.ndarray, "time height width"]


@dataclass(frozen=True)
class Motion:
    """Flow of neighbouring frames at the size of the masks, and where the way back agrees."""

    forward: Float[np.ndarray, "pairs height width 2"]
    backward: Float[np.ndarray, "pairs height width 2"]
    forward_ok: Bool[np.ndarray, "pairs height width"]
    backward_ok: Bool[np.ndarray, "pairs height width"]


def object_motion(masks: Masks, motion: Motion) -> list[Float[np.ndarray, "3 3"]]:
    """The similarity that carries the object from each frame to the next, by RANSAC over the flow inside its mask."""
    found = []
    for mask, vectors, ok in zip(masks[:-1], motion.forward, motion.forward_ok, strict=True):
        matrix = None
        start, end = _matches(mask & ok, vectors)
        if len(start) >= 8:
            matrix, _ = cv2.estimateAffinePartial2D(
                start, end, method=cv2.RANSAC, ransacReprojThreshold=OBJECT_TOLERANCE
            )
        # Masks without a trusted vector stay where they are: votes for a place are better than none.
        found.append(np.eye(3) if matrix is None else np.vstack([matrix, [0, 0, 1]]))
    return found


def _matches(where: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_MATCHES of the pixels in `where`, and where the flow takes them."""
    rows, columns = np.nonzero(where)
    chosen = np.random.default_rng(len(rows)).permutation(len(rows))[:MOST_MATCHES]
    start = np.stack([columns[chosen], rows[chosen]], -1).astype(np.float32)
    return start, start + vectors[rows[chosen], columns[chosen]]


def flow_votes(masks: Masks, known: Masks, motion: Motion) -> Float[np.ndarray, "time height width"]:
    """The share (0 to 1) of the other frames' masks, carried along the flow, that hold a pixel; 0.5 where none can say.

    Args:
        known: where a frame's mask may vote; a layer in front hides the rest.
    """
    grid = _grid(masks.shape[1:])

    def carry(values: np.ndarray, to: int, of: int) -> np.ndarray:
        later = to > of
        vectors = motion.backward[of] if later else motion.forward[to]
        ok = motion.backward_ok[of] if later else motion.forward_ok[to]
        return _look_up(values, grid + vectors) * (0.25 + 0.75 * ok[..., None])  # even doubtful flow is a hint

    return _votes(masks, known, carry)


def object_votes(
    masks: Masks, known: Masks, transforms: list[Float[np.ndarray, "3 3"]]
) -> Float[np.ndarray, "time height width"]:
    """As `flow_votes`, carried by one transform a frame: in the frame of the object that moves."""
    size = (masks.shape[2], masks.shape[1])

    def carry(values: np.ndarray, to: int, of: int) -> np.ndarray:
        matrix = transforms[of] if to > of else np.linalg.inv(transforms[to])
        return cv2.warpAffine(values, matrix[:2], size, flags=cv2.INTER_LINEAR)

    return _votes(masks, known, carry)


def _votes(masks: np.ndarray, known: np.ndarray, carry: object) -> np.ndarray:
    """Votes from before and after, faded by FADE a frame, without the frame's own."""
    total = np.zeros((*masks.shape, 2), np.float32)
    for order in (range(len(masks)), range(len(masks) - 1, -1, -1)):
        carried: np.ndarray | None = None
        for frame in order:
            own = np.stack([masks[frame] & known[frame], known[frame]], -1).astype(np.float32)
            if carried is not None:
                moved = FADE * carry(carried, frame, frame - order.step)  # type: ignore[operator]
                total[frame] += moved
                own += moved
            carried = own
    return (total[..., 0] + 0.01) / (total[..., 1] + 0.02)


def _grid(shape: tuple[int, ...]) -> np.ndarray:
    """Sample positions of every pixel, x and y."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    return np.stack([x, y], -1)


def _look_up(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    return cv2.remap(image, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def motion_odds(
    masks: Masks, outside: Masks, motion: Motion, transforms: list[Float[np.ndarray, "3 3"]], unit: float
) -> Float[np.ndarray, "time height width"]:
    """Log odds that a pixel moves as the object does and not as the background, as the masks themselves teach it.

    Args:
        outside: what no layer claims.
        unit: pixels of a clip whose shorter side is 240 in one pixel here.
    """
    away = _distances(outside, motion, transforms, unit)
    nearer = np.log((away[..., 0] + NOISE) / (away[..., 1] + NOISE))  # positive: to the object's motion
    cells = ((nearer / MOST_NEARER + 1) * (BINS / 2)).clip(0, BINS - 1).astype(np.int64)
    counts = np.zeros((len(masks), 2, BINS))
    for frame, cell in enumerate(cells):
        for side, where in enumerate((masks[frame], outside[frame])):
            counts[frame, side] = np.bincount(cell[where], minlength=BINS)
    counts = ndimage.uniform_filter1d(counts, 2 * SPAN + 1, axis=0, mode="nearest")
    counts = ndimage.gaussian_filter1d(counts, 1.0, axis=2, mode="nearest")
    share = counts / np.maximum(counts.sum(2, keepdims=True), 1e-6)
    odds = np.log((share[:, 0] + CAUTION) / (share[:, 1] + CAUTION))
    return np.stack([table[cell] for table, cell in zip(odds, cells, strict=True)]).astype(np.float32)


def _distances(
    outside: np.ndarray, motion: Motion, transforms: list[np.ndarray], unit: float
) -> Float[np.ndarray, "time height width 2"]:
    """How far each pixel's flow is from the background's and from the object's, both directions averaged."""
    grid = _grid(outside.shape[1:])
    places = np.concatenate([grid, np.ones_like(grid[..., :1])], -1)
    total = np.zeros((*outside.shape, 2, 2), np.float32)
    seen = np.zeros((*outside.shape, 1, 1), np.float32)
    for pair, transform in enumerate(transforms):
        start, end = _matches(outside[pair] & motion.forward_ok[pair], motion.forward[pair])
        still = _homography(start, end)
        for frame, sign, vectors, ok in (
            (pair, 1, motion.forward[pair], motion.forward_ok[pair]),
            (pair + 1, -1, motion.backward[pair], motion.backward_ok[pair]),
        ):
            weight = (0.05 + ok)[..., None, None].astype(np.float32)
            for slot, matrix in enumerate((still, transform)):
                target = places @ (matrix if sign > 0 else np.linalg.inv(matrix)).T.astype(np.float32)
                away = sign * (grid + vectors - target[..., :2] / target[..., 2:])
                total[frame, ..., slot, :] += weight[..., 0] * away
            seen[frame] += weight
    return unit * np.linalg.norm(total / np.maximum(seen, 1e-6), axis=-1)


def _homography(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    if len(start) < 8:
        return np.eye(3)
    matrix, _ = cv2.findHomography(start, end, cv2.USAC_MAGSAC, BACKGROUND_TOLERANCE, maxIters=500, confidence=0.99)
    return np.eye(3) if matrix is None or abs(np.linalg.det(matrix)) < 1e-9 else matrix

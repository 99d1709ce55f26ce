"""Segmentation by motion: what moves on its own against the dominant homography.

Five steps at a small working size. (1) The residual of the flow against a RANSAC homography per pair, averaged as a
vector along the trajectories: ripples cancel, a moving object does not. (2) A per-clip threshold (Otsu) turns it into
log odds, which travel along the flow so that an object that pauses is kept. (3) A few rounds of mean field on two
bilateral grids, one broad in space (what colours does the object have around here?) and one narrow (edges), after
Maerki et al. 2016, "Bilateral Space Video Segmentation". (4) The largest components that last. (5) GrabCut (Rother et
al. 2004) in a band around the edge of each frame, then a vote along the flow.

Odds are natural logarithms, positive for the object. Speeds are in pixels a frame of a clip whose shorter side is 240.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from neural_fields.data.flow import FlowField, resize_mask, resize_vectors
from neural_fields.data.memory import let_go, zeros

REFERENCE_SIDE = 240  # Shorter side that speeds are measured at, and that edges are cut at.
WORK_SIDE = 120  # Shorter side of the volumes of odds.
CHUNK = 240  # Frames segmented at a time: memory must not grow with the clip.
SLOWEST = 0.5  # Residual below this is never an object: it is the noise of good flow.
MIN_CONTRAST = 0.8  # The object must move this much more than what surrounds it.
MIN_PRESENCE, MIN_AREA = 0.8, 0.002  # In this share of the frames it must cover this share of the frame.
MIN_STABILITY = 0.7  # Mean overlap of the mask with itself, carried to the next frame by the flow.
KEEP = 0.3  # A component counts if it has this share of the largest one's mass.
BIAS = -0.8  # Objects are smaller than the rest: prior odds per round.
STILL_WEIGHT = 0.6  # Standing still says less about being background than moving says about being an object.
ROUNDS = 4
CLEARLY = 1.25  # The homography of the border must explain this much more to replace the dominant one.

Progress = Callable[[int, int], None]


def segment_motion(
    frames: UInt8[np.ndarray, "time height width 3"], flow: FlowField, progress: Progress | None = None
) -> Bool[np.ndarray, "time height width"] | None:
    """The mask of the object (or objects) moving on their own, or None where nothing clearly does.

    `flow` may be at another size than `frames`. `progress` is called with (frames done, frames in all).
    """
    count, height, width = frames.shape[:3]
    out = zeros((count, height, width), bool)
    found = False
    for part in np.array_split(np.arange(count), -(-count // CHUNK)):
        first, stop = int(part[0]), int(part[-1]) + 1
        masks = _segment_chunk(frames[first:stop], _flow_chunk(flow, first, stop, (width, height)))
        if masks is not None:
            found = True
            for index, mask in enumerate(masks):
                out[first + index] = resize_mask(mask, (width, height))
        let_go(out)
        let_go(frames)
        if progress is not None:
            progress(stop, count)
    return out if found else None


@dataclass(frozen=True)
class _Motion:
    """Flow of a chunk at the working size (float32) and how far to trust it (0 to 1); `unit` turns it into speeds."""

    forward: np.ndarray
    backward: np.ndarray
    forward_trust: np.ndarray
    backward_trust: np.ndarray
    unit: float


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    short = min(size)
    return (max(1, round(size[0] * side / short)), max(1, round(size[1] * side / short))) if short > side else size


def _flow_chunk(flow: FlowField, first: int, stop: int, size: tuple[int, int]) -> _Motion:
    work = _scaled(size, WORK_SIDE)
    pairs = range(first, stop - 1)

    def vectors(values: np.ndarray, ok: np.ndarray) -> np.ndarray:
        out = np.zeros((len(pairs), work[1], work[0], 2), np.float32)
        for slot, pair in enumerate(pairs):
            out[slot] = resize_vectors(values[pair], work, ok[pair])
        return out

    def trust(ok: np.ndarray) -> np.ndarray:
        out = np.zeros((len(pairs), work[1], work[0]), np.float32)
        for slot, pair in enumerate(pairs):
            out[slot] = cv2.resize(ok[pair].astype(np.float32), work, interpolation=cv2.INTER_AREA)
        return out

    return _Motion(
        vectors(flow.forward, flow.forward_ok),
        vectors(flow.backward, flow.backward_ok),
        trust(flow.forward_ok),
        trust(flow.backward_ok),
        REFERENCE_SIDE / min(work),
    )


def _segment_chunk(frames: np.ndarray, motion: _Motion) -> np.ndarray | None:
    if len(frames) < 2:
        return None
    speed, trust = _own_speed(motion)
    threshold = _thresholds(speed)
    odds = 4 * np.log((speed + 0.1) / (threshold[:, None, None] + 0.1)).clip(-1.15, 1.15)
    odds = np.where(odds < 0, STILL_WEIGHT * odds, odds).astype(np.float32)
    odds = _along(odds[..., None], trust, motion, 0.93)[..., 0]
    share = _mean_field(frames, odds, trust, motion, _motion_weight(speed, threshold))
    if not _is_clear(share > 0.5, speed, motion):
        return None
    size = _scaled((frames.shape[2], frames.shape[1]), REFERENCE_SIDE)
    cut = [_cut_edges(frame, mask, size) for frame, mask in zip(frames, _fill(share), strict=True)]
    work = (speed.shape[2], speed.shape[1])
    small = np.stack([cv2.resize(mask.astype(np.float32), work, interpolation=cv2.INTER_AREA) for mask in cut])
    vote = _fill(_along(small[..., None], np.ones_like(trust), motion, 0.6)[..., 0])
    return np.stack([cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR) > 0.5 for mask in vote])


# --- motion --------------------------------------------------------------------------------------------------------


def _background_flow(vectors: np.ndarray, trust: np.ndarray, unit: float) -> np.ndarray:
    """The flow of the homography that most trusted vectors agree on.

    A large object can outvote the background. Objects are rarely all along the border, so a second homography is
    fitted there, and border vectors count three times when the two are compared.
    """
    height, width = trust.shape
    step = max(1, round(6 / unit))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    places = np.stack([x, y, np.ones_like(x)], axis=-1)
    pick = np.zeros((height, width), bool)
    pick[step // 2 :: step, step // 2 :: step] = True
    if (pick & (trust > 0.5)).sum() >= 40:
        pick &= trust > 0.5
    border = np.minimum(np.minimum(x, width - 1 - x) / width, np.minimum(y, height - 1 - y) / height) < 0.18
    value = np.where(border, 3.0, 1.0)[pick]
    best, best_score = np.broadcast_to(np.median(vectors.reshape(-1, 2), axis=0), vectors.shape), 0.0
    for points in (pick, pick & border):
        matrix = _homography(places[points][:, :2], vectors[points], 0.7 / unit)
        if matrix is None:
            continue
        target = places @ matrix.T.astype(np.float32)
        flow = target[..., :2] / target[..., 2:] - places[..., :2]
        gap = unit * np.linalg.norm((vectors - flow)[pick], axis=-1)
        score = float((value * np.exp(-(gap**2))).sum())
        if score > CLEARLY * best_score:
            best, best_score = flow, score
    return best


def _homography(points: np.ndarray, vectors: np.ndarray, tolerance: float) -> np.ndarray | None:
    if len(points) < 8:
        return None
    matrix, _ = cv2.findHomography(points, points + vectors, cv2.USAC_MAGSAC, tolerance, maxIters=500, confidence=0.99)
    return matrix


def _own_speed(motion: _Motion) -> tuple[np.ndarray, np.ndarray]:
    """How fast each pixel moves against the background (averaged along its trajectory), and how far to trust it."""
    pairs, height, width = motion.forward_trust.shape
    total = np.zeros((pairs + 1, height, width, 2), np.float32)
    trust = np.zeros((pairs + 1, height, width), np.float32)
    for pair in range(pairs):
        # The reverse residual counts with the opposite sign: both then point along the motion of the object.
        for frame, sign, vectors, known in (
            (pair, 1, motion.forward[pair], motion.forward_trust[pair]),
            (pair + 1, -1, motion.backward[pair], motion.backward_trust[pair]),
        ):
            residual = sign * motion.unit * (vectors - _background_flow(vectors, known, motion.unit))
            total[frame] += residual * known[..., None]
            trust[frame] += known
    mean = total / np.maximum(trust, 1e-3)[..., None]
    trust = trust / 2 + 0.02
    return np.linalg.norm(_along(mean, trust, motion, 0.7), axis=-1), trust


def _thresholds(speed: np.ndarray) -> np.ndarray:
    """The speed that parts object from background in each frame: Otsu's, made smooth in time."""
    found = np.zeros(len(speed))
    for index, values in enumerate(speed):
        top = float(np.quantile(values, 0.995)) + 1e-6
        level, _ = cv2.threshold((values / top * 255).clip(0, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
        found[index] = level / 255 * top
    local = ndimage.median_filter(found, 9, mode="nearest")
    return np.maximum(np.sqrt(local * np.median(local)), SLOWEST)


def _motion_weight(speed: np.ndarray, threshold: np.ndarray) -> float:
    """How much motion counts beside colour: more where the object stands far out of the noise."""
    noise = max(float(np.median(speed[:, ::3])), 1e-3)
    return 0.5 + 0.1 * float(np.clip(np.log(np.median(threshold) / noise), 0, 4))


def _warp(image: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    height, width = vectors.shape[:2]
    x = vectors[..., 0] + np.arange(width, dtype=np.float32)
    y = vectors[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(height, width, -1)


def _along(values: np.ndarray, weight: np.ndarray, motion: _Motion, decay: float) -> np.ndarray:
    """Weighted mean of `values` [time, h, w, channels] along the trajectories, both ways, fading by `decay` a frame."""
    stacked = np.concatenate([values * weight[..., None], weight[..., None]], axis=-1).astype(np.float32)
    total = -stacked  # The frame itself is in both passes.
    for order, vectors, trust in (
        (range(len(values)), motion.backward, motion.backward_trust),
        (range(len(values) - 1, -1, -1), motion.forward, motion.forward_trust),
    ):
        carried: np.ndarray | None = None
        for frame in order:
            here = stacked[frame]
            if carried is not None:
                pair = frame - 1 if order.step > 0 else frame
                here = here + decay * trust[pair][..., None] * _warp(carried, vectors[pair])
            total[frame] += here
            carried = here
    return total[..., :-1] / np.maximum(total[..., -1:], 1e-3)


# --- colour --------------------------------------------------------------------------------------------------------


class _BilateralGrid:
    """A sparse grid over (time, x, y, L, a, b) cells: averages over pixels near in place, time and colour."""

    def __init__(self, features: Sequence[np.ndarray]) -> None:
        key = np.zeros(features[0].shape, np.int64)
        strides, stride = [], 1
        for feature in features:
            cell = feature - feature.min() + 1  # One empty cell on both sides: neighbours never wrap around.
            key += cell.astype(np.int64) * stride
            strides.append(stride)
            stride *= int(cell.max()) + 2
        self.shape = key.shape
        keys, index = np.unique(key.ravel(), return_inverse=True)
        self.index = index.ravel().astype(np.int32)
        self.count = len(keys)
        self.neighbours = [(self._find(keys, -stride), self._find(keys, stride)) for stride in strides]

    def _find(self, keys: np.ndarray, offset: int) -> np.ndarray:
        where = np.searchsorted(keys, keys + offset).clip(0, self.count - 1)
        return np.where(keys[where] == keys + offset, where, self.count).astype(np.int32)

    def mean(self, values: np.ndarray, weight: np.ndarray, prior: float) -> np.ndarray:
        """Weighted mean of `values` around each pixel; `prior` is a weight of zeros added to it."""
        sums = [
            self._blur(np.bincount(self.index, weights.ravel(), self.count)) for weights in (values * weight, weight)
        ]
        return (sums[0] / (sums[1] + prior))[self.index].reshape(self.shape)

    def _blur(self, cells: np.ndarray) -> np.ndarray:
        for _ in range(2):
            for before, after in self.neighbours:
                padded = np.append(cells, 0.0)
                cells = 0.5 * cells + 0.25 * (padded[before] + padded[after])
        return cells


def _logit(share: np.ndarray) -> np.ndarray:
    share = share.clip(0.01, 0.99)
    return np.log(share / (1 - share))


def _grids(frames: np.ndarray, work: tuple[int, int]) -> tuple[_BilateralGrid, _BilateralGrid]:
    lab = np.stack(
        [cv2.cvtColor(cv2.resize(frame, work, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB) for frame in frames]
    )
    time, y, x = np.meshgrid(np.arange(len(frames)), np.arange(work[1]), np.arange(work[0]), indexing="ij", sparse=True)

    def grid(duration: int, cells: int, lightness: int, chroma: int) -> _BilateralGrid:
        side = max(work) / cells
        places = [
            np.broadcast_to((axis // step).astype(np.int32), lab.shape[:3])
            for axis, step in ((time, duration), (x, side), (y, side))
        ]
        colours = [lab[..., channel] // step for channel, step in ((0, lightness), (1, chroma), (2, chroma))]
        return _BilateralGrid(places + [colour.astype(np.int32) for colour in colours])

    return grid(12, 16, 12, 6), grid(2, 40, 20, 10)


def _mean_field(
    frames: np.ndarray, odds: np.ndarray, trust: np.ndarray, motion: _Motion, motion_weight: float
) -> np.ndarray:
    """The share (0 to 1) of each working pixel that belongs to the object, from motion, colour and place together."""
    work = (odds.shape[2], odds.shape[1])
    broad, narrow = _grids(frames, work)
    reach = int(max(work) / 16 * 2.5) | 1
    share = 1 / (1 + np.exp(-odds))
    for _ in range(ROUNDS):
        near = _dilate(_lasting(share), 9)
        inside = (share * near).astype(np.float32)
        weight = trust + 0.05
        rate = np.stack([cv2.blur(values, (reach, reach)) for values in inside])
        # Half of the local rate of object pixels is taken out: a colour that both share should say little.
        colour = _logit(broad.mean(inside, weight, 0.05)) - 0.5 * _logit(np.maximum(rate, 0.03))
        total = motion_weight * odds + colour + 1.2 * _logit(narrow.mean(inside, weight, 1e-3)) + BIAS
        total = 0.5 * total + 0.5 * _along(total[..., None], trust, motion, 0.7)[..., 0]
        share = near / (1 + np.exp(-total))
    return share * _lasting(share)


# --- shape ---------------------------------------------------------------------------------------------------------


def _dilate(masks: np.ndarray, side: int) -> np.ndarray:
    return np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) for mask in masks]) > 0


def _lasting(share: np.ndarray) -> np.ndarray:
    """The connected pieces of space and time that hold most of the object; small gaps do not part them."""
    masks = share > 0.5
    labels, count = ndimage.label(_dilate(masks, 5))
    if count == 0:
        return masks
    labels[~masks] = 0
    mass = np.bincount(labels.ravel(), share.ravel(), count + 1)
    mass[0] = 0
    return (mass >= KEEP * mass.max())[labels] & masks


def _is_clear(masks: np.ndarray, speed: np.ndarray, motion: _Motion) -> bool:
    """Whether the masks look like one thing that moves: seen throughout, stable, faster than what surrounds it."""
    if (masks.mean(axis=(1, 2)) > MIN_AREA).mean() < MIN_PRESENCE or masks.mean() > 0.7:
        return False
    overlaps = []
    for pair, vectors in enumerate(motion.backward):
        carried = _warp(masks[pair].astype(np.float32), vectors)[..., 0] > 0.5
        union = np.count_nonzero(carried | masks[pair + 1])
        overlaps.append(np.count_nonzero(carried & masks[pair + 1]) / union if union else 0.0)
    around = _dilate(masks, 25) & ~masks
    contrast = np.median(speed[masks]) - (np.median(speed[around]) if around.any() else 0.0)
    return bool(np.mean(overlaps) >= MIN_STABILITY and contrast >= MIN_CONTRAST)


def _fill(share: np.ndarray) -> np.ndarray:
    """Closes cracks and holes: windows and flat patches inside an object often show no motion."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    out = []
    for values in share:
        closed = cv2.morphologyEx((values > 0.5).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
        out.append(np.maximum(values, 0.9 * ndimage.binary_fill_holes(closed)).astype(np.float32))
    return np.stack(out)


def _cut_edges(frame: np.ndarray, share: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """GrabCut in a band around the edge of one mask, at `size`."""
    mask = (cv2.resize(share, size, interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
    area = int(mask.sum())
    if area < 20:
        return mask > 0

    def disc(radius: float) -> np.ndarray:
        return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(radius) + 1,) * 2)

    outer = cv2.dilate(mask, disc(max(2.0, min(0.08 * area**0.5, 0.03 * max(size)))))
    inner = cv2.erode(mask, disc(max(2.0, 0.06 * area**0.5)))
    labels = np.where(mask > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[outer == 0] = cv2.GC_BGD
    labels[inner > 0] = cv2.GC_FGD
    margin = int(0.06 * max(size)) + 2
    x, y, width, height = cv2.boundingRect(outer)
    window = np.s_[max(y - margin, 0) : y + height + margin, max(x - margin, 0) : x + width + margin]
    part = np.ascontiguousarray(labels[window])
    known = part[(part == cv2.GC_BGD) | (part == cv2.GC_PR_BGD)]
    if known.size < 20:
        return mask > 0
    colours = np.ascontiguousarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA)[window])
    cv2.setRNGSeed(0)  # GrabCut starts its colour clusters at random places.
    cv2.grabCut(colours, part, None, np.zeros((1, 65)), np.zeros((1, 65)), 1, cv2.GC_INIT_WITH_MASK)
    out = np.zeros(mask.shape, bool)
    out[window] = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    return out

"""Motion segmentation: it finds objects that move differently from the dominant homography.

It has five steps at a small working size. (1) The residual of the flow against a RANSAC homography of each pair of
frames is averaged as a vector along the trajectories: ripples cancel, a moving object does not. (2) A threshold for the
clip (Otsu) turns it into log odds, which are propagated along the flow, so that an object that pauses is kept. (3) A
few rounds of mean field on two bilateral grids, one coarse in space (the colors of the object nearby) and one fine
(edges), after Maerki et al. 2016, "Bilateral Space Video Segmentation". (4) The result is kept if it is clear enough to
be an object. (5) Holes are filled, and frames vote along the flow.

`data/segmentation/moving_objects.py` makes objects of it.

Odds are natural logarithms, positive for the object. Speeds are in pixels a frame of a clip whose shorter side is 240.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from neural_fields.core.memmap import allocate_zeros, release_memory
from neural_fields.core.prefetch import map_in_threads
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.data.flow.compute import FlowField, resize_mask, resize_vectors
from neural_fields.data.masks.log_odds import compute_log_odds
from neural_fields.imaging.ransac import find_transform


@dataclass(frozen=True)
class GridCells:
    """Sets the size of the cells of a bilateral grid."""

    frames: int  # frames in one cell
    per_side: int  # number of cells along the longer side of the frame
    lightness: int  # steps of 8-bit CIELAB lightness in one cell
    chroma: int  # steps of 8-bit CIELAB a and b in one cell


@dataclass(frozen=True)
class MotionSegmentationSettings:
    """Holds the settings of `segment_motion`. Lengths marked `_ref` are pixels of a clip whose shorter side is 240."""

    reference_side_px: int = 240  # shorter side of the frames in which speeds are measured
    work_side_px: int = 120  # shorter side of the frames in which motion and color are segmented
    chunk_frames: int = 240  # frames that are segmented together; limits the memory for long clips

    # The homography of the background.
    sample_spacing_ref: int = 8  # distance between the flow vectors to which homographies are fitted
    ransac_tolerance_ref: float = 0.7  # largest error of a vector that agrees with a homography
    border_share: float = 0.18  # width of the border, where objects are rare, as a share of each side of the frame
    min_score_ratio: float = 1.25  # the homography of the border wins only if its score is this many times the other's

    # From the speed of each pixel to log odds.
    min_flow_trust: float = 0.02  # weight of a pixel without trusted flow; trusted flow adds 1
    speed_decay: float = 0.7  # factor, per frame of distance, of residuals that are averaged along trajectories
    threshold_quantile: float = 0.995  # quantile of the speeds at which the histogram of Otsu's method ends
    # Least speed, in `_ref` pixels a frame, that can count as an object's: good flow has this much noise.
    min_speed: float = 0.5
    odds_gain: int = 4  # log odds per e-fold of the speed above the threshold
    odds_speed_offset: float = 0.1  # added to speed and threshold before the logarithm of their ratio
    max_log_speed_ratio: float = 1.15  # largest absolute value of that logarithm
    still_weight: float = 0.6  # factor of negative odds: standing still tells less than moving does
    odds_decay: float = 0.93  # factor, per frame of distance, of odds that are averaged along trajectories

    # Mean field.
    rounds: int = 4  # iterations of the mean field
    # Cells that decide which colors and places belong to the object.
    broad_cells: GridCells = GridCells(frames=12, per_side=16, lightness=12, chroma=6)
    # Cells that follow the color edges of the object.
    narrow_cells: GridCells = GridCells(frames=2, per_side=40, lightness=20, chroma=10)
    # Side of the square, at the working size, within which pixels can join the object in an iteration.
    near_side_px: int = 9
    min_motion_weight: float = 0.5  # weight of the motion odds where the object is no faster than the noise
    motion_weight_gain: float = 0.1  # added to that weight for each e-fold of the threshold above the noise
    min_trust: float = 0.05  # added to the weight of every pixel in the averages over cells
    broad_prior_weight: float = 0.05  # weight of zeros that are added to the average of a broad cell
    narrow_prior_weight: float = 1e-3  # weight of zeros that are added to the average of a narrow cell
    # Side, in broad cells, of the window in which the local share of object pixels is measured.
    rate_window_cells: float = 2.5
    rate_weight: float = 0.5  # how much of the log odds of that share is taken off those of the color, 0 to 1
    narrow_weight: float = 1.2  # weight of the log odds of narrow cells
    # Log odds of any pixel before the evidence; below 0 because objects cover less than half of the frame.
    bias: float = -0.8
    # Weight, 0 to 1, of odds averaged along trajectories against those of the frame itself.
    temporal_weight: float = 0.5
    field_decay: float = 0.7  # factor of these odds per frame of distance

    # When the result is clear enough to be an object.
    min_share: float = 0.01  # shares of colors are clipped to this and to 1 minus this before log odds are taken
    min_stability: float = 0.7  # least mean IoU of a mask with the mask before, warped by the flow
    min_contrast: float = 0.8  # the object must be this much faster than its surroundings, in `_ref` pixels a frame
    # Side of the square, at the working size, that reaches from the object to its surroundings.
    surround_side_px: int = 25

    # Holes, and the vote.
    fill_kernel_px: int = 5  # narrower cracks, at the working size, are closed
    filled_share: float = 0.9  # share of the object, 0 to 1, that pixels of filled holes get
    vote_decay: float = 0.6  # factor, per frame of distance, of masks that vote along the flow


DEFAULTS = MotionSegmentationSettings()


def segment_motion(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    report: ProgressReporter = report_nothing,
    settings: MotionSegmentationSettings = DEFAULTS,
) -> Bool[np.ndarray, "time height width"] | None:
    """Finds the objects that move differently from the background.

    Args:
        frames: RGB, 0 to 255; may be memory-mapped.
        flow: optical flow between neighboring frames, in pixels of its size, which may differ from that of `frames`.
        report: called after each batch of frames.
        settings: thresholds and sizes.

    Returns:
        The mask of the objects in each frame; None where no separate moving object is found.
    """
    count, height, width = frames.shape[:3]
    out = allocate_zeros((count, height, width), bool)
    work = _scale_size((width, height), settings.work_side_px)
    found = False
    for part in np.array_split(np.arange(count), -(-count // settings.chunk_frames)):
        first, stop = int(part[0]), int(part[-1]) + 1
        pairs = range(first, stop - 1)
        working_flow = _WorkingFlow(
            _resize_flow(flow.forward, flow.forward_ok, pairs, work),
            _resize_flow(flow.backward, flow.backward_ok, pairs, work),
            _resize_trust(flow.forward_ok, pairs, work),
            _resize_trust(flow.backward_ok, pairs, work),
            settings.reference_side_px / min(work),
        )
        report_chunk = report_part(report, "masks", first / count, stop / count)
        masks = _segment_chunk(frames[first:stop], working_flow, report_chunk, settings)
        if masks is not None:
            found = True
            for index, mask in enumerate(masks):
                out[first + index] = resize_mask(mask, (width, height))
        release_memory(out)
        release_memory(frames)
        report_chunk(Progress("masks", 1, 1))
    return out if found else None


@dataclass(frozen=True)
class _WorkingFlow:
    """Flow of a chunk at the working size (float32) and how far to trust it (0 to 1); `unit` turns it into speeds."""

    forward: np.ndarray
    backward: np.ndarray
    forward_trust: np.ndarray
    backward_trust: np.ndarray
    unit: float


def _scale_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Shrinks a size (width, height) until its shorter side is `side`; smaller sizes stay."""
    short = min(size)
    return (max(1, round(size[0] * side / short)), max(1, round(size[1] * side / short))) if short > side else size


def _resize_flow(values: np.ndarray, ok: np.ndarray, pairs: range, work: tuple[int, int]) -> np.ndarray:
    out = np.zeros((len(pairs), work[1], work[0], 2), np.float32)
    resized = map_in_threads(lambda pair: resize_vectors(values[pair], work, ok[pair]), pairs)
    for slot, vectors in enumerate(resized):
        out[slot] = vectors
    return out


def _resize_trust(ok: np.ndarray, pairs: range, work: tuple[int, int]) -> np.ndarray:
    out = np.zeros((len(pairs), work[1], work[0]), np.float32)
    for slot, pair in enumerate(pairs):
        out[slot] = cv2.resize(ok[pair].astype(np.float32), work, interpolation=cv2.INTER_AREA)
    return out


def _segment_chunk(
    frames: np.ndarray, flow: _WorkingFlow, report: ProgressReporter, settings: MotionSegmentationSettings
) -> np.ndarray | None:
    """Segments some frames, at the reference size; None where nothing clearly moves on its own."""
    if len(frames) < 2:
        return None

    # (1) How fast each pixel moves against the background, averaged along its trajectory, and how far to trust it.
    pairs, height, width = flow.forward_trust.shape
    total = np.zeros((pairs + 1, height, width, 2), np.float32)
    trust = np.zeros((pairs + 1, height, width), np.float32)

    def measure_motion(pair: int) -> list[np.ndarray]:
        """Returns how pixels move against the background, in both frames; the second one's motion is reversed."""
        return [
            flow.unit * (vectors - _fit_background_flow(vectors, known, flow.unit, settings))
            for vectors, known in (
                (flow.forward[pair], flow.forward_trust[pair]),
                (flow.backward[pair], flow.backward_trust[pair]),
            )
        ]

    for pair, (there, back) in enumerate(map_in_threads(measure_motion, range(pairs))):
        # Both then point along the motion of the object.
        for frame, residual, known in (
            (pair, there, flow.forward_trust[pair]),
            (pair + 1, -back, flow.backward_trust[pair]),
        ):
            total[frame] += residual * known[..., None]
            trust[frame] += known
        report(Progress("masks", pair + 1, 2 * pairs))
    mean = total / np.maximum(trust, 1e-3)[..., None]
    trust = trust / 2 + settings.min_flow_trust
    speed = np.linalg.norm(_average_along_flow(mean, trust, flow, settings.speed_decay), axis=-1)

    # (2) The speed that separates object from background in each frame: Otsu's, drawn halfway to that of the clip.
    # Then the odds.
    levels = np.zeros(len(speed))
    for index, values in enumerate(speed):
        top = float(np.quantile(values, settings.threshold_quantile)) + 1e-6
        level, _ = cv2.threshold((values / top * 255).clip(0, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
        levels[index] = level / 255 * top
    threshold = np.maximum(np.sqrt(levels * np.median(levels)), settings.min_speed)
    offset, most = settings.odds_speed_offset, settings.max_log_speed_ratio
    odds = settings.odds_gain * np.log((speed + offset) / (threshold[:, None, None] + offset)).clip(-most, most)
    odds = np.where(odds < 0, settings.still_weight * odds, odds).astype(np.float32)
    odds = _average_along_flow(odds[..., None], trust, flow, settings.odds_decay)[..., 0]

    # (3) Color and place beside motion. Motion counts more where the object is far out of the noise.
    noise = max(float(np.median(speed[:, ::3])), 1e-3)
    contrast = max(float(np.log(np.median(threshold) / noise)), 0.0)
    motion_weight = settings.min_motion_weight + settings.motion_weight_gain * contrast
    report_field = report_part(report, "masks", 0.5, 1.0)
    share = _run_mean_field(frames, odds, trust, flow, motion_weight, report_field, settings)

    # (4) Nothing, unless the masks look like things that move: stable, and faster than what surrounds them.
    masks = share > 0.5
    overlaps = []
    for pair, vectors in enumerate(flow.backward):
        moved = _warp_image(masks[pair].astype(np.float32), vectors)[..., 0] > 0.5
        union = np.count_nonzero(moved | masks[pair + 1])
        overlaps.append(np.count_nonzero(moved & masks[pair + 1]) / union if union else 0.0)
    if not np.mean(overlaps) >= settings.min_stability:
        return None
    around = _dilate_masks(masks, settings.surround_side_px) & ~masks
    lead = np.median(speed[masks]) - (np.median(speed[around]) if around.any() else 0.0)
    if not lead >= settings.min_contrast:
        return None

    # (5) A vote along the flow.
    size = _scale_size((frames.shape[2], frames.shape[1]), settings.reference_side_px)
    filled = _fill_holes(share, settings)
    vote = _average_along_flow(filled[..., None], np.ones_like(trust), flow, settings.vote_decay)[..., 0]
    vote = _fill_holes(vote, settings)
    return np.stack([cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR) > 0.5 for mask in vote])


# --- motion --------------------------------------------------------------------------------------------------------


def _fit_background_flow(
    vectors: np.ndarray, trust: np.ndarray, unit: float, settings: MotionSegmentationSettings
) -> np.ndarray:
    """Computes the flow of the homography that most trusted vectors agree on.

    A large object can outvote the background. Objects are rarely all along the border, so a second homography is
    fitted there.
    """
    height, width = trust.shape
    step = max(1, round(settings.sample_spacing_ref / unit))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    places = np.stack([x, y, np.ones_like(x)], axis=-1)
    pick = np.zeros((height, width), bool)
    pick[step // 2 :: step, step // 2 :: step] = True
    pick &= trust > 0.5
    to_border = np.minimum(np.minimum(x, width - 1 - x) / width, np.minimum(y, height - 1 - y) / height)
    border = to_border < settings.border_share
    best, best_score = np.broadcast_to(np.median(vectors.reshape(-1, 2), axis=0), vectors.shape), 0.0
    tolerance = settings.ransac_tolerance_ref / unit
    for chosen in (pick, pick & border):
        start = places[chosen][:, :2]
        end = start + vectors[chosen]
        matrix = find_transform(start, end, "homography", tolerance, max_iterations=500, confidence=0.99)
        if matrix is None:
            continue
        target = places @ matrix.T.astype(np.float32)
        flow = target[..., :2] / target[..., 2:] - places[..., :2]
        gap = unit * np.linalg.norm((vectors - flow)[pick], axis=-1)
        score = float(np.exp(-(gap**2)).sum())
        if score > settings.min_score_ratio * best_score:
            best, best_score = flow, score
    return best


def _warp_image(image: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    height, width = vectors.shape[:2]
    x = vectors[..., 0] + np.arange(width, dtype=np.float32)
    y = vectors[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(height, width, -1)


def _average_along_flow(values: np.ndarray, weight: np.ndarray, flow: _WorkingFlow, decay: float) -> np.ndarray:
    """Averages `values` [time, h, w, channels] along the trajectories, both ways, fading by `decay` a frame."""
    stacked = np.concatenate([values * weight[..., None], weight[..., None]], axis=-1).astype(np.float32)

    def carry(order: range) -> np.ndarray:
        is_onward = order.step > 0
        vectors = flow.backward if is_onward else flow.forward
        trust = flow.backward_trust if is_onward else flow.forward_trust
        carried = stacked.copy()
        for before, frame in pairwise(order):
            pair = min(before, frame)
            carried[frame] += decay * trust[pair][..., None] * _warp_image(carried[before], vectors[pair])
        return carried

    count = len(values)
    onward, backward = map_in_threads(carry, (range(count), range(count - 1, -1, -1)))
    total = onward + backward - stacked  # the frame itself is in both
    return total[..., :-1] / np.maximum(total[..., -1:], 1e-3)


# --- color ---------------------------------------------------------------------------------------------------------


class _BilateralGrid:
    """A sparse grid over (time, x, y, L, a, b) cells: averages over pixels near in place, time and color."""

    def __init__(self, lab: np.ndarray, cells: GridCells) -> None:
        """Sorts the pixels of `lab` (uint8 [time, height, width, 3], CIELAB) into cells."""
        count, height, width = self.shape = lab.shape[:3]
        time, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij", sparse=True)
        side = max(width, height) / cells.per_side
        features = [
            np.broadcast_to((time // cells.frames).astype(np.int32), self.shape),
            np.broadcast_to((x // side).astype(np.int32), self.shape),
            np.broadcast_to((y // side).astype(np.int32), self.shape),
            (lab[..., 0] // cells.lightness).astype(np.int32),
            (lab[..., 1] // cells.chroma).astype(np.int32),
            (lab[..., 2] // cells.chroma).astype(np.int32),
        ]
        key = np.zeros(self.shape, np.int64)
        strides, stride = [], 1
        for feature in features:
            cell = feature - feature.min() + 1  # One empty cell on both sides: neighbors never wrap around.
            key += cell.astype(np.int64) * stride
            strides.append(stride)
            stride *= int(cell.max()) + 2
        keys, index = np.unique(key.ravel(), return_inverse=True)
        self.index = index.ravel().astype(np.int32)
        self.count = len(keys)
        self.neighbors = [(self._find_cells(keys, -stride), self._find_cells(keys, stride)) for stride in strides]

    def _find_cells(self, keys: np.ndarray, offset: int) -> np.ndarray:
        """Returns the index of the cell at `offset` from each cell; `count` where that cell is empty."""
        where = np.searchsorted(keys, keys + offset).clip(0, self.count - 1)
        return np.where(keys[where] == keys + offset, where, self.count).astype(np.int32)

    def average_values(self, values: np.ndarray, weight: np.ndarray, prior: float) -> np.ndarray:
        """Averages `values` by `weight` around each pixel; `prior` is a weight of zeros added to it.

        Args:
            values: one number for each pixel.
            weight: of each pixel, at least 0.
            prior: weight of a value of 0 that is added to each average.
        """
        sums = self._blur_cells(np.bincount(self.index, (values * weight).ravel(), self.count))
        weights = self._blur_cells(np.bincount(self.index, weight.ravel(), self.count))
        return (sums / (weights + prior))[self.index].reshape(self.shape)

    def _blur_cells(self, cells: np.ndarray) -> np.ndarray:
        for _ in range(2):
            for before, after in self.neighbors:
                padded = np.append(cells, 0.0)
                cells = 0.5 * cells + 0.25 * (padded[before] + padded[after])
        return cells


def _average_over_cells(
    values: np.ndarray, weight: np.ndarray, min_share: float, grid: tuple[_BilateralGrid, float]
) -> np.ndarray:
    """Returns the log odds of the averages over the cells of a grid, which comes with its prior."""
    cells, prior = grid
    return compute_log_odds(cells.average_values(values, weight, prior), min_share)


def _run_mean_field(
    frames: np.ndarray,
    odds: np.ndarray,
    trust: np.ndarray,
    flow: _WorkingFlow,
    motion_weight: float,
    report: ProgressReporter,
    settings: MotionSegmentationSettings,
) -> np.ndarray:
    """Computes the share (0 to 1) of each working pixel that belongs to the object, by motion, color and place."""
    work = (odds.shape[2], odds.shape[1])
    small = [cv2.resize(frame, work, interpolation=cv2.INTER_AREA) for frame in frames]
    lab = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in small])
    grids = list(map_in_threads(partial(_BilateralGrid, lab), (settings.broad_cells, settings.narrow_cells)))
    priors = (settings.broad_prior_weight, settings.narrow_prior_weight)
    window = int(max(work) / settings.broad_cells.per_side * settings.rate_window_cells) | 1
    weight = trust + settings.min_trust
    share = 1 / (1 + np.exp(-odds))
    for done in range(settings.rounds):
        report(Progress("masks", done + 1, settings.rounds + 1))
        near = _dilate_masks(share > 0.5, settings.near_side_px)
        inside = (share * near).astype(np.float32)
        rate = np.stack([cv2.blur(values, (window, window)) for values in inside])
        average = partial(_average_over_cells, inside, weight, settings.min_share)
        color, edges = map_in_threads(average, zip(grids, priors, strict=True))
        color = color - settings.rate_weight * compute_log_odds(rate, settings.min_share)
        total = motion_weight * odds + color + settings.narrow_weight * edges + settings.bias
        along = _average_along_flow(total[..., None], trust, flow, settings.field_decay)[..., 0]
        total = (1 - settings.temporal_weight) * total + settings.temporal_weight * along
        share = near / (1 + np.exp(-total))
    return share


# --- shape ---------------------------------------------------------------------------------------------------------


def _dilate_masks(masks: np.ndarray, side: int) -> np.ndarray:
    return np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) for mask in masks]) > 0


def _fill_holes(share: np.ndarray, settings: MotionSegmentationSettings) -> np.ndarray:
    """Closes cracks and holes: windows and flat patches inside an object often show no motion."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (settings.fill_kernel_px,) * 2)
    out = []
    for values in share:
        closed = cv2.morphologyEx((values > 0.5).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
        filled = np.maximum(values, settings.filled_share * ndimage.binary_fill_holes(closed))
        out.append(filled.astype(np.float32))
    return np.stack(out)

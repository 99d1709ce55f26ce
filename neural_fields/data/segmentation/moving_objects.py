"""Finds the objects that move on their own, without hints.

Motion says where (`motion_segmentation.py`), but takes spray and shadows along and leaves out what stands still. So a
few frames where it is clear are chosen. In these, what looks like the background and does not last is removed, and
what looks like the object and lies beside it is added. From there on it is as if the user had given masks of these
frames: the objects are followed through the clip (`object_tracker.py`). What cannot be followed from one of the chosen
frames to another is no object.

Lengths are pixels of frames whose shorter side is 240.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8

from neural_fields.core.memmap import allocate_zeros
from neural_fields.core.prefetch import map_in_threads
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.data.flow.compute import FlowField, resize_flow
from neural_fields.data.masks.layer_masks import LayerMasks, default_layer_names, mask_iou
from neural_fields.data.masks.log_odds import compute_log_odds
from neural_fields.data.masks.motion_segmentation import MotionSegmentationSettings, segment_motion
from neural_fields.data.segmentation.appearance_model import AppearanceModel, AppearanceSettings
from neural_fields.data.segmentation.color_features import compute_color_features
from neural_fields.data.segmentation.graph_cut import cut_graph
from neural_fields.data.segmentation.motion_evidence import (
    measure_departure,
    read_flow,
    read_trusted_flow,
    warp_backward,
)
from neural_fields.data.segmentation.object_tracker import ObjectTracker, find_window
from neural_fields.data.segmentation.objectness import ObjectnessSettings, has_outline, lasts
from neural_fields.data.segmentation.segmenter import settle_overlaps
from neural_fields.data.segmentation.track_objects import (
    TrackObjectsSettings,
    find_order,
    follow_alone,
    follow_both_ways,
    stack_followed,
)

Mask = Bool[np.ndarray, "height width"]
Masks = dict[int, np.ndarray]  # by the number of the frame


@dataclass(frozen=True)
class MovingObjectsSettings:
    """Holds the settings of `find_moving_objects`. Weights are those of log odds."""

    side_px: int = 240  # shorter side of the frames in which objects are looked for
    sampled_frames: int = 8  # in which motion is clear, and in which the objects' look is learned
    followed_frames: int = 3  # of them, from which the objects are followed; the others are a test
    appearance_weight: float = 4.0
    smoothness: float = 6.0  # cost of the outline in `cut_graph`

    # What moves but looks like the background, and does not last: spray, ripples.
    own_score: float = 0.7  # of appearance; what scores less is in doubt, ...
    min_doubted_score: float = 0.0  # ... and is removed if it scores less than this once it is not learned from
    min_part_share: float = 0.05  # of the object; a smaller part is not removed, and no object
    steadiness_frames: int = 6  # over which a pixel is followed to see whether it lasts
    steady_error_px: float = 2.0  # error of following it there and back, ...
    steady_color: float = 12.0  # ... and change of color in steps of 8-bit CIELAB, at which steadiness falls to 1/e

    # What looks like the object beside it.
    near_share: float = 0.3  # distance, in object sizes, within which a pixel outside may belong to the object
    background_motion: float = 0.7  # in usual errors of the background's flow: moving so, it does not belong to it
    removed_odds: float = -1.0  # of what was removed, before its look is asked again

    # Several objects.
    max_objects: int = 3  # unless the user says how many
    min_object_share: float = 0.15  # of the largest object that another one must have
    same_motion: float = 0.5  # difference of motions, relative to the faster one, of pieces that move together
    min_motion_px: float = 0.5  # a smaller difference is none
    min_contained_share: float = 0.8  # of an object, or of what is around it, in a later one: it is a part of that
    max_covering_share: float = 0.25  # of a later object that may lie on others; beyond that, its look is not its own
    checked_frames: int = 8  # in which the outline of what was followed is checked
    objectness: ObjectnessSettings = field(default_factory=ObjectnessSettings)
    appearance: AppearanceSettings = field(default_factory=lambda: AppearanceSettings(regressions=1, max_samples=6000))
    motion: MotionSegmentationSettings = field(default_factory=MotionSegmentationSettings)
    tracking: TrackObjectsSettings = field(default_factory=TrackObjectsSettings)


DEFAULTS = MovingObjectsSettings()


@dataclass(frozen=True)
class Sighting:
    """Holds where something moved in one frame: left, top, width and height of its box, as shares of the frame."""

    frame: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class MovingObjects:
    """Holds the objects of a clip that move on their own.

    Attributes:
        layers: their masks, front to back, at the size of the frames; none where nothing clear was found.
        others: what else moved: no object could be made of it, or there were too many.
    """

    layers: LayerMasks
    others: tuple[Sighting, ...] = ()


def find_moving_objects(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    count: int | None = None,
    report: ProgressReporter = report_nothing,
    seconds: float | None = None,
    settings: MovingObjectsSettings = DEFAULTS,
) -> MovingObjects:
    """Finds the objects that move on their own.

    Args:
        frames: RGB, 0 to 255; may be memory-mapped.
        flow: optical flow between neighboring frames, of any size.
        count: the most objects that are wanted; None for those whose motions clearly differ.
        report: called with the progress, as the stage "masks".
        seconds: after which nothing else is looked for once an object was found; None for no limit.
        settings: weights and thresholds.

    Returns:
        The objects. One is called "foreground", several "foreground1", "foreground2", ..., front to back.
    """
    length, height, width = frames.shape[:3]
    small, small_flow = _shrink_clip(frames, flow, settings.side_px)
    wanted = settings.max_objects if count is None else count
    shares: list[np.ndarray] = []
    others: list[Sighting] = []
    claimed = np.zeros(small.shape[:3], bool)
    # The fastest come first. What is slower shows only when nothing is expected there any more. How many rounds it
    # takes is not known: each gets two thirds of the progress that is left.
    left, began = 1.0, time.monotonic()
    while seconds is None or not shares or time.monotonic() - began < seconds:
        edges = pairwise(1 - left * (1 - 2 / 3 * part) for part in (0.0, 0.15, 0.3, 0.45, 1.0))
        to_segment, to_learn, to_separate, to_follow = (report_part(report, "masks", *edge) for edge in edges)
        left /= 3
        moving = segment_motion(small, _hide_flow(small_flow, claimed), to_segment, settings.motion)
        if moving is None or not (moving & ~claimed).any():
            break
        moving &= ~claimed
        clearness = _measure_clearness(moving, small_flow)
        sampled = {n: moving[n] for n in sorted(_choose_frames(clearness, settings.sampled_frames))}
        # With as many as are wanted, what is smaller than they are is left. What is larger may be the whole to a part.
        is_too_much = len(shares) >= wanted and moving.sum() <= claimed.sum()
        if is_too_much or (shares and not has_outline(small, small_flow, sampled, False, settings.objectness)):
            others.append(_describe_sighting(int(clearness.argmax()), dict(enumerate(moving))))
            break
        masks = _learn_masks(small, small_flow, sampled, to_learn, settings)
        has_changed = False
        for pieces in _separate_objects(small, small_flow, masks, clearness, wanted, to_separate, settings):
            known = {n: np.logical_or.reduce([own[n] for own in pieces if n in own]) for n in set().union(*pieces)}
            area_px = float(np.median([mask.sum() for mask in known.values()]))
            if area_px < max((settings.min_object_share * (s >= 128).sum() / length for s in shares), default=0.0):
                continue
            added = None
            is_left = len(shares) >= wanted and area_px * length <= claimed.sum()
            if not is_left and has_outline(small, small_flow, known, not shares, settings.objectness):
                candidate = _follow_pieces(small, small_flow, pieces, masks, claimed, clearness, to_follow, settings)
                added = _add_candidate(small, small_flow, candidate, known, shares, wanted, settings)
                claimed |= candidate.share >= 128
            if added is None:
                others.append(_describe_sighting(max(known, key=lambda number: clearness[number]), known))
            else:
                shares, has_changed = added, True
        claimed |= moving
        if not has_changed or not _does_more_move(small_flow, claimed, sampled, settings):
            break
    return MovingObjects(_stack_layers(shares, (width, height), length, settings), tuple(others))


@dataclass(frozen=True)
class _Candidate:
    """Holds what was followed: its share of each pixel, 0 to 255, how sure it is in each frame, and from where."""

    share: UInt8[np.ndarray, "time height width"]
    confidence: Float[np.ndarray, " time"]
    starts: frozenset[int]


def _follow_pieces(
    frames: np.ndarray,
    flow: FlowField,
    pieces: Sequence[Masks],
    masks: Masks,
    claimed: Bool[np.ndarray, "time height width"],
    clearness: Float[np.ndarray, " time"],
    report: ProgressReporter,
    settings: MovingObjectsSettings,
) -> _Candidate:
    """Follows pieces that move together one by one, as they may lie apart, and joins them."""
    length = len(frames)
    share, confidence = np.zeros(frames.shape[:3], np.uint8), np.zeros(length, np.float32)
    starts: set[int] = set()
    for own in pieces:
        labels = {number: _label_pixels(mask, number, flow, settings) for number, mask in own.items()}
        for number, label in labels.items():
            label[(masks[number] & ~own[number]) | claimed[number]] = 0  # another object may look the same
        tracker = ObjectTracker(frames, flow, labels, settings.tracking.tracker)
        ranked = np.where(np.isin(np.arange(length), list(own)), clearness, 0)
        first = {number: own[number] for number in _choose_frames(ranked, settings.followed_frames)}

        def report_frame(done: int) -> None:
            report(Progress("masks", done, length))

        (course,) = follow_both_ways([tracker], [first], report_frame, settings.tracking)
        followed = stack_followed(course)
        share, confidence = np.maximum(share, followed[0]), np.maximum(confidence, followed[1])
        starts |= first.keys()
    return _Candidate(share, confidence, frozenset(starts))


def _add_candidate(
    frames: np.ndarray,
    flow: FlowField,
    candidate: _Candidate,
    known: Masks,
    shares: Sequence[np.ndarray],
    wanted: int,
    settings: MovingObjectsSettings,
) -> list[np.ndarray] | None:
    """Adds what was followed to the objects, in place of those that are its parts; None where it is no object.

    Arms may show before the body does: what lies within another object, or has it all around, is a part of it. What
    lies on others for a good part, as a reflection that was followed onto what is reflected, has no look of its own.
    """
    found = candidate.share >= 128
    parts, covered = [], np.zeros_like(found)
    for number, share in enumerate(shares):
        mask = share >= 128
        ring = np.stack([cv2.dilate(part.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0 for part in mask]) & ~mask
        if any((part & found).sum() > settings.min_contained_share * part.sum() for part in (mask, ring)):
            parts.append(number)
        else:
            covered |= mask
    if (not parts and len(shares) >= wanted) or (covered & found).sum() > settings.max_covering_share * found.sum():
        return None
    unused = {number: mask for number, mask in known.items() if number not in candidate.starts}
    if not lasts(found, candidate.confidence, unused, settings.objectness):
        return None
    some = {n: found[n] for n in np.linspace(0, len(found) - 1, settings.checked_frames).astype(int).tolist()}
    if not has_outline(frames, flow, some, not shares, settings.objectness):
        return None
    joined = np.maximum.reduce([candidate.share, *(shares[part] for part in parts)])
    return [share for part, share in enumerate(shares) if part not in parts] + [joined]


def _does_more_move(
    flow: FlowField,
    claimed: Bool[np.ndarray, "time height width"],
    asked: Iterable[int],
    settings: MovingObjectsSettings,
) -> bool:
    """Whether beyond what was found, a piece as large as an object moves in half of some frames: quick to ask."""
    smallest_px = settings.min_object_share * claimed.sum() / len(claimed)
    seen = []
    for number in asked:
        beyond = cv2.dilate(claimed[number].astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
        moves = beyond.copy()
        for to in (1, -1):
            if 0 <= number + to < len(claimed):
                vectors, trust = read_trusted_flow(flow, number, to, settings.tracking.tracker.motion)
                departure = measure_departure(vectors, beyond, settings.tracking.tracker.motion)
                if departure is not None:
                    moves &= (departure[0] * departure[1] > settings.motion.min_contrast) & (trust > 0.3)
        opened = cv2.morphologyEx(moves.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        stats = cv2.connectedComponentsWithStats(opened)[2]
        seen.append(stats[1:, cv2.CC_STAT_AREA].max(initial=0) > smallest_px)
    return float(np.mean(seen)) >= 0.5


def _stack_layers(
    shares: Sequence[UInt8[np.ndarray, "time rows columns"]],
    size: tuple[int, int],
    length: int,
    settings: MovingObjectsSettings,
) -> LayerMasks:
    """Orders objects front to back, and enlarges their masks to (width, height)."""
    layers = allocate_zeros((len(shares), length, size[1], size[0]), bool)
    if not shares:
        return LayerMasks((), layers)
    stacked = np.stack(shares)
    order, _ = find_order(stacked >= 128, settings.tracking)
    settle_overlaps(stacked)
    for layer, place in enumerate(order):
        for number, share in enumerate(stacked[place]):
            layers[layer, number] = cv2.resize(share, size, interpolation=cv2.INTER_LINEAR) >= 128
    return LayerMasks(default_layer_names(len(shares)), layers)


def _hide_flow(flow: FlowField, hidden: Bool[np.ndarray, "time height width"]) -> FlowField:
    """Marks flow as unknown where something hides it."""
    if not hidden.any():
        return flow
    wide = np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0 for mask in hidden])
    return FlowField(flow.forward, flow.backward, flow.forward_ok & wide[:-1], flow.backward_ok & wide[1:])


def _shrink_clip(frames: np.ndarray, flow: FlowField, side_px: int) -> tuple[np.ndarray, FlowField]:
    """Brings frames and flow to one size: that of the frames if their shorter side is at most `side_px`."""
    height, width = frames.shape[1:3]
    scale = min(1.0, side_px / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = frames
    if size != (width, height):
        small = allocate_zeros((len(frames), size[1], size[0], 3), np.uint8)
        resized = map_in_threads(lambda frame: cv2.resize(frame, size, interpolation=cv2.INTER_AREA), frames)
        for number, frame in enumerate(resized):
            small[number] = frame
    return small, flow if size == flow.size else resize_flow(flow, size)


# --- the frames in which motion is clear -----------------------------------------------------------------------------


def _measure_clearness(masks: Bool[np.ndarray, "time height width"], flow: FlowField) -> Float[np.ndarray, " time"]:
    """Measures how clear motion is in each frame: steady along the flow, of the usual area, off the border."""
    areas = masks.sum((1, 2)).astype(float)
    usual = np.median(areas[areas > 0]) if areas.any() else 1.0
    clearness = np.zeros(len(masks))
    for number in np.flatnonzero(areas):
        mask, area = masks[number], areas[number]
        steady = []
        for to in (1, -1):
            if 0 <= number + to < len(masks):
                vectors, _ = read_flow(flow, int(number), to)
                carried = warp_backward(masks[number + to].astype(np.float32), vectors) > 0.5
                steady.append(mask_iou(carried, mask))
        border = sum(int(line.sum()) for line in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
        on_border = border / (4 * np.sqrt(area))
        usualness = np.sqrt(min(area / usual, usual / area))
        clearness[number] = np.mean(steady) * usualness * max(0.0, 1 - 2 * on_border) + 1e-3
    return clearness


def _choose_frames(clearness: Float[np.ndarray, " time"], count: int) -> list[int]:
    """Chooses the clearest frames, spread over the clip; fewer where the others are not clear at all."""
    left = clearness.copy()
    gap = max(1, len(left) // (2 * count))
    chosen: list[int] = []
    while len(chosen) < count and left.max() > 0:
        best = int(left.argmax())
        chosen.append(best)
        left[max(0, best - gap) : best + gap + 1] = 0
    return chosen


# --- what belongs to the objects in these frames ---------------------------------------------------------------------


def _learn_masks(
    frames: np.ndarray, flow: FlowField, moving: Masks, report: ProgressReporter, settings: MovingObjectsSettings
) -> Masks:
    """Makes masks of what moves in the sampled frames: without what only moves, with what only looks like it."""
    features = {n: compute_color_features(frames[n], settings.tracking.tracker.features) for n in moving}
    size = {n: float(np.sqrt(max(1, mask.sum()))) for n, mask in moving.items()}
    tracker = settings.tracking.tracker
    windows = {n: find_window(mask, tracker.window_margin, tracker.min_window_margin_px) for n, mask in moving.items()}
    steadiness = {n: _measure_steadiness(frames, flow, n, windows[n], settings) for n in moving}

    # In doubt is what does not score as the object does. It is removed if it still does not when nothing is learned
    # from it: arms and windows score well then, spray does not.
    labels = {n: np.where(mask, 1, -1).astype(np.int8) for n, mask in moving.items()}
    doubted = {n: mask.copy() for n, mask in moving.items()}
    for done, threshold in enumerate((settings.own_score, settings.min_doubted_score), start=1):
        scores = _score_windows(features, labels, windows, settings)
        for n, mask in moving.items():
            window, weak = windows[n], np.zeros_like(mask)
            usual = max(0.05, float(np.median(steadiness[n][mask[window]])))
            odds = settings.appearance_weight * (scores[n] - threshold)
            odds += (steadiness[n] / usual - 1).clip(-1, 1)
            odds = np.where(doubted[n][window], odds, np.where(mask[window], 20, -20)).astype(np.float32)
            weak[window] = ~cut_graph(odds, frames[n][window], settings.smoothness)
            weak &= doubted[n]
            score = np.zeros(mask.shape, np.float32)
            score[window] = scores[n]
            least_px = settings.min_part_share * float(mask.sum())
            doubted[n] = _keep_weak_parts(weak, score, threshold, least_px) & doubted[n]
            labels[n][doubted[n]] = 0
        report(Progress("masks", done, 3))

    masks = {n: mask & ~doubted[n] if (mask & ~doubted[n]).any() else mask for n, mask in moving.items()}
    for n, mask in masks.items():
        labels[n] = _label_pixels(mask, n, flow, settings)
        labels[n][doubted[n]] = -1
    scores = _score_windows(features, labels, windows, settings)
    for n, mask in moving.items():
        window = windows[n]
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(1.0, 0.05 * size[n]))
        odds = np.where(doubted[n], settings.removed_odds, compute_log_odds(soft, 0.05))
        distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
        odds = odds - np.square(distance / max(4.0, settings.near_share * size[n]))
        odds = (odds[window] + settings.appearance_weight * scores[n]).astype(np.float32)
        cut = np.zeros_like(mask)
        cut[window] = cut_graph(odds, frames[n][window], settings.smoothness)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(cut.astype(np.uint8))
        if count > 1:
            kept = stats[:, cv2.CC_STAT_AREA] > 2 * settings.min_part_share * stats[1:, cv2.CC_STAT_AREA].max()
            kept[0] = False
            masks[n] = kept[parts]
    return masks


def _measure_steadiness(
    frames: np.ndarray, flow: FlowField, number: int, window: tuple[slice, slice], settings: MovingObjectsSettings
) -> Float[np.ndarray, "rows columns"]:
    """Measures how far each pixel of a window lasts: 1 where following it there and back leads home in its color."""
    height, width = frames.shape[1:3]
    y0, x0 = np.mgrid[window].astype(np.float32)
    lab = _blur_lab(frames[number])[window]
    best = np.zeros(x0.shape, np.float32)
    for to in (1, -1):
        there = min(max(number + to * settings.steadiness_frames, 0), len(frames) - 1)
        if abs(there - number) < settings.steadiness_frames / 2:
            continue
        x, y = x0, y0
        places = []
        for way, numbers in ((to, range(number, there, to)), (-to, range(there, number, -to))):
            for here in numbers:
                vectors, _ = read_flow(flow, here, way)
                step = cv2.remap(vectors, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                x, y = x + step[..., 0], y + step[..., 1]
            places.append((x, y))
        (far_x, far_y), (back_x, back_y) = places
        seen = cv2.remap(_blur_lab(frames[there]), far_x, far_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        color = np.linalg.norm(seen - lab, axis=2) / settings.steady_color
        error = np.hypot(back_x - x0, back_y - y0) / settings.steady_error_px
        inside = (far_x >= 0) & (far_y >= 0) & (far_x <= width - 1) & (far_y <= height - 1)
        best = np.maximum(best, np.exp(-np.square(error) - np.square(color)) * inside)
    return cv2.GaussianBlur(best, (0, 0), 2.0)


def _blur_lab(frame: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2LAB).astype(np.float32)
    return cv2.GaussianBlur(lab, (0, 0), 1.0)


def _score_windows(
    features: Mapping[int, np.ndarray],
    labels: Mapping[int, Int8[np.ndarray, "height width"]],
    windows: Mapping[int, tuple[slice, slice]],
    settings: MovingObjectsSettings,
) -> dict[int, Float[np.ndarray, "rows columns"]]:
    """Learns the look of the labeled pixels, and scores the windows of the same frames by it."""
    step = settings.tracking.tracker.features.stride_px
    near = {}
    for number, label in labels.items():
        around = np.zeros(label.shape, bool)
        around[windows[number]] = True
        near[number] = around[::step, ::step]
    small = {number: label[::step, ::step] for number, label in labels.items()}
    model = AppearanceModel(features, small, near, settings.appearance)
    scores = {}
    for number, values in features.items():
        rows, columns = (slice(part.start // step, (part.stop + step - 1) // step) for part in windows[number])
        score = model.score(values[rows, columns]).astype(np.float32)
        large = cv2.resize(score, (score.shape[1] * step, score.shape[0] * step), interpolation=cv2.INTER_LINEAR)
        height, width = (part.stop - part.start for part in windows[number])
        scores[number] = large[:height, :width]
    return scores


def _label_pixels(
    mask: Mask, number: int, flow: FlowField, settings: MovingObjectsSettings
) -> Int8[np.ndarray, "height width"]:
    """Labels the object 1 and the background -1; 0 beside the object, unless it moves as the background does.

    A leg that stands still is not background because nothing moves there: it counts as background only where the
    object moves and the pixel moves with what is around.
    """
    radius = int(max(4.0, settings.near_share * np.sqrt(mask.sum())))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    ring = (cv2.dilate(mask.astype(np.uint8), disc) > 0) & ~mask
    label = np.where(mask, 1, np.where(ring, 0, -1)).astype(np.int8)
    motion = settings.tracking.tracker.motion
    is_background = []
    for to in (1, -1):
        if not 0 <= number + to <= len(flow.forward):
            continue
        vectors, trust = read_trusted_flow(flow, number, to, motion)
        departure = measure_departure(vectors, ~ring & ~mask, motion)
        sure = mask & (trust > 0.3)
        if departure is not None and sure.sum() >= motion.min_vectors:
            away = departure[0]
            if np.median(away[sure]) >= motion.min_motion:
                is_background.append((away < settings.background_motion) & (trust > 0.5))
    if is_background:
        label[ring & np.logical_and.reduce(is_background)] = -1
    return label


def _keep_weak_parts(mask: Mask, score: np.ndarray, threshold: float, min_area_px: float) -> Mask:
    """Removes threads, small parts, and parts whose mean score reaches a threshold."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(opened)
    total = np.bincount(parts.ravel(), score.ravel(), count)
    kept = (stats[:, cv2.CC_STAT_AREA] > min_area_px) & (total < threshold * stats[:, cv2.CC_STAT_AREA])
    kept[0] = False
    return kept[parts]


# --- several objects -------------------------------------------------------------------------------------------------


def _separate_objects(
    frames: np.ndarray,
    flow: FlowField,
    masks: Masks,
    clearness: np.ndarray,
    wanted: int,
    report: ProgressReporter,
    settings: MovingObjectsSettings,
) -> list[list[Masks]]:
    """Divides the masks into pieces, the same in all frames, and lists the pieces of each object, the largest first.

    Each piece is followed through the clip; pieces of other frames that it covers there are the same one.
    """
    left: dict[int, list[np.ndarray]] = {}
    for number, mask in masks.items():
        total, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        left[number] = [parts == part for part in range(1, total)]
    if all(len(parts) == 1 for parts in left.values()):
        return [[dict(masks)]]

    objects: list[Masks] = []
    smallest = 0.0
    while len(objects) <= wanted and any(left.values()):
        start, piece = max(
            ((number, part) for number, parts in left.items() for part in parts),
            key=lambda pair: clearness[pair[0]] * pair[1].sum(),
        )
        if piece.sum() < smallest:
            break
        smallest = max(smallest, settings.min_object_share * float(piece.sum()))
        label = _label_pixels(piece, start, flow, settings)
        label[masks[start] & ~piece] = 0
        tracker = ObjectTracker(frames, flow, {start: label}, settings.tracking.tracker)
        followed = {start: piece}
        report_piece = report_part(report, "masks", len(objects) / (wanted + 1), (len(objects) + 1) / (wanted + 1))
        followed |= follow_alone(tracker, start, piece, range(min(left), max(left) + 1), report_piece)
        own: Masks = {}
        for number, parts in left.items():
            there = followed[number]
            same = [part for part in parts if (part & there).sum() > 0.5 * part.sum()]
            left[number] = [part for part in parts if not any(part is other for other in same)]
            if same:
                own[number] = np.logical_or.reduce(same)
        objects.append(own)

    # Pieces that move together are one object: a rider and his board.
    merged: list[list[Masks]] = []
    for own in objects:
        for pieces in merged:
            if any(_move_together(own, other, flow, settings) for other in pieces):
                pieces.append(own)
                break
        else:
            merged.append([own])
    return merged


def _move_together(one: Masks, other: Masks, flow: FlowField, settings: MovingObjectsSettings) -> bool:
    """Whether two objects move alike, against the background, in most of the frames that show both."""
    differences = []
    for number in one.keys() & other.keys():
        to = 1 if number < len(flow.forward) else -1
        vectors, trust = read_trusted_flow(flow, number, to, settings.tracking.tracker.motion)
        sure = trust > 0.3
        if not (sure & one[number]).any() or not (sure & other[number]).any():
            continue
        still = np.median(vectors[~one[number] & ~other[number]], axis=0)
        first, second = (np.median(vectors[sure & mask[number]], axis=0) - still for mask in (one, other))
        speed = max(float(np.linalg.norm(first)), float(np.linalg.norm(second)))
        gap = float(np.linalg.norm(first - second))
        differences.append(gap < max(settings.min_motion_px, settings.same_motion * speed))
    return bool(differences) and float(np.mean(differences)) > 0.5


def _describe_sighting(number: int, masks: Masks) -> Sighting:
    """Describes where something is in one frame."""
    height, width = masks[number].shape
    left, top, wide, high = cv2.boundingRect(masks[number].astype(np.uint8))
    return Sighting(number, (left / width, top / height, wide / width, high / height))

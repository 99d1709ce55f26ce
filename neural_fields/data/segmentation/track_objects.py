"""Finds the objects that a user points at in all frames of a clip, without a network.

Each object is followed in both directions from every frame in which the user pointed at it; between two such frames
both results are joined. Objects that touch are then followed again, together: each learns what the others look like,
they compete for pixels, and what one of them hides of another is carried on until it comes out again.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.log_odds import compute_log_odds
from neural_fields.data.segmentation.graph_cut import cut_graph
from neural_fields.data.segmentation.hinted_mask import HintedMask, find_hinted_mask
from neural_fields.data.segmentation.object_tracker import (
    FAR_ODDS,
    FollowedFrame,
    ObjectCourse,
    ObjectOdds,
    ObjectTracker,
    ObjectTrackerSettings,
)
from neural_fields.data.segmentation.segmenter import (
    ClipSegmentation,
    FrameHints,
    ObjectSegmenter,
    UnusableHintsError,
    missing_place_error,
    settle_overlaps,
)
from neural_fields.nn.torch_threads import map_in_torch_threads


@dataclass(frozen=True)
class TrackObjectsSettings:
    """Holds the settings of `TrackingSegmenter`."""

    joined_smoothness: float = 3.0  # cost of the outline where the results of two directions are joined
    untrusted_weight: float = 0.1  # of a direction where its hinted mask is not trusted; 1.1 where it is
    # Up to this area, every pixel of an object that is hinted in several frames has features of its own. Coarser ones
    # are as good for larger objects.
    max_fine_object_px: int = 5_000
    # A pixel that the user marks to correct a mask also speaks for pixels near it that have its color.
    mark_odds: float = 12.0  # log odds of a pixel of the same color beside a mark
    mark_reach: float = 1.0  # distance from a mark at which that falls to 1/e, in object sizes
    mark_color_sigma: float = 25.0  # difference of color at which it falls to 1/e, in steps of 8-bit CIELAB
    min_covered_share: float = 0.1  # of its area that an object must lose more than the one it touches, to be behind
    touching_gap_px: int = 10  # objects that come as near to each other are followed together
    open_margin_px: float = 8.0  # around a mask found in a box, in the box, that is not learned as background
    tracker: ObjectTrackerSettings = field(default_factory=ObjectTrackerSettings)


DEFAULTS = TrackObjectsSettings()


class TrackingSegmenter(ObjectSegmenter):
    """Finds objects by appearance and motion together.

    Args:
        settings: weights.
    """

    def __init__(self, settings: TrackObjectsSettings = DEFAULTS) -> None:
        self.settings = settings

    def segment(
        self,
        frames: UInt8[np.ndarray, "time height width 3"],
        flow: FlowField,
        objects: Mapping[str, Mapping[int, FrameHints]],
        report: ProgressReporter = report_nothing,
    ) -> ClipSegmentation:
        """Finds the objects; see `ObjectSegmenter.segment`.

        Args:
            frames: RGB; may be memory-mapped.
            flow: between neighboring frames, at the size of the frames.
            objects: for each object its hints, by the number of the frame in the clip.
            report: called with the progress.
        """
        shares, confidence = [], []
        for number, (name, hints) in enumerate(objects.items()):

            def report_frame(done: int, first: int = number * len(frames)) -> None:
                report(Progress("objects", first + done, len(objects) * len(frames)))

            share, sure = self._segment_object(name, frames, flow, hints, report_frame)
            shares.append(share)
            confidence.append(sure)
        return ClipSegmentation(tuple(objects), np.stack(shares), np.stack(confidence))

    def _segment_object(
        self,
        name: str,
        frames: np.ndarray,
        flow: FlowField,
        hints: Mapping[int, FrameHints],
        report_frame: Callable[[int], None],
    ) -> tuple[UInt8[np.ndarray, "time height width"], Float[np.ndarray, " time"]]:
        """Finds one object: its share of each pixel, 0 to 255, and how sure it is in each frame."""
        settings = self.settings
        # Frames that say where the object is come first; marks in other frames then correct what follows from them.
        whole = {number for number, hint in hints.items() if hint.mask is not None or hint.box is not None}
        if not whole:
            whole = {number for number, hint in hints.items() if (hint.labels > 0).any()}
        if not whole:
            raise missing_place_error(name, hints)
        hinted: dict[int, HintedMask] = {}
        for number in sorted(whole):
            try:
                hinted[number] = find_hinted_mask(frames, flow, number, hints[number])
            except UserError as problem:
                raise UnusableHintsError(name, number, problem) from problem
        known = {number: item.mask for number, item in hinted.items()}
        followed = self._follow_all(frames, flow, hints, known, report_frame)
        corrections = sorted(set(hints) - whole)
        for number in corrections:
            # The pixels that the user marked, and those of their colors near them, turn the odds.
            frame, labels = np.ascontiguousarray(frames[number]), hints[number].labels
            share = followed[number].share / np.float32(255)
            odds = compute_log_odds(share, settings.tracker.min_share)
            lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32)
            lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
            reach = max(4.0, settings.mark_reach * float(np.sqrt(max(1.0, share.sum()))))
            for sign in (1, -1):
                count, marks = cv2.connectedComponents((labels == sign).astype(np.uint8), connectivity=8)
                for mark in range(1, count):
                    where = marks == mark
                    distance = cv2.distanceTransform((~where).astype(np.uint8), cv2.DIST_L2, 3)
                    difference = np.linalg.norm(lab - lab[where].mean(0), axis=2)
                    near = np.square(distance / reach) + np.square(difference / settings.mark_color_sigma)
                    odds = odds + sign * settings.mark_odds * np.exp(-near)
            odds = np.where(labels != 0, 100.0 * labels, odds)
            known[number] = cut_graph(odds.astype(np.float32), frame, settings.tracker.smoothness)
        if corrections:
            followed = self._follow_all(frames, flow, hints, known, report_frame)
        shares, confidence = stack_followed(followed)
        for number, item in hinted.items():
            confidence[number] = item.confidence
        return shares, confidence

    def _follow_all(
        self,
        frames: np.ndarray,
        flow: FlowField,
        hints: Mapping[int, FrameHints],
        known: Mapping[int, Bool[np.ndarray, "height width"]],
        report_frame: Callable[[int], None],
    ) -> dict[int, FollowedFrame]:
        """Learns the object's look from all frames whose mask is known, and follows it from all of them."""
        tracker = self._make_tracker(frames, flow, hints, known)
        (followed,) = follow_both_ways([tracker], [known], report_frame, self.settings)
        return followed

    def _make_tracker(
        self,
        frames: np.ndarray,
        flow: FlowField,
        hints: Mapping[int, FrameHints],
        known: Mapping[int, Bool[np.ndarray, "height width"]],
        rivals: Mapping[int, Bool[np.ndarray, "height width"]] | None = None,
    ) -> ObjectTracker:
        labels = {}
        for number, mask in known.items():
            label, box = np.where(mask, 1, -1).astype(np.int8), hints[number].box
            if hints[number].mask is None and box is not None and rivals is None:
                # What was missed in the box is near the mask. Learned as background, it would be missed in all frames.
                # Where objects touch, it is what tells them apart.
                away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
                near = (away > 0) & (away <= self.settings.open_margin_px)
                inside = np.s_[max(0, box[1]) : max(0, box[3]), max(0, box[0]) : max(0, box[2])]
                label[inside][near[inside]] = 0
            labels[number] = np.where(hints[number].labels != 0, hints[number].labels, label)
        settings = self.settings.tracker
        area_px = np.median([mask.sum() for mask in known.values()])
        if len(known) > 1 and area_px <= self.settings.max_fine_object_px:
            settings = replace(settings, features=replace(settings.features, stride_px=1))
        return ObjectTracker(frames, flow, labels, settings, rivals)

    def separate(
        self,
        frames: UInt8[np.ndarray, "time height width 3"],
        flow: FlowField,
        objects: Mapping[str, Mapping[int, FrameHints]],
        found: ClipSegmentation,
        order: Sequence[str],
        report: ProgressReporter = report_nothing,
    ) -> ClipSegmentation:
        """Follows objects that touch once more, together; see `ObjectSegmenter.separate`.

        Args:
            frames: RGB; may be memory-mapped.
            flow: between neighboring frames, at the size of the frames.
            objects: for each object its hints, by the number of the frame in the clip.
            found: what was found of each, named in the same order.
            order: names of objects whose order the user gave, front to back; may be empty.
            report: called with the progress.
        """
        masks = found.shares >= 128
        shares, confidence = found.shares.copy(), found.confidence.copy()
        # The objects that come near to another one in some frame.
        touching = np.zeros(len(masks), bool)
        box = np.ones((2 * self.settings.touching_gap_px + 1,) * 2, np.uint8)
        for a, b in combinations(range(len(masks)), 2):
            pairs = zip(masks[a], masks[b], strict=True)
            if any((cv2.dilate(one.astype(np.uint8), box)[other] > 0).any() for one, other in pairs if other.any()):
                touching[[a, b]] = True
        together = np.flatnonzero(touching)
        if len(together):
            covers = find_covers(masks[together], self.settings)
            names = [found.names[k] for k in together]
            for a, b in permutations(range(len(names)), 2):
                if names[a] in order and names[b] in order:
                    covers[a, b] = order.index(names[a]) < order.index(names[b])
            hints = [objects[name] for name in names]
            known, trackers = [], []
            for k, own in zip(together, hints, strict=True):
                others = masks[together[together != k]]
                known.append({number: masks[k, number] for number in own})
                rivals = {number: np.asarray(others[:, number].any(0)) for number in own}
                trackers.append(self._make_tracker(frames, flow, own, known[-1], rivals))
            total = len(together) * len(frames)

            def report_frame(done: int) -> None:
                report(Progress("objects", done, total))

            followed = follow_both_ways(trackers, known, report_frame, self.settings, covers, found.shares[together])
            for k, own, frames_of_object in zip(together, hints, followed, strict=True):
                shares[k], confidence[k] = stack_followed(frames_of_object)
                confidence[k, list(own)] = found.confidence[k, list(own)]
        settle_overlaps(shares)
        return ClipSegmentation(found.names, shares, confidence)


def follow_both_ways(
    trackers: Sequence[ObjectTracker],
    known: Sequence[Mapping[int, Bool[np.ndarray, "height width"]]],
    report_frame: Callable[[int], None] = lambda done: None,
    settings: TrackObjectsSettings = DEFAULTS,
    covers: Bool[np.ndarray, "objects objects"] | None = None,
    alone: UInt8[np.ndarray, "objects time height width"] | None = None,
) -> list[dict[int, FollowedFrame]]:
    """Follows objects together, each from all frames whose mask is known into the frames between and beyond them.

    Args:
        trackers: one of each object, all of the same clip.
        known: of each object, masks by the number of their frame.
        report_frame: called with the number of frames that are done, of all objects.
        settings: how the results of two directions are joined.
        covers: whether the object of the row is in front of that of the column; None where no object covers another.
        alone: share of each object as if it were alone, 0 to 255: where it is until it is followed in a direction
            itself, as its first hinted frame is a later one. None for a single object.

    Returns:
        Of each object, what is seen of it in every frame of the clip, by number.
    """
    count, length = len(trackers), len(trackers[0].frames)
    covers = np.zeros((count, count), bool) if covers is None else covers
    order = sort_front_to_back(covers)
    found = [{t: FollowedFrame(m, np.uint8(255) * m, 1.0) for t, m in masks.items()} for masks in known]
    done: set[tuple[int, int]] = {(k, t) for k, masks in enumerate(known) for t in masks}

    def follow(direction: int) -> list[dict[int, FollowedFrame]]:
        followed: list[dict[int, FollowedFrame]] = [{} for _ in range(count)]
        courses: dict[int, ObjectCourse] = {}
        for number in range(length)[::direction]:
            before = {k: course.seen for k, course in courses.items()}
            if alone is not None and 0 <= number - direction < length:
                before |= {k: alone[k, number - direction] >= 128 for k in order if k not in courses}
            odds: dict[int, Float[np.ndarray, "height width"]] = {}
            weighed: dict[int, ObjectOdds] = {}
            expected: dict[int, Bool[np.ndarray, "height width"]] = {}
            seen: dict[int, Bool[np.ndarray, "height width"]] = {}
            for k in order:
                if number in known[k]:
                    last = max(known[k]) if direction > 0 else min(known[k])
                    courses[k] = trackers[k].begin(number, known[k][number], is_enclosed=number != last)
                    seen[k] = expected[k] = courses[k].seen
                    odds[k] = np.where(seen[k], FAR_ODDS, -FAR_ODDS).astype(np.float32)
                elif k in courses:
                    covered = [_join_masks([masks[j] for j in masks if covers[j, k]]) for masks in (before, expected)]
                    weighed[k] = trackers[k].weigh(courses[k], direction, *covered)
                    odds[k], expected[k] = weighed[k].everywhere, weighed[k].carried > 0.5
                elif alone is not None:
                    seen[k] = expected[k] = alone[k, number] >= 128
                    odds[k] = compute_log_odds(alone[k, number] / np.float32(255), settings.tracker.min_share)
            for k in order:
                if k not in weighed:
                    continue
                rivals = [odds[j] for j in odds if j != k and not covers[j, k]]
                cover = _join_masks([seen[j] for j in seen if covers[j, k]])
                frame = trackers[k].settle(courses[k], weighed[k], cover, np.max(rivals, 0) if rivals else None)
                seen[k], followed[k][number] = frame.mask, frame
                done.add((k, number))
                report_frame(len(done))
        return followed

    # The two ways know nothing of each other.
    is_asked = [any(min(masks) < length - 1 for masks in known), any(max(masks) > 0 for masks in known)]
    ways = [direction for direction, asked in zip((1, -1), is_asked, strict=True) if asked]
    for followed in map(follow, ways) if len(ways) < 2 else map_in_torch_threads(follow, ways):
        for k, frames in enumerate(followed):
            for number, frame in frames.items():
                first = found[k].get(number)
                found[k][number] = (
                    frame
                    if first is None
                    else _join_directions(first, frame, number, sorted(known[k]), trackers[k], settings)
                )
    return found


def follow_alone(
    tracker: ObjectTracker,
    start: int,
    mask: Bool[np.ndarray, "height width"],
    span: range,
    report: ProgressReporter = report_nothing,
) -> dict[int, Bool[np.ndarray, "height width"]]:
    """Follows an object from one frame to both ends of a span; returns its other masks by the number of the frame.

    Args:
        tracker: of the object.
        start: number of the frame.
        mask: the object in that frame.
        span: the frames that are asked for.
        report: called after each frame, as the stage "masks".
    """
    found: dict[int, np.ndarray] = {}

    def follow_to(stop: int) -> None:
        for number, frame in tracker.follow(start, mask, stop):
            found[number] = frame.mask
            report(Progress("masks", len(found), len(span)))

    list(map_in_torch_threads(follow_to, (span.start - 1, span.stop)))
    return found


def _join_directions(
    first: FollowedFrame,
    second: FollowedFrame,
    number: int,
    known: Sequence[int],
    tracker: ObjectTracker,
    settings: TrackObjectsSettings,
) -> FollowedFrame:
    """Joins what was found of an object in a frame from a frame before and from one after it."""
    after = bisect(known, number)
    # Each direction counts by its confidence, more near the frame that it comes from, and more in pixels where the mask
    # of that frame can be trusted.
    part = (number - known[after - 1]) / (known[after] - known[after - 1])
    weights = np.array([(1 - part) * first.confidence, part * second.confidence])
    share, odds, total = np.zeros((3, *first.mask.shape), np.float32)
    for weight, found in zip(weights, (first, second), strict=True):
        assert found.odds is not None and found.hint_trust is not None
        local = weight * (settings.untrusted_weight + found.hint_trust.astype(np.float32)) + 1e-3
        share += local * found.share
        odds += local * found.odds
        total += local
    share /= total
    odds /= total
    weights = (weights + 1e-3) / (weights + 1e-3).sum()
    mask = cut_graph(odds, np.ascontiguousarray(tracker.frames[number]), settings.joined_smoothness)
    overlap = (first.mask & second.mask).sum() / max(1, (first.mask | second.mask).sum())
    sure = float(weights @ (first.confidence, second.confidence)) * (0.5 + 0.5 * float(overlap))
    return FollowedFrame(mask, np.rint(share).astype(np.uint8), sure)


def _join_masks(masks: Sequence[Bool[np.ndarray, "height width"]]) -> Bool[np.ndarray, "height width"] | None:
    """Returns all masks together; None without any."""
    return np.any(masks, axis=0) if masks else None


def stack_followed(
    followed: Mapping[int, FollowedFrame],
) -> tuple[UInt8[np.ndarray, "time height width"], Float[np.ndarray, " time"]]:
    """Stacks an object of all frames: its share of each pixel, 0 to 255, and how sure it is in each frame."""
    shares = np.zeros((len(followed), *followed[0].mask.shape), np.uint8)
    for number, found in followed.items():
        # The outline is that of the mask; the share only says how soft it is.
        shares[number] = np.where(found.mask, np.maximum(found.share, 130), np.minimum(found.share, 125))
    return shares, np.array([followed[number].confidence for number in range(len(followed))], np.float32)


def find_order(
    masks: Bool[np.ndarray, "objects time height width"], settings: TrackObjectsSettings = DEFAULTS
) -> tuple[list[int], bool]:
    """Finds the order of objects, front to back, by which covers which; see `find_covers`.

    Args:
        masks: of the objects, before overlaps are settled.
        settings: how much it must lose.

    Returns:
        The numbers of the objects, the front one first; as they are where nothing is known. And whether any covers
        another.
    """
    covers = find_covers(masks, settings)
    return sort_front_to_back(covers), bool(covers.any())


def sort_front_to_back(covers: Bool[np.ndarray, "objects objects"]) -> list[int]:
    """Sorts objects so that each comes after those that cover it, and else as they are.

    Args:
        covers: whether the object of the row is in front of that of the column.

    Example:
        >>> sort_front_to_back(np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]], bool))
        [1, 2, 0]
    """
    order: list[int] = []
    rest = list(range(len(covers)))
    while rest:
        # The first that the fewest others cover; where they cover each other in a circle, one must begin.
        order.append(min(rest, key=lambda a: (covers[rest, a].sum(), a)))
        rest.remove(order[-1])
    return order


def find_covers(
    masks: Bool[np.ndarray, "objects time height width"], settings: TrackObjectsSettings = DEFAULTS
) -> Bool[np.ndarray, "objects objects"]:
    """Finds which objects cover others: where two touch, the one that loses more of its area is behind.

    Args:
        masks: of the objects, before overlaps are settled.
        settings: how much it must lose.

    Returns:
        Whether the object of the row is in front of that of the column.
    """
    count = len(masks)
    areas = masks.sum((2, 3)).astype(float)
    box = np.ones((5, 5), np.uint8)
    covers = np.zeros((count, count), bool)  # [a, b]: a is in front of b
    for a in range(count):
        for b in range(a):
            touching = np.array(
                [
                    bool((cv2.dilate(one.astype(np.uint8), box)[other] > 0).any())
                    for one, other in zip(masks[a], masks[b], strict=True)
                ]
            )
            if touching.any() and not touching.all():
                left = [areas[i, touching].min() / max(1.0, np.median(areas[i, ~touching])) for i in (a, b)]
                covers[a, b] = left[1] < left[0] - settings.min_covered_share
                covers[b, a] = left[0] < left[1] - settings.min_covered_share
    return covers

"""Finds the objects that a user points at in all frames of a clip, without a network.

Each object is followed in both directions from every frame in which the user pointed at it; between two such frames
both results are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.log_odds import compute_log_odds
from neural_fields.data.segmentation.graph_cut import cut_graph
from neural_fields.data.segmentation.hinted_mask import find_hinted_mask
from neural_fields.data.segmentation.object_tracker import (
    FollowedFrame,
    ObjectTracker,
    ObjectTrackerSettings,
)
from neural_fields.data.segmentation.segmenter import (
    ClipSegmentation,
    FrameHints,
    ObjectSegmenter,
    UnusableHintsError,
    missing_place_error,
)


@dataclass(frozen=True)
class TrackObjectsSettings:
    """Holds the settings of `TrackingSegmenter`."""

    joined_smoothness: float = 3.0  # cost of the outline where the results of two directions are joined
    # A pixel that the user marks to correct a mask also speaks for pixels near it that have its color.
    mark_odds: float = 12.0  # log odds of a pixel of the same color beside a mark
    mark_reach: float = 1.0  # distance from a mark at which that falls to 1/e, in object sizes
    mark_color_sigma: float = 25.0  # difference of color at which it falls to 1/e, in steps of 8-bit CIELAB
    min_covered_share: float = 0.1  # of its area that an object must lose more than the one it touches, to be behind
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
        """Finds the objects; see `ObjectSegmenter.segment`."""
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
        known: dict[int, Bool[np.ndarray, "height width"]] = {}
        for number in sorted(whole):
            try:
                known[number] = find_hinted_mask(frames, flow, number, hints[number])
            except UserError as problem:
                raise UnusableHintsError(name, number, problem) from problem
        followed = self._follow_all(frames, flow, hints, known, report_frame)
        corrections = sorted(set(hints) - whole)
        for number in corrections:
            # The pixels that the user marked, and those of their colors near them, turn the odds.
            frame, share, labels = np.ascontiguousarray(frames[number]), followed[number].share, hints[number].labels
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
        return stack_followed(followed)

    def _follow_all(
        self,
        frames: np.ndarray,
        flow: FlowField,
        hints: Mapping[int, FrameHints],
        known: Mapping[int, Bool[np.ndarray, "height width"]],
        report_frame: Callable[[int], None],
    ) -> dict[int, FollowedFrame]:
        """Learns the object's look from all frames whose mask is known, and follows it from all of them."""
        labels = {}
        for number, mask in known.items():
            label = np.where(mask, 1, -1).astype(np.int8)
            labels[number] = np.where(hints[number].labels != 0, hints[number].labels, label)
        tracker = ObjectTracker(frames, flow, labels, self.settings.tracker)
        return follow_both_ways(tracker, known, report_frame, self.settings)


def follow_both_ways(
    tracker: ObjectTracker,
    known: Mapping[int, Bool[np.ndarray, "height width"]],
    report_frame: Callable[[int], None] = lambda done: None,
    settings: TrackObjectsSettings = DEFAULTS,
) -> dict[int, FollowedFrame]:
    """Follows an object from all frames whose mask is known into the frames between and beyond them.

    Args:
        tracker: knows the clip and the object's look.
        known: masks by the number of their frame.
        report_frame: called with the number of frames that are done.
        settings: how the results of two directions are joined.

    Returns:
        The object in every frame of the clip, by number.
    """
    frames = tracker.frames
    found = {number: FollowedFrame(mask, mask.astype(np.float32), 1.0) for number, mask in known.items()}
    numbers = sorted(known)
    done = len(numbers)
    spans = [(-1, numbers[0]), *pairwise(numbers), (numbers[-1], len(frames))]
    for before, after in spans:
        forward: dict[int, FollowedFrame] = {}
        if before >= 0:
            for number, frame in tracker.follow(before, known[before], after):
                forward[number] = frame
                done += 1
                report_frame(done)
        if after < len(frames):
            for number, frame in tracker.follow(after, known[after], before):
                if before >= 0:
                    # Each direction counts by its confidence, and more near the frame that it comes from.
                    first, part = forward[number], (number - before) / (after - before)
                    weights = np.array([(1 - part) * first.confidence, part * frame.confidence]) + 1e-3
                    weights /= weights.sum()
                    share = weights[0] * first.share + weights[1] * frame.share
                    odds = compute_log_odds(share, 0.02).astype(np.float32)
                    picture = np.ascontiguousarray(frames[number])
                    mask = cut_graph(odds, picture, settings.joined_smoothness)
                    overlap = (first.mask & frame.mask).sum() / max(1, (first.mask | frame.mask).sum())
                    sure = float(weights @ (first.confidence, frame.confidence)) * (0.5 + 0.5 * float(overlap))
                    frame = FollowedFrame(mask, share.astype(np.float32), sure)
                else:
                    done += 1
                    report_frame(done)
                found[number] = frame
        found |= {number: frame for number, frame in forward.items() if number not in found}
    return found


def stack_followed(
    followed: Mapping[int, FollowedFrame],
) -> tuple[UInt8[np.ndarray, "time height width"], Float[np.ndarray, " time"]]:
    """Stacks an object of all frames: its share of each pixel, 0 to 255, and how sure it is in each frame."""
    shares = np.zeros((len(followed), *followed[0].mask.shape), np.uint8)
    for number, found in followed.items():
        # The outline is that of the mask; the share only says how soft it is.
        soft = np.where(found.mask, np.maximum(found.share, 0.51), np.minimum(found.share, 0.49))
        shares[number] = np.rint(255 * soft)
    return shares, np.array([followed[number].confidence for number in range(len(followed))], np.float32)


def find_order(
    masks: Bool[np.ndarray, "objects time height width"], settings: TrackObjectsSettings = DEFAULTS
) -> tuple[list[int], bool]:
    """Finds the order of objects, front to back: where two touch, the one that loses more of its area is behind.

    Args:
        masks: of the objects, before overlaps are settled.
        settings: how much it must lose.

    Returns:
        The numbers of the objects, the front one first; as they are where nothing is known. And whether any covers
        another.
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
    order: list[int] = []
    rest = list(range(count))
    while rest:
        # The first that the fewest others cover.
        order.append(min(rest, key=lambda a: (covers[rest, a].sum(), a)))
        rest.remove(order[-1])
    return order, bool(covers.any())

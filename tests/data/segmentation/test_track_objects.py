"""Objects that a user points at are found in all frames, without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.segmentation.hint_registration import HintRegistration
from neural_fields.data.segmentation.object_tracker import FollowedFrame, ObjectCourse, ObjectOdds, ObjectTracker
from neural_fields.data.segmentation.segmenter import ClipSegmentation, FrameHints, UnusableHintsError
from neural_fields.data.segmentation.track_objects import (
    TrackingSegmenter,
    TrackObjectsSettings,
    find_order,
    follow_both_ways,
)
from tests.support.crossing_clip import CrossingClip, draw_crossing_clip

HEIGHT, WIDTH, FRAMES = 96, 160, 13


@dataclass(frozen=True)
class FilmedCrossing(CrossingClip):
    """The clip with its flow."""

    flow: FlowField


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> FilmedCrossing:
    drawn = draw_crossing_clip(WIDTH, HEIGHT, FRAMES, square_left=105, disc_center=(35, 52))
    flow = compute_flow(drawn.frames, tmp_path_factory.mktemp("flow"), "dis")
    return FilmedCrossing(drawn.frames, drawn.disc, drawn.square, flow)


@pytest.fixture(scope="module")
def hints(clip: FilmedCrossing) -> dict[str, dict[int, FrameHints]]:
    return {"square": {0: _hint(clip.square[0])}, "disc": {0: _hint(clip.disc[0])}}


@pytest.fixture(scope="module")
def alone(clip: FilmedCrossing, hints: dict[str, dict[int, FrameHints]]) -> ClipSegmentation:
    return TrackingSegmenter().segment(clip.frames, clip.flow, hints)


def _hint(mask: np.ndarray | None = None, marks: dict[tuple[int, int], int] | None = None) -> FrameHints:
    labels = np.zeros((HEIGHT, WIDTH), np.int8)
    for (x, y), sign in (marks or {}).items():
        labels[y - 1 : y + 2, x - 1 : x + 2] = sign
    return FrameHints(labels, None, mask)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max(1, (a | b).sum())


def test_an_object_is_followed_from_its_mask_in_one_frame(clip: FilmedCrossing) -> None:
    found = TrackingSegmenter().segment(clip.frames, clip.flow, {"disc": {4: _hint(clip.disc[4])}})
    assert found.names == ("disc",)
    assert min(_iou(found.shares[0, t] >= 128, clip.disc[t]) for t in range(FRAMES)) > 0.9
    assert found.confidence.min() > 0.5


def test_a_wrong_mask_is_doubted_wherever_it_is_followed_to(clip: FilmedCrossing) -> None:
    wrong = clip.disc[0].copy()
    wrong[20:80, 4:60] = True  # with the background around it
    found = TrackingSegmenter().segment(clip.frames, clip.flow, {"disc": {0: _hint(wrong)}})
    assert found.confidence[0, 0] == 1, "the user said so"
    assert found.confidence[0, 1:].max() < 0.7
    good = TrackingSegmenter().segment(clip.frames, clip.flow, {"disc": {0: _hint(clip.disc[0])}})
    assert good.confidence[0].min() > 0.85


def test_a_mask_from_a_box_is_less_sure_than_one_that_the_user_gave(clip: FilmedCrossing) -> None:
    rows, columns = np.nonzero(clip.disc[0])
    box = int(columns.min()) - 3, int(rows.min()) - 3, int(columns.max()) + 4, int(rows.max()) + 4
    hint = FrameHints(np.zeros((HEIGHT, WIDTH), np.int8), box)
    found = TrackingSegmenter().segment(clip.frames[:2], clip.flow, {"disc": {0: hint}})
    assert 0.8 < found.confidence[0, 0] < 1


def test_objects_that_cross_keep_their_pixels_and_the_covering_one_is_in_front(
    clip: FilmedCrossing, hints: dict[str, dict[int, FrameHints]]
) -> None:
    reports: list[Progress] = []
    found = TrackingSegmenter().segment(clip.frames, clip.flow, hints, reports.append)
    masks = dict(zip(found.names, found.shares >= 128, strict=True))
    assert not (masks["disc"] & masks["square"]).any()
    for t in range(FRAMES):
        assert _iou(masks["disc"][t], clip.disc[t]) > 0.9, t
        if t < 8 or t > 10:  # what is uncovered at once is found again within three frames
            assert _iou(masks["square"][t], clip.square[t]) > 0.85, t
    assert found.names == ("square", "disc")
    assert find_order(found.shares >= 128) == ([1, 0], True), "the disc is in front"
    assert reports[-1].done <= reports[-1].total == 2 * FRAMES


def test_what_another_object_hides_is_there_again_a_frame_after_it_comes_out(
    clip: FilmedCrossing, hints: dict[str, dict[int, FrameHints]], alone: ClipSegmentation
) -> None:
    apart = TrackingSegmenter().separate(clip.frames, clip.flow, hints, alone, ())
    square, disc = apart.shares >= 128
    assert not (square & disc).any()
    assert min(_iou(disc[t], clip.disc[t]) for t in range(FRAMES)) > 0.95
    out = int(np.argmin(clip.square.sum((1, 2)))) + 1  # the first frame in which more of the square is seen again
    for t in set(range(FRAMES)) - {out}:
        assert _iou(square[t], clip.square[t]) > 0.95, t
    assert _iou(square[out], clip.square[out]) > 0.7
    late = out + 1
    assert _iou(alone.shares[0, late] >= 128, clip.square[late]) < 0.8, "it is not found so soon if it is alone"


def test_an_object_that_is_hinted_only_later_hides_others_before_that_too(clip: FilmedCrossing) -> None:
    hints = {"square": {0: _hint(clip.square[0])}, "disc": {FRAMES - 1: _hint(clip.disc[-1])}}
    alone = TrackingSegmenter().segment(clip.frames, clip.flow, hints)
    square, disc = TrackingSegmenter().separate(clip.frames, clip.flow, hints, alone, ()).shares >= 128
    assert min(_iou(disc[t], clip.disc[t]) for t in range(FRAMES)) > 0.95
    late = int(np.argmin(clip.square.sum((1, 2)))) + 2
    assert _iou(alone.shares[0, late] >= 128, clip.square[late]) < 0.8
    assert min(_iou(square[t], clip.square[t]) for t in range(late, FRAMES)) > 0.95


def test_the_order_that_the_user_gave_decides_which_object_hides_the_other(
    clip: FilmedCrossing, hints: dict[str, dict[int, FrameHints]], alone: ClipSegmentation
) -> None:
    # With the wrong order, nothing hides the square, and what comes out of it is not expected.
    apart = TrackingSegmenter().separate(clip.frames, clip.flow, hints, alone, ("square", "disc"))
    late = int(np.argmin(clip.square.sum((1, 2)))) + 2
    assert _iou(apart.shares[0, late] >= 128, clip.square[late]) < 0.9


def test_objects_that_never_touch_are_as_if_each_were_alone(
    clip: FilmedCrossing, hints: dict[str, dict[int, FrameHints]], alone: ClipSegmentation
) -> None:
    part = ClipSegmentation(alone.names, alone.shares[:, :3], alone.confidence[:, :3])
    apart = TrackingSegmenter().separate(clip.frames[:3], clip.flow, hints, part, ())
    assert (apart.shares == part.shares).all()


def test_a_second_hinted_frame_wins_around_itself(clip: FilmedCrossing) -> None:
    half = clip.disc[10].copy()
    half[:52] = False  # the user wants only the lower half there
    found = TrackingSegmenter().segment(clip.frames, clip.flow, {"disc": {0: _hint(clip.disc[0]), 10: _hint(half)}})
    masks = found.shares[0] >= 128
    assert np.array_equal(masks[10], half) and np.array_equal(masks[0], clip.disc[0])
    assert _iou(masks[1], clip.disc[1]) > 0.9


class FixedTracker(ObjectTracker):
    """Gives the same odds and trust for every frame, those of its direction."""

    def __init__(self, forward: tuple[np.ndarray, np.ndarray], backward: tuple[np.ndarray, np.ndarray]) -> None:
        self.frames = np.zeros((3, *forward[0].shape, 3), np.uint8)
        self._results = {1: forward, -1: backward}

    def begin(self, number: int, mask: np.ndarray, is_enclosed: bool = False) -> ObjectCourse:
        registration = HintRegistration(self.frames[0], mask.astype(np.float32))
        return ObjectCourse(number, mask, mask.astype(np.float32), registration, np.eye(3), [], [], is_enclosed)

    def weigh(self, course: ObjectCourse, direction: int, *_: Any) -> ObjectOdds:
        odds, trust = (values.astype(np.float32) for values in self._results[direction])
        window = (slice(0, odds.shape[0]), slice(0, odds.shape[1]))
        course.number += direction
        return ObjectOdds(course.number, odds, window, odds, trust, np.zeros((*odds.shape, 1), np.float32))

    def settle(self, course: ObjectCourse, weighed: ObjectOdds, *_: Any) -> FollowedFrame:
        share = np.rint(255 / (1 + np.exp(-weighed.odds))).astype(np.uint8)
        odds, trust = weighed.odds.astype(np.float16), weighed.hint_trust.astype(np.float16)
        return FollowedFrame(weighed.odds > 0, share, 0.8, odds, trust)


@pytest.mark.parametrize(
    ("odds", "trust", "expected"),
    [((6, -2), (0, 0), True), ((2, -6), (0, 0), False), ((6, -2), (0, 1), False), ((2, -6), (1, 0), True)],
)
def test_where_directions_disagree_the_surer_one_wins_and_rather_the_one_whose_hinted_mask_is_trusted(
    odds: tuple[float, float], trust: tuple[float, float], expected: bool
) -> None:
    shape = (12, 16)
    forward, backward = ((np.full(shape, o, np.float32), np.full(shape, t)) for o, t in zip(odds, trust, strict=True))
    known = {0: np.ones(shape, bool), 2: np.zeros(shape, bool)}
    (followed,) = follow_both_ways([FixedTracker(forward, backward)], [known])
    assert (followed[1].mask == expected).all()


@pytest.mark.parametrize(("hinted", "largest", "step"), [((0,), 5000, 2), ((0, 10), 5000, 1), ((0, 10), 100, 2)])
def test_every_pixel_of_a_small_object_that_is_hinted_in_several_frames_has_features(
    clip: FilmedCrossing, monkeypatch: pytest.MonkeyPatch, hinted: tuple[int, ...], largest: int, step: int
) -> None:
    steps = []

    def follow(trackers: list[ObjectTracker], *_: object) -> list[dict[int, FollowedFrame]]:
        steps.append(trackers[0].settings.features.stride_px)
        return [{t: FollowedFrame(clip.disc[t], np.uint8(255) * clip.disc[t], 1.0) for t in range(FRAMES)}]

    monkeypatch.setattr("neural_fields.data.segmentation.track_objects.follow_both_ways", follow)
    segmenter = TrackingSegmenter(TrackObjectsSettings(max_fine_object_px=largest))
    segmenter.segment(clip.frames, clip.flow, {"disc": {t: _hint(clip.disc[t]) for t in hinted}})
    assert steps == [step]


def test_what_a_box_holds_beside_the_mask_found_in_it_is_not_learned_as_background(
    clip: FilmedCrossing, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {}

    class Watched(ObjectTracker):
        def __init__(self, frames: np.ndarray, flow: FlowField, given: dict[int, np.ndarray], *rest: Any) -> None:
            labels.update(given)
            super().__init__(frames, flow, given, *rest)

    monkeypatch.setattr("neural_fields.data.segmentation.track_objects.ObjectTracker", Watched)
    rows, columns = np.flatnonzero(clip.disc[0].any(1)), np.flatnonzero(clip.disc[0].any(0))
    box = (int(columns[0]) - 4, int(rows[0]) - 4, int(columns[-1]) + 5, int(rows[-1]) + 5)
    marked = np.zeros((HEIGHT, WIDTH), np.int8)
    marked[box[1], box[0] + 20 : box[0] + 30] = -1
    TrackingSegmenter().segment(clip.frames, clip.flow, {"disc": {0: FrameHints(marked, box)}})
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert (labels[0][~inside] == -1).all() and (labels[0][marked < 0] == -1).all()
    near = cv2.dilate((labels[0] > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (labels[0][near & inside & (marked == 0)] >= 0).all()
    TrackingSegmenter().segment(clip.frames, clip.flow, {"disc": {0: _hint(clip.disc[0])}})
    assert np.array_equal(labels[0] > 0, clip.disc[0]) and (labels[0] != 0).all(), "a given mask is certain"


def test_marks_in_another_frame_correct_the_mask_there(clip: FilmedCrossing) -> None:
    wrong = clip.disc[6] | clip.square[6]  # they touch there
    part = slice(4, 8)
    flow = FlowField(*(getattr(clip.flow, name)[4:7] for name in ("forward", "backward", "forward_ok", "backward_ok")))
    without = TrackingSegmenter().segment(clip.frames[part], flow, {"disc": {2: _hint(wrong)}})
    assert (without.shares[0, 1] >= 128)[clip.square[5]].mean() > 0.5
    marked = {(105 - 5 * 5 + 16, 46): -1, (35 + 6 * 5, 52): 1}
    found = TrackingSegmenter().segment(clip.frames[part], flow, {"disc": {2: _hint(wrong), 1: _hint(marks=marked)}})
    mask = found.shares[0, 1] >= 128
    assert mask[52, 65] and not mask[46, 96]
    assert mask[clip.square[5]].mean() < 0.2 and mask[clip.disc[5]].mean() > 0.8


def test_an_object_that_was_hidden_is_found_again(clip: FilmedCrossing) -> None:
    frames = np.array(clip.frames)
    empty = np.roll(clip.frames[0], 0, 0)
    for t in (5, 6, 7):  # a cut to something else, and back
        frames[t] = cv2.GaussianBlur(empty, (0, 0), 9)
    flow = FlowField(
        np.zeros_like(clip.flow.forward), np.zeros_like(clip.flow.backward), clip.flow.forward_ok, clip.flow.backward_ok
    )
    tracker = ObjectTracker(frames, flow, {0: np.where(clip.disc[0], 1, -1).astype(np.int8)})
    nowhere = np.zeros((HEIGHT, WIDTH), bool)  # as in the frame before
    ((number, found),) = tracker.follow(8, nowhere, 10)
    assert number == 9 and _iou(found.mask, clip.disc[9]) > 0.85 and found.confidence > 0.2
    ((number, found),) = tracker.follow(5, nowhere, 7)
    assert number == 6 and not found.mask.any() and found.confidence == 0


def test_a_mark_turns_what_is_near_it_and_not_what_looks_the_same_far_away(clip: FilmedCrossing) -> None:
    bar = np.zeros((HEIGHT, WIDTH), bool)
    bar[38:58, 20:140] = True
    frame = clip.frames[0].copy()
    frame[bar] = (220, 40, 40)
    frames, none, sure = np.stack(2 * [frame]), np.zeros((1, HEIGHT, WIDTH, 2)), np.ones((1, HEIGHT, WIDTH), bool)
    hints = {"bar": {0: _hint(bar), 1: _hint(marks={(25, 48): -1})}}
    found = TrackingSegmenter().segment(frames, FlowField(none, none, sure, sure), hints).shares[0, 1] >= 128
    assert not found[48, 25] and found[40:56, 110:138].all()


def test_only_pixels_that_are_not_the_object_are_not_enough(clip: FilmedCrossing) -> None:
    with pytest.raises(UserError, match="nothing says where the object is") as caught:
        TrackingSegmenter().segment(clip.frames, clip.flow, {"disc": {3: _hint(marks={(10, 10): -1})}})
    assert "--frame 3 --box" in caught.value.fix


def test_a_box_in_which_nothing_differs_is_named_with_its_object_and_frame(clip: FilmedCrossing) -> None:
    flat = np.full((4, HEIGHT, WIDTH, 3), 90, np.uint8)
    names = ("forward", "backward", "forward_ok", "backward_ok")
    flow = FlowField(*(np.zeros_like(getattr(clip.flow, name)[:3]) for name in names))
    box = FrameHints(np.zeros((HEIGHT, WIDTH), np.int8), (20, 20, 60, 60))
    with pytest.raises(UnusableHintsError, match="nothing in the box") as caught:
        TrackingSegmenter().segment(flat, flow, {"disc": {2: box}})
    assert (caught.value.name, caught.value.frame) == ("disc", 2)


def test_the_same_hints_give_the_same_masks(clip: FilmedCrossing, tmp_path: Path) -> None:
    hints = {"disc": {0: _hint(clip.disc[0])}}
    first, second = (TrackingSegmenter().segment(clip.frames[:4], clip.flow, hints) for _ in range(2))
    assert np.array_equal(first.shares, second.shares)

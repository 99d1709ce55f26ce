"""Masks of one frame from a box, points and strokes."""

from __future__ import annotations

import numpy as np
import pytest

from neural_fields.core.errors import UserError
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.segmentation.hinted_mask import find_hinted_mask
from neural_fields.data.segmentation.segmenter import FrameHints
from neural_fields.data.synthetic.planar_clips import make_demo_clip

SIZE = (60, 90)
TOP, LEFT, SIDE, STEP = 20, 30, 22, 2
BOX = (LEFT + STEP - 3, TOP - 3, LEFT + STEP + SIDE + 3, TOP + SIDE + 3)


@pytest.fixture(scope="module")
def clip() -> tuple[np.ndarray, FlowField, np.ndarray]:
    """Three frames of a red square that moves over green noise, their flow, and the square in the middle one."""
    draw = np.random.default_rng(0)
    frames = np.repeat(draw.integers(60, 100, (1, *SIZE, 3), np.uint8) + np.array([0, 70, 0], np.uint8), 3, 0)
    masks = np.zeros((3, *SIZE), bool)
    for number, mask in enumerate(masks):
        mask[TOP : TOP + SIDE, LEFT + number * STEP : LEFT + number * STEP + SIDE] = True
        frames[number][mask] = draw.integers(150, 190, (SIDE * SIDE, 3), np.uint8) - np.array([0, 110, 110], np.uint8)
    forward, backward = np.zeros((2, 2, *SIZE, 2), np.float16)
    forward[masks[:-1], 0], backward[masks[1:], 0] = STEP, -STEP
    sure = np.ones((2, *SIZE), bool)
    return frames, FlowField(forward, backward, sure, sure), masks[1]


def mark(*, on: tuple[int, int] | None = None, off: tuple[int, int] | None = None) -> np.ndarray:
    """Marks 3 x 3 pixels around (x, y) as the object, or as not the object."""
    labels = np.zeros(SIZE, np.int8)
    for point, sign in ((on, 1), (off, -1)):
        if point is not None:
            labels[point[1] - 1 : point[1] + 2, point[0] - 1 : point[0] + 2] = sign
    return labels


def measure_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_box_finds_the_object_in_it(clip):
    frames, flow, true = clip
    assert measure_iou(find_hinted_mask(frames, flow, 1, FrameHints(mark(), BOX)).mask, true) > 0.9


def test_a_click_grows_to_the_object(clip):
    frames, flow, true = clip
    assert measure_iou(find_hinted_mask(frames, flow, 1, FrameHints(mark(on=(45, 30)))).mask, true) > 0.9


def test_an_object_of_a_still_picture_is_found(clip):
    frames, flow, true = clip
    still = FlowField(*(array[:0] for array in (flow.forward, flow.backward, flow.forward_ok, flow.backward_ok)))
    assert measure_iou(find_hinted_mask(frames[1:2], still, 0, FrameHints(mark(), BOX)).mask, true) > 0.9


def test_marks_are_kept_whatever_the_picture_says(clip):
    frames, flow, _ = clip
    labels = mark(on=(30, 19), off=(45, 30))
    mask = find_hinted_mask(frames, flow, 1, FrameHints(labels, BOX)).mask
    assert mask[labels > 0].all()
    assert not mask[labels < 0].any()


def test_the_object_stays_in_its_box(clip):
    frames, flow, _ = clip
    left, top, right, bottom = BOX
    mask = find_hinted_mask(frames, flow, 1, FrameHints(mark(), (left, top, right - 10, bottom))).mask
    inside = np.zeros(SIZE, bool)
    inside[top:bottom, left : right - 10] = True
    assert mask.any()
    assert not (mask & ~inside).any()


def test_a_box_with_nothing_in_it_is_refused(clip):
    _, flow, _ = clip
    still = FlowField(np.zeros_like(flow.forward), np.zeros_like(flow.backward), flow.forward_ok, flow.backward_ok)
    with pytest.raises(UserError, match="nothing in the box") as caught:
        find_hinted_mask(np.full((3, *SIZE, 3), 90, np.uint8), still, 1, FrameHints(mark(), BOX))
    assert "frame 1" in caught.value.where


def test_a_given_mask_is_returned_with_the_marks(clip):
    frames, flow, true = clip
    mask = find_hinted_mask(frames, flow, 1, FrameHints(mark(on=(10, 10), off=(45, 30)), mask=true)).mask
    expected = true.copy()
    expected[9:12, 9:12], expected[29:32, 44:47] = True, False
    np.testing.assert_array_equal(mask, expected)


def test_a_box_as_large_as_the_frame_does_not_fail(clip):
    frames, flow, true = clip
    mask = find_hinted_mask(frames, flow, 1, FrameHints(mark(on=(45, 30)), (0, 0, SIZE[1], SIZE[0]))).mask
    assert mask[true].mean() > 0.9


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        (FrameHints(mark(on=(5, 5)), BOX), "outside its box"),
        (FrameHints(mark(), (200, 5, 220, 25)), "outside the frame"),
        (FrameHints(-np.ones(SIZE, np.int8), BOX), "marked as not the object"),
        (FrameHints(mark(off=(5, 5))), "do not say where"),
        (FrameHints(mark(), mask=np.zeros(SIZE, bool)), "mask is empty"),
    ],
)
def test_hints_that_contradict_each_other_are_refused_with_their_frame(clip, hints, words):
    frames, flow, _ = clip
    with pytest.raises(UserError, match=words) as caught:
        find_hinted_mask(frames, flow, 1, hints)
    assert "frame 1" in caught.value.where


def test_a_box_that_is_not_full_from_side_to_side_gets_the_head_and_the_legs_too():
    turtle = make_demo_clip(3, 213, 120)
    flow = FlowField(
        turtle.forward_flow.astype(np.float16),
        turtle.backward_flow.astype(np.float16),
        turtle.forward_visible,
        turtle.backward_visible,
    )
    true = turtle.masks[0, 0]
    y, x = np.nonzero(true)
    box = int(x.min()) - 3, int(y.min()) - 3, int(x.max()) + 4, int(y.max()) + 4
    mask = find_hinted_mask(turtle.frames, flow, 0, FrameHints(np.zeros(true.shape, np.int8), box)).mask
    assert measure_iou(mask, true) > 0.9, "the shell alone has 0.68"

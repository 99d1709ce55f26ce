"""Placement by long-range flow: exact motions are recovered, errors do not add up, other layers do not bleed in."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_fields.core import array_coords
from neural_fields.imaging.push_pull import pull_push
from neural_fields.imaging.ransac import find_transform_or_identity
from neural_fields.planar.init.frame_registration import (
    FrameView,
    apply_transform,
    correlate_detail,
    extrapolate_shifts,
    make_frame_view,
    place_frames,
    place_frames_in_turns,
)
from tests.support.shadow_clip import draw_shadow_clip

SIZES = [(160, 90), (120, 120), (90, 160)]


def texture(side: int = 400) -> np.ndarray:
    """A picture that flow can hold on to."""
    rng = np.random.default_rng(3)
    noise = rng.random((side, side)).astype(np.float32)
    levels = [cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 3, 7)]
    total = sum(levels)
    return (255 * (total - total.min()) / (total.max() - total.min())).astype(np.uint8)


def moved(picture: np.ndarray, size: tuple[int, int], shift: tuple[float, float]) -> np.ndarray:
    """A window of `size` onto a picture, as an RGB frame."""
    matrix = np.array([[1, 0, -100 + shift[0]], [0, 1, -100 + shift[1]]], np.float32)
    return np.repeat(cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_CUBIC)[..., None], 3, axis=2)


def affine_fit(xy: np.ndarray, uv: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Least squares; the prediction without enough points."""
    if len(xy) < 10:
        return predicted
    found, *_ = np.linalg.lstsq(np.c_[xy, np.ones(len(xy))], uv, rcond=None)
    return np.vstack([found.T, [0, 0, 1]])


@pytest.mark.parametrize("size", SIZES)
def test_a_translation_is_recovered_at_every_format_though_the_prediction_drifts(size: tuple[int, int]) -> None:
    picture, count, step = texture(), 9, (3.0, -1.5)
    frames = [moved(picture, size, (-step[0] * t, -step[1] * t)) for t in range(count)]
    visible = np.ones((size[1], size[0]), np.float32)
    long = max(size)
    # The prediction is wrong by half a pixel at every step: chained, that would be two pixels at the ends.
    wrong = np.eye(3)
    wrong[:2, 2] = [2 * (-step[0] + 0.5) / long, 2 * -step[1] / long]
    placed = place_frames(lambda t: make_frame_view(frames[t], visible), [wrong] * (count - 1), count // 2, affine_fit)
    for t, frame in enumerate(placed):
        points = np.array([[-0.3, -0.2], [0.0, 0.1], [0.2, 0.25]]) * np.array(size) / long
        uv = apply_transform(frame.transform, points)
        true = points + 2 * np.array(step) * (t - count // 2) / long
        assert np.abs(uv - true).max() * long / 2 < 0.1, f"frame {t}"


def test_frames_that_come_in_turns_lie_where_they_lie_in_one() -> None:
    size, count, step = (160, 90), 12, (3.0, -1.5)
    frames = [moved(texture(), size, (-step[0] * t, -step[1] * t)) for t in range(count)]
    visible, long = np.ones((size[1], size[0]), np.float32), max(size)
    pair = np.eye(3)
    pair[:2, 2] = [2 * (-step[0] + 0.5) / long, 2 * -step[1] / long]
    views = lambda t: make_frame_view(frames[t], visible)  # noqa: E731
    turns = [[4, 5, 6, 7], [0, 1, 2, 3, 8, 9, 10, 11]]
    first, second = place_frames_in_turns(views, [pair] * (count - 1), 6, affine_fit, turns)
    assert sorted(first) == turns[0] and sorted(second) == turns[1]
    for t, frame in enumerate(place_frames(views, [pair] * (count - 1), 6, affine_fit)):
        placed = (first | second)[t]
        assert np.array_equal(frame.transform, placed.transform) and np.array_equal(frame.shift, placed.shift)


def test_the_motion_of_another_layer_does_not_bleed_into_a_still_one() -> None:
    size, count = (160, 90), 7
    ground, disc = texture(), texture()[::-1].copy()
    visible, frames = [], []
    for t in range(count):
        cover = cv2.circle(np.zeros((90, 160), np.uint8), (40 + 8 * t, 45), 18, 255, -1) > 0
        frame = moved(ground, size, (0, 0))
        frame[cover] = moved(disc, size, (8 * t, 0))[cover]
        frames.append(frame)
        visible.append((~cover).astype(np.float32))
    placed = place_frames(lambda t: make_frame_view(frames[t], visible[t]), [np.eye(3)] * (count - 1), 3, affine_fit)
    for t, placement in enumerate(placed):
        seen = visible[t] > 0.5
        shift = np.linalg.norm(placement.shift, axis=-1) * 80
        assert np.percentile(shift[seen], 99) < 0.5, f"frame {t}"
        assert np.abs(placement.transform - np.eye(3)).max() < 0.01


def test_a_shadow_that_moves_over_plain_ground_does_not_take_the_ground_along() -> None:
    clip = draw_shadow_clip()
    count, height, width = clip.masks.shape
    visible = (~clip.masks).astype(np.float32)
    pair = np.eye(3)
    pair[0, 2] = -2 * clip.step_px / width
    views = [make_frame_view(frame, seen) for frame, seen in zip(clip.frames, visible, strict=True)]

    def fit(xy: np.ndarray, uv: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        start, end = (np.ascontiguousarray(points[::7, None], np.float64) for points in (xy, uv))
        return find_transform_or_identity(start, end, "similarity", 2 / width)

    placed = place_frames(views.__getitem__, [pair] * (count - 1), count // 2, fit)
    xy, errors = array_coords.frame_xy(width, height), []
    for t, (placement, shadow) in enumerate(zip(placed, clip.shadows, strict=True)):
        off = (apply_transform(placement.transform, xy) + placement.shift - xy) * width / 2
        off[..., 0] -= clip.step_px * (t - count // 2)
        errors.append(np.linalg.norm(off[shadow], axis=-1))
    assert np.median(np.concatenate(errors)) < 0.2


def test_detail_is_that_of_the_texture_and_not_of_the_light() -> None:
    plain = texture()[:96, :160]
    y, x = np.mgrid[:96, :160] / 160
    lit = (plain * (0.4 + 0.4 * x + 0.2 * y**2)).astype(np.uint8)
    whole = np.ones(plain.shape, np.float32)
    first, second = (FrameView(gray, whole).compute_detail(1.5) for gray in (plain, lit))
    assert np.percentile(correlate_detail(first, second, 13), 5) > 0.9
    other = FrameView(np.roll(plain, 9, axis=1), whole).compute_detail(1.5)
    assert np.median(correlate_detail(first, other, 13)) < 0.3
    blank = FrameView((128 + 40 * x).astype(np.uint8), whole).compute_detail(1.5)
    assert np.abs(correlate_detail(first, blank, 13)).max() < 0.3


def test_a_bend_is_followed_over_many_frames() -> None:
    size, count = (160, 90), 13
    picture, rows = texture(), np.arange(90)[:, None]
    frames, bends = [], []
    for t in range(count):
        bend = 0.75 * t * np.sin(rows / 18) * np.ones((1, 160))  # px
        y, x = np.mgrid[:90, :160] + 100.0
        frame = cv2.remap(picture, (x + bend).astype(np.float32), y.astype(np.float32), cv2.INTER_CUBIC)
        frames.append(np.repeat(frame[..., None], 3, axis=2))
        bends.append(bend)
    visible = np.ones((90, 160), np.float32)
    placed = place_frames(lambda t: make_frame_view(frames[t], visible), [np.eye(3)] * (count - 1), 0, affine_fit)
    xy = array_coords.frame_xy(*size)
    off = (apply_transform(placed[-1].transform, xy) + placed[-1].shift - xy)[..., 0] * 80 - bends[-1]
    assert np.percentile(np.abs(off[:, 25:-25]), 75) < 0.25


def test_a_frame_in_which_nothing_can_be_matched_lies_where_it_was_predicted() -> None:
    blank = np.full((64, 96, 3), 128, np.uint8)
    visible = np.zeros((64, 96), np.float32)
    step = np.eye(3)
    step[0, 2] = 0.1
    placed = place_frames(lambda t: make_frame_view(blank, visible), [step] * 2, 0, affine_fit)
    assert placed[2].transform == pytest.approx(np.linalg.inv(step @ step))
    assert not placed[2].shift.any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_filling_keeps_what_is_known_and_stays_within_its_range(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((rows, columns, 2)).astype(np.float32)
    known = rng.random((rows, columns)) < 0.3
    known[rng.integers(rows), rng.integers(columns)] = True
    filled = pull_push(values, known)
    assert np.array_equal(filled[known], values[known])
    assert filled.min() >= values[known].min() - 1e-5
    assert filled.max() <= values[known].max() + 1e-5


def test_shifts_are_carried_into_places_without_a_match() -> None:
    shift = np.full((40, 60, 2), 0.25, np.float32)
    trusted = np.zeros((40, 60), bool)
    trusted[10:20, 10:30] = True
    shift[~trusted] = 9.0  # must not count
    assert np.abs(extrapolate_shifts(shift, trusted) - 0.25).max() < 1e-4

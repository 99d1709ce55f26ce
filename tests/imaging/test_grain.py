"""Grain: what is measured in a frame, and what is put on made pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from neural_fields.imaging.grain import find_plain_blocks, match_grain


def make_frame(levels: float, blur: float = 0.0, seed: int = 0) -> np.ndarray:
    """Makes a frame of smooth colors with noise of a standard deviation, white or blurred."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, 320), np.linspace(0, 1, 240))
    smooth = np.stack([90 + 60 * x, 110 + 40 * y, 120 + 30 * x * y], axis=-1)
    noise = np.asarray(random.normal(0, 1, smooth.shape))
    if blur:
        noise = cv2.GaussianBlur(noise, (0, 0), blur)
    return (smooth + levels * noise / noise.std()).astype(np.float32)


def cut_hole(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes the middle of a frame smooth, as a filled hole is; returns it and how much of each pixel was made."""
    made = np.zeros((*frame.shape[:2], 1), np.float32)
    made[60:180, 80:240] = 1
    smooth = cv2.GaussianBlur(frame, (0, 0), 8)
    return frame * (1 - made) + smooth * made, made


def measure_detail(frame: np.ndarray, part: tuple[slice, slice]) -> float:
    return float((frame - cv2.GaussianBlur(frame, (0, 0), 2.0))[part].std())


HOLE, BESIDE = (slice(70, 170), slice(90, 230)), (slice(5, 55), slice(10, 310))


@pytest.mark.parametrize("levels", [2.0, 6.0])
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_made_pixels_get_the_grain_of_the_others(levels: float, blur: float) -> None:
    frame, made = cut_hole(make_frame(levels, blur))
    assert measure_detail(frame, HOLE) < 0.3 * measure_detail(frame, BESIDE)
    result = match_grain(frame, made, np.random.default_rng(1))
    assert measure_detail(result, HOLE) == pytest.approx(measure_detail(frame, BESIDE), rel=0.15)
    assert (result[made[..., 0] == 0] == frame[made[..., 0] == 0]).all()
    assert abs(float((result - frame)[HOLE].mean())) < 0.1


def test_spectrum_is_that_of_the_frame() -> None:
    frame, made = cut_hole(make_frame(5.0, 1.2))
    result = match_grain(frame, made, np.random.default_rng(1)) - frame

    def measure_neighbors(noise: Any) -> float:
        """Measures the correlation of neighboring pixels."""
        return float(np.mean(noise[:, 1:] * noise[:, :-1]) / np.mean(noise**2))

    noise = make_frame(5.0, 1.2) - cv2.GaussianBlur(make_frame(5.0, 1.2), (0, 0), 2.0)
    assert measure_neighbors(result[HOLE]) == pytest.approx(measure_neighbors(noise[BESIDE]), abs=0.1)


def test_a_clean_frame_stays_as_it_is() -> None:
    frame, made = cut_hole(make_frame(0.1))
    assert (match_grain(frame, made, np.random.default_rng(1)) == frame).all()


def test_grain_that_is_there_is_not_doubled() -> None:
    frame = make_frame(4.0)
    _, made = cut_hole(frame)
    result = match_grain(frame, made, np.random.default_rng(1))
    assert measure_detail(result, HOLE) == pytest.approx(measure_detail(frame, HOLE), rel=0.06)


def test_texture_is_not_taken_for_grain() -> None:
    frame = make_frame(0.1)
    rows, columns = np.indices(frame.shape[:2]) // 20
    frame[:, :200] += 40 * np.asarray((rows + columns) % 2, np.float32)[:, :200, None]
    frame, made = cut_hole(frame)
    assert np.abs(match_grain(frame, made, np.random.default_rng(1)) - frame).max() < 3


def test_few_or_clipped_pixels_say_nothing() -> None:
    frame, made = cut_hole(make_frame(5.0))
    made[:] = 1
    assert (match_grain(frame, made, np.random.default_rng(1)) == frame).all()
    assert not len(find_plain_blocks(np.full_like(frame, 255), np.ones(frame.shape[:2], bool)))

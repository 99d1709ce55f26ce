"""Grades in closed form: what exposure, curves, hue, saturation, blur and sharpening do to colors."""

from __future__ import annotations

import colorsys
import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest

from neural_fields.config.loader import from_mapping, to_mapping
from neural_fields.core.errors import UserError
from neural_fields.imaging.color_grading import apply_grade, apply_grade_to_bytes, smooth_colors
from neural_fields.imaging.grade import Grade

RGB = np.random.default_rng(0).random((6, 7, 3)).astype(np.float32)


def linear(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def test_a_grade_without_settings_does_nothing() -> None:
    assert Grade().does_nothing and Grade(radius=0.01).does_nothing
    np.testing.assert_array_equal(apply_grade(Grade(), RGB), RGB)


@pytest.mark.parametrize("stops", [-2.0, -0.5, 0.7])
def test_exposure_multiplies_light(stops: float) -> None:
    graded = apply_grade(Grade(exposure=stops), RGB)
    wanted = np.minimum(linear(RGB) * 2**stops, 1)
    np.testing.assert_allclose(linear(graded), wanted, atol=1e-3)


def test_a_curve_goes_through_its_points_and_stays_level_beyond() -> None:
    points = ((0.2, 0.1), (0.5, 0.7), (0.8, 0.9))
    gray = np.array([[0.0] * 3, [0.2] * 3, [0.5] * 3, [0.8] * 3, [1.0] * 3], np.float32)
    np.testing.assert_allclose(apply_grade(Grade(curve=points), gray)[:, 0], [0.1, 0.1, 0.7, 0.9, 0.9], atol=1e-3)
    red = apply_grade(Grade(curve_red=((0.0, 1.0), (1.0, 0.0))), RGB)
    np.testing.assert_allclose(red[..., 0], 1 - RGB[..., 0], atol=1e-3)
    np.testing.assert_allclose(red[..., 1:], RGB[..., 1:], atol=1e-6)


def test_no_saturation_is_gray_of_the_same_luma_and_gray_has_no_hue() -> None:
    gray = apply_grade(Grade(saturation=0.0), RGB)
    np.testing.assert_allclose(gray, (RGB @ [0.2126, 0.7152, 0.0722])[..., None].repeat(3, -1), atol=1e-5)
    flat = np.full((3, 3), 0.37, np.float32)
    np.testing.assert_allclose(apply_grade(Grade(hue=77.0), flat), flat, atol=1e-4)


def test_a_third_of_a_turn_makes_red_green_and_green_blue() -> None:
    muted = np.array([[0.6, 0.4, 0.4], [0.4, 0.6, 0.4], [0.4, 0.4, 0.6]], np.float32)
    for turns, wanted in ((120.0, 1 / 3), (-120.0, 2 / 3), (360.0, 0.0)):
        hues = [colorsys.rgb_to_hsv(*row)[0] for row in apply_grade(Grade(hue=turns), muted).tolist()]
        before = [colorsys.rgb_to_hsv(*row)[0] for row in muted.tolist()]
        moved = [(after - start - wanted + 0.5) % 1 - 0.5 for after, start in zip(hues, before, strict=True)]
        assert np.abs(moved).max() < 1e-3


def test_blur_does_not_mix_in_what_is_beside_the_layer() -> None:
    picture = np.zeros((40, 60, 3), np.float32)
    picture[:, 30:] = 1
    weight = np.zeros((40, 60), np.float32)
    weight[:, 30:] = 1
    np.testing.assert_allclose(smooth_colors(picture, weight, 4.0)[:, 30:], 1, atol=1e-5)
    everywhere = smooth_colors(picture, np.ones_like(weight), 4.0)
    np.testing.assert_allclose(everywhere, cv2.GaussianBlur(picture, (0, 0), 4.0), atol=1e-5)


def test_a_grade_comes_back_from_its_json() -> None:
    grade = Grade(0.3, ((0.0, 0.1), (1.0, 0.9)), hue=20.0, saturation=1.4, blur=0.004, sharpen=0.5, radius=0.003)
    written = to_mapping(grade, without_defaults=True)
    assert from_mapping(Grade, written) == grade
    assert set(written) == {"exposure", "curve", "hue", "saturation", "blur", "sharpen", "radius"}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"gamma": 2},
        {"exposure": "1"},
        {"exposure": 99},
        {"exposure": float("nan")},
        {"hue": True},
        {"curve": [[0, 0]]},
        {"curve": [[0.5, 0.5], [0.2, 0.9]]},
        {"curve": [[0, 0], [1, 2]]},
        {"curve": 5},
        {"blur": 5},
    ],
)
def test_what_is_no_grade_is_refused(value: Any) -> None:
    with pytest.raises(UserError):
        from_mapping(Grade, value)


def test_all_settings_of_a_grade_are_settings_of_the_editor() -> None:
    from editors.effects.adjust import Adjust

    assert {entry.name for entry in dataclasses.fields(Adjust)} == {entry.name for entry in dataclasses.fields(Grade)}


@pytest.mark.parametrize(
    "grade",
    [
        Grade(exposure=0.7),
        Grade(hue=35.0, saturation=1.4),
        Grade(
            exposure=-0.4,
            saturation=0.3,
            curve=((0.0, 0.1), (0.5, 0.7), (1.0, 0.9)),
            curve_red=((0.0, 0.2), (1.0, 1.0)),
        ),
    ],
)
def test_bytes_are_graded_as_their_colors_are(grade: Grade) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    wanted = 255 * apply_grade(grade, colors.astype(np.float32) / 255)
    np.testing.assert_allclose(apply_grade_to_bytes(grade, colors), wanted, atol=2e-3)

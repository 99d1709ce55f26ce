"""Blend modes by their formulas, and their limits: white, black, gray and the paint itself."""

from __future__ import annotations

import numpy as np
import pytest

from neural_fields.imaging.blend_modes import blend_function
from neural_fields.imaging.blend_names import BLEND_MODES

UNDER = np.random.default_rng(0).random((200, 3)).astype(np.float32)
TOP = np.random.default_rng(1).random((200, 3)).astype(np.float32)
LUMA = np.array([0.3, 0.59, 0.11])


def blended(name: str, top: np.ndarray, under: np.ndarray) -> np.ndarray:
    blend = blend_function(name)
    assert blend is not None
    return blend(np.broadcast_to(top, under.shape).astype(np.float32), under)


@pytest.mark.parametrize("name", [name for name in BLEND_MODES if name != "normal"])
def test_every_mode_stays_within_black_and_white(name: str) -> None:
    result = blended(name, TOP, UNDER)
    assert result.min() >= -1e-6 and result.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("name", "neutral"),
    [("multiply", 1.0), ("screen", 0.0), ("add", 0.0), ("darken", 1.0), ("lighten", 0.0), ("soft_light", 0.5)],
)
def test_each_mode_has_a_paint_that_changes_nothing(name: str, neutral: float) -> None:
    np.testing.assert_allclose(blended(name, np.full(3, neutral), UNDER), UNDER, atol=1e-6)


def test_modes_equal_their_formulas_pixel_by_pixel() -> None:
    for top, under in zip(TOP[:20], UNDER[:20], strict=True):
        for b, c in zip(top, under, strict=True):
            one = lambda name, b=b, c=c: blended(name, np.full(3, b), np.full((1, 3), c, np.float32))[0, 0]  # noqa: E731
            assert one("multiply") == pytest.approx(b * c, abs=1e-6)
            assert one("screen") == pytest.approx(1 - (1 - b) * (1 - c), abs=1e-6)
            hard = 2 * b * c if c <= 0.5 else 1 - 2 * (1 - b) * (1 - c)
            assert one("overlay") == pytest.approx(hard, abs=1e-6)


def test_color_keeps_the_lightness_below_and_luminosity_that_of_the_paint() -> None:
    np.testing.assert_allclose(blended("color", TOP, UNDER) @ LUMA, UNDER @ LUMA, atol=1e-5)
    np.testing.assert_allclose(blended("luminosity", TOP, UNDER) @ LUMA, TOP @ LUMA, atol=1e-5)
    gray = np.full((5, 3), 0.4, np.float32)
    np.testing.assert_allclose(blended("color", np.full(3, 0.9), gray), gray, atol=1e-6)


def test_normal_takes_the_paint_and_an_unknown_mode_is_a_mistake() -> None:
    assert blend_function("normal") is None
    with pytest.raises(ValueError, match="dissolve"):
        blend_function("dissolve")

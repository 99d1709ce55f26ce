"""The confidence of a mask says whether it is wrong."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from neural_fields.data.segmentation.mask_confidence import measure_confidence
from neural_fields.masking.doubts import find_doubts

HEIGHT, WIDTH = 80, 120
Y, X = np.mgrid[:HEIGHT, :WIDTH]
DISC = (X - 70) ** 2 + (Y - 45) ** 2 < 20**2
SLAB = DISC | ((X > 15) & (X < 70) & (Y > 15) & (Y < 45))  # with a piece of the background
STILL = np.zeros((HEIGHT, WIDTH, 2), np.float32)


def paint_disc(texture_levels: float) -> np.ndarray:
    """A dark disc on a background of one color, with texture that is as strong as given."""
    noise = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    frame = np.where(DISC[..., None], (60, 60, 90), (110, 140, 190)) + texture_levels * noise / noise.std()
    return frame.clip(0, 255).astype(np.uint8)


def spread_odds(mask: np.ndarray, sure: float = 8.0) -> np.ndarray:
    return np.where(mask, sure, -sure).astype(np.float32)


@pytest.mark.parametrize("texture_levels", [0.0, 7.0])
def test_a_mask_whose_outline_lies_on_nothing_is_doubted(texture_levels):
    frame = paint_disc(texture_levels)
    good, wrong = (measure_confidence(mask, spread_odds(mask), frame, STILL) for mask in (DISC, SLAB))
    assert good > 0.85
    doubts = find_doubts([good, good, wrong, wrong, good], first=10)
    assert (doubts.check, doubts.lost) == ((range(12, 14),), ())


def test_an_outline_between_motions_is_not_doubted_where_colors_are_equal():
    frame = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    moving = STILL + 3 * DISC[..., None].astype(np.float32)
    assert measure_confidence(DISC, spread_odds(DISC), frame, STILL) < 0.1
    assert measure_confidence(DISC, spread_odds(DISC), frame, moving) > 0.85


def test_a_mask_is_the_surer_the_more_speaks_for_it():
    frame = paint_disc(0.0)
    sure, unsure = (measure_confidence(DISC, spread_odds(DISC, odds), frame, STILL) for odds in (6.0, 1.0))
    assert sure > unsure + 0.3


def test_an_empty_mask_has_no_confidence_and_one_without_an_outline_has():
    frame = paint_disc(0.0)
    empty, full = np.zeros(DISC.shape, bool), np.ones(DISC.shape, bool)
    assert measure_confidence(empty, spread_odds(empty), frame, STILL) == 0
    assert measure_confidence(full, spread_odds(full), frame, STILL) > 0.9

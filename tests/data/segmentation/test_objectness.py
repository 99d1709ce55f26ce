"""Tests what tells objects from ripples, reflections and strips along the border."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from neural_fields.data.flow.compute import FlowField
from neural_fields.data.segmentation.objectness import has_outline, lasts, measure_outline

HEIGHT, WIDTH, FRAMES = 120, 160, 4
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
BODY = (np.abs(COLUMNS - 80) < 25) & (ROWS > 40)  # cut by the lower border, higher than wide
POOL = (np.abs(COLUMNS - 80) < 60) & (ROWS > 90)  # lies along it
INSIDE = (COLUMNS - 80) ** 2 + (ROWS - 60) ** 2 < 25**2


def film(mask: np.ndarray, color: tuple[int, int, int], speed_px: float) -> tuple[np.ndarray, FlowField]:
    """Films a standing mask of one color over gray noise; its flow is what the background's would not be."""
    frame = np.random.default_rng(0).normal(110, 3, (HEIGHT, WIDTH, 3))
    frame[mask] += np.array(color) - 110
    frames = np.repeat(frame.clip(0, 255).astype(np.uint8)[None], FRAMES, axis=0)
    vectors = np.zeros((FRAMES - 1, HEIGHT, WIDTH, 2), np.float16)
    vectors[:, mask, 0] = speed_px
    known = np.ones(vectors.shape[:3], bool)
    return frames, FlowField(vectors, -vectors, known, known)


@pytest.mark.parametrize(
    ("mask", "color", "speed_px", "first", "later"),
    [
        (INSIDE, (170, 90, 80), 3, True, True),
        (INSIDE, (170, 90, 80), 0.2, True, True),  # slow, but no border cuts it
        (INSIDE, (112, 110, 108), 3, False, False),  # ripples: nothing shows where they end
        (BODY, (170, 90, 80), 3, True, True),  # a person whom the lower border cuts
        (BODY, (170, 90, 80), 0.2, True, False),  # what moves hardly otherwise than what is beside it
        (POOL, (170, 90, 80), 3, True, False),  # wide along the border
        (ROWS > 100, (170, 90, 80), 3, False, False),  # a strip from side to side
    ],
)
def test_what_has_the_outline_of_an_object(
    mask: np.ndarray, color: tuple[int, int, int], speed_px: float, first: bool, later: bool
) -> None:
    frames, flow = film(mask, color, speed_px)
    masks = {0: mask, 2: mask}
    assert has_outline(frames, flow, masks, True) is first
    assert has_outline(frames, flow, masks, False) is later


def test_an_empty_mask_has_no_outline() -> None:
    frames, flow = film(INSIDE, (170, 90, 80), 3)
    assert not has_outline(frames, flow, {0: np.zeros_like(INSIDE)}, True)


def test_an_outline_is_measured_beyond_the_border_of_the_frame() -> None:
    frames, flow = film(BODY, (170, 90, 80), 3)
    line = measure_outline(frames, flow, FRAMES - 1, BODY)
    area, contact = BODY.sum(), BODY[-1].sum()
    around = 2 * (BODY[:, 80].sum() + contact) - 4
    assert line.contact == pytest.approx(contact / np.sqrt(area))
    assert line.border_share == pytest.approx(contact / around)
    assert line.closed_share > 0.95 and line.apart_share > 0.95


def test_what_lasts_is_seen_sure_and_found_again() -> None:
    masks, sure = np.repeat(INSIDE[None], 20, axis=0), np.full(20, 0.8, np.float32)
    beside = np.roll(INSIDE, 30, axis=1)
    once = np.zeros_like(masks)
    once[4] = INSIDE
    assert lasts(masks, sure, {3: INSIDE, 9: cv2.dilate(INSIDE.astype(np.uint8), np.ones((3, 3))) > 0})
    assert lasts(masks, sure, {})
    assert not lasts(masks, sure, {3: beside, 9: INSIDE & False})
    assert not lasts(masks, sure / 4, {3: INSIDE})
    assert not lasts(once, sure, {})

"""Motion against the background, and the hinted frame registered with others."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from neural_fields.data.segmentation.hint_registration import HintRegistration
from neural_fields.data.segmentation.motion_evidence import (
    compute_trust,
    fit_affine_motion,
    transform_flow,
    warp_backward,
    weigh_motion,
)

HEIGHT, WIDTH = 60, 80
WHOLE = (slice(0, HEIGHT), slice(0, WIDTH))


def _flow(right: float, down: float) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 2), (right, down), np.float32)


def _square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:40, 30:50] = True
    return mask


def test_flow_that_leads_back_is_trusted_inside_the_frame() -> None:
    trust = compute_trust(_flow(3, 0), _flow(-3, 0))
    assert np.allclose(trust[:, : WIDTH - 3], 1)
    assert (trust[:, WIDTH - 3 :] == 0).all()
    error = 2.6  # tolerance of a vector of 3 px: 1 + 0.3
    assert compute_trust(_flow(3, 0), _flow(-3 + error, 0))[5, 5] == pytest.approx(np.exp(-4), rel=1e-4)


def test_the_trust_in_a_window_is_that_of_the_frame() -> None:
    draw = np.random.default_rng(2)
    flow, reverse = draw.normal(0, 4, (2, HEIGHT, WIDTH, 2)).astype(np.float32)
    window = (slice(10, 44), slice(50, WIDTH))
    assert np.array_equal(compute_trust(flow, reverse, window=window), compute_trust(flow, reverse)[window])


def test_the_flow_of_a_transform_leads_where_it_does() -> None:
    matrix = np.array([[1.1, 0.05, 2.0], [-0.05, 0.9, 1.0], [1e-3, 0, 1]])
    flow = transform_flow(matrix, WHOLE)
    target = matrix @ (30, 20, 1)
    assert np.allclose(flow[20, 30], target[:2] / target[2] - (30, 20), atol=1e-4)
    assert np.allclose(warp_backward(_square().astype(np.float32), _flow(5, -3))[23:43, 25:45], 1)


def test_what_moves_with_the_background_is_not_the_object() -> None:
    mask = _square()
    flow = _flow(4, 0)
    flow[mask] = (-3, 2)
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0  # the expected mask is too large
    share = np.where(grown, 0.9, 0.0).astype(np.float32)
    window = (slice(10, 50), slice(20, 60))
    found = weigh_motion([(flow, np.ones((40, 40), np.float32))], share, window)
    assert found.is_moving and found.rigidity == pytest.approx(mask.sum() / grown.sum())
    assert found.background[~mask[window]].min() > 0.99
    assert found.background[mask[window]].max() < 0.01
    assert found.object[mask[window]].min() > 0.5
    assert found.object[~mask[window]].max() < 0.01


def test_an_object_that_stands_still_gives_no_evidence() -> None:
    found = weigh_motion(
        [(_flow(4, 0), np.ones((HEIGHT, WIDTH), np.float32))],
        _square().astype(np.float32),
        (slice(0, 60), slice(0, 80)),
    )
    assert not found.is_moving and found.rigidity == 0
    assert not found.background.any() and not found.object.any()


def test_what_a_frame_uncovers_is_judged_by_the_next_frame() -> None:
    mask = _square()
    flow = _flow(4, 0)
    flow[mask] = (-3, 2)
    uncovered = np.zeros_like(mask)
    uncovered[20:40, 50:56] = True
    wrong, blind = flow.copy(), np.ones((HEIGHT, WIDTH), np.float32)
    wrong[uncovered], blind[uncovered] = (-3, 2), 0  # flow is smeared into it, and not trusted
    share = mask.astype(np.float32)
    window = (slice(0, HEIGHT), slice(0, WIDTH))
    before = weigh_motion([(wrong, blind)], share, window)
    both = weigh_motion([(wrong, blind), (-flow, np.ones((HEIGHT, WIDTH), np.float32))], share, window)
    assert before.background[uncovered].max() == 0
    assert both.background[uncovered].min() > 0.99


def test_affine_motion_is_fitted_to_enough_pixels_only() -> None:
    matrix = np.array([[1.02, 0.03, 1.5], [-0.03, 1.02, -2.0], [0, 0, 1]])
    flow = transform_flow(matrix, WHOLE)
    found = fit_affine_motion(_square(), flow)
    assert found is not None and np.allclose(found, matrix, atol=1e-3)
    few = np.zeros_like(_square())
    few[0, :5] = True
    assert fit_affine_motion(few, flow) is None


def test_the_hinted_mask_lies_where_the_object_went() -> None:
    draw = np.random.default_rng(1)
    texture = cv2.GaussianBlur(draw.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32), (0, 0), 1.5)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    mask = _square().astype(np.float32)
    registration = HintRegistration(texture, mask)
    share, place = mask, 0
    for _ in range(3):  # the whole picture moves by two pixels to the right from frame to frame
        place += 2
        frame = np.roll(texture, place, 1)
        back = _flow(-2, 0)
        share = warp_backward(share, back)
        window = (slice(10, 50), slice(20, 70))
        found = registration.advance(frame, back, np.ones((40, 50), np.float32), share, window)
    assert found is not None
    shown, sure = found
    expected = np.roll(_square(), place, 1)[window]
    assert ((shown > 0.5) == expected).mean() > 0.98
    assert sure[expected].mean() > 0.8


def test_a_registration_that_lost_the_object_says_nothing_more() -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    registration = HintRegistration(frame, _square().astype(np.float32))
    window, trust = (slice(0, 60), slice(0, 80)), np.ones((HEIGHT, WIDTH), np.float32)
    assert registration.advance(frame, _flow(0, 0), trust, np.zeros((HEIGHT, WIDTH), np.float32), window) is None
    assert registration.advance(frame, _flow(0, 0), trust, _square().astype(np.float32), window) is None

"""The cheapest outline of the pixel graph."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neural_fields.data.segmentation import graph_cut
from neural_fields.data.segmentation.graph_cut import CAPACITY_STEPS, cut_graph
from neural_fields.nn.compiled_loops import can_compile_loops


def _energies(masks: np.ndarray, odds: np.ndarray, image: np.ndarray, smoothness: float) -> np.ndarray:
    """The same sum for each of several masks, pair by pair."""
    height, width = odds.shape
    colors = image.astype(float)
    pairs = []
    for y, x, (down, right) in itertools.product(range(height), range(width), ((0, 1), (1, 0), (1, 1), (1, -1))):
        if 0 <= y + down < height and 0 <= x + right < width:
            difference = ((colors[y, x] - colors[y + down, x + right]) ** 2).sum()
            pairs.append(((y, x), (y + down, x + right), difference, 1.0 if down * right == 0 else 2**-0.5))
    straight = [difference for _, _, difference, weight in pairs if weight == 1.0]
    falloff = 1 / (2 * max(1.0, float(np.mean(straight)) if straight else 0.0))
    total = (masks * odds.astype(float)).sum((1, 2))
    for a, b, difference, weight in pairs:
        cost = smoothness * weight * (0.05 + 0.95 * np.exp(-falloff * difference))
        total -= cost * (masks[(slice(None), *a)] != masks[(slice(None), *b)])
    return total


@given(
    odds=arrays(np.float32, (2, 4), elements=st.floats(-4, 4, width=16)),
    image=arrays(np.uint8, (2, 4, 3), elements=st.sampled_from([0, 10, 200])),
    smoothness=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_no_other_mask_is_better(odds: np.ndarray, image: np.ndarray, smoothness: float) -> None:
    masks = np.array(list(itertools.product([False, True], repeat=8))).reshape(-1, 2, 4)
    found = _energies(cut_graph(odds, image, smoothness)[None], odds, image, smoothness)[0]
    best = _energies(masks, odds, image, smoothness).max()
    assert found == pytest.approx(best, abs=40 / CAPACITY_STEPS)  # capacities are whole steps, some 30 of them


@pytest.mark.parametrize("seed", range(3))
def test_labels_that_are_clear_from_the_start_are_those_of_the_whole_graph(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(seed)
    odds = 60 * cv2.GaussianBlur(draw.normal(0, 1, (60, 80)), (0, 0), 6).astype(np.float32)
    odds += draw.normal(0, 1, odds.shape).astype(np.float32)
    image = cv2.GaussianBlur(draw.integers(0, 255, (60, 80, 3)).astype(np.uint8), (0, 0), 1)
    found = cut_graph(odds, image, 2.0)
    monkeypatch.setattr(graph_cut, "SQUARE_RADII_PX", ())
    assert 0.1 < found.mean() < 0.9
    assert np.array_equal(found, cut_graph(odds, image, 2.0))


def test_the_outline_lies_on_the_edge_of_colors() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 12:] = 200
    odds = np.full((20, 20), -0.2, np.float32)
    odds[8:12, 2:5] = 30.0  # a mark inside, and another outside
    odds[8:12, 16:18] = -30.0
    odds[:, 5:12] = 0.05
    mask = cut_graph(odds, image, smoothness=4.0)
    assert mask[8:12, 4:12].all()
    assert not mask[:, 12:].any()


def test_pixels_without_neighbors_follow_their_odds() -> None:
    assert cut_graph(np.array([[2.0]], np.float32), np.zeros((1, 1, 3), np.uint8), 5.0).tolist() == [[True]]
    assert cut_graph(np.array([[-2.0]], np.float32), np.zeros((1, 1, 3), np.uint8), 5.0).tolist() == [[False]]


@pytest.mark.skipif(not can_compile_loops(), reason="numba is not installed")
@given(
    odds=arrays(np.float32, (7, 9), elements=st.floats(-4, 4, width=16)),
    image=arrays(np.uint8, (7, 9, 3), elements=st.sampled_from([0, 10, 200])),
    smoothness=st.sampled_from([0.5, 2.0, 6.0]),
)
def test_the_compiled_cut_equals_that_of_scipy(odds: np.ndarray, image: np.ndarray, smoothness: float) -> None:
    compiled = cut_graph(odds, image, smoothness)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_cut, graph_cut.can_compile_loops.__name__, lambda: False)
        assert np.array_equal(compiled, cut_graph(odds, image, smoothness))


@pytest.mark.skipif(not can_compile_loops(), reason="numba is not installed")
def test_the_compiled_cut_equals_that_of_scipy_where_paths_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    odds = cv2.GaussianBlur(draw.standard_normal((60, 90)).astype(np.float32), (0, 0), 2) * 12
    image = cv2.GaussianBlur(draw.integers(0, 255, (60, 90, 3), dtype=np.uint8), (0, 0), 2)
    compiled = cut_graph(odds, image, 6.0)
    assert 0.1 < compiled.mean() < 0.9
    monkeypatch.setattr(graph_cut, graph_cut.can_compile_loops.__name__, lambda: False)
    assert np.array_equal(compiled, cut_graph(odds, image, 6.0))

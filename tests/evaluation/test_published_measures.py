"""Our measures beside the published programs and definitions, so that figures can be compared with those of papers."""

from __future__ import annotations

import numpy as np
import pytest

from neural_fields.evaluation.metrics import ssim
from neural_fields.evaluation.tracking_metrics import measure_tracking


@pytest.mark.parametrize("noise", [0.05, 0.4])
def test_ssim_is_that_of_scikit_image_with_the_window_of_the_paper(noise: float) -> None:
    measures = pytest.importorskip("skimage.metrics", reason="the extra 'dev' is not installed: no scikit-image")
    random = np.random.default_rng(0)
    smooth = np.kron(random.random((6, 8, 3)), np.ones((8, 8, 1)))
    noisy = (smooth + noise * random.standard_normal(smooth.shape)).clip(0, 1)
    wanted = measures.structural_similarity(
        smooth, noisy, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(smooth.astype(np.float32), noisy.astype(np.float32)) == pytest.approx(wanted, abs=2e-5)


def tapvid_measures(
    tracks: np.ndarray, occluded: np.ndarray, true_tracks: np.ndarray, true_occluded: np.ndarray, counted: np.ndarray
) -> tuple[float, float, float]:
    """Occlusion accuracy, average Jaccard and < delta_avg as TAP-Vid defines them, one point and frame at a time."""
    right, jaccards, shares = [], [], []
    cells = [(point, frame) for point, frame in np.ndindex(counted.shape) if counted[point, frame]]
    for cell in cells:
        right.append(occluded[cell] == true_occluded[cell])
    for limit in (1, 2, 4, 8, 16):
        true_positives = false_positives = positives = within = 0
        for cell in cells:
            near = float(np.sum((tracks[cell] - true_tracks[cell]) ** 2)) < limit**2
            positives += not true_occluded[cell]
            within += near and not true_occluded[cell]
            true_positives += near and not true_occluded[cell] and not occluded[cell]
            false_positives += not occluded[cell] and (bool(true_occluded[cell]) or not near)
        jaccards.append(true_positives / (positives + false_positives))
        shares.append(within / positives)
    return float(np.mean(right)), float(np.mean(jaccards)), float(np.mean(shares))


def test_tracking_scores_are_those_of_tapvids_definition() -> None:
    random = np.random.default_rng(3)
    true_tracks = random.uniform(0, 256, (12, 9, 2))
    tracks = true_tracks + random.choice([0.3, 1.2, 3.0, 6.0, 12.0, 30.0], (12, 9, 1)) * [0.6, 0.8]
    occluded, true_occluded = random.random((2, 12, 9)) < 0.3
    queries = np.zeros((12, 9), bool)
    queries[np.arange(12), random.integers(0, 9, 12)] = True
    score = measure_tracking(tracks, ~occluded, true_tracks, ~true_occluded, queries, (256, 256))
    wanted = tapvid_measures(tracks, occluded, true_tracks, true_occluded, ~queries)
    assert (score.occlusion, score.jaccard, score.delta) == pytest.approx(wanted)
    assert score.delta_256 == score.delta


def test_tracking_scores_of_three_points_are_those_computed_by_hand() -> None:
    """One point is exact; one is 3 pixels off, so right from 4 pixels on; one is hidden and called visible."""
    true_tracks = np.zeros((3, 2, 2))
    tracks = true_tracks.copy()
    tracks[1, 1] = (3, 0)
    true_visible = np.array([[True, True], [True, True], [True, False]])
    queries = np.array([[True, False]] * 3)
    score = measure_tracking(tracks, np.ones((3, 2), bool), true_tracks, true_visible, queries, (256, 256))
    assert score.delta == pytest.approx((0.5 + 0.5 + 1 + 1 + 1) / 5)
    assert score.occlusion == pytest.approx(2 / 3)
    # Below 4 pixels: 1 hit of 2 visible points and 2 false alarms; from there on 2 hits and 1 false alarm.
    assert score.jaccard == pytest.approx((2 * 1 / 4 + 3 * 2 / 3) / 5)

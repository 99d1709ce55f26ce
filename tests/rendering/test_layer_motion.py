"""The motion of layers between frames and what is made of it, on maps that are known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from neural_fields.data.video.metadata import make_metadata
from neural_fields.rendering.retiming.interpolation import Retimer
from neural_fields.rendering.retiming.layer_motion import LayerAppearance, LayerMotionEstimator
from neural_fields.rendering.retiming.timeline import FrameSchedule
from tests.support.pixel_maps import HEIGHT, WIDTH, pixel_maps

MIDDLE = np.array([[[48.0, 32.0]]])


def texture() -> np.ndarray:
    """Gray noise without any period, as a frame."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    return cv2.cvtColor(cv2.GaussianBlur(noise, (0, 0), 1.0), cv2.COLOR_GRAY2RGB)


def appearance(frame: np.ndarray, opacity: np.ndarray | float = 1.0) -> LayerAppearance:
    alpha = np.full(frame.shape[:2], opacity, np.float32)
    rgba = np.dstack([frame * alpha[..., None], alpha]).astype(np.float32)
    return LayerAppearance(rgba, np.ones(frame.shape[:2], np.float32))


def test_a_path_bends_with_its_acceleration_but_never_swings_back(
    tmp_path: Path,
) -> None:
    both = (appearance(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)),) * 2
    for name, offsets, bend in (("faster", (0, 3, 7, 12), 1.0), ("starts", (0, 1, 2, 10), 0.5)):
        (tmp_path / name).mkdir()
        estimator = LayerMotionEstimator(pixel_maps(tmp_path / name, offsets))
        motion = estimator.estimate_motion(0, 1, 0.5, both)
        assert np.abs(estimator.grid.interpolate_at(motion.bend, MIDDLE) - (bend, 0)).max() < 0.05


def test_a_motion_of_the_maps_that_the_frames_contradict_is_not_believed(tmp_path: Path) -> None:
    x = np.arange(WIDTH, dtype=np.float32)
    wrong = np.broadcast_to(24 * np.clip((40 - x) / 8, 0, 1), (HEIGHT, WIDTH))
    estimator = LayerMotionEstimator(pixel_maps(tmp_path, (0.0, 0.0, wrong, wrong)))
    still = appearance(texture())
    assert np.abs(estimator.estimate_motion(0, 1, 0.5, (still, still)).step).max() < 1


def test_an_object_of_a_few_points_of_the_grid_moves_as_its_map_says(tmp_path: Path) -> None:
    weights = np.zeros((4, 2, HEIGHT, WIDTH), np.float32)
    for t in range(4):
        weights[t, 0, 26:38, 40 + 4 * t : 52 + 4 * t] = 1
    weights[:, 1] = 1 - weights[:, 0]
    estimator = LayerMotionEstimator(pixel_maps(tmp_path, (0, 4, 8, 12), weights))
    seen = [appearance(np.roll(texture(), 4 * t, axis=1), weights[t, 0]) for t in (1, 2)]
    step = estimator.estimate_motion(0, 1, 0.5, (seen[0], seen[1])).step
    assert np.abs(estimator.grid.interpolate_at(step, MIDDLE) - (4, 0)).max() < 0.5


def test_what_is_hidden_in_both_frames_changes_nothing_between_them(tmp_path: Path) -> None:
    weights = np.zeros((2, 3, HEIGHT, WIDTH), np.float32)
    weights[:, 0, :, :32] = 1
    weights[:, 1, :, 32:64] = 1
    weights[:, 2, :, 64:] = 1
    frame = texture()
    moment = FrameSchedule((Fraction(0),), (Fraction(1, 2),), make_metadata((WIDTH, HEIGHT), 2, Fraction(24)))
    between = next(Retimer(pixel_maps(tmp_path, (0, 0), weights)).interpolate_frames(iter([frame, frame]), moment))
    assert np.abs(between.astype(int) - frame)[:, 4:-4].max() <= 2

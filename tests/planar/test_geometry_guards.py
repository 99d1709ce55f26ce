"""Guards of the closed-form geometry: few, mixed or wild matches decide nothing, and no chain of frames runs away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_fields.core import coords
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.synthetic.planar_clips import make_translation_clip
from neural_fields.planar.init.geometry import (
    GeometrySettings,
    LayerGeometry,
    compute_layer_geometry,
)
from neural_fields.planar.init.visibility import LayerVisibility

WIDTH, HEIGHT, COUNT = 64, 36, 9


def place_layer(
    motion: np.ndarray, share: np.ndarray | None = None, trusted: np.ndarray | None = None, is_background: bool = True
) -> LayerGeometry:
    """Places a layer of a blank clip: nothing but its flow [height, width, 2], in pixels a frame, tells of motion."""
    steps = np.tile(motion.astype(np.float32), (COUNT - 1, 1, 1, 1))
    ok = np.ones(steps.shape[:3], bool) if trusted is None else np.tile(trusted, (COUNT - 1, 1, 1))
    clip = ClipDataset(
        np.full((COUNT, HEIGHT, WIDTH, 3), 128, np.uint8),
        LayerMasks((), np.zeros((0, COUNT, HEIGHT, WIDTH), bool)),
        FlowField(steps, -steps, ok, ok),
    )
    visible = np.ones((HEIGHT, WIDTH), np.float32) if share is None else share
    seen = LayerVisibility(lambda t: visible, range(COUNT), (WIDTH, HEIGHT))
    (whole,) = compute_layer_geometry(clip, seen, is_background, (8, 5))
    return whole


def shift_by(x: float) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 2), (x, 0.0))


def zoom_by(factor: float) -> np.ndarray:
    own = coords.pixel_centers(WIDTH, HEIGHT).numpy()
    return (factor - 1) * (own - (WIDTH / 2, HEIGHT / 2))


def test_a_chain_of_frames_ends_within_five_frame_lengths_and_five_times_the_size() -> None:
    far = place_layer(shift_by(2.0 * WIDTH))
    assert np.abs(far.homography[:, :2, 2]).max() == pytest.approx(10)  # xy units: two are a frame length
    assert max(map(abs, far.box.as_tuple())) <= 10
    sizes = np.linalg.det(place_layer(zoom_by(2.0)).homography[:, :2, :2]) ** 0.5
    assert sizes.max() == pytest.approx(5, rel=0.05) and sizes.min() == pytest.approx(1 / 5, rel=0.05)


def test_a_layer_moves_by_the_flow_of_the_pixels_that_it_fills() -> None:
    share = np.ones((HEIGHT, WIDTH), np.float32)
    share[:, 20:] = 0.6  # more than a half, but of something else too
    motion = shift_by(2.0)
    motion[:, 20:] = (-3.0, 1.0)
    ends = place_layer(motion, share).homography[[0, -1], :2, 2]
    np.testing.assert_allclose(ends[1] - ends[0], (-2 * 2.0 * (COUNT - 1) / WIDTH, 0), atol=0.02)


def test_a_dozen_flow_vectors_move_no_layer() -> None:
    trusted = np.zeros((HEIGHT, WIDTH), bool)
    trusted[10:13, 10:14] = True
    assert np.abs(place_layer(shift_by(3.0), trusted=trusted).homography - np.eye(3)).max() < 1e-3
    trusted[10:20, 10:14] = True
    assert np.abs(place_layer(shift_by(3.0), trusted=trusted).homography[-1, 0, 2]) > 0.3


def test_a_few_wild_matches_do_not_hide_a_shear() -> None:
    own = coords.pixel_centers(WIDTH, HEIGHT).numpy()
    motion = np.zeros((HEIGHT, WIDTH, 2))
    motion[..., 0] = 0.05 * (own[..., 1] - HEIGHT / 2)
    motion[::6, ::6] += 5000.0
    last = place_layer(motion, is_background=False).homography[-1]
    assert last[0, 1] / last[0, 0] == pytest.approx(-0.05 * (COUNT // 2), rel=0.1)


def test_frames_that_are_placed_first_lie_where_they_would_have_lain(tmp_path: Path) -> None:
    frames = make_translation_clip(44, 96, 54, velocity=(2, 1)).frames
    flow = compute_flow(frames, tmp_path, "dis")
    clip = ClipDataset(frames, LayerMasks((), np.zeros((0, 44, 54, 96), bool)), flow)
    visible = LayerVisibility(lambda t: np.ones((54, 96), np.float32), range(44), (96, 54))
    first, whole = compute_layer_geometry(clip, visible, True, (13, 8))
    (alone,) = compute_layer_geometry(clip, visible, True, (13, 8), settings=GeometrySettings(min_early_clip=1000))
    np.testing.assert_array_equal(first.homography, whole.homography[11:33])
    np.testing.assert_array_equal(whole.homography, alone.homography)
    np.testing.assert_array_equal(whole.residual, alone.residual)
    assert (whole.box, whole.magnification) == (alone.box, alone.magnification)
    assert [(chart.first, chart.last) for chart in first.charts + whole.charts] == [(0, 21), (0, 43)]


def test_several_charts_come_in_one_turn(tmp_path: Path) -> None:
    video = make_translation_clip(44, 96, 54, velocity=(2, 1))
    frames = np.concatenate([video.frames[:21], video.frames[21:][..., ::-1]])
    clip = ClipDataset(
        frames, LayerMasks((), np.zeros((0, 44, 54, 96), bool)), compute_flow(frames, tmp_path, "dis"), cuts=(21,)
    )
    visible = LayerVisibility(lambda t: np.ones((54, 96), np.float32), range(44), (96, 54))
    (whole,) = compute_layer_geometry(clip, visible, True, (13, 8), clip.cuts)
    assert [(chart.first, chart.last) for chart in whole.charts] == [(0, 20), (21, 43)]

"""Paint on a frame is found to the texel in a lossless file, and in a lossy one what no codec does."""

from __future__ import annotations

import cv2
import numpy as np

from editors.inputs.frame_change import find_frame_paint

SIZE = (120, 160)
EVERYWHERE = np.ones(SIZE, bool)
BASE = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (*SIZE, 3)).astype(np.uint8), (0, 0), 2)


def save_lossily(frame: np.ndarray) -> np.ndarray:
    """The frame with noise of some levels, as of a codec."""
    noise = np.random.default_rng(2).integers(-4, 5, frame.shape)
    return np.clip(frame.astype(int) + noise, 0, 255).astype(np.uint8)


def find_brightened(where: tuple[slice, slice], levels: int) -> np.ndarray:
    """The opacity that is found of paint that makes a part of the frame brighter."""
    painted = BASE.astype(int)
    painted[where] += levels
    found = find_frame_paint(save_lossily(np.clip(painted, 0, 255)), BASE, EVERYWHERE, is_lossy=True)
    return np.zeros(SIZE) if found is None else found


def test_paint_is_found_to_the_texel_in_a_lossless_file() -> None:
    after = BASE.copy()
    after[10:20, 30:50] = 255 - after[10:20, 30:50] // 2
    off = np.abs(after.astype(int) - BASE).max(axis=-1)
    found = find_frame_paint(after, BASE, EVERYWHERE, is_lossy=False)
    assert found is not None and ((found > 0) == (off > 1)).all() and (found[off > 3] == 1).all()


def test_a_frame_that_was_only_saved_has_no_paint() -> None:
    assert find_frame_paint(save_lossily(BASE), BASE, EVERYWHERE, is_lossy=True) is None
    assert find_frame_paint(BASE, BASE, EVERYWHERE, is_lossy=True) is None


def test_a_small_spot_and_a_wide_faint_glaze_are_found_in_a_lossy_file() -> None:
    for where, levels in ((np.s_[50:54, 70:74], 60), (np.s_[40:80, 50:110], 8)):
        found = find_brightened(where, levels)
        inside = np.zeros(SIZE, np.uint8)
        inside[where] = 1
        assert (found[inside > 0] > 0.5).mean() > 0.95
        assert found[cv2.dilate(inside, np.ones((11, 11))) == 0].max() == 0


def test_a_spot_as_faint_as_codecs_make_them_is_no_paint() -> None:
    assert find_brightened(np.s_[50:55, 70:75], 8).max() == 0
    assert find_brightened(np.s_[50:54, 70:74], 15).max() == 0


def test_a_frame_that_is_painted_for_the_most_part_is_painted_everywhere() -> None:
    assert find_brightened(np.s_[:, :100], 60).min() == 1
    assert find_brightened(np.s_[:, :60], 60)[:, 70:].max() == 0

"""Occluders of a region: neither noise nor shade is one."""

from __future__ import annotations

import cv2
import numpy as np

from neural_fields.planar.init.occluders import find_occluders

SHAPE = (60, 80)
QUAD = np.zeros(SHAPE, bool)
QUAD[10:50, 15:65] = True
CANONICAL = np.full((*SHAPE, 3), 0.6, np.float32)


def test_in_a_noisy_clip_noise_is_not_in_front() -> None:
    noise = np.random.default_rng(0).normal(0, 0.12, CANONICAL.shape)
    picture = (CANONICAL + noise).astype(np.float32)
    assert find_occluders(picture, np.eye(3), CANONICAL, QUAD).sum() < 0.01 * QUAD.sum()


def test_a_flat_color_over_most_of_a_region_is_in_front() -> None:
    colors = np.random.default_rng(1).uniform(0.1, 0.95, (12, 16, 3)).astype(np.float32)
    canonical = np.clip(cv2.resize(colors, SHAPE[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    covered = QUAD.copy()
    covered[34:] = False
    picture = np.where(covered[..., None], np.array((0.3, 0.35, 0.5), np.float32), canonical)
    found = find_occluders(picture, np.eye(3), canonical, QUAD)
    assert found[covered].mean() > 0.8 and not found[QUAD & ~covered].any()


def test_a_region_in_the_shade_is_seen() -> None:
    assert not find_occluders(0.4 * CANONICAL, np.eye(3), CANONICAL, QUAD).any()

"""Occluders of a region: neither noise nor shade is one."""

from __future__ import annotations

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


def test_a_region_in_the_shade_is_seen() -> None:
    assert not find_occluders(0.4 * CANONICAL, np.eye(3), CANONICAL, QUAD).any()

"""An object that moves with a soft shadow over plain ground: only the object has a mask."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class ShadowClip:
    """Holds the frames, uint8 [time, height, width, 3]; what is object and shadow, bool; how the ground moves."""

    frames: np.ndarray
    masks: np.ndarray
    shadows: np.ndarray
    step_px: float  # by which the ground moves to the left from frame to frame


def draw_shadow_clip(width: int = 176, height: int = 104, count: int = 13, step_px: float = 1.0) -> ShadowClip:
    """Draws the clip: the camera pans by `step_px`, the object moves 4 px the other way; its shadow halves light."""
    rng = np.random.default_rng(0)
    wide = width + round(step_px * count)
    ground = 112 + 1.5 * _blur_noise(rng, 1.5, (height, wide)) + 4 * _blur_noise(rng, 20, (height, wide))
    ground[:24] = 140 + 14 * _blur_noise(rng, 1.5, (24, wide))  # what lies beside the road
    picture = 150 + 25 * _blur_noise(rng, 1.6, (34, 44))
    y, x = np.mgrid[:height, :width]
    frames, masks, shadows = [], [], []
    for t in range(count):
        left, top = 16 + 4 * t, 34
        seen = cv2.warpAffine(ground, np.array([[1, 0, -step_px * t], [0, 1, 0]], np.float32), (width, height))
        ellipse = ((x - left - 24) / 26) ** 2 + ((y - top - 40) / 10) ** 2 < 1
        shadow = cv2.GaussianBlur(ellipse.astype(np.float32), (0, 0), 4)
        seen *= 1 - 0.5 * shadow
        mask = (x >= left) & (x < left + 44) & (y >= top) & (y < top + 34)
        seen[mask] = picture.ravel()
        frame = seen[..., None] + rng.normal(size=(height, width, 3))
        frames.append(frame.clip(0, 255).round().astype(np.uint8))
        masks.append(mask)
        shadows.append((shadow > 0.15) & ~mask)
    return ShadowClip(np.stack(frames), np.stack(masks), np.stack(shadows), step_px)


def _blur_noise(rng: np.random.Generator, sigma: float, shape: tuple[int, int]) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), sigma)
    return noise / noise.std()

"""A red disc that passes in front of a blue square, over a background that the camera pans across."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class CrossingClip:
    """Holds the frames, uint8 [time, height, width, 3], and what is seen of each object, bool [time, height, width]."""

    frames: np.ndarray
    disc: np.ndarray
    square: np.ndarray


def draw_crossing_clip(
    width: int = 160, height: int = 96, count: int = 11, square_left: int = 100, disc_center: tuple[int, int] = (41, 61)
) -> CrossingClip:
    """Draws the clip from where both are in frame 0; by default the disc hides four tenths of the square at most."""
    ground = 120 + 22 * _make_texture(0, height, width + count)
    red = np.array([190, 60, 50]) + 18 * _make_texture(1, height, width)
    blue = np.array([50, 70, 190]) + 18 * _make_texture(2, height, width)
    y, x = np.mgrid[:height, :width]
    frames, discs, squares = [], [], []
    for t in range(count):
        frame = ground[:, t : t + width].copy()
        left, center = square_left - 5 * t, disc_center[0] + 6 * t
        square = (x >= left) & (x < left + 26) & (y >= 34) & (y < 60)
        disc = (x - center) ** 2 + (y - disc_center[1]) ** 2 < 15**2
        frame[square] = np.roll(blue, -5 * t, 1)[square]
        frame[disc] = np.roll(red, 6 * t, 1)[disc]
        frames.append(frame.clip(0, 255).astype(np.uint8))
        discs.append(disc)
        squares.append(square & ~disc)
    return CrossingClip(np.stack(frames), np.stack(discs), np.stack(squares))


def _make_texture(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 1.6)
    return blurred / blurred.std()

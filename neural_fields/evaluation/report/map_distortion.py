"""Measures how a mapping distorts a layer: local stretch and fold-over, from the uv of a frame's pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Distortion:
    """Distortion of a mapping in one frame: one value for each square of four neighboring pixel centers."""

    stretch: Float[np.ndarray, "rows columns"]  # 1 is none, 2 is twice or half the usual length of the layer
    folded: Bool[np.ndarray, "rows columns"]  # whether the map is mirrored relative to the rest of the layer
    valid: Bool[np.ndarray, "rows columns"]  # all four pixels show the layer


def measure_distortion(
    uv: Float[np.ndarray, "height width 2"], seen: Bool[np.ndarray, "height width"], max_stretch: float = 16.0
) -> Distortion:
    """Measures stretch and fold-over of a layer in one frame.

    With J the Jacobian of (x, y) -> (u, v) and m the side of the usual area, sqrt(median |det J|) over the frame, the
    stretch is max(s1 / m, m / s2) for the singular values s1 >= s2 of J: the factor by which a small square painted
    here is longer or shorter, in its worst direction, than one painted at the layer's usual place. The inverse map has
    the singular values 1 / s2 and 1 / s1, so its stretch is the same number. A place is folded where det J has the
    opposite sign to that of most of the layer.

    Args:
        uv: canonical coordinates of every pixel.
        seen: where the frame shows the layer; other pixels do not count.
        max_stretch: larger stretches are clipped: the place is torn.

    Returns:
        Stretch and fold-over between the pixels, and where they are known.
    """
    right = (uv[:-1, 1:] - uv[:-1, :-1] + uv[1:, 1:] - uv[1:, :-1]) / 2
    down = (uv[1:, :-1] - uv[:-1, :-1] + uv[1:, 1:] - uv[:-1, 1:]) / 2
    valid = seen[:-1, 1:] & seen[:-1, :-1] & seen[1:, 1:] & seen[1:, :-1]
    det = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    inside = det[valid]
    usual = float(np.sqrt(np.median(np.abs(inside)))) if inside.size else 0.0
    mirrored = inside.size > 0 and float((inside < 0).mean()) > 0.5
    # s1^2 + s2^2, plane by plane: NumPy is slow at sums over two numbers.
    squares = (right[..., 0] ** 2 + right[..., 1] ** 2) + (down[..., 0] ** 2 + down[..., 1] ** 2)
    difference = np.sqrt(np.maximum(squares**2 - 4 * det**2, 0))  # s1^2 - s2^2
    long, short = np.sqrt((squares + difference) / 2), np.sqrt(np.maximum(squares - difference, 0) / 2)
    tiny = np.float32(1e-12)
    stretch = np.maximum(long / max(usual, tiny), usual / np.maximum(short, tiny)).clip(1, max_stretch)
    return Distortion(stretch.astype(np.float32), (det > 0 if mirrored else det < 0), valid)

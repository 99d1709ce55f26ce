"""Hole filling by push-pull: holes take their values from coarser levels."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float


def pull_push(values: Float[np.ndarray, "h w c"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w c"]:
    """Fills holes: keeps known values, and fills the others with smooth means of increasingly larger neighborhoods."""
    sums, weights = values * known[..., None], known.astype(np.float32)[..., None]
    levels = [(sums, weights)]
    while max(levels[-1][0].shape[:2]) > 1:
        rows, columns = levels[-1][0].shape[:2]
        half = ((columns + 1) // 2, (rows + 1) // 2)
        # Area means halve sums and weights alike, so that their ratio stays the mean.
        sums, weights = (_keep_channel_axis(cv2.resize(p, half, interpolation=cv2.INTER_AREA)) for p in levels[-1])
        levels.append((sums, weights))
    filled = levels[-1][0] / np.maximum(levels[-1][1], 1e-9)
    for sums, weights in reversed(levels[:-1]):
        size = (sums.shape[1], sums.shape[0])
        coarse = _keep_channel_axis(cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR))
        share = np.minimum(1, weights)
        filled = np.where(weights > 1e-6, sums / np.maximum(weights, 1e-6), 0) * share + coarse * (1 - share)
    return np.where(known[..., None], values, filled).astype(np.float32)


def _keep_channel_axis(image: np.ndarray) -> np.ndarray:
    """Puts the channel axis back that OpenCV drops where there is a single channel."""
    return image if image.ndim == 3 else image[..., None]

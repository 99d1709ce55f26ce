"""Color scales of heat maps and guides."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8


def color_scale(name: str) -> UInt8[np.ndarray, "256 3"]:
    """Returns the 256 colors of a scale, RGB: `seen` (viridis) if more is better, `bad` (inferno) if more is worse."""
    kind = {"seen": cv2.COLORMAP_VIRIDIS, "bad": cv2.COLORMAP_INFERNO}[name]
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], kind)[:, 0, ::-1].copy()

"""Frames side by side in one image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8


def contact_sheet(frames: Sequence[np.ndarray], columns: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Arranges frames in rows, on black.

    Args:
        frames: uint8 RGB [h, w, 3], all of one size.
        columns: number of frames in a row.
        width: width of a frame on the sheet, in pixels.

    Returns:
        The sheet; the last row is filled up with black.
    """
    height = round(frames[0].shape[0] * width / frames[0].shape[1])
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    small += [np.zeros_like(small[0])] * (-len(small) % columns)
    rows = [np.concatenate(small[i : i + columns], axis=1) for i in range(0, len(small), columns)]
    return np.concatenate(rows)

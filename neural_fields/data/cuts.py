"""Where a clip cuts from one shot to another."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import UInt8

from neural_fields.data.flow import FlowField
from neural_fields.data.memory import one_by_one

THUMBNAIL = (64, 36)  # (width, height)
MATCHED = 0.35  # across a cut, less of the frame than this has consistent flow
BINS = 8  # of the colour histogram, along each channel
CHANGED = 0.35  # share of the pixels whose colour class has another count across a cut
OUTSTANDING = 3.0  # times the change between the frames around: fast motion changes every frame


def find_cuts(frames: UInt8[np.ndarray, "time height width 3"], flow: FlowField | None) -> tuple[int, ...]:
    """The first frames of all shots but the first.

    A cut is where three things come together: flow finds no consistent match, the colours change as a whole, and they
    change far more than between the frames just before and after (a pan or a flash is no cut).
    """
    if len(frames) < 2:
        return ()
    histograms = [_histogram(frame) for frame in one_by_one(frames)]
    change = np.array([np.abs(b - a).sum() / 2 for a, b in pairwise(histograms)])
    found = []
    for t, value in enumerate(change):
        around = np.concatenate([change[max(0, t - 4) : t], change[t + 1 : t + 5]])
        ordinary = float(np.median(around)) if len(around) else 0.0
        matched = 0.0 if flow is None else float(np.mean(flow.forward_ok[t]))
        # A flash leaves what was there before: the picture two frames on, or two frames back, is the same shot.
        beyond = [(t, t + 2), (t - 1, t + 1)]
        flash = any(
            a >= 0 and b < len(histograms) and np.abs(histograms[b] - histograms[a]).sum() / 2 < value / 2
            for a, b in beyond
        )
        if value > CHANGED and value > OUTSTANDING * ordinary and matched < MATCHED and not flash:
            found.append(t + 1)
    return tuple(found)


def _histogram(frame: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
    """Shares of the colour classes of a frame, smoothed over neighbouring classes."""
    small = cv2.resize(np.ascontiguousarray(frame), THUMBNAIL, interpolation=cv2.INTER_AREA)
    counts = cv2.calcHist([small], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    smooth = sum(np.roll(counts, shift, axis) for axis in range(3) for shift in (-1, 0, 1))
    return smooth.ravel() / smooth.sum()

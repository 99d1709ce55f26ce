"""Where a clip cuts from one shot to another."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import UInt8

from neural_fields.core.memmap import iterate_releasing
from neural_fields.data.flow.compute import FlowField


@dataclass(frozen=True)
class CutSettings:
    """Settings of `find_cuts`."""

    thumbnail_size: tuple[int, int] = (64, 36)  # (width, height) at which colors are counted
    bins: int = 8  # bins of the color histogram along each channel
    max_matched_share: float = 0.35  # at a cut, less than this share of the frame has consistent flow
    min_change: float = 0.35  # at a cut, more than this share of the pixels changes to another color class
    # At a cut, the change is this many times the median change around: fast motion is no cut.
    min_change_ratio: float = 3.0
    window_frames: int = 4  # frames before and after that this median is taken over
    # A change is a flash if the frames before and after it differ by less than this share of it.
    max_flash_ratio: float = 0.5


DEFAULTS = CutSettings()


def find_cuts(
    frames: UInt8[np.ndarray, "time height width 3"], flow: FlowField | None, settings: CutSettings = DEFAULTS
) -> tuple[int, ...]:
    """Finds the first frames of all shots but the first.

    A cut meets three conditions: flow finds no consistent match, the colors change as a whole, and they change far more
    than between the frames just before and after (a pan or a flash is no cut).

    Args:
        frames: RGB, 0 to 255; may be memory-mapped.
        flow: between neighboring frames; without it, only colors are compared.
        settings: thresholds.

    Returns:
        Frame numbers, rising.
    """
    if len(frames) < 2:
        return ()

    # Shares of the color classes of each frame, smoothed over neighboring classes.
    histograms = []
    for frame in iterate_releasing(frames):
        small = cv2.resize(np.ascontiguousarray(frame), settings.thumbnail_size, interpolation=cv2.INTER_AREA)
        counts = cv2.calcHist([small], [0, 1, 2], None, [settings.bins] * 3, [0, 256] * 3)
        smooth = sum(np.roll(counts, shift, axis) for axis in range(3) for shift in (-1, 0, 1))
        histograms.append(smooth.ravel() / smooth.sum())

    change = np.array([np.abs(b - a).sum() / 2 for a, b in pairwise(histograms)])
    window = settings.window_frames
    found = []
    for t, value in enumerate(change):
        around = np.concatenate([change[max(0, t - window) : t], change[t + 1 : t + window + 1]])
        ordinary = float(np.median(around)) if len(around) else 0.0
        matched = 0.0 if flow is None else float(np.mean(flow.forward_ok[t]))
        # A flash leaves what was there before: the picture two frames on, or two frames back, is the same shot.
        is_flash = False
        for a, b in ((t, t + 2), (t - 1, t + 1)):
            if a >= 0 and b < len(histograms):
                beyond = np.abs(histograms[b] - histograms[a]).sum() / 2
                is_flash = is_flash or bool(beyond < settings.max_flash_ratio * value)
        is_large = value > settings.min_change and value > settings.min_change_ratio * ordinary
        if is_large and matched < settings.max_matched_share and not is_flash:
            found.append(t + 1)
    return tuple(found)

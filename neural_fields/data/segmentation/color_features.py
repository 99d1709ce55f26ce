"""What a pixel looks like: colors and texture around it at several sizes, twenty numbers."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class ColorFeatureSettings:
    """Holds the settings of `compute_color_features`. Lengths are pixels of a frame whose shorter side is 240."""

    stride_px: int = 2  # features are computed for one pixel of so many, along each axis
    fine_sigma_px: float = 1.5  # Gaussian of the finest blurred colors
    coarse_sigmas_px: tuple[float, float] = (3.5, 8.0)  # Gaussians of the coarser ones
    fine_texture_sigma_px: float = 2.0  # Gaussian over which edges are averaged
    coarse_texture_sigma_px: float = 5.0  # Gaussian of the coarser average
    chroma_gain: float = 2.5  # weight of the two color channels of CIELAB against lightness
    texture_gain: float = 0.7  # weight of texture against color
    margin_px: int = 24  # around a window, beyond which features hardly depend on


DEFAULTS = ColorFeatureSettings()
FEATURE_COUNT = 20
FINE_FEATURES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15)  # those that do not reach far beyond an outline
FINEST_FEATURES = (0, 1, 2, 3, 4, 5, 12, 13, 14, 15)


def compute_color_features(
    frame: UInt8[np.ndarray, "height width 3"],
    settings: ColorFeatureSettings = DEFAULTS,
    window: tuple[slice, slice] | None = None,
) -> Float[np.ndarray, "rows columns 20"]:
    """Computes the features of every second pixel along each axis.

    Args:
        frame: RGB, 0 to 255.
        settings: sizes and weights.
        window: rows and columns that are asked for, beginning at whole steps; the whole frame by default.

    Returns:
        CIELAB as it is (3 channels) and blurred with three sigmas (9), strength of edges in four directions at two
        sizes (8).
    """
    step = settings.stride_px
    if window is not None:
        (top, bottom), (left, right) = ((part.start, part.stop) for part in window)
        margin = settings.margin_px
        above, before = max(0, top - margin), max(0, left - margin)
        features = compute_color_features(frame[above : bottom + margin, before : right + margin], settings)
        rows, columns = -((top - bottom) // step), -((left - right) // step)
        first_row, first_column = (top - above) // step, (left - before) // step
        return features[first_row : first_row + rows, first_column : first_column + columns]
    odd = [-size % step for size in frame.shape[:2]]
    whole = cv2.copyMakeBorder(frame, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE)  # to whole steps
    lab = cv2.cvtColor(whole, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab /= 255
    lab -= 0.5
    lab[..., 1:] *= settings.chroma_gain
    plain = lab[::step, ::step]
    size = (plain.shape[1], plain.shape[0])
    small = cv2.resize(lab, size, interpolation=cv2.INTER_AREA)  # enough for wide blurs, and faster
    parts = [plain, cv2.GaussianBlur(lab, (0, 0), settings.fine_sigma_px)[::step, ::step]]
    parts += [cv2.GaussianBlur(small, (0, 0), sigma / step) for sigma in settings.coarse_sigmas_px]

    lightness = np.ascontiguousarray(lab[..., 0])
    right, down = cv2.Sobel(lightness, cv2.CV_32F, 1, 0), cv2.Sobel(lightness, cv2.CV_32F, 0, 1)
    diagonal = 2**-0.5
    edges = np.abs(cv2.merge([right, down, diagonal * (right + down), diagonal * (right - down)]))
    fine = cv2.GaussianBlur(edges, (0, 0), settings.fine_texture_sigma_px)[::step, ::step]
    small_edges = cv2.resize(edges, size, interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(small_edges, (0, 0), settings.coarse_texture_sigma_px / step)
    parts += [settings.texture_gain * np.sqrt(energy + 1e-6) for energy in (fine, coarse)]
    return np.dstack(parts)

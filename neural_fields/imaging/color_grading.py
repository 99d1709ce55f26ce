"""Color grades applied: changes of the colors of a layer, pixel by pixel.

A grade changes the pixels of the frame, so that grain, detail and light are kept. Colors are display referred, in
[0, 1]; only exposure is computed in linear light (the sRGB curve, IEC 61966-2-1), as in a camera.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.imaging.grade import CURVES, Curve, Grade

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of Rec. 709

Rgb = Float[np.ndarray, "*pixels 3"]


def apply_grade(grade: Grade, rgb: Rgb) -> Rgb:
    """Applies a grade to colors, without `blur` and `sharpen`, which need the neighbors of a pixel.

    Args:
        grade: the settings.
        rgb: colors in [0, 1].

    Returns:
        The changed colors, float32 in [0, 1].

    Example:
        >>> print(apply_grade(Grade(exposure=1.0), np.float32([[0.5, 0.5, 0.5]])).round(2))
        [[0.69 0.69 0.69]]
        >>> print(apply_grade(Grade(saturation=0.0), np.float32([[1, 0, 0]])).round(2))
        [[0.21 0.21 0.21]]
    """
    shape = rgb.shape
    result = np.ascontiguousarray(rgb.reshape(-1, 3), np.float32)
    if grade.exposure or any(getattr(grade, name) for name in CURVES):
        table, channels = _make_tone_table(grade), np.arange(3)
        places = np.clip(result, 0, 1) * (len(table) - 1)
        below = np.minimum(places.astype(np.int32), len(table) - 2)
        part = places - below
        result = table[below, channels] * (1 - part) + table[below + 1, channels] * part
    if grade.hue or grade.saturation != 1:
        result = np.clip(result @ _make_color_matrix(grade).T, 0, 1)
    return result.reshape(shape).astype(np.float32)


def apply_grade_to_bytes(grade: Grade, rgb: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """Applies a grade to 8-bit colors: `apply_grade` of each, from 0 to 255, by a table, in a tenth of the time."""
    if grade.exposure or any(getattr(grade, name) for name in CURVES):
        result = cv2.LUT(rgb, _make_byte_table(grade))
    else:
        result = rgb.astype(np.float32)
    if grade.hue or grade.saturation != 1:
        result = cv2.transform(result, _make_color_matrix(grade))
        result = np.clip(result, 0, 255, out=result)
    return result


def tabulate_grade(grade: Grade) -> tuple[Float[np.ndarray, "256 3"], Float[np.ndarray, "3 3"]]:
    """Returns what `apply_grade` does, in order: a table of the 8-bit values of each channel, and a matrix."""
    return np.ascontiguousarray(_make_byte_table(grade)[0]), _make_color_matrix(grade)


def smooth_colors(
    rgb: Float[np.ndarray, "height width 3"], weight: Float[np.ndarray, "height width"], radius: float
) -> Float[np.ndarray, "height width 3"]:
    """Averages colors with a Gaussian over the pixels that have weight (normalized convolution).

    Args:
        rgb: colors in [0, 1].
        weight: weight of each pixel in the average, at least 0; where no neighbor has any, the color stays.
        radius: standard deviation of the Gaussian, in pixels.

    Returns:
        The averaged colors.
    """
    total = cv2.GaussianBlur(weight, (0, 0), radius)
    sums = cv2.GaussianBlur(rgb * weight[..., None], (0, 0), radius)
    return np.where(total[..., None] > 1e-4, sums / np.maximum(total, 1e-4)[..., None], rgb).astype(np.float32)


def _apply_curve(points: Curve, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Applies a curve, which neither overshoots its points nor falls between rising ones."""
    if not points:
        return values
    from scipy.interpolate import PchipInterpolator

    x, y = np.array(points).T
    return np.clip(PchipInterpolator(x, y)(np.clip(values, x[0], x[-1])), 0, 1)


@lru_cache(maxsize=16)
def _make_tone_table(grade: Grade) -> Float[np.ndarray, "steps 3"]:
    """Tabulates exposure and curves at even steps of a channel's value; between them they are linear."""
    values = np.linspace(0, 1, 4096)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) * 2.0**grade.exposure
    shown = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    values = np.clip(shown, 0, 1) if grade.exposure else values
    values = _apply_curve(grade.curve, values)
    single = [_apply_curve(getattr(grade, name), values) for name in CURVES[1:]]
    return np.stack(single, axis=1).astype(np.float32)


@lru_cache(maxsize=16)
def _make_byte_table(grade: Grade) -> Float[np.ndarray, "1 256 3"]:
    """Tabulates exposure and curves for each 8-bit value of a channel."""
    values = np.repeat(np.arange(256, dtype=np.float32)[None, :, None] / 255, 3, axis=2)
    return 255 * apply_grade(replace(grade, hue=0.0, saturation=1.0), values)


@lru_cache(maxsize=16)
def _make_color_matrix(grade: Grade) -> Float[np.ndarray, "3 3"]:
    """Makes one linear map of hue and saturation that keeps luma: a rotation around gray, and a scale about luma."""
    angle = np.deg2rad(grade.hue)
    cos, sin = np.cos(angle), np.sin(angle)
    axis = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = cos * np.eye(3) + sin * across + (1 - cos) * axis  # Rodrigues: 120 degrees permute the channels
    rotation = rotation + np.ones((3, 1)) * (LUMA - LUMA @ rotation)
    gray = np.broadcast_to(LUMA, (3, 3))
    return ((grade.saturation * np.eye(3) + (1 - grade.saturation) * gray) @ rotation).astype(np.float32)

"""Blend modes: they combine paint with the color under it, before the paint's opacity is applied.

The formulas are those of the W3C's "Compositing and Blending Level 1" (sections 10.1 and 10.2), which paint programs
share; "add" is its plus-lighter. Colors are display referred, in [0, 1], without alpha.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from neural_fields.imaging.blend_names import BLEND_MODES

Rgb = Float[np.ndarray, "*pixels 3"]
Blend = Callable[[Rgb, Rgb], Rgb]  # paint, color under it: the blended color
_LUMA = np.array([0.3, 0.59, 0.11], np.float32)  # of the standard's non-separable modes


def multiply(top: Rgb, under: Rgb) -> Rgb:
    """Darkens like a color filter: the product of both colors (W3C, section 10.1).

    Args:
        top: the paint, RGB in [0, 1].
        under: the color under the paint, of the same shape. The other modes take the same arguments.

    Returns:
        The blended color, RGB in [0, 1], before the paint's opacity is applied.

    Example:
        >>> multiply(np.float32([1, 0.5, 0]), np.float32([0.5, 0.5, 0.5])).tolist()
        [0.5, 0.25, 0.0]
    """
    return top * under


def screen(top: Rgb, under: Rgb) -> Rgb:
    """Lightens like projected light: the complement of the product of the complements.

    Example:
        >>> screen(np.float32([1, 0.5, 0]), np.float32([0.5, 0.5, 0.5])).tolist()
        [1.0, 0.75, 0.5]
    """
    return top + under - top * under


def overlay(top: Rgb, under: Rgb) -> Rgb:
    """Multiplies where the color under the paint is dark, and screens where it is light."""
    return np.where(under <= 0.5, multiply(top, 2 * under), screen(top, 2 * under - 1))


def soft_light(top: Rgb, under: Rgb) -> Rgb:
    """Darkens or lightens gently: paint below 0.5 darkens, paint above 0.5 lightens."""
    root = np.where(under <= 0.25, ((16 * under - 12) * under + 4) * under, np.sqrt(np.maximum(under, 0)))
    dark = under - (1 - 2 * top) * under * (1 - under)
    light = under + (2 * top - 1) * (root - under)
    return np.where(top <= 0.5, dark, light)


def darken(top: Rgb, under: Rgb) -> Rgb:
    """Takes the darker of both colors in each channel."""
    return np.minimum(top, under)


def lighten(top: Rgb, under: Rgb) -> Rgb:
    """Takes the lighter of both colors in each channel."""
    return np.maximum(top, under)


def add(top: Rgb, under: Rgb) -> Rgb:
    """Adds both colors; sums above 1 become 1.

    Example:
        >>> add(np.float32([0.75, 0.5, 0]), np.float32([0.5, 0.25, 0.5])).tolist()
        [1.0, 0.75, 0.5]
    """
    return np.minimum(top + under, 1)


def color(top: Rgb, under: Rgb) -> Rgb:
    """Takes hue and saturation from the paint, and lightness from the color under it (W3C, section 10.2)."""
    return _set_luma(top, under @ _LUMA)


def luminosity(top: Rgb, under: Rgb) -> Rgb:
    """Takes lightness from the paint, and hue and saturation from the color under it (W3C, section 10.2)."""
    return _set_luma(under, top @ _LUMA)


def blend_function(name: str) -> Blend | None:
    """Returns the function of one of `BLEND_MODES`; None for "normal", which takes the paint as it is.

    Raises:
        ValueError: there is no such mode.

    Example:
        >>> blend_function("multiply") is multiply
        True
    """
    if name not in BLEND_MODES:
        raise ValueError(f"there is no blend mode {name!r}")
    functions: dict[str, Blend] = {
        function.__name__: function
        for function in (multiply, screen, overlay, soft_light, darken, lighten, add, color, luminosity)
    }
    return functions.get(name)


def _set_luma(rgb: Rgb, luma: Float[np.ndarray, "*pixels"]) -> Rgb:
    """Moves colors along gray to a luma, and then towards gray until every channel is within 0 and 1."""
    moved = rgb + (luma - rgb @ _LUMA)[..., None]
    gray, low, high = luma[..., None], moved.min(axis=-1, keepdims=True), moved.max(axis=-1, keepdims=True)
    shrink = np.where(low < 0, gray / np.maximum(gray - low, 1e-6), 1)
    shrink = np.minimum(shrink, np.where(high > 1, (1 - gray) / np.maximum(high - gray, 1e-6), 1))
    return (gray + (moved - gray) * shrink).astype(np.float32)

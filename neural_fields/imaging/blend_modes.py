"""Blend modes: how paint and the color under it are combined, before the paint's opacity.

The formulas are those of the W3C's "Compositing and Blending Level 1" (sections 10.1 and 10.2), which paint programs
share; "add" is its plus-lighter. Colors are display referred, in [0, 1], without alpha.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Rgb = Float[np.ndarray, "*pixels 3"]
Blend = Callable[[Rgb, Rgb], Rgb]  # paint, color under it: the blended color
_LUMA = np.array([0.3, 0.59, 0.11], np.float32)  # of the standard's non-separable modes


def multiply(top: Rgb, under: Rgb) -> Rgb:
    """Darkens: like a filter of that color."""
    return top * under


def screen(top: Rgb, under: Rgb) -> Rgb:
    """Lightens: like light projected onto it."""
    return top + under - top * under


def overlay(top: Rgb, under: Rgb) -> Rgb:
    """Multiplies where it is dark, screens where it is light."""
    return np.where(under <= 0.5, multiply(top, 2 * under), screen(top, 2 * under - 1))


def soft_light(top: Rgb, under: Rgb) -> Rgb:
    """Darkens or lightens gently, by the paint's own lightness."""
    root = np.where(under <= 0.25, ((16 * under - 12) * under + 4) * under, np.sqrt(np.maximum(under, 0)))
    dark = under - (1 - 2 * top) * under * (1 - under)
    light = under + (2 * top - 1) * (root - under)
    return np.where(top <= 0.5, dark, light)


def darken(top: Rgb, under: Rgb) -> Rgb:
    """Takes the darker of both, by channel."""
    return np.minimum(top, under)


def lighten(top: Rgb, under: Rgb) -> Rgb:
    """Takes the lighter of both, by channel."""
    return np.maximum(top, under)


def add(top: Rgb, under: Rgb) -> Rgb:
    """Adds both, up to white."""
    return np.minimum(top + under, 1)


def color(top: Rgb, under: Rgb) -> Rgb:
    """Recolors: hue and saturation of the paint, lightness of the color under it."""
    return _set_luma(top, under @ _LUMA)


def luminosity(top: Rgb, under: Rgb) -> Rgb:
    """Takes the lightness of the paint, hue and saturation of the color under it."""
    return _set_luma(under, top @ _LUMA)


def blend_function(name: str) -> Blend | None:
    """Returns the function of one of `BLEND_MODES`; None for "normal", which takes the paint as it is.

    Raises:
        ValueError: there is no such mode.
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


BLEND_MODES = (
    "normal",
    "multiply",
    "screen",
    "overlay",
    "soft_light",
    "darken",
    "lighten",
    "add",
    "color",
    "luminosity",
)

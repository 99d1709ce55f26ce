"""The names of the blend modes; `blend_modes.py` has their formulas."""

from __future__ import annotations

from typing import Literal, get_args

BlendMode = Literal[
    "normal", "multiply", "screen", "overlay", "soft_light", "darken", "lighten", "add", "color", "luminosity"
]
BLEND_MODES: tuple[BlendMode, ...] = get_args(BlendMode)

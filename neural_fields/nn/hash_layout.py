"""The shape of a hash grid and the offset of every level in its parameters, as in tiny-cuda-nn.

This module does not import torch, so that a config can be read and checked without it. D is the number of input axes, L
of levels, F of features of a level.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal

from neural_fields.core.errors import ExitCode, UserError

# Largest vertex count per axis whose power D still fits in 32 bits; finer levels are always hashed.
MAX_VERTICES = {2: 65535, 3: 1625, 4: 255}


@dataclass(frozen=True)
class HashGridConfig:
    """Sets the shape of a hash grid, in the terms of tiny-cuda-nn.

    Raises:
        UserError: a value out of range.
    """

    n_levels: int = 16
    """Number of grids, from coarse to fine (1 to 128)."""
    n_features: int = 2
    """Features stored at each vertex (1, 2, 4 or 8)."""
    log2_table: int = 19
    """Largest number of entries of a level, as a power of two (4 to 28)."""
    base_resolution: int = 16
    """Vertices per axis of the coarsest level."""
    growth: float = 2.0
    """Ratio of the resolutions of neighboring levels, at least 1."""
    interpolation: Literal["linear", "smoothstep"] = "linear"
    """Weights inside a cell; smoothstep has continuous derivatives."""

    def __post_init__(self) -> None:
        _require(1 <= self.n_levels <= 128, "n_levels", self.n_levels, "between 1 and 128")
        _require(self.n_features in (1, 2, 4, 8), "n_features", self.n_features, "1, 2, 4 or 8")
        _require(4 <= self.log2_table <= 28, "log2_table", self.log2_table, "between 4 and 28")
        _require(1 <= self.base_resolution <= 65535, "base_resolution", self.base_resolution, "between 1 and 65535")
        _require(1 <= self.growth <= 8, "growth", self.growth, "between 1 and 8")
        names = ("linear", "smoothstep")
        _require(self.interpolation in names, "interpolation", self.interpolation, " or ".join(names))


def _require(ok: bool, field: str, value: object, expected: str) -> None:
    """Refuses the value of a field."""
    if not ok:
        what = f"{field} is {value!r}, expected {expected}"
        raise UserError(ExitCode.USAGE, what, where=f"hash grid: {field}", fix=f"set {field} to a value {expected}")


@dataclass(frozen=True)
class HashLevel:
    """Describes a level of a hash grid: vertex (i, j, ...) is at (i - 0.5) / scale."""

    scale: float
    resolution: int
    entries: int
    offset: int
    dense: bool


def _round_to_float32(value: float) -> float:
    """Rounds `value` to the nearest float32."""
    return struct.unpack("f", struct.pack("f", value))[0]


def compute_level_table(config: HashGridConfig, in_dim: int) -> tuple[HashLevel, ...]:
    """Computes scale, vertices, entries and offset of every level, as tiny-cuda-nn does.

    Every step is rounded to float32: with float64, one configuration in six has another number of vertices on some
    level, and therefore other parameters.

    Args:
        config: shape of the grid.
        in_dim: number of coordinates, 2 to 4.

    Returns:
        The levels, coarsest first.

    Raises:
        UserError: another number of coordinates.

    Example:
        >>> levels = compute_level_table(HashGridConfig(n_levels=2, log2_table=8, base_resolution=8), 2)
        >>> [(level.resolution, level.entries, level.dense) for level in levels]
        [(8, 64, True), (16, 256, True)]
    """
    _require(in_dim in MAX_VERTICES, "in_dim", in_dim, "2, 3 or 4")
    log2_growth = _round_to_float32(math.log2(_round_to_float32(config.growth)))
    levels: list[HashLevel] = []
    offset = 0
    for index in range(config.n_levels):
        power = _round_to_float32(2.0 ** _round_to_float32(index * log2_growth))
        scale = _round_to_float32(_round_to_float32(power * config.base_resolution) - 1)
        resolution = math.ceil(scale) + 1
        padded = (min(resolution**in_dim, (2**32 - 1) // 2) + 7) // 8 * 8
        entries = min(padded, 2**config.log2_table)
        dense = resolution <= MAX_VERTICES[in_dim] and resolution**in_dim <= entries
        levels.append(HashLevel(scale, resolution, entries, offset, dense))
        offset += entries
    return tuple(levels)


def compute_growth(finest: int, base_resolution: int, n_levels: int) -> float:
    """Computes the ratio of the resolutions of neighboring levels.

    Args:
        finest: vertices of the last level along each axis.
        base_resolution: vertices of the first level along each axis.
        n_levels: number of levels.

    Returns:
        The ratio.

    Example:
        >>> compute_growth(64, 16, 3)
        2.0
    """
    return (finest / base_resolution) ** (1 / max(n_levels - 1, 1))


def find_fragile_levels(levels: tuple[HashLevel, ...]) -> tuple[int, ...]:
    """Finds dense levels whose scale is within 1e-3 of an integer, but is not an integer.

    tiny-cuda-nn recomputes the scale on the GPU with a faster exp2: there, such a level may have a vertex more or less.

    Args:
        levels: the levels of a hash grid.

    Returns:
        The numbers of these levels, 0 for the coarsest.
    """
    distance = [abs(level.scale - round(level.scale)) for level in levels]
    return tuple(i for i, level in enumerate(levels) if level.dense and 0 < distance[i] < 1e-3)

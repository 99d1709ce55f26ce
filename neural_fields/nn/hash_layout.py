"""The shape of a hash grid and the offset of every level in its parameters, as tiny-cuda-nn has them.

No torch here: a config can be read and checked without loading it. D is the number of input axes, L of levels, F of
features of a level.
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
    """Shape of a hash grid, in tiny-cuda-nn's terms."""

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
    """One grid of the pyramid: vertex (i, j, ...) sits at (i - 0.5) / scale."""

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

    Every step is rounded to float32: in float64 one configuration in six gets another number of vertices on some
    level, and with it other parameters.
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
    """Returns the growth that takes `base_resolution` vertices per axis on level 0 to `finest` on the last level."""
    return (finest / base_resolution) ** (1 / max(n_levels - 1, 1))


def find_fragile_levels(levels: tuple[HashLevel, ...]) -> tuple[int, ...]:
    """Returns dense levels whose scale lies within 1e-3 of an integer without being one.

    tiny-cuda-nn recomputes the scale on the GPU with a faster exp2: such a level may get one vertex more or less there.
    """
    distance = [abs(level.scale - round(level.scale)) for level in levels]
    return tuple(i for i, level in enumerate(levels) if level.dense and 0 < distance[i] < 1e-3)

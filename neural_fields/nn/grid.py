"""Dense multi-resolution grid for two or three coordinates: smooth, small and without hash collisions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.core.errors import ExitCode, UserError


@dataclass(frozen=True)
class DenseGridConfig:
    """Sets the shape of a dense grid."""

    n_levels: int = 4
    """Number of grids, from coarse to fine."""
    n_features: int = 2
    """Features stored at each vertex."""
    base_resolution: tuple[int, ...] = (8,)
    """Vertices of the coarsest level: one number for all axes, or one for each axis; at least 2."""
    growth: float = 2.0
    """Ratio of the resolutions of neighboring levels, at least 1."""

    def __post_init__(self) -> None:
        _require(self.n_levels >= 1, "n_levels", self.n_levels, "at least 1")
        _require(self.n_features >= 1, "n_features", self.n_features, "at least 1")
        _require(min(self.base_resolution, default=0) >= 2, "base_resolution", self.base_resolution, "at least 2")
        _require(self.growth >= 1, "growth", self.growth, "at least 1")


def _require(ok: bool, field: str, value: object, expected: str) -> None:
    """Refuses the value of a field."""
    if not ok:
        what = f"{field} is {value!r}, expected {expected}"
        raise UserError(ExitCode.USAGE, what, where=f"dense grid: {field}", fix=f"set {field} to {expected}")


def compute_level_resolutions(config: DenseGridConfig, in_dim: int) -> tuple[tuple[int, ...], ...]:
    """Computes the number of vertices of every level along each axis.

    Args:
        config: shape of the grid.
        in_dim: number of axes.

    Returns:
        The numbers of vertices of each level, coarsest first.

    Raises:
        UserError: another number of base resolutions than 1 or `in_dim`.

    Example:
        >>> compute_level_resolutions(DenseGridConfig(n_levels=3), 2)
        ((8, 8), (16, 16), (32, 32))
    """
    base = config.base_resolution
    _require(len(base) in (1, in_dim), "base_resolution", base, f"1 or {in_dim} numbers")
    base = base * in_dim if len(base) == 1 else base
    return tuple(tuple(round(side * config.growth**level) for side in base) for level in range(config.n_levels))


class DenseGrid(nn.Module):
    """Encodes points in [0, 1]^D (D = 2 or 3) as L*F features, coarsest level first.

    The first vertex of an axis is at 0 and the last at 1; features are linear between vertices and constant outside.
    First derivatives by x and by the parameters exist, second derivatives by x do not. State dict: `tables.<level>` of
    shape [1, F, (R2,) R1, R0], axis 0 of x last.

    Args:
        in_dim: number of coordinates, 2 or 3.
        config: shape of the grid.
        max_values: limit of the number of values of all levels.

    Raises:
        UserError: another number of coordinates, or too many values.

    Example:
        >>> DenseGrid(2, DenseGridConfig(n_levels=3, n_features=2))(torch.rand(5, 2)).shape
        torch.Size([5, 6])
    """

    def __init__(self, in_dim: int, config: DenseGridConfig | None = None, max_values: int = 2**28) -> None:
        super().__init__()
        self.config = config or DenseGridConfig()
        _require(in_dim in (2, 3), "in_dim", in_dim, "2 or 3")
        self.in_dim = in_dim
        self.out_dim = self.config.n_levels * self.config.n_features
        self.resolutions = compute_level_resolutions(self.config, in_dim)
        shapes = [(1, self.config.n_features, *reversed(sides)) for sides in self.resolutions]
        values = sum(torch.Size(shape).numel() for shape in shapes)
        _require(values <= max_values, "the number of values", values, f"at most {max_values}")
        start = [torch.empty(shape).uniform_(-1e-4, 1e-4) for shape in shapes]
        self.tables = nn.ParameterList(nn.Parameter(table) for table in start)

    def forward(
        self, x: Float[Tensor, "points in_dim"], level_weights: Float[Tensor, " levels"] | None = None
    ) -> Float[Tensor, "points out_dim"]:
        """Computes the features of points.

        Args:
            x: points in [0, 1]^D.
            level_weights: a factor on all features of each level, coarsest first.

        Returns:
            The features of each point.
        """
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise ValueError(f"expected points of shape [N, {self.in_dim}], got {list(x.shape)}")
        of_levels = []
        for table, sides in zip(self.tables, self.resolutions, strict=True):
            # Linear between vertices. Vertex i is the texel center i + 0.5, so that the outer vertices sit on 0 and 1
            # under the one sampling convention.
            count = x.new_tensor(sides)
            place = (x * (count - 1) + 0.5) / count * 2 - 1
            grid = place.to(table.dtype).view(1, len(x), *[1] * (len(sides) - 1), len(sides))
            found = F.grid_sample(table, grid, mode="bilinear", padding_mode="border", align_corners=False)
            of_levels.append(found.view(table.shape[1], len(x)).t())
        features = torch.cat(of_levels, dim=1)
        if level_weights is None:
            return features
        return features * level_weights.to(features).repeat_interleave(self.config.n_features)

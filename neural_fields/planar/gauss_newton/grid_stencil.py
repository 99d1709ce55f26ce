"""Normal equations of tables that are interpolated bilinearly: every knot meets its eight neighbors.

A pixel lies between four knots, so the matrix of a least-squares problem has nine numbers a knot. It is symmetric: five
are kept, those of the knot itself and of its neighbors to the east, south, south-east and south-west.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.planar.init.frame_patch import FramePatch

OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1), (1, -1))  # (down, across): self, east, south, south-east, south-west


@lru_cache(maxsize=32)
def interpolation_matrix(cells: int, pixels: int) -> Float[Tensor, "pixels cells"]:
    """Returns the matrix that brings `cells` values to `pixels` values as `F.interpolate` does."""
    eye = torch.eye(cells)[None]
    return F.interpolate(eye, pixels, mode="linear", align_corners=False)[0].T.contiguous()


@dataclass(frozen=True)
class GridInterpolation:
    """Interpolates tables of one size to a rectangle of a frame, and collects normal equations of them.

    Attributes:
        down: weight of each row of the table in each row of pixels.
        across: weight of each column of the table in each column of pixels.
        down_pairs: `down` times itself, and times the next row of the table.
        across_pairs: `across` times the column of the table to the west, itself, and the one to the east.
    """

    down: Float[Tensor, "height rows"]
    across: Float[Tensor, "width columns"]
    down_pairs: Float[Tensor, "2 rows height"]
    across_pairs: Float[Tensor, "3 width columns"]

    @staticmethod
    def between(down: Float[Tensor, "height rows"], across: Float[Tensor, "width columns"]) -> GridInterpolation:
        """Computes the products that the normal equations need from the weights of both axes."""
        next_row = F.pad(down[:, 1:], (0, 1))
        west, east = F.pad(across[:, :-1], (1, 0)), F.pad(across[:, 1:], (0, 1))
        pairs = torch.stack([down * down, down * next_row]).transpose(1, 2).contiguous()
        return GridInterpolation(
            down, across, pairs, torch.stack([across * west, across * across, across * east]).contiguous()
        )

    @staticmethod
    def between_sizes(
        grid: tuple[int, int], size: tuple[int, int], device: torch.device | None = None
    ) -> GridInterpolation:
        """Computes the interpolation from tables to frames.

        Args:
            grid: rows and columns of the tables.
            size: (width, height) of the frames.
            device: of the weights; None for the CPU.
        """
        down, across = interpolation_matrix(grid[0], size[1]), interpolation_matrix(grid[1], size[0])
        return GridInterpolation.between(down.to(device), across.to(device))

    def crop(self, patch: FramePatch) -> GridInterpolation:
        """Returns the interpolation to a rectangle of the frame."""
        if (patch.bottom - patch.top, patch.right - patch.left) == (len(self.down), len(self.across)):
            return self
        rows, columns = patch.slices
        return GridInterpolation(
            self.down[rows], self.across[columns], self.down_pairs[:, :, rows], self.across_pairs[:, columns]
        )

    def interpolate(self, table: Float[Tensor, "channel rows columns"]) -> Float[Tensor, "channel height width"]:
        """Interpolates the values of a table at the pixels."""
        return (self.down @ table) @ self.across.T

    def collect_vector(self, values: Float[Tensor, "channel height width"]) -> Float[Tensor, "channel rows columns"]:
        """Adds up values of pixels in the knots, by the weights of the knots: the transpose of `interpolate`."""
        return (self.down.T @ values) @ self.across

    def collect_matrix(self, values: Float[Tensor, "channel height width"]) -> Float[Tensor, "5 channel rows columns"]:
        """Adds up values of pixels in pairs of knots: the matrix A^T diag(values) A, where A interpolates."""
        same, below = (pair @ values for pair in self.down_pairs)
        west, center, east = self.across_pairs
        return torch.stack([same @ center, same @ east, below @ center, below @ east, below @ west])


def multiply_stencil(
    stencil: Float[Tensor, "5 *batch rows columns"], values: Float[Tensor, "*batch rows columns"]
) -> Float[Tensor, "*batch rows columns"]:
    """Multiplies a symmetric nine-point matrix with a vector of values at its knots; no gradients flow through it."""
    if values.dtype == torch.float32 and values.device.type == "cpu" and can_compile_loops():
        from neural_fields.planar.gauss_newton.solver_kernels import multiply_knots  # numba takes a second

        shape = (-1, *values.shape[-2:])
        result = torch.empty(values.shape)
        multiply_knots(stencil.reshape(5, *shape).numpy(), values.reshape(shape).numpy(), result.view(shape).numpy())
        return result
    rows, columns = values.shape[-2:]
    result = stencil[0] * values
    for coupling, (down, across) in zip(stencil[1:], OFFSETS[1:], strict=True):
        first = (..., slice(0, rows - down), slice(max(0, -across), columns - max(0, across)))
        second = (..., slice(down, rows), slice(max(0, across), columns - max(0, -across)))
        result[first] += coupling[first] * values[second]
        result[second] += coupling[first] * values[first]
    return result


def add_smoothness(
    stencil: Float[Tensor, "5 *batch rows columns"],
    right: Float[Tensor, "*batch rows columns"],
    away: Float[Tensor, "*batch rows columns"],
    step_weight: float,
    size_weight: float,
) -> None:
    """Adds squared steps between neighboring knots, and squared sizes, to normal equations, in place.

    Args:
        stencil: the matrix.
        right: its right-hand side.
        away: the present values, as their distance from the values at rest.
        step_weight: of a squared difference between neighbors.
        size_weight: of a squared value.
    """
    stencil[0] += size_weight
    right -= size_weight * away
    for number, axis in ((1, -1), (2, -2)):
        length = away.shape[axis] - 1
        step = step_weight * away.diff(dim=axis)
        right.narrow(axis, 0, length).add_(step)
        right.narrow(axis, 1, length).sub_(step)
        stencil[0].narrow(axis, 0, length).add_(step_weight)
        stencil[0].narrow(axis, 1, length).add_(step_weight)
        stencil[number].narrow(axis, 0, length).sub_(step_weight)


def solve_scalars(
    stencil: Float[Tensor, "5 batch channel rows columns"],
    right: Float[Tensor, "batch channel rows columns"],
    iterations: int,
) -> Float[Tensor, "batch channel rows columns"]:
    """Solves for one number a knot and channel, by conjugate gradients with the diagonal as preconditioner.

    Args:
        stencil: the matrix of each channel.
        right: the right-hand side.
        iterations: of conjugate gradients.
    """
    inverse = 1 / (stencil[0] + 1e-12)
    return _solve(lambda x: multiply_stencil(stencil, x), lambda r: inverse * r, right, iterations, (-2, -1))


def solve_vectors(
    stencil: Float[Tensor, "5 batch 3 rows columns"], right: Float[Tensor, "batch 2 rows columns"], iterations: int
) -> Float[Tensor, "batch 2 rows columns"]:
    """Solves for two numbers a knot, by conjugate gradients with blocks of 2 x 2 as preconditioner.

    Args:
        stencil: the matrix of xx, xy and yy.
        right: the right-hand sides of x and y.
        iterations: of conjugate gradients.
    """
    matrix = stencil[:, :, [0, 1, 1, 2]]  # xx, xy, xy, yy
    xx, xy, _, yy = matrix[0].unbind(1)
    inverse = torch.stack([yy, -xy, -xy, xx], 1) / (xx * yy - xy * xy + 1e-12)[:, None]

    def multiply(values: Tensor) -> Tensor:
        return multiply_stencil(matrix, values.repeat(1, 2, 1, 1)).unflatten(1, (2, 2)).sum(2)

    def precondition(rest: Tensor) -> Tensor:
        return (inverse * rest.repeat(1, 2, 1, 1)).unflatten(1, (2, 2)).sum(2)

    return _solve(multiply, precondition, right, iterations, (-3, -2, -1))


def _solve(multiply, precondition, right, iterations, axes):
    """Runs preconditioned conjugate gradients from zero; systems that share no axis are solved side by side."""
    solution, rest = torch.zeros_like(right), right.clone()
    direction = precondition(rest)
    energy = (rest * direction).sum(axes, keepdim=True)
    for _ in range(iterations):
        image = multiply(direction)
        length = energy / ((direction * image).sum(axes, keepdim=True) + 1e-20)
        solution += length * direction
        rest -= length * image
        conditioned = precondition(rest)
        before, energy = energy, (rest * conditioned).sum(axes, keepdim=True)
        direction = conditioned + energy / (before + 1e-20) * direction
    return solution

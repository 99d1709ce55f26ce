"""A small picture of values for each frame, interpolated at any point: the model's explicit parts are made of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.core import coords


class FrameTable(nn.Module):
    """Values [T, C, h, w] that span the frame; linear between cells and between frames, constant beyond the edge.

    Args:
        values: the start values.
        size: (width, height) of the frames in pixels; only the aspect matters.
        learning_rate: step of the optimizer, in the unit of the values.
    """

    def __init__(
        self, values: Float[Tensor, "time channel rows columns"], size: tuple[int, int], learning_rate: float
    ) -> None:
        super().__init__()
        self.shape = tuple(values.shape)
        self.flat = nn.Parameter(values.flatten(1).clone())  # a row per frame: sparse gradients need the table flat
        self.learning_rate = learning_rate
        box = coords.frame_box(*size)
        self.extent = (box.u1, box.v1)

    @property
    def values(self) -> Float[Tensor, "time channel rows columns"]:
        """The table, as a view of the parameter."""
        return self.flat.view(self.shape)

    def frame_rows(self, frames: Int[Tensor, " frames"]) -> Float[Tensor, "frames channel rows columns"]:
        """Returns the values of some frames. Their gradient is sparse: a step changes only its frames."""
        return F.embedding(frames, self.flat, sparse=self.training).view(len(frames), *self.shape[1:])

    def sample_frames(
        self, frames: Int[Tensor, " frames"], size: tuple[int, int]
    ) -> Float[Tensor, "frames channel height width"]:
        """Returns the values at every pixel center of some frames of `size` (width, height)."""
        if not self.shape[1]:  # a single layer has no opacities; torch refuses pictures without channels
            return self.flat.new_zeros(len(frames), 0, size[1], size[0])
        if tuple(self.shape[2:]) == (size[1], size[0]):
            return self.frame_rows(frames)
        return F.interpolate(self.frame_rows(frames), (size[1], size[0]), mode="bilinear", align_corners=False)

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n channel"]:
        """Returns the values at any points."""
        if not self.shape[1]:
            return self.flat.new_zeros(len(xyt), 0)
        grid = xyt / xyt.new_tensor([*self.extent, 1.0])
        volume = self.values.transpose(0, 1)[None]  # [1, C, T, h, w]
        found = F.grid_sample(volume, grid[None, :, None, None], padding_mode="border", align_corners=False)
        return found[0, :, :, 0, 0].T

    def param_groups(self) -> list[dict]:
        """Returns the trained parameter with its learning rate, for the optimizer."""
        return [{"params": [self.flat], "lr": self.learning_rate, "sparse": True}]


def compute_table_size(
    size: tuple[int, int], cell: float, frame_count: int = 1, max_cells: float = 1.6e6
) -> tuple[int, int]:
    """Returns (columns, rows) of a table with about one cell every `cell` pixels, at least 2 x 2.

    Args:
        size: (width, height) of the frames in pixels.
        cell: wanted distance of cells in pixels.
        frame_count: of the clip.
        max_cells: of all frames together, about; very long clips get larger cells.
    """
    cell *= max(1.0, frame_count * size[0] * size[1] / cell**2 / max_cells) ** 0.5
    return (max(2, round(size[0] / cell) + 1), max(2, round(size[1] / cell) + 1))


def mean_squared_steps(values: Float[Tensor, "frames channel rows columns"]) -> Float[Tensor, ""]:
    """Computes the mean squared difference between neighboring cells, both axes added."""
    across = (values[..., 1:] - values[..., :-1]).square().mean()
    return across + (values[..., 1:, :] - values[..., :-1, :]).square().mean()


def accumulate_squared_steps(
    values: Float[Tensor, "frames channel rows columns"],
    weight: float,
    gradient: Float[Tensor, "frames channel rows columns"],
) -> Float[Tensor, ""]:
    """Computes `weight` times `mean_squared_steps`; its gradient is added to `gradient`.

    Args:
        values: of a table.
        weight: of the result.
        gradient: changed in place.
    """
    total = values.new_zeros(())
    for axis in (2, 3):
        length = values.shape[axis] - 1
        step = values.narrow(axis, 1, length) - values.narrow(axis, 0, length)
        scale = weight / step.numel()
        total = total + scale * torch.dot(step.reshape(-1), step.reshape(-1))
        step *= 2 * scale
        gradient.narrow(axis, 1, length).add_(step)
        gradient.narrow(axis, 0, length).sub_(step)
    return total


def make_zero_table(frame_count: int, channels: int, size: tuple[int, int], cell: float) -> Tensor:
    """Returns zeros for the cells of `frame_count` frames.

    Args:
        frame_count: of the clip.
        channels: of a cell.
        size: (width, height) of the frames in pixels.
        cell: wanted distance of cells in pixels.
    """
    columns, rows = compute_table_size(size, cell, frame_count)
    return torch.zeros(frame_count, channels, rows, columns)

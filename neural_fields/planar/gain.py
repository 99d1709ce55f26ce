"""Gain: smooth multiplicative lighting on top of a layer's texture."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields import config
from neural_fields.planar.frame_table import FrameTable, squared_steps, zeros_table


class GridGain(nn.Module):
    """exp of a coarse grid over (x, y, t), one factor per colour channel; 1 at the start."""

    def __init__(self, settings: config.GridGain, frame_count: int, size: tuple[int, int]) -> None:
        super().__init__()
        table = zeros_table(frame_count, 3, size, settings.cell)
        self.table = FrameTable(table, size, settings.learning_rate)

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Gains at any points."""
        return torch.exp(self.table(xyt))

    def frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width 3"]:
        """Gains at every pixel of whole frames."""
        return torch.exp(self.table.frames(frames, size).permute(0, 2, 3, 1))

    def size_and_steps(self, frames: Int[Tensor, " frames"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean square of the logarithm of the gain, and of its differences between neighbouring cells."""
        rows = self.table.rows(frames)
        return rows.square().mean(), squared_steps(rows)

    def param_groups(self) -> list[dict]:
        return self.table.param_groups()

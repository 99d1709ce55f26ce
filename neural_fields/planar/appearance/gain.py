"""Gains: multiplicative shading on top of a layer's texture, a factor for each color channel."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config import planar
from neural_fields.planar.mappings.frame_grid import FrameTable, make_zero_table, mean_squared_steps


class Gain(nn.Module):
    """The shading of one layer at points of the video: a factor for each color channel."""

    on_canonical = False  # a function of uv, with as much detail as a texture

    @abstractmethod
    def forward(self, xyt: Float[Tensor, "n 3"], uv: Float[Tensor, "n 2"] | None = None) -> Float[Tensor, "n 3"]:
        """Returns the gains at any points; a gain `on_canonical` needs their `uv`."""

    @abstractmethod
    def sample_frames(
        self,
        frames: Int[Tensor, " frames"],
        frame_count: int,
        size: tuple[int, int],
        uv: Float[Tensor, "frames height width 2"] | None = None,
    ) -> Float[Tensor, "frames height width 3"]:
        """Returns the gains at every pixel of whole frames.

        Args:
            frames: numbers of frames.
            frame_count: of the clip.
            size: (width, height) in pixels, that of the training or another one.
            uv: of the pixels, which a gain `on_canonical` needs.
        """

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns what the optimizer changes, with learning rates."""


class GridGain(Gain):
    """exp of a coarse grid over (x, y, t); 1 at the start.

    Args:
        settings: cell size and learning rate.
        frame_count: of the clip.
        size: (width, height) of the frames in pixels.
    """

    def __init__(self, settings: planar.GridGainConfig, frame_count: int, size: tuple[int, int]) -> None:
        super().__init__()
        table = make_zero_table(frame_count, 3, size, settings.cell)
        self.table = FrameTable(table, size, settings.learning_rate)

    def forward(self, xyt: Float[Tensor, "n 3"], uv: Float[Tensor, "n 2"] | None = None) -> Float[Tensor, "n 3"]:
        """Returns exp of the grid, interpolated at any points; `uv` is not read."""
        return torch.exp(self.table(xyt))

    def sample_frames(
        self,
        frames: Int[Tensor, " frames"],
        frame_count: int,
        size: tuple[int, int],
        uv: Float[Tensor, "frames height width 2"] | None = None,
    ) -> Float[Tensor, "frames height width 3"]:
        """See `Gain.sample_frames`; `uv` is not read."""
        return torch.exp(self.table.sample_frames(frames, size).permute(0, 2, 3, 1))

    def compute_size_and_steps(self, frames: Int[Tensor, " frames"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Computes the mean square of the logarithm of the gain, and of its differences between neighboring cells."""
        rows = self.table.frame_rows(frames)
        return rows.square().mean(), mean_squared_steps(rows)

    def param_groups(self) -> list[dict]:
        """Returns the grid with its learning rate."""
        return self.table.param_groups()

"""Opacities, the alphas of the front layers at points of the video: the base of all kinds.

The alpha of a layer ignores the layers in front of it. A kind is one file of this folder, with its settings and its
module, and is listed in `kinds.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import frame_points


@dataclass(frozen=True)
class OpacityConfig(ABC):
    """Holds the settings of a kind of opacity."""

    kind: ClassVar[str]

    @abstractmethod
    def build(self, shape: ModelShape) -> Opacity:
        """Builds the opacity of all front layers."""

    def divide_clip(self, shape: ModelShape) -> Sequence[tuple[int, int]]:
        """Returns the first and the last frame of each layer: those of the clip, unless layers are charts."""
        return [(0, shape.frame_count - 1)] * len(shape.layers)


class Opacity(nn.Module):
    """Computes the alphas of the front layers, front to back, in [0, 1]; each ignores the layers in front of it."""

    skips_hidden: ClassVar[bool] = (
        False  # a weight of 0 stays 0 for good: the colors of the layer are not computed there
    )

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The first and the last frame of each layer, where layers are charts of the same object; otherwise empty."""
        return ()

    @abstractmethod
    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Computes the alphas at any points.

        Args:
            xyt: x and y in xy units, t in (-1, 1).

        Returns:
            An alpha in [0, 1] for each front layer, front to back.
        """

    def sample_frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width front"]:
        """Computes the alphas at every pixel of whole frames.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.

        Returns:
            An alpha in [0, 1] for each front layer, front to back.
        """
        points = frame_points(frames, frame_count, size)
        return self(points).view(len(frames), size[1], size[0], -1)

    def initialize(self, clip: ClipDataset, report: ProgressReporter = report_nothing) -> None:
        """Initializes the opacity in place from the masks of a clip; by default it does nothing.

        Args:
            clip: its masks.
            report: called after each frame, as the stage "textures".
        """

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns the trained parameters in groups with their learning rates, for the optimizer."""


def compute_layer_weights(alphas: Float[Tensor, "*n front"]) -> Float[Tensor, "*n layers"]:
    """Computes the weights of all layers: the alpha of each layer times the light that passes the layers in front.

    Args:
        alphas: of the front layers, front to back, in [0, 1].

    Returns:
        The weights, front to back, the background last; they sum to one.

    Example:
        >>> compute_layer_weights(torch.tensor([[0.5, 0.5]])).tolist()
        [[0.5, 0.25, 0.25]]
    """
    left, weights = alphas.new_ones(alphas.shape[:-1]), []
    for alpha in alphas.unbind(-1):
        weights.append(alpha * left)
        left = left * (1 - alpha)
    return torch.stack([*weights, left]).movedim(0, -1)  # planes in memory, as everything that is multiplied with them

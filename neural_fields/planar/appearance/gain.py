"""Gains, multiplicative shading on top of a layer's texture: the base of all kinds.

A kind is one file of this folder, with its settings and its module, and is listed in `kinds.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.appearance.texture import Texture
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.mapping import Mapping, PointFunction


@dataclass(frozen=True)
class GainConfig(ABC):
    """Holds the settings of a kind of gain."""

    kind: ClassVar[str]

    @abstractmethod
    def build(self, shape: ModelShape) -> Sequence[Gain]:
        """Builds the gains of all layers, front to back.

        Args:
            shape: sizes of the model.

        Returns:
            A gain for each layer; none for models without gain.
        """


@dataclass(frozen=True)
class NoGainConfig(GainConfig, PointFunction):
    """Leaves out the gain: the color of the texture is the color of the layer."""

    kind: ClassVar[str] = "none"

    def build(self, shape: ModelShape) -> list[Gain]:
        """See `GainConfig.build`."""
        return []


class Gain(nn.Module):
    """Computes the shading of a layer at points of the video: a factor for each color channel."""

    on_canonical: ClassVar[bool] = False  # a function of uv, with as much detail as a texture

    @abstractmethod
    def forward(self, xyt: Float[Tensor, "n 3"], uv: Float[Tensor, "n 2"] | None = None) -> Float[Tensor, "n 3"]:
        """Computes the gains at any points.

        Args:
            xyt: x and y in xy units, t in (-1, 1).
            uv: their canonical positions, which a gain `on_canonical` needs.

        Returns:
            A factor above 0 for each channel.
        """

    @abstractmethod
    def sample_frames(
        self,
        frames: Int[Tensor, " frames"],
        frame_count: int,
        size: tuple[int, int],
        uv: Float[Tensor, "frames height width 2"] | None = None,
    ) -> Float[Tensor, "frames height width 3"]:
        """Computes the gains at every pixel of whole frames.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.
            uv: canonical positions of the pixels, which a gain `on_canonical` needs.

        Returns:
            A factor above 0 for each channel.
        """

    def initialize(
        self,
        layer: int,
        clip: ClipDataset,
        mapping: Mapping,
        texture: Texture,
        report: ProgressReporter = report_nothing,
    ) -> None:
        """Initializes the gain in place before the first step; by default it does nothing.

        Args:
            layer: number of the layer, front to back.
            clip: frames and masks.
            mapping: of the same layer, already initialized.
            texture: of the same layer, already initialized.
            report: called after each frame, as the stage "textures".
        """

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns the trained parameters in groups with their learning rates, for the optimizer."""

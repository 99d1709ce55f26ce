"""Textures, the colors of the canonical plane of a layer, (u, v) -> rgb: the base of all kinds.

A kind is one file of this folder, with its settings and its module, and is listed in `kinds.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.core.box import Box
from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.mapping import Mapping, MappingConfig

DEFAULT_MARGIN = 0.3  # share of the frame by which a canonical box reaches beyond each side, as in CoDeF
DEFAULT_MEGATEXELS = 16.0  # of a canonical picture, at most


@dataclass(frozen=True)
class TextureConfig(ABC):
    """Holds the settings of a kind of texture."""

    kind: ClassVar[str]
    mappings: ClassVar[tuple[type, ...]] = (MappingConfig,)  # the kinds of mappings that it works with

    @property
    def frame_margin(self) -> float:
        """Share of the frame by which a box that is planned without geometry extends beyond each side."""
        return DEFAULT_MARGIN

    @abstractmethod
    def build(self, shape: ModelShape) -> Sequence[Texture]:
        """Builds the textures of all layers, front to back.

        Args:
            shape: sizes of the model.

        Returns:
            A texture for each layer.
        """

    def plan_image(self, box: Box, finer: float, size: tuple[int, int]) -> tuple[Box, int, int]:
        """Plans the canonical picture of a layer.

        Args:
            box: the part of the canonical plane that is used, in uv units.
            finer: number of texels per pixel of the frame that are needed.
            size: (width, height) of the frames in pixels.

        Returns:
            The box that the image covers in uv units, its width and its height in texels.
        """
        return (box, *compute_export_size(box))


class Texture(nn.Module):
    """Computes the colors of a layer's canonical plane."""

    # Whether the canonical picture has no box of its own, and is exported where the frames show it after the training.
    is_unbounded: ClassVar[bool] = False
    # Whether its box is the one that the start of the mapping gives (`Mapping.measure_box`), where it gives one.
    takes_started_box: ClassVar[bool] = False

    @abstractmethod
    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Computes the RGB at any points.

        Args:
            uv: canonical positions in uv units.

        Returns:
            The colors; [0, 1] is the displayable range.
        """

    def sample_filtered(self, uv: Float[Tensor, "*n 2"], step: Float[Tensor, "m 2"] | None) -> Float[Tensor, "*n 3"]:
        """Computes the RGB of pixels whose uv are `step` apart.

        Args:
            uv: canonical positions of the pixels in uv units.
            step: distance of neighboring pixels along u and v, one for each entry of the first axis of `uv`; None where
                it is unknown.

        Returns:
            The colors; [0, 1] is the displayable range.
        """
        return self(uv)

    def initialize(
        self, layer: int, clip: ClipDataset, mapping: Mapping, report: ProgressReporter = report_nothing
    ) -> None:
        """Initializes the texture in place before the first step; by default it does nothing.

        Args:
            layer: number of the layer, front to back.
            clip: frames and masks.
            mapping: of the same layer, already initialized.
            report: called after each frame, as the stage "textures".
        """

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns the trained parameters in groups with their learning rates, for the optimizer."""


def compute_image_size(
    box: Box, finer: float, size: tuple[int, int], density: float = 1.0, max_megatexels: float = DEFAULT_MEGATEXELS
) -> tuple[int, int]:
    """Computes the size of a canonical picture that is as fine as the frames.

    Args:
        box: the rectangle that it covers, in uv units.
        finer: texels per pixel of the frame, before `density`.
        size: (width, height) of the frames in pixels.
        density: factor on the texels per pixel.
        max_megatexels: limit of the image in millions of texels; a larger image gets coarser.

    Returns:
        (width, height) in texels.

    Example:
        >>> compute_image_size(Box(-1.0, -0.5, 1.0, 0.5), 1.0, (640, 320))
        (640, 320)
    """
    per_unit = density * finer * max(size) / 2
    limit = max_megatexels * 1e6
    per_unit *= min(1.0, limit / (box.width * box.height * per_unit**2)) ** 0.5
    return max(2, round(box.width * per_unit)), max(2, round(box.height * per_unit))


def compute_export_size(box: Box) -> tuple[int, int]:
    """Computes the (width, height) in texels of the exported image of a box whose colors come from a network.

    Example:
        >>> compute_export_size(Box(-1.0, -0.5, 1.0, 0.5))
        (1000, 500)
    """
    longer_side = 1000  # texels, as Layered Neural Atlases exports its atlases
    density = longer_side / max(box.width, box.height)
    return (max(2, round(box.width * density)), max(2, round(box.height * density)))

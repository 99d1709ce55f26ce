"""Losses on the tables of the default preset: grid mapping, image texture and grid gain.

Lengths are pixels of the training size, so that portrait and landscape clips are treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.appearance.gain import NoGainConfig
from neural_fields.planar.appearance.grid_gain import GridGain, GridGainConfig
from neural_fields.planar.appearance.image_texture import ImageTexture, ImageTextureConfig
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.losses.loss import Loss, LossInputs, LossWeightGroup
from neural_fields.planar.mappings.grid import GridMapping, GridMappingConfig


@dataclass(frozen=True)
class TableWeights(LossWeightGroup):
    """Holds the weights of the losses on tables."""

    residual_smoothness: float = 0.0  # squared differences of the residual grid in pixels
    residual_anchor: float = 0.0  # squared distance of the residual grid from its start in pixels
    texture_smoothness: float = 0.0  # squared differences of neighboring texels
    gain_size: float = 0.0  # squared logarithm of the gain
    gain_smoothness: float = 0.0  # squared differences of the logarithm of the gain


def texture_smoothness_loss(model: PlanarModel) -> Float[Tensor, ""]:
    """Computes squared differences of adjacent texels; layers are added. Texels between pixels follow their neighbors.

    Args:
        model: its textures are of kind `image`.
    """
    textures = cast("Sequence[ImageTexture]", model.textures)
    return torch.stack([texture.compute_roughness() for texture in textures]).sum()


def residual_anchor_loss(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Computes the mean squared distance, in pixels, of the residual grids from their initial state; layers are added.

    Args:
        model: its mappings are of kind `grid`.
        batch: the frames of the step.
    """
    frames = batch.frames.to(model.device)
    mappings = cast("Sequence[GridMapping]", model.mappings)
    return torch.stack([mapping.residual_anchor(frames) for mapping in mappings]).sum()


def residual_smoothness_loss(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Computes squared differences of neighboring shifts of the residual grids, in pixels; layers are added.

    Args:
        model: its mappings are of kind `grid`.
        batch: the frames of the step.
    """
    frames = batch.frames.to(model.device)
    mappings = cast("Sequence[GridMapping]", model.mappings)
    return torch.stack([mapping.residual_smoothness(frames) for mapping in mappings]).sum()


def gain_size_and_steps_losses(model: PlanarModel, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Computes the squares of the gains' logarithms, and of their differences between neighbors; layers are added.

    Args:
        model: its gains are of kind `grid`.
        batch: the frames of the step.

    Returns:
        The loss on the size of the gain, and the loss on its smoothness.
    """
    frames = batch.frames.to(model.device)
    gains = cast("Sequence[GridGain]", model.gains)
    parts = [gain.compute_size_and_steps(frames) for gain in gains]
    size, steps = (torch.stack(values).sum() for values in zip(*parts, strict=True))
    return size, steps


def _gain_losses(at: LossInputs) -> tuple[Tensor, ...]:
    """Returns both losses on gains; they share one lookup, so that its gradient is added once."""
    if "gain" not in at.shared:
        at.shared["gain"] = gain_size_and_steps_losses(at.model, at.batch)
    return at.shared["gain"]


RESIDUAL_SMOOTHNESS = Loss(
    "residual_smoothness", lambda at: residual_smoothness_loss(at.model, at.batch), mapping=(GridMappingConfig,)
)
RESIDUAL_ANCHOR = Loss(
    "residual_anchor", lambda at: residual_anchor_loss(at.model, at.batch), mapping=(GridMappingConfig,)
)
TEXTURE_SMOOTHNESS = Loss(
    "texture_smoothness", lambda at: texture_smoothness_loss(at.model), texture=(ImageTextureConfig,)
)
GAIN_SIZE = Loss("gain_size", lambda at: _gain_losses(at)[0], gains=True, gain=(GridGainConfig, NoGainConfig))
GAIN_SMOOTHNESS = Loss(
    "gain_smoothness", lambda at: _gain_losses(at)[1], gains=True, gain=(GridGainConfig, NoGainConfig)
)

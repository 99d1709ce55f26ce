"""Builds a planar model of a config's parts, untrained."""

from __future__ import annotations

import torch

from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.model_shape import ModelShape


def build_model(config: PlanarConfig, shape: ModelShape, seed: int = 0) -> PlanarModel:
    """Builds an untrained model of the config's composition; the same seed gives the same weights.

    Args:
        config: the composition of the model.
        shape: the sizes, from `plan_model` or from a checkpoint.
        seed: of the random weights, which are drawn in this order of the parts.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mappings = config.mapping.build(shape, config.opacity.divide_clip(shape))
        textures = config.texture.build(shape)
        opacity = config.opacity.build(shape)
        gains = config.gain.build(shape)
    return PlanarModel(shape, mappings, textures, gains, opacity, config.terms)

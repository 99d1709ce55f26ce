"""The objective of training: the weighted losses of a planar model, and their gradients.

Losses depend on the model, and the model does not depend on losses: this module is above both.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples
from neural_fields.planar.losses.flow_matches import find_flow_matches
from neural_fields.planar.losses.loss import LossInputs
from neural_fields.planar.losses.table import LOSSES, LossWeights


def accumulate_gradients(model: PlanarModel, batch: Batch, step: int) -> dict[str, Float[Tensor, ""]]:
    """Computes the gradients of a step by autograd; it adds none when a loss is not finite.

    Args:
        model: in training mode.
        batch: whole frames or random pixels.
        step: of the training, from 0; losses can begin and end at a step.

    Returns:
        The weighted losses by name.
    """
    losses = compute_losses(model, batch, sample_batch(model, batch), step)
    total = torch.stack(list(losses.values())).sum()
    if torch.isfinite(total):
        total.backward()
    return {name: value.detach() for name, value in losses.items()}


def sample_batch(model: PlanarModel, batch: Batch) -> LayerSamples:
    """Returns the layers of a model at the points of a training batch, by the fastest way."""
    if batch.pixel_index is None:
        return model.sample_frames(batch.frames, batch.clip.size)
    return model(batch.xyt.to(model.device))


def compute_losses(model: PlanarModel, batch: Batch, samples: LayerSamples, step: int) -> dict[str, Float[Tensor, ""]]:
    """Computes the losses that are active at `step`, times their weights; training minimizes their sum.

    Args:
        model: its `weights` say which losses are computed.
        batch: points of the clip.
        samples: of the model at the batch's points.
        step: of the training, from 0.

    Returns:
        The weighted losses by name, in the order of the table.
    """
    weights: LossWeights = model.weights
    held = samples
    if step < weights.opacity_from:
        held = replace(samples, weight=samples.weight.detach())
    matches = find_flow_matches(batch) if weights.uses_flow else []
    inputs = LossInputs(model, weights, batch, samples, held, matches)
    active = [loss for loss in LOSSES if loss.is_active(inputs, step)]
    return {loss.name: loss.weigh(weights) * loss.compute(inputs) for loss in active}

"""What training minimizes: the weighted losses of a planar model, and their gradients.

Losses look at a model, never the other way round: this module is above the model and above every loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.losses import analytic_step, deformable_sprites, hashing_nvd, pairwise, planar_losses
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.samples import LayerSamples


def accumulate_gradients(model: PlanarModel, batch: Batch, step: int) -> dict[str, Float[Tensor, ""]]:
    """Leaves the gradients of a step in the model's parameters, by the fastest way; returns the weighted losses.

    Args:
        model: in training mode.
        batch: whole frames or random pixels.
        step: of the training, from 0; losses can begin and end at a step.
    """
    if batch.pixel_index is None and analytic_step.supports_model(model):
        return analytic_step.accumulate_table_gradients(model, batch)
    return accumulate_by_autograd(model, batch, step)


def accumulate_by_autograd(model: PlanarModel, batch: Batch, step: int) -> dict[str, Float[Tensor, ""]]:
    """Does what `accumulate_gradients` does, for every model; no gradients are left when a loss is not finite."""
    losses = compute_losses(model, batch, model.sample_batch(batch), step)
    total = torch.stack(list(losses.values())).sum()
    if torch.isfinite(total):
        total.backward()
    return {name: value.detach() for name, value in losses.items()}


def compute_losses(model: PlanarModel, batch: Batch, samples: LayerSamples, step: int) -> dict[str, Float[Tensor, ""]]:
    """Returns the losses of the model's config that are active at `step`, times their weights; their sum is minimized.

    Args:
        model: its `weights` say which losses are active.
        batch: points of the clip.
        samples: of the model at the batch's points.
        step: of the training, from 0.
    """
    weights = model.weights
    has_front = len(model.layers) > 1
    needs_flow = weights.flow or weights.alpha_flow or weights.flow_l1
    matches = pairwise.find_flow_matches(batch) if needs_flow else []
    wide = weights.global_rigidity if _is_before(step, weights.global_rigidity_until) else ()
    held = samples  # as the losses see it that leave the opacity alone for the first steps
    if step < weights.opacity_from:
        held = replace(samples, weight=samples.weight.detach())
    mask = weights.mask * has_front * _is_before(step, weights.mask_until)
    alpha_flow = weights.alpha_flow * has_front * bool(matches)
    candidates: list[tuple[str, float, Callable[[], Tensor]]] = [
        ("color", weights.color, lambda: planar_losses.color_loss(held, batch)),
        ("composite_l1", weights.composite_l1, lambda: deformable_sprites.composite_l1_loss(held, batch)),
        ("laplacian", weights.laplacian, lambda: deformable_sprites.laplacian_loss(held, batch)),
        ("contrast", weights.contrast * has_front, lambda: deformable_sprites.contrast_loss(samples)),
        ("color_l1", weights.color_l1, lambda: planar_losses.color_l1_loss(samples, batch)),
        ("gradient", weights.gradient, lambda: pairwise.gradient_loss(model, batch, samples)),
        ("sobel", weights.sobel, lambda: planar_losses.sobel_loss(samples, batch)),
        ("mask", mask, lambda: planar_losses.mask_loss(samples, batch.layer_masks)),
        ("sparsity", weights.sparsity * has_front, lambda: planar_losses.sparsity_loss(samples)),
        ("rigidity", weights.rigidity, lambda: pairwise.rigidity_loss(model, batch, samples, 1.0)),
        ("global_rigidity", float(any(wide)), lambda: pairwise.rigidity_loss(model, batch, samples, 100.0, wide)),
        ("flow", weights.flow * bool(matches), lambda: pairwise.flow_loss(model, batch, held, matches)),
        ("flow_l1", weights.flow_l1 * bool(matches), lambda: pairwise.flow_l1_loss(model, batch, samples, matches)),
        ("alpha_flow", alpha_flow, lambda: pairwise.alpha_flow_loss(model, samples, matches)),
        ("decisive_opacity", weights.decisive_opacity * has_front, lambda: hashing_nvd.decisive_opacity_loss(samples)),
        (
            "background_color",
            weights.background_color * has_front,
            lambda: planar_losses.background_color_loss(samples, batch),
        ),
        ("residual_jacobian", weights.residual_jacobian, lambda: planar_losses.residual_jacobian_loss(model, batch)),
        (
            "residual_smoothness",
            weights.residual_smoothness,
            lambda: planar_losses.residual_smoothness_loss(model, batch),
        ),
        ("residual_anchor", weights.residual_anchor, lambda: planar_losses.residual_anchor_loss(model, batch)),
        ("texture_smoothness", weights.texture_smoothness, lambda: planar_losses.texture_smoothness_loss(model)),
        ("gain_deviation", weights.gain_deviation, lambda: hashing_nvd.gain_deviation_loss(samples)),
        ("gain_consistency", weights.gain_consistency, lambda: hashing_nvd.gain_consistency_loss(model, batch)),
    ]
    losses = {name: weight * compute() for name, weight, compute in candidates if weight}
    if model.gains and (weights.gain_size or weights.gain_smoothness):
        size, steps = planar_losses.gain_size_and_steps_losses(model, batch)
        losses |= {"gain_size": weights.gain_size * size, "gain_smoothness": weights.gain_smoothness * steps}
    return losses


def _is_before(step: int, end: int) -> bool:
    """Whether a loss that ends at step `end` (0: never) is active."""
    return not end or step < end

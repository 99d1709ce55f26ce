"""The loss terms of the planar family. Each function returns one unweighted scalar; `weighted_terms` joins them.

Lengths are measured in units of xy (the longer side of the frame is 2) or in pixels, so that no term depends on which
side is the longer one. "LNA" is Kasten et al., "Layered Neural Atlases for Consistent Video Editing" (2021); "CoDeF" is
Ouyang et al., "CoDeF: Content Deformation Fields for Temporally Consistent Video Processing" (2024). Terms that look at
other points than the batch's own (a pixel further, where the flow leads) are in `neighbours`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.clip import Batch
from neural_fields.planar import light_terms, neighbours, sprite_terms

if TYPE_CHECKING:
    from neural_fields.planar.model import LayerSamples, PlanarModel

GREY = (0.299, 0.587, 0.114)  # Rec. 601 luma, as CoDeF's code has it


def weighted_terms(model: PlanarModel, batch: Batch, samples: LayerSamples, step: int) -> dict[str, Tensor]:
    """The terms of the model's config that are active at `step`, times their weights."""
    weights = model.weights
    needs_flow = weights.flow or weights.alpha_flow or weights.flow_l1
    matches = neighbours.flow_matches(batch) if needs_flow else []
    has_front = len(model.layers) > 1
    wide = weights.global_rigidity if _is_on(step, weights.global_rigidity_until) else ()
    held = samples
    if step < weights.opacity_from:
        held = replace(samples, weight=samples.weight.detach())
    candidates: list[tuple[str, float, Callable[[], Tensor]]] = [
        ("color", weights.color, lambda: color(held, batch)),
        ("composite_l1", weights.composite_l1, lambda: sprite_terms.composite_l1(held, batch)),
        ("laplacian", weights.laplacian, lambda: sprite_terms.laplacian(held, batch)),
        ("contrast", weights.contrast * has_front, lambda: sprite_terms.contrast(samples)),
        ("color_l1", weights.color_l1, lambda: color_l1(samples, batch)),
        ("gradient", weights.gradient, lambda: neighbours.gradient(model, batch, samples)),
        ("sobel", weights.sobel, lambda: sobel(samples, batch)),
        ("mask", weights.mask * has_front * _is_on(step, weights.mask_until), lambda: mask(samples, batch.mask)),
        ("sparsity", weights.sparsity * has_front, lambda: sparsity(samples)),
        ("rigidity", weights.rigidity, lambda: neighbours.rigidity(model, batch, samples, 1.0)),
        ("global_rigidity", float(any(wide)), lambda: neighbours.rigidity(model, batch, samples, 100.0, wide)),
        ("flow", weights.flow * bool(matches), lambda: neighbours.flow(model, batch, held, matches)),
        ("flow_l1", weights.flow_l1 * bool(matches), lambda: neighbours.flow_l1(model, batch, samples, matches)),
        (
            "alpha_flow",
            weights.alpha_flow * has_front * bool(matches),
            lambda: neighbours.alpha_flow(model, samples, matches),
        ),
        ("decisive_opacity", weights.decisive_opacity * has_front, lambda: light_terms.decisive_opacity(samples)),
        ("background_color", weights.background_color * has_front, lambda: background_color(samples, batch)),
        ("residual_jacobian", weights.residual_jacobian, lambda: residual_jacobian(model, batch)),
        ("residual_smoothness", weights.residual_smoothness, lambda: residual_smoothness(model, batch)),
        ("residual_anchor", weights.residual_anchor, lambda: residual_anchor(model, batch)),
        ("texture_smoothness", weights.texture_smoothness, lambda: texture_smoothness(model)),
        ("gain_deviation", weights.gain_deviation, lambda: light_terms.gain_deviation(samples)),
        ("gain_consistency", weights.gain_consistency, lambda: light_terms.gain_consistency(model, batch)),
    ]
    found = {name: weight * term() for name, weight, term in candidates if weight}
    if model.gains and (weights.gain_size or weights.gain_smoothness):
        size, steps = gain_size_and_steps(model, batch)
        found |= {"gain_size": weights.gain_size * size, "gain_smoothness": weights.gain_smoothness * steps}
    return found


def _is_on(step: int, until: int) -> bool:
    """Whether a term that ends at step `until` (0: never) is active."""
    return not until or step < until


def color(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Mean squared error of the composite, over points and channels."""
    from neural_fields.planar.model import composite

    return F.mse_loss(composite(samples), batch.rgb.to(samples.color.device))


def color_l1(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Mean absolute error, over points and channels, of each layer's own colour where it is seen at all; layers added.

    Layers that fade into each other each have to show the frame alone, as segments that are fitted one by one do.
    """
    error = (_lit(samples) - batch.rgb.to(samples.color.device)[:, None]).abs().mean(dim=2)
    return (error * (samples.weight > 0)).sum() / len(error)


def mask(samples: LayerSamples, masks: Float[Tensor, "n front"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of the front layers' weights against what is visible of their masks (LNA)."""
    masks = masks.to(samples.weight.device)
    hidden = torch.cumsum(masks, dim=1) - masks  # masks of the layers in front
    visible = masks * (hidden == 0)
    weight = samples.weight[:, : masks.shape[1]].clamp(1e-4, 1 - 1e-4)
    return F.binary_cross_entropy(weight, visible)


def sparsity(samples: LayerSamples) -> Float[Tensor, ""]:
    """Mean square, over points and channels, of each front layer's colour where light passes it (LNA).

    With one front layer that is (1 - alpha) times its colour, without its gain; a layer further back counts where those
    before it let light pass. Layers are added.
    """
    front = samples.weight[:, :-1]
    passed = 1 - torch.cumsum(front, dim=1)  # what is left behind each front layer
    return (samples.color[:, :-1] * passed[..., None]).square().mean(dim=(0, 2)).sum()


def sobel(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Mean absolute difference of the grey Sobel gradients of each layer and of the frame, where the layer is seen.

    CoDeF; whole frames only. x and y are averaged, layers are added, and each layer counts with the share of the frame
    that it fills. Beyond the edge both pictures are black, as in CoDeF's code.
    """
    width, height = batch.clip.size
    luma = samples.color.new_tensor(GREY)
    truth = _sobel((batch.rgb.to(luma.device) @ luma).view(-1, 1, height, width))
    shown = (_lit(samples) @ luma).T.reshape(-1, 1, height, width)  # layer by layer, frame by frame
    layers = samples.weight.shape[1]
    difference = (_sobel(shown).view(layers, -1, 2, height, width) - truth).abs().mean(dim=2)
    weight = samples.weight.detach().T.reshape(layers, -1, height, width)
    return (difference * weight).sum() / len(samples.weight)


def _sobel(image: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 2 height width"]:
    """Sobel's x and y gradients."""
    x = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    return F.conv2d(image, torch.stack([x, x.T])[:, None], padding=1)


def background_color(samples: LayerSamples, batch: Batch) -> Float[Tensor, ""]:
    """Mean squared error of each layer's own colour where it is not seen, so that unseen texels stay natural (CoDeF).

    Layers are added, each with the share of the frame that it fills: then one step of CoDeF on that layer alone differs
    by that factor only, which Adam does not see.
    """
    weight = samples.weight.detach()
    error = (_lit(samples) - batch.rgb.to(weight.device)[:, None]).square().mean(dim=2)
    outside = 1 - weight
    per_layer = (error * outside).sum(0) / outside.sum(0).clamp(min=1)
    return (per_layer * weight.mean(0)).sum()


def texture_smoothness(model: PlanarModel) -> Float[Tensor, ""]:
    """Squared differences of neighbouring texels, layers added: texels between pixels follow their neighbours."""
    return torch.stack([texture.roughness() for texture in model.textures]).sum()  # type: ignore[operator]


def residual_anchor(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Mean squared distance of the residual grids from their start in pixels of the fit; layers are added."""
    frames = batch.frames.to(model.device)
    return torch.stack([mapping.residual_anchor(frames) for mapping in model.mappings]).sum()  # type: ignore[operator]


def residual_jacobian(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Mean absolute derivative of the residuals by x, y and t, each in its segment; layers are added (NaRCan)."""
    xyt = batch.xyt.to(model.device)
    return torch.stack([mapping.residual_jacobian(xyt) for mapping in model.mappings]).sum()  # type: ignore[operator]


def residual_smoothness(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """Squared differences of neighbouring shifts of the residual grids, in pixels, layers added."""
    frames = batch.frames.to(model.device)
    return torch.stack([mapping.residual_smoothness(frames) for mapping in model.mappings]).sum()  # type: ignore[operator]


def gain_size_and_steps(model: PlanarModel, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Squared logarithm of the gains, and of its differences between neighbouring cells, layers added."""
    frames = batch.frames.to(model.device)
    parts = [gain.size_and_steps(frames) for gain in model.gains]  # type: ignore[operator]
    size, steps = (torch.stack(values).sum() for values in zip(*parts, strict=True))
    return size, steps


def _lit(samples: LayerSamples) -> Float[Tensor, "n layers 3"]:
    """The layers' colours under their light."""
    return samples.color if samples.gain is None else samples.color * samples.gain

"""Losses that evaluate the model at other points than those of the batch: a pixel further, or where flow leads.

Distances are pixels of the training size, as in the papers: one pixel is 2 / L in xy units, L the longer side of the
frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.samples import LayerSamples, composite_layers

# --- a pixel further ------------------------------------------------------------------------------------------------


def gradient_loss(model: PlanarModel, batch: Batch, samples: LayerSamples) -> Float[Tensor, ""]:
    """Computes the squared error of the forward differences of the composite in x and y (LNA, equation 7).

    Mean over points and channels; x and y are added. The differences come from evaluating the model one pixel further.
    Both axes are measured in pixels; the paper's code divides both by the width, which is wrong for portrait clips.
    """
    here, truth = composite_layers(samples), batch.rgb
    right, below = (_shifted_points(batch, dx, dy) for dx, dy in ((1.0, 0.0), (0.0, 1.0)))
    there = composite_layers(model(torch.cat([right, below]).to(here.device)))
    position = batch.positions
    beyond = torch.cat([batch.clip.colors_at(position + position.new_tensor(step)) for step in ((0, 0, 1), (0, 1, 0))])
    steps = (beyond - truth.repeat(2, 1)).to(here.device)
    return 2 * (there - here.repeat(2, 1) - steps).square().mean()


def _shifted_points(batch: Batch, dx: float, dy: float) -> Float[Tensor, "n 3"]:
    """Returns xyt of the batch's points, moved by (dx, dy) pixels."""
    position = batch.positions
    xy = position[:, [2, 1]] + torch.tensor([0.5 + dx, 0.5 + dy])
    return batch.normalize_positions(xy, position[:, 0])


def rigidity_loss(
    model: PlanarModel, batch: Batch, samples: LayerSamples, distance: float, weights: Sequence[float] = (1.0, 1.0)
) -> Float[Tensor, ""]:
    """Measures how far the mappings are from rotation and translation alone, over `distance` pixels (LNA, equation 9).

    Mean of |JtJ| + |(JtJ)^-1| (Frobenius norms), J the backward differences of uv in units of `distance` pixels times
    the mapping's `uv_scale`. The smallest value of a layer is 2 sqrt(2), where J is orthogonal.

    Args:
        model: its mappings are measured.
        batch: points of the clip.
        samples: of the model at the batch's points.
        distance: of the differences, in pixels.
        weights: of each front layer, of the background; layers are added.
    """
    assert samples.uv is not None
    left_and_above = [_shifted_points(batch, -distance, 0.0), _shifted_points(batch, 0.0, -distance)]
    before = torch.cat(left_and_above).to(samples.uv.device)
    pixel = 2 / max(batch.clip.size)
    total = samples.uv.new_zeros(())
    for number, mapping in enumerate(model.mappings):
        weight = weights[0] if number < len(model.layers) - 1 else weights[1]
        if weight:
            here = samples.uv[:, number]
            to_left, above = mapping(before).view(2, -1, 2)
            unit = mapping.uv_scale * pixel * distance
            jacobian = torch.stack([here - to_left, here - above], dim=2) / unit
            total = total + weight * measure_departure_from_rotation(jacobian).mean()
    return total


def measure_departure_from_rotation(jacobian: Float[Tensor, "n 2 2"]) -> Float[Tensor, " n"]:
    """Computes |JtJ| + |(JtJ)^-1| in Frobenius norms: 2 sqrt(2) for an orthogonal J, more for every other."""
    product = jacobian.transpose(1, 2) @ jacobian
    offset = 1e-3  # added to the diagonal before JtJ is inverted, as in LNA's code
    a, d = product[:, 0, 0] + offset, product[:, 1, 1] + offset
    b, c = product[:, 0, 1], product[:, 1, 0]
    adjugate = torch.stack([d, -b, -c, a], dim=1)
    inverse = adjugate / (a * d - b * c)[:, None]
    return product.flatten(1).norm(dim=1) + inverse.norm(dim=1)


# --- along the flow -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowMatches:
    """Points of a batch that optical flow finds again in a neighboring frame."""

    row: Int[Tensor, " m"]  # which points of the batch
    xyt: Float[Tensor, "m 3"]  # where they are in the other frame
    forward: bool  # the other frame is the next one, not the one before


def find_flow_matches(batch: Batch) -> list[FlowMatches]:
    """Finds the trusted matches of a batch's points, forward and backward; empty without flow."""
    clip = batch.clip
    if clip.flow is None:
        return []
    (width, height), (flow_width, flow_height) = clip.size, clip.flow.size
    scale = np.array([width / flow_width, height / flow_height], np.float32)  # the flow may be stored smaller
    position = batch.positions
    t, row, column = position.numpy().T
    found = []
    for step, forward in ((1, True), (-1, False)):
        # Displacements in pixels of the clip at the batch's points, and where they are trusted.
        vectors, trusted = clip.flow.forward, clip.flow.forward_ok
        if not forward:
            vectors, trusted = clip.flow.backward, clip.flow.backward_ok
        pair = t if forward else t - 1
        exists = (pair >= 0) & (pair < len(vectors))
        place = (pair.clip(0, len(vectors) - 1), row * flow_height // height, column * flow_width // width)
        vector = torch.from_numpy(np.asarray(vectors[place], np.float32) * scale)
        ok = torch.from_numpy(np.asarray(trusted[place]) & exists)
        # The points that are found again.
        kept = ok.nonzero()[:, 0]
        xy = position[kept][:, [2, 1]] + 0.5 + vector[kept]
        found.append(FlowMatches(kept, batch.normalize_positions(xy, position[kept, 0] + step), forward))
    return found


def flow_loss(model: PlanarModel, batch: Batch, samples: LayerSamples, matches: list[FlowMatches]) -> Float[Tensor, ""]:
    """Computes the distance of matched points on the canonical plane, in pixels (LNA, equation 11).

    Each layer's distance is weighted by how much of the layer is visible; mean over the matches, both directions
    averaged, layers added.
    """
    assert samples.uv is not None
    pixel = 2 / max(batch.clip.size)
    total = samples.uv.new_zeros(())
    for number, mapping in enumerate(model.mappings):
        for match in matches:
            row, there = match.row.to(total.device), mapping(match.xyt.to(total.device))
            unit = mapping.uv_scale * pixel
            distance = (there - samples.uv[row, number]).norm(dim=1) / unit
            total = total + (distance * samples.weight[row, number]).sum() / max(1, len(row)) / len(matches)
    return total


def flow_l1_loss(
    model: PlanarModel, batch: Batch, samples: LayerSamples, matches: list[FlowMatches]
) -> Float[Tensor, ""]:
    """Computes the mean absolute difference of the canonical points of forward matches inside each layer (CoDeF).

    In widths and heights of the frame, mean over both components. Layers are added, each with the share of the frame
    that it fills (see `terms.background_color`). The paper's code divides x by the height and y by the width.
    """
    assert samples.uv is not None
    width, height = batch.clip.size
    extent = samples.uv.new_tensor([2 * width, 2 * height]) / max(width, height)
    total = samples.uv.new_zeros(())
    for match in matches:
        if not match.forward:
            continue
        found, there = match.row.to(total.device), match.xyt.to(total.device)
        for number, mapping in enumerate(model.mappings):
            weight = samples.weight[:, number].detach()
            inside = (weight[found] > 0).nonzero()[:, 0]  # hard masks: each match is looked up in one layer only
            row, seen = found[inside], weight[found[inside]]
            difference = ((mapping(there[inside]) - samples.uv[row, number]) / extent).abs().mean(dim=1)
            total = total + weight.mean() * (difference * seen).sum() / seen.sum().clamp(min=1)
    return total


def alpha_flow_loss(model: PlanarModel, samples: LayerSamples, matches: list[FlowMatches]) -> Float[Tensor, ""]:
    """Computes the mean absolute change of the front layers' weights along the flow (LNA, equation 12).

    Both directions are averaged.
    """
    total = samples.weight.new_zeros(())
    for match in matches:
        row, there = match.row.to(total.device), match.xyt.to(total.device)
        change = compute_layer_weights(model.opacity(there))[:, :-1] - samples.weight[row, :-1]
        total = total + change.abs().sum() / max(1, change.numel()) / len(matches)
    return total

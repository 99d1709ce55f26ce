"""Loss terms that evaluate the model at other points than those of the batch: a pixel further, or where flow leads.

Distances are pixels of the fit, as in the papers: one pixel is 2 / L in xy units, L the longer side of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_fields.data.clip import Batch, Clip
from neural_fields.planar.opacity import layer_weights

if TYPE_CHECKING:
    from neural_fields.planar.mapping import Mapping
    from neural_fields.planar.model import LayerSamples, PlanarModel

INVERSE_OFFSET = 1e-3  # added to the diagonal before JtJ is inverted, as in LNA's code


# --- a pixel further ------------------------------------------------------------------------------------------------


def gradient(model: PlanarModel, batch: Batch, samples: LayerSamples) -> Float[Tensor, ""]:
    """Squared error of the forward differences of the composite in x and y (LNA, equation 7); x and y are added.

    Mean over points and channels. The differences come from evaluating the model one pixel further. Both axes are
    measured in pixels; the paper's code divides both by the width, which is wrong for portrait clips.
    """
    from neural_fields.planar.model import composite

    here, truth = composite(samples), batch.rgb
    right, below = (_moved(batch, dx, dy) for dx, dy in ((1.0, 0.0), (0.0, 1.0)))
    there = composite(model(torch.cat([right, below]).to(here.device)))
    position = batch.positions
    beyond = torch.cat([batch.clip.colors(position + position.new_tensor(step)) for step in ((0, 0, 1), (0, 1, 0))])
    steps = (beyond - truth.repeat(2, 1)).to(here.device)
    return 2 * (there - here.repeat(2, 1) - steps).square().mean()


def _moved(batch: Batch, dx: float, dy: float) -> Float[Tensor, "n 3"]:
    """xyt of the batch's points, moved by (dx, dy) pixels."""
    position = batch.positions
    xy = position[:, [2, 1]] + torch.tensor([0.5 + dx, 0.5 + dy])
    return batch.normalise(xy, position[:, 0])


def rigidity(
    model: PlanarModel, batch: Batch, samples: LayerSamples, distance: float, weights: Sequence[float] = (1.0, 1.0)
) -> Float[Tensor, ""]:
    """How far the mappings are from turning and shifting alone, over `distance` pixels (LNA, equation 9).

    Mean of |JtJ| + |(JtJ)^-1| (Frobenius norms), J the backward differences of uv in units of `distance` pixels times
    the mapping's `uv_scale`. The smallest value of a layer is 2 sqrt(2), where J is orthogonal.

    Args:
        weights: of each front layer, of the background; layers are added.
    """
    assert samples.uv is not None
    before = torch.cat([_moved(batch, -distance, 0.0), _moved(batch, 0.0, -distance)]).to(samples.uv.device)
    pixel = 2 / max(batch.clip.size)
    total = samples.uv.new_zeros(())
    for number, mapping in enumerate(model.mappings):
        weight = weights[0] if number < len(model.layers) - 1 else weights[1]
        if weight:
            here = samples.uv[:, number]
            to_left, above = mapping(before).view(2, -1, 2)
            jacobian = torch.stack([here - to_left, here - above], dim=2) / (_scale(mapping) * pixel * distance)
            total = total + weight * departure_from_rotation(jacobian).mean()
    return total


def departure_from_rotation(jacobian: Float[Tensor, "n 2 2"]) -> Float[Tensor, " n"]:
    """|JtJ| + |(JtJ)^-1| in Frobenius norms: 2 sqrt(2) for an orthogonal J, more for every other."""
    product = jacobian.transpose(1, 2) @ jacobian
    a, d = product[:, 0, 0] + INVERSE_OFFSET, product[:, 1, 1] + INVERSE_OFFSET
    b, c = product[:, 0, 1], product[:, 1, 0]
    adjugate = torch.stack([d, -b, -c, a], dim=1)
    inverse = adjugate / (a * d - b * c)[:, None]
    return product.flatten(1).norm(dim=1) + inverse.norm(dim=1)


def _scale(mapping: Mapping | torch.nn.Module) -> float:
    """uv units of one xy unit where nothing is warped."""
    return float(mapping.uv_scale)  # type: ignore[arg-type]


# --- along the flow -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """Points of a batch that optical flow finds again in a neighbouring frame."""

    row: Int[Tensor, " m"]  # which points of the batch
    xyt: Float[Tensor, "m 3"]  # where they are in the other frame
    forward: bool  # the other frame is the next one, not the one before


def flow_matches(batch: Batch) -> list[Matches]:
    """The trusted matches of a batch's points, forward and backward; empty without flow."""
    clip = batch.clip
    if clip.flow is None:
        return []
    position = batch.positions
    found = []
    for step, forward in ((1, True), (-1, False)):
        vector, ok = _flow_at(clip, position, forward)
        row = ok.nonzero()[:, 0]
        xy = position[row][:, [2, 1]] + 0.5 + vector[row]
        found.append(Matches(row, batch.normalise(xy, position[row, 0] + step), forward))
    return found


def _flow_at(
    clip: Clip, position: Int[Tensor, "n 3"], forward: bool
) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """Displacement in pixels to the next or previous frame at (frame, row, column), and where it is trusted."""
    flow = clip.flow
    assert flow is not None
    vectors, trusted = (flow.forward, flow.forward_ok) if forward else (flow.backward, flow.backward_ok)
    t, row, column = position.numpy().T
    pair = t if forward else t - 1
    exists = (pair >= 0) & (pair < len(vectors))
    (width, height), (flow_width, flow_height) = clip.size, flow.size
    place = (pair.clip(0, len(vectors) - 1), row * flow_height // height, column * flow_width // width)
    scale = np.array([width / flow_width, height / flow_height], np.float32)
    vector = np.asarray(vectors[place], np.float32) * scale
    return torch.from_numpy(vector), torch.from_numpy(np.asarray(trusted[place]) & exists)


def flow(model: PlanarModel, batch: Batch, samples: LayerSamples, matches: list[Matches]) -> Float[Tensor, ""]:
    """How far apart on the canonical plane matched points lie, in pixels (LNA, equation 11).

    Each layer's distance is weighted by how much of the layer is seen; mean over the matches, both directions averaged,
    layers added.
    """
    assert samples.uv is not None
    pixel = 2 / max(batch.clip.size)
    total = samples.uv.new_zeros(())
    for number, mapping in enumerate(model.mappings):
        for match in matches:
            row, there = match.row.to(total.device), mapping(match.xyt.to(total.device))
            distance = (there - samples.uv[row, number]).norm(dim=1) / (_scale(mapping) * pixel)
            total = total + (distance * samples.weight[row, number]).sum() / max(1, len(row)) / len(matches)
    return total


def flow_l1(model: PlanarModel, batch: Batch, samples: LayerSamples, matches: list[Matches]) -> Float[Tensor, ""]:
    """Mean absolute difference of the canonical points of forward matches inside each layer (CoDeF).

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


def alpha_flow(model: PlanarModel, samples: LayerSamples, matches: list[Matches]) -> Float[Tensor, ""]:
    """Mean absolute change of the front layers' weights along the flow, both directions averaged (LNA, equation 12)."""
    total = samples.weight.new_zeros(())
    for match in matches:
        row, there = match.row.to(total.device), match.xyt.to(total.device)
        change = layer_weights(model.opacity(there))[:, :-1] - samples.weight[row, :-1]
        total = total + change.abs().sum() / max(1, change.numel()) / len(matches)
    return total

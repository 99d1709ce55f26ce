"""Losses of "Hashing Neural Video Decomposition" (Chan et al. 2023) on gain and opacity, as in its code.

No pixel shows the gain of a texel that is out of view, but it matters when the texel comes back into view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_fields.core import coords
from neural_fields.data.dataset import Batch
from neural_fields.planar.appearance.grid_gain import GridGainConfig
from neural_fields.planar.appearance.hash_gain import HashGain, HashGainConfig
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples
from neural_fields.planar.losses.loss import Loss, LossWeightGroup
from neural_fields.planar.mappings.mapping import Mapping


@dataclass(frozen=True)
class HashingNvdWeights(LossWeightGroup):
    """Holds the weights of the losses of Hashing Neural Video Decomposition."""

    decisive_opacity: float = 0.0  # mean of -log of the largest weight: a pixel belongs to one layer
    gain_deviation: float = 0.0  # squared difference of the gain from 1
    gain_consistency: float = 0.0  # where a texel is out of view, its gain has the pattern it had in view, and is flat


@dataclass(frozen=True)
class GainConsistencySettings:
    """Settings of the comparison of gains in view and out of view."""

    times: int = 15  # other frames at which the gain of a patch is looked up, for each patch
    flatness_weight: float = 16.0  # of a gain out of view that is not flat, relative to one with another pattern
    epsilon: float = 1e-6  # of 8-bit colors, in which patterns are compared: no division by zero


DEFAULTS = GainConsistencySettings()


def decisive_opacity_loss(samples: LayerSamples) -> Float[Tensor, ""]:
    """Computes the mean of -log of the largest weight of each point: 0 where a point belongs to a single layer.

    Args:
        samples: of the model at the batch's points.
    """
    return -samples.weight.amax(dim=1).clamp_min(1e-10).log().mean()


def gain_deviation_loss(samples: LayerSamples) -> Float[Tensor, ""]:
    """Computes the mean square, over points and channels, of gain - 1; layers are added.

    Args:
        samples: of a model with gain at the batch's points.
    """
    assert samples.gain is not None
    return (samples.gain - 1).square().mean(dim=(0, 2)).sum()


def gain_consistency_loss(
    model: PlanarModel, batch: Batch, settings: GainConsistencySettings = DEFAULTS
) -> Float[Tensor, ""]:
    """Measures how much the pattern of the gain of texels changes when they leave the view.

    3 x 3 patches at the border of random frames are sampled again at other times. For patches that are out of view
    then, it adds 1 minus the correlation of the two patterns and 16 times the variance of the pattern out of view; it
    is the mean over patches and channels, and layers are added. The pattern in view gets no gradient. As in the paper's
    code, motion is assumed to be smooth and the canonical plane upright: points beyond the border have a smaller (or
    larger) u or v than the border. A 135th of the batch's points are sampled.

    Args:
        model: its gains are of kind `hash`.
        batch: points of the clip.
        settings: of the comparison.
    """
    device, frame_count = model.device, batch.clip.frame_count
    offsets = torch.tensor([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)])  # pixels of a patch, (0, 0) in the middle
    points = len(offsets)
    count = max(1, len(batch.positions) // (points * settings.times))
    generator = torch.Generator().manual_seed(int(batch.positions.sum()))  # the same for the same batch: fits resume
    rim = _draw_rim(batch, count, settings.times, generator)
    around = (rim.pixel[:, None] + offsets).reshape(-1, 2) + 0.5
    xyt = batch.normalize_positions(around, rim.frame.repeat_interleave(points)).to(device)
    layers = []
    for gain, mapping in zip(cast("Sequence[HashGain]", model.gains), model.mappings, strict=True):
        # The patches in view, and when they are out of view.
        with torch.no_grad():
            uv = mapping(xyt)
            in_view = 255 * gain.sample_canonical(uv, xyt[:, 2]).view(count, points, 3)
            uv = uv.view(count, points, 2)
            left = _has_left_view(mapping, batch, rim, uv[:, points // 2])
        turn, patch = left.nonzero(as_tuple=True)
        if not len(turn):
            layers.append(in_view.new_zeros(()))
            continue
        # The same patches at a time at which they are out of view.
        time = torch.as_tensor(coords.normalize_time(rim.other_frame.float(), frame_count)).to(device)[turn, patch]
        gains = gain.sample_canonical(uv[patch].reshape(-1, 2), time.repeat_interleave(points))
        out_of_view = 255 * gains.view(-1, points, 3)
        # Correlation of the two patterns.
        a, b = (values - values.mean(dim=1, keepdim=True) for values in (in_view[patch], out_of_view))
        spread_a, spread_b = ((part.square().sum(dim=1) / (points - 1) + settings.epsilon**2).sqrt() for part in (a, b))
        correlation = (a * b).sum(dim=1) / ((points - 1) * spread_a * spread_b + settings.epsilon)
        layers.append((1 - correlation).mean() + settings.flatness_weight * (spread_b / 255).square().mean())
    return torch.stack(layers).sum()


@dataclass(frozen=True)
class _Rim:
    """Points one pixel inside the rim of their frames. `side`: 0 left, 1 right, 2 top, 3 bottom."""

    pixel: Int[Tensor, "n 2"]  # (column, row)
    frame: Int[Tensor, " n"]
    side: Int[Tensor, " n"]
    other_frame: Int[Tensor, "times n"]  # at which the gain of the same texels is looked up


def _draw_rim(batch: Batch, count: int, times: int, generator: torch.Generator) -> _Rim:
    """Draws `count` random points at the rim of frames, and `times` other frames for each."""
    width, height = batch.clip.size
    side = torch.randint(4, (count,), generator=generator)
    along = torch.rand(count, 2, generator=generator) * torch.tensor([width - 2, height - 2]) + 1
    pixel = along.floor().long()
    pixel[side == 0, 0], pixel[side == 1, 0] = 1, width - 2
    pixel[side == 2, 1], pixel[side == 3, 1] = 1, height - 2
    frame = torch.randint(batch.clip.frame_count, (count,), generator=generator)
    return _Rim(pixel, frame, side, torch.randint(batch.clip.frame_count, (times, count), generator=generator))


def _has_left_view(mapping: Mapping, batch: Batch, rim: _Rim, uv: Float[Tensor, "n 2"]) -> Bool[Tensor, "times n"]:
    """Whether the rim of the other frame has moved past the points, so that they are out of view there."""
    times, count = rim.other_frame.shape
    there = batch.normalize_positions(rim.pixel.repeat(times, 1) + 0.5, rim.other_frame.reshape(-1)).to(uv.device)
    beyond = mapping(there).view(times, count, 2) - uv
    side = rim.side.to(uv.device)
    towards = torch.where(side < 2, beyond[..., 0], beyond[..., 1])
    return torch.where(side % 2 == 0, towards > 0, towards < 0)


DECISIVE_OPACITY = Loss("decisive_opacity", lambda at: decisive_opacity_loss(at.samples), front=True)
GAIN_DEVIATION = Loss(
    "gain_deviation", lambda at: gain_deviation_loss(at.samples), gain=(GridGainConfig, HashGainConfig)
)
GAIN_CONSISTENCY = Loss(
    "gain_consistency", lambda at: gain_consistency_loss(at.model, at.batch), gain=(HashGainConfig,)
)

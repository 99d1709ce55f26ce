"""Loss terms of "Hashing Neural Video Decomposition" on the gain, and the one that makes opacities decide.

Chan et al. (2023), by the losses of their code. Lighting where a texel is out of view is seen by no pixel; it matters
for a texel that comes back into view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_fields import coords
from neural_fields.data.clip import Batch

if TYPE_CHECKING:
    from neural_fields.planar.hash_parts import HashGain
    from neural_fields.planar.mapping import Mapping
    from neural_fields.planar.model import LayerSamples, PlanarModel

PATCH = tuple((x, y) for y in (-1, 0, 1) for x in (-1, 0, 1))  # pixels around a point at the rim, itself included
TIMES = 15  # at which the gain of a patch is looked up, for each patch
FLATNESS = 16.0  # how much a gain out of view that is not flat counts, relative to one with another pattern
TINY = 1e-6  # of 8-bit colours, in which patterns are compared


def decisive_opacity(samples: LayerSamples) -> Float[Tensor, ""]:
    """Mean of -log of the largest weight of each point: 0 where a point belongs to one layer alone."""
    return -samples.weight.amax(dim=1).clamp_min(1e-10).log().mean()


def gain_deviation(samples: LayerSamples) -> Float[Tensor, ""]:
    """Mean square, over points and channels, of gain - 1; layers are added."""
    assert samples.gain is not None
    return (samples.gain - 1).square().mean(dim=(0, 2)).sum()


@dataclass(frozen=True)
class _Rim:
    """Points one pixel inside the rim of their frames. `side`: 0 left, 1 right, 2 top, 3 bottom."""

    pixel: Int[Tensor, "n 2"]  # (column, row)
    frame: Int[Tensor, " n"]
    side: Int[Tensor, " n"]
    other_frame: Int[Tensor, "times n"]  # at which the gain of the same texels is looked up


def gain_consistency(model: PlanarModel, batch: Batch) -> Float[Tensor, ""]:
    """How much the gain of texels that have left the view differs in pattern from what it was in view.

    3 x 3 patches at the rim of random frames are looked up again at other times. Where the rim has moved past them, so
    that they are out of view, 1 less the correlation of the two patterns is taken, and 16 times the variance of the one
    out of view; mean over patches and channels, layers added. The pattern in view is left as it is. As in the paper's
    code, motion is taken to be smooth and the canonical upright: what lies beyond the rim has a smaller (or larger) u
    or v than the rim. A 135th of the batch's points are looked at.
    """
    generator = torch.Generator().manual_seed(int(batch.positions.sum()))  # the same for the same batch: fits resume
    rim = _draw(batch, max(1, len(batch.positions) // (len(PATCH) * TIMES)), generator)
    parts = [
        _consistency(gain, mapping, batch, rim, model.device)  # type: ignore[arg-type]
        for gain, mapping in zip(model.gains, model.mappings, strict=True)
    ]
    return torch.stack(parts).sum()


def _draw(batch: Batch, count: int, generator: torch.Generator) -> _Rim:
    width, height = batch.clip.size
    side = torch.randint(4, (count,), generator=generator)
    along = torch.rand(count, 2, generator=generator) * torch.tensor([width - 2, height - 2]) + 1
    pixel = along.floor().long()
    pixel[side == 0, 0], pixel[side == 1, 0] = 1, width - 2
    pixel[side == 2, 1], pixel[side == 3, 1] = 1, height - 2
    frame = torch.randint(batch.clip.frame_count, (count,), generator=generator)
    return _Rim(pixel, frame, side, torch.randint(batch.clip.frame_count, (TIMES, count), generator=generator))


def _consistency(gain: HashGain, mapping: Mapping, batch: Batch, rim: _Rim, device: torch.device) -> Float[Tensor, ""]:
    """The term of one layer."""
    count, points = len(rim.pixel), len(PATCH)
    around = (rim.pixel[:, None] + torch.tensor(PATCH)).reshape(-1, 2) + 0.5
    with torch.no_grad():
        xyt = batch.normalise(around, rim.frame.repeat_interleave(points)).to(device)
        uv = mapping(xyt)
        in_view = 255 * gain.at(uv, xyt[:, 2]).view(count, points, 3)
        left = _has_left(mapping, batch, rim, uv.view(count, points, 2)[:, points // 2], device)
    turn, patch = left.nonzero(as_tuple=True)
    if not len(turn):
        return in_view.new_zeros(())
    time = torch.as_tensor(coords.normalise_time(rim.other_frame.float(), batch.clip.frame_count))
    time = time.to(device)[turn, patch]
    places = uv.view(count, points, 2)[patch]
    out_of_view = 255 * gain.at(places.reshape(-1, 2), time.repeat_interleave(points)).view(-1, points, 3)
    shape = in_view[patch]
    a, b = (values - values.mean(dim=1, keepdim=True) for values in (shape, out_of_view))
    spread_a, spread_b = ((part.square().sum(dim=1) / (points - 1) + TINY**2).sqrt() for part in (a, b))
    correlation = (a * b).sum(dim=1) / ((points - 1) * spread_a * spread_b + TINY)
    return (1 - correlation).mean() + FLATNESS * (spread_b / 255).square().mean()


def _has_left(
    mapping: Mapping, batch: Batch, rim: _Rim, uv: Float[Tensor, "n 2"], device: torch.device
) -> Bool[Tensor, "times n"]:
    """Whether the rim of the other frame has moved past the points, so that they are out of view there."""
    times, count = rim.other_frame.shape
    there = batch.normalise(rim.pixel.repeat(times, 1) + 0.5, rim.other_frame.reshape(-1)).to(device)
    beyond = mapping(there).view(times, count, 2) - uv
    side = rim.side.to(device)
    u, v = beyond[..., 0], beyond[..., 1]
    towards = torch.where(side < 2, u, v)
    return torch.where(side % 2 == 0, towards > 0, towards < 0)

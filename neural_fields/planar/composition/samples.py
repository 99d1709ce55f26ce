"""Samples of a planar model at points of the video: the layers' colors, weights, canonical positions and gains."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LayerSamples:
    """Holds the samples of a model at N points: a row for each point; layers front to back, the background last."""

    color: Float[Tensor, "n layers 3"]  # of the texture, before the gain; [0, 1] is the displayable range
    weight: Float[Tensor, "n layers"]  # sums to one
    uv: Float[Tensor, "n layers 2"] | None
    gain: Float[Tensor, "n layers 3"] | None

    @property
    def lit_color(self) -> Float[Tensor, "n layers 3"]:
        """The layers' colors under their light."""
        return self.color if self.gain is None else self.color * self.gain


def composite_layers(samples: LayerSamples) -> Float[Tensor, "n 3"]:
    """Returns the color that a viewer sees: the layers' lit colors, weighted."""
    # Layer by layer: torch is several times slower at sums over a middle axis.
    weighted = (samples.lit_color * samples.weight[..., None]).unbind(1)
    return functools.reduce(torch.add, weighted)

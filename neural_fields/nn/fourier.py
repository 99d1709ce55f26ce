"""Sines and cosines of the coordinates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Fourier(nn.Module):
    """sin and cos of 2^k * pi * x for k = 0 .. octaves - 1; no parameters.

    Order of the features: octave by octave; inside an octave the sines of all axes, then the cosines of all axes
    (Kasten et al., "Layered Neural Atlases", 2021, which feeds x in [-1, 1]). Any real x is allowed; the period is 2.
    """

    def __init__(self, in_dim: int, octaves: int) -> None:
        super().__init__()
        if octaves < 1:
            raise ValueError(f"octaves is {octaves}, expected at least 1")
        self.in_dim = in_dim
        self.octaves = octaves
        self.out_dim = in_dim * 2 * octaves

    def forward(self, x: Float[Tensor, "points in_dim"]) -> Float[Tensor, "points out_dim"]:
        """Computes the sines and cosines of points; `out_dim` is 2 * in_dim * octaves."""
        frequencies = math.pi * 2.0 ** torch.arange(self.octaves, dtype=x.dtype, device=x.device)
        angles = x[:, None, :] * frequencies[:, None]
        return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)

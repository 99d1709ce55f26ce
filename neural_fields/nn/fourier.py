"""Fourier features: sines and cosines of the coordinates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Fourier(nn.Module):
    """Computes sin and cos of 2^k * pi * x for k = 0 .. octaves - 1; it has no parameters.

    The features are ordered octave by octave; within an octave the sines of all axes come first, then the cosines
    (Kasten et al., "Layered Neural Atlases", 2021, which uses x in [-1, 1]). Any real x is allowed; the period is 2.

    Args:
        in_dim: number of coordinates.
        octaves: number of frequencies, at least 1.

    Raises:
        ValueError: fewer than one octave.

    Example:
        >>> Fourier(3, octaves=5).out_dim
        30
        >>> Fourier(1, octaves=1)(torch.tensor([[0.5]])).round(decimals=3).abs().tolist()
        [[1.0, 0.0]]
    """

    def __init__(self, in_dim: int, octaves: int) -> None:
        super().__init__()
        if octaves < 1:
            raise ValueError(f"octaves is {octaves}, expected at least 1")
        self.in_dim = in_dim
        self.octaves = octaves
        self.out_dim = in_dim * 2 * octaves

    def forward(self, x: Float[Tensor, "points in_dim"]) -> Float[Tensor, "points out_dim"]:
        """Computes the features of points; `out_dim` is 2 * in_dim * octaves."""
        frequencies = math.pi * 2.0 ** torch.arange(self.octaves, dtype=x.dtype, device=x.device)
        angles = x[:, None, :] * frequencies[:, None]
        return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)

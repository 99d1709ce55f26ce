"""A network of sines (Sitzmann et al., NeurIPS 2020)."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Siren(nn.Module):
    """sin(omega (W x + b)) layers and a linear one at the end.

    Weights start as in the paper: uniform within 1 / inputs in the first layer, within sqrt(6 / inputs) / omega
    in the others, so that the values of every layer spread alike.

    Args:
        in_dim, out_dim: features in and out.
        width: of a layer.
        hidden_layers: sine layers between the first one and the linear one.
        omega: frequency of the sines.
    """

    def __init__(self, in_dim: int, out_dim: int, width: int, hidden_layers: int, omega: float) -> None:
        super().__init__()
        self.omega = omega
        sizes = [in_dim, *[width] * (hidden_layers + 1), out_dim]
        linears = [nn.Linear(before, after) for before, after in pairwise(sizes)]
        self.layers = nn.ModuleList(linears)
        for number, layer in enumerate(linears):
            bound = (6 / layer.in_features) ** 0.5 / omega if number else 1 / in_dim
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Float[Tensor, "points in_dim"]) -> Float[Tensor, "points out_dim"]:
        """Evaluates the network at points."""
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x)

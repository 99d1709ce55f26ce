"""A network of sines (Sitzmann et al., NeurIPS 2020)."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Siren(nn.Module):
    """Evaluates a network of layers sin(omega (W x + b)) with a linear layer at the end.

    Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions" (2020), section 3.2. Weights
    are initialized as in the paper: uniform within 1 / inputs in the first layer, within sqrt(6 / inputs) / omega in
    the others, so that the values of all layers have the same distribution.

    Args:
        in_dim: number of input features.
        out_dim: number of output features.
        width: neurons of a layer.
        hidden_layers: number of sine layers between the first layer and the linear one.
        omega: frequency of the sines, in radians a unit.

    Example:
        >>> Siren(2, 3, width=8, hidden_layers=1, omega=30.0)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
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

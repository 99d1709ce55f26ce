"""Networks of sines, and the texture that is one.

Sitzmann, Martel, Bergman, Lindell and Wetzstein, "Implicit Neural Representations with Periodic Activation Functions"
(2020), section 3.2; as Chen et al., "NaRCan" (2024) use them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields import config
from neural_fields.planar.mapping import PAPER_ADAM
from neural_fields.planar.points import evaluate_in_parts
from neural_fields.planar.texture import Texture


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
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x)


class SirenTexture(Texture):
    """One layer's colours: (1 + a network of sines of (u, v)) / 2.

    Nothing bounds them; they are clipped to [0, 1] where they are shown.
    """

    def __init__(self, settings: config.SirenTextureConfig) -> None:
        super().__init__()
        self.learning_rate = settings.learning_rate
        self.network = Siren(2, 3, settings.width, settings.hidden_layers, settings.omega)

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        return ((evaluate_in_parts(self.network, uv.reshape(-1, 2)) + 1) / 2).view(*uv.shape[:-1], 3)

    def param_groups(self) -> list[dict]:
        return [{"params": list(self.parameters()), "lr": self.learning_rate, **PAPER_ADAM}]

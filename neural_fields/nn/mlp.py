"""Fully connected networks: plain torch, with biases, so that they run on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

OutputActivation = Literal["none", "tanh", "sigmoid", "softplus"]

_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
}


class MLP(nn.Module):
    """Evaluates a ReLU network as in Layered Neural Atlases ("LNA", Kasten et al. 2021).

    Args:
        in_dim: number of input features.
        out_dim: number of output features.
        width: neurons of a hidden layer.
        layers: number of linear layers, the output layer included (LNA's "6 x 256" is layers=6, width=256).
        skips: indices of layers (0 is the first) that also read the network's input, after the hidden features; no
            gradient flows to the input there, as in LNA.
        output: activation of the last layer: "none", "tanh", "sigmoid" or "softplus".
        output_bound: initial weights of the last layer are uniform in [-bound, bound] and its bias is zero, so that the
            network is nearly constant at first (CoDeF uses 1e-4 for its deformation); None keeps torch's default.

    Raises:
        ValueError: no layer, a skip out of range, or an unknown activation.

    Example:
        >>> MLP(2, 3, width=8, layers=3, output="tanh")(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        width: int = 256,
        layers: int = 4,
        skips: Sequence[int] = (),
        output: OutputActivation = "none",
        *,
        output_bound: float | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers is {layers}, expected at least 1")
        if not all(0 < skip < layers for skip in skips):
            raise ValueError(f"skips are {tuple(skips)}, expected layer indices from 1 to {layers - 1}")
        if output not in _OUTPUTS:
            raise ValueError(f"output is {output!r}, expected one of {', '.join(_OUTPUTS)}")
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.skips = frozenset(skips)
        self.output = output
        inputs = [in_dim] + [width + in_dim * (index in self.skips) for index in range(1, layers)]
        outputs = [width] * (layers - 1) + [out_dim]
        linears = [nn.Linear(i, o) for i, o in zip(inputs, outputs, strict=True)]
        self.layers = nn.ModuleList(linears)
        if output_bound is not None:
            nn.init.uniform_(linears[-1].weight, -output_bound, output_bound)
            nn.init.zeros_(linears[-1].bias)

    def forward(self, x: Float[Tensor, "points in_dim"]) -> Float[Tensor, "points out_dim"]:
        """Evaluates the network at points."""
        hidden = self.layers[0](x)
        for index, layer in enumerate(self.layers[1:], start=1):
            hidden = torch.relu(hidden)
            if index in self.skips:
                hidden = torch.cat([hidden, x.detach()], dim=1)
            hidden = layer(hidden)
        return _OUTPUTS[self.output](hidden)

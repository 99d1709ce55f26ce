"""The opacity of Hashing Neural Video Decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from neural_fields.planar.appearance.hash_network import HashNetwork, HashNetworkConfig
from neural_fields.planar.appearance.opacity import Opacity, OpacityConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.mapping import PointFunction


@dataclass(frozen=True)
class HashOpacityConfig(HashNetworkConfig, OpacityConfig, PointFunction):
    """Sets a `HashNetwork` of (x, y, t) for the alphas of all front layers (Hashing Neural Video Decomposition)."""

    kind: ClassVar[str] = "hash"

    def build(self, shape: ModelShape) -> HashOpacity:
        """See `OpacityConfig.build`."""
        return HashOpacity(self, shape.front_count)


class HashOpacity(Opacity):
    """Computes the alphas by (tanh + 1) / 2 of a hash network of (x, y, t), with a value for each front layer."""

    def __init__(self, settings: HashOpacityConfig, front: int) -> None:
        super().__init__()
        self.alphas: HashNetwork | None = HashNetwork(settings, 3, front, "tanh") if front else None

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the alphas at any points, in [1e-5, 1 - 1e-5]."""
        if self.alphas is None:
            return xyt.new_ones(len(xyt), 0)
        margin = 1e-5  # from 0 and 1, so that logarithms of weights stay finite
        return ((self.alphas(xyt) + 1) / 2).clamp(margin, 1 - margin)

    def param_groups(self) -> list[dict]:
        """See `HashNetwork.param_groups`; empty without front layers."""
        return self.alphas.param_groups() if self.alphas is not None else []

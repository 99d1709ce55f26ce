"""The texture of Hashing Neural Video Decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from neural_fields.planar.appearance.hash_network import HashNetwork, HashNetworkConfig
from neural_fields.planar.appearance.texture import Texture, TextureConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.mlp import MlpMappingConfig


@dataclass(frozen=True)
class BoundedHashTextureConfig(HashNetworkConfig, TextureConfig):
    """Sets a two-dimensional `HashNetwork` for each layer, with colors in [0, 1] by tanh."""

    kind: ClassVar[str] = "bounded_hash"
    mappings: ClassVar[tuple[type, ...]] = (MlpMappingConfig,)  # whose uv stay inside the layer's square

    def build(self, shape: ModelShape) -> list[BoundedHashTexture]:
        """See `TextureConfig.build`."""
        return [BoundedHashTexture(self) for _ in shape.layers]


class BoundedHashTexture(Texture):
    """Computes a layer's colors over [-1, 1]^2: (tanh + 1) / 2 of a hash network."""

    is_unbounded = True

    def __init__(self, settings: BoundedHashTextureConfig) -> None:
        super().__init__()
        self.colors = HashNetwork(settings, 2, 3, "tanh")

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points, in [0, 1]."""
        return ((self.colors(uv.reshape(-1, 2)) + 1) / 2).view(*uv.shape[:-1], 3)

    def param_groups(self) -> list[dict]:
        """See `HashNetwork.param_groups`."""
        return self.colors.param_groups()

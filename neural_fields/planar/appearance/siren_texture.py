"""The texture of NaRCan: a network of sines.

Sitzmann, Martel, Bergman, Lindell and Wetzstein, "Implicit Neural Representations with Periodic Activation Functions"
(2020), section 3.2; as Chen et al., "NaRCan" (2024) use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.nn.siren import Siren
from neural_fields.planar.appearance.texture import Texture, TextureConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM


@dataclass(frozen=True)
class SirenTextureConfig(TextureConfig):
    """Sets a network of sines for each layer (NaRCan)."""

    kind: ClassVar[str] = "siren"
    width: int = 256  # neurons of a layer
    hidden_layers: int = 5  # between the first sine layer and the last linear one
    omega: float = 30.0  # radians a unit: frequency of a sine layer
    learning_rate: float = 1e-4  # of the network

    def __post_init__(self) -> None:
        require_valid(self.width >= 1 and self.hidden_layers >= 0, "width must be at least 1, hidden_layers at least 0")
        require_valid(self.omega > 0, "omega must be above 0")

    def build(self, shape: ModelShape) -> list[SirenTexture]:
        """See `TextureConfig.build`."""
        return [SirenTexture(self) for _ in shape.layers]


class SirenTexture(Texture):
    """Computes a layer's colors as (1 + a network of sines of (u, v)) / 2.

    The colors are not bounded; they are clipped to [0, 1] for display.
    """

    takes_started_box = True

    def __init__(self, settings: SirenTextureConfig) -> None:
        super().__init__()
        self.learning_rate = settings.learning_rate
        self.network = Siren(2, 3, settings.width, settings.hidden_layers, settings.omega)

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points; [0, 1] is the displayable range."""
        return ((evaluate_in_parts(self.network, uv.reshape(-1, 2)) + 1) / 2).view(*uv.shape[:-1], 3)

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.learning_rate, **PAPER_ADAM}]

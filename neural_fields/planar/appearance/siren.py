"""Networks of sines, and the texture that is one.

Sitzmann, Martel, Bergman, Lindell and Wetzstein, "Implicit Neural Representations with Periodic Activation Functions"
(2020), section 3.2; as Chen et al., "NaRCan" (2024) use them.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from neural_fields.config import planar
from neural_fields.nn.siren import Siren
from neural_fields.planar.appearance.texture import Texture
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM


class SirenTexture(Texture):
    """One layer's colors: (1 + a network of sines of (u, v)) / 2.

    Nothing bounds them; they are clipped to [0, 1] where they are shown.
    """

    def __init__(self, settings: planar.SirenTextureConfig) -> None:
        super().__init__()
        self.learning_rate = settings.learning_rate
        self.network = Siren(2, 3, settings.width, settings.hidden_layers, settings.omega)

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points; [0, 1] is the displayable range."""
        return ((evaluate_in_parts(self.network, uv.reshape(-1, 2)) + 1) / 2).view(*uv.shape[:-1], 3)

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.learning_rate, **PAPER_ADAM}]

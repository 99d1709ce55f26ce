"""The opacity of Layered Neural Atlases: a network of (x, y, t)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.config.presets import require_valid
from neural_fields.nn.fourier import Fourier
from neural_fields.nn.mlp import MLP
from neural_fields.planar.appearance.opacity import Opacity, OpacityConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM, PointFunction


@dataclass(frozen=True)
class MlpOpacityConfig(OpacityConfig, PointFunction):
    """Sets an MLP of (x, y, t) with Fourier features (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: int = 8  # linear layers, the last one included
    width: int = 256  # neurons of a hidden layer
    octaves: int = 5  # frequencies of the Fourier features
    learning_rate: float = 1e-4  # of the network

    def __post_init__(self) -> None:
        require_valid(min(self.layers, self.width, self.octaves) >= 1, "layers, width and octaves must be at least 1")

    def build(self, shape: ModelShape) -> MlpOpacity:
        """See `OpacityConfig.build`."""
        return MlpOpacity(self, shape.front_count)


class MlpOpacity(Opacity):
    """Computes alphas from 0.001 to 0.991 with a ReLU network over Fourier features of (x, y, t).

    Kasten et al., "Layered Neural Atlases" (2021), section 3.1: alpha = 0.99 (tanh + 1) / 2 + 0.001, so that every
    layer keeps getting a gradient.
    """

    def __init__(self, settings: MlpOpacityConfig, front: int) -> None:
        super().__init__()
        self.learning_rate = settings.learning_rate
        self.network: nn.Module | None = None
        if front:
            fourier = Fourier(3, settings.octaves)
            network = MLP(fourier.out_dim, front, settings.width, settings.layers, output="tanh")
            self.network = nn.Sequential(fourier, network)

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the alphas at any points, from 0.001 to 0.991."""
        if self.network is None:
            return xyt.new_ones(len(xyt), 0)
        return 0.99 * 0.5 * (evaluate_in_parts(self.network, xyt) + 1) + 0.001

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.learning_rate, **PAPER_ADAM}]

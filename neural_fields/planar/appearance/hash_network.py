"""The building block of "Hashing Neural Video Decomposition": a hash grid and a small network.

Chan et al., "Hashing Neural Video Decomposition with Multiplicative Residuals in Space-Time" (2023), with the networks
of their code. All coordinates are in [-1, 1]; the learning rate of the tables is a hundred times that of the networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.config.presets import require_valid
from neural_fields.nn.hash_grid import HashGrid
from neural_fields.nn.mlp import MLP, OutputActivation
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.hash_levels import HashLevels
from neural_fields.planar.mappings.mapping import PAPER_ADAM


@dataclass(frozen=True)
class HashNetworkConfig(HashLevels):
    """Sets a hash grid over [-1, 1] on each axis and a small network behind it (Hashing Neural Video Decomposition)."""

    log2_table: int = 15  # largest number of entries of a level, as a power of two
    growth: float = 1.25  # ratio of the resolutions of neighboring levels
    width: int = 64  # neurons of a hidden layer
    layers: int = 4  # linear layers of the network, the last one included
    learning_rate: float = 1e-4  # of the network
    table_learning_rate: float = 1e-2  # of the hash grid

    def __post_init__(self) -> None:
        require_valid(min(self.width, self.layers) >= 1, "width and layers must be at least 1")


class HashNetwork(nn.Module):
    """Evaluates a hash grid over [-1, 1]^D and a ReLU network behind it.

    Args:
        settings: sizes and learning rates.
        in_dim: axes of the points.
        out_dim: values at a point.
        output: activation of the last layer.
    """

    def __init__(self, settings: HashNetworkConfig, in_dim: int, out_dim: int, output: OutputActivation) -> None:
        super().__init__()
        self.settings = settings
        self.grid = HashGrid(in_dim, settings.grid_config)
        self.network = MLP(self.grid.out_dim, out_dim, settings.width, settings.layers, output=output)

    def forward(self, points: Float[Tensor, "n axes"]) -> Float[Tensor, "n values"]:
        """Returns the values at points of [-1, 1]^D."""
        return evaluate_in_parts(lambda part: self.network(self.grid(part / 2 + 0.5)), points)

    def param_groups(self) -> list[dict]:
        """Returns the tables and the network in groups with their learning rates."""
        return [
            {"params": list(self.grid.parameters()), "lr": self.settings.table_learning_rate, **PAPER_ADAM},
            {"params": list(self.network.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM},
        ]

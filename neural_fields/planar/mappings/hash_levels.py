"""Shared by all parts on a hash grid: the settings of its levels, and the small network behind it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neural_fields.nn.hash_grid import HashGridConfig
from neural_fields.nn.mlp import MLP


@dataclass(frozen=True)
class HashLevels:
    """Sets the levels of a hash grid (Instant NGP, section 3)."""

    levels: int = 16  # number of grids, from coarse to fine
    features: int = 2  # features of a vertex: 1, 2, 4 or 8
    log2_table: int = 19  # largest number of entries of a level, as a power of two
    base_resolution: int = 16  # vertices of the coarsest level along each axis
    growth: float = 1.38  # ratio of the resolutions of neighboring levels

    @property
    def grid_config(self) -> HashGridConfig:
        """The shape of the hash grid."""
        return HashGridConfig(
            n_levels=self.levels,
            n_features=self.features,
            log2_table=self.log2_table,
            base_resolution=self.base_resolution,
            growth=self.growth,
        )


def build_hash_network(inputs: int, outputs: int, width: int, hidden_layers: int) -> MLP:
    """Builds the network behind a hash grid, started as tiny-cuda-nn starts its own: Glorot's uniform weights, no bias.

    Args:
        inputs: number of features that the network reads.
        outputs: number of values that it returns.
        width: neurons of a hidden layer.
        hidden_layers: number of hidden layers.

    Returns:
        The network.
    """
    network = MLP(inputs, outputs, width, hidden_layers + 1)
    for layer in network.layers:
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network

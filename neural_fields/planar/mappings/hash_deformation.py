"""The mapping of CoDeF: the identity and a deformation by a hash grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.nn.hash_grid import HashGrid, compute_release_weights
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.hash_levels import HashLevels, build_hash_network
from neural_fields.planar.mappings.mapping import PAPER_ADAM, Mapping, MappingConfig, PointFunction


@dataclass(frozen=True)
class HashMappingConfig(HashLevels, MappingConfig, PointFunction):
    """Sets the identity plus a hash-grid deformation whose levels are released during training (CoDeF, section 3.2)."""

    kind: ClassVar[str] = "hash"
    width: int = 64  # neurons of a hidden layer
    hidden_layers: int = 8  # of the network behind the hash grid
    output_scale: float = 0.2  # the network's output times this is the displacement in frame widths and heights
    release: tuple[int, int] = (4000, 8000)  # steps between which the levels are released, coarse ones first
    learning_rate: float = 1e-3  # of the tables and the network

    def __post_init__(self) -> None:
        require_valid(min(self.width, self.hidden_layers) >= 1, "width and hidden_layers must be at least 1")
        require_valid(0 <= self.release[0] <= self.release[1], "release takes two steps, the earlier one first")

    def build(self, shape: ModelShape, spans: Sequence[tuple[int, int]]) -> list[HashMapping]:
        """See `MappingConfig.build`."""
        return [HashMapping(self, shape.size) for _ in shape.layers]

    def scale_steps(self, total: int, final: int) -> MappingConfig:
        """See `MappingConfig.scale_steps`; the release is scaled with the steps."""
        begin, end = self.release
        return replace(self, release=(round(begin * total / final), round(end * total / final)))


class HashMapping(Mapping):
    """Maps by uv = xy + displacement, from a 3-D hash grid with a small network behind it.

    Ouyang et al., "CoDeF" (2024), section 3.2. The levels of the grid are released during the training; levels that are
    not released yet are not computed. The network also reads the raw coordinates, each from 0 to 1 across the frame or
    the clip; its output times `output_scale` is the displacement in widths and heights of the frame. The progress of
    the release (`released`) is saved with the weights.

    Args:
        settings: sizes of the grid and the network, and the release of the levels.
        size: (width, height) of the frames in pixels.
    """

    def __init__(self, settings: HashMappingConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.settings = settings
        self.grid = HashGrid(3, settings.grid_config)
        self.network = build_hash_network(3 + self.grid.out_dim, 2, settings.width, settings.hidden_layers)
        self.register_buffer("released", torch.zeros(()))
        self.released: Tensor
        box = coords.frame_box(*size)
        self.extent = (box.u1, box.v1)

    def begin_step(self, step: int) -> None:
        """Sets the progress of the release, 0 to 1, which rises linearly between the steps of `settings.release`."""
        begin, end = self.settings.release
        share = float(step >= begin) if end <= begin else (step - begin) / (end - begin)
        self.released.fill_(min(1.0, max(0.0, share)))

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points with the levels that are released so far."""
        return evaluate_in_parts(self._map_points, xyt)

    def _map_points(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Does what `forward` does, for a part of the points."""
        extent = xyt.new_tensor(self.extent)
        place = (xyt / torch.cat([extent, extent.new_ones(1)]) + 1) / 2  # each axis from 0 to 1
        released = float(self.released)
        if released == 0:
            features = place.new_zeros(len(place), self.grid.out_dim)
        else:
            weights = None if released == 1 else compute_release_weights(self.settings.levels, released)
            features = self.grid(place, weights)
        shift = self.settings.output_scale * self.network(torch.cat([place, features], 1))
        return xyt[:, :2] + 2 * extent * shift

    def param_groups(self) -> list[dict]:
        """Returns the tables and the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM}]

"""The texture of CoDeF: a hash grid over a box of the canonical plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.nn.hash_grid import HashGrid
from neural_fields.planar.appearance.texture import DEFAULT_MARGIN, Texture, TextureConfig, compute_image_size
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.hash_levels import HashLevels, build_hash_network
from neural_fields.planar.mappings.mapping import PAPER_ADAM


@dataclass(frozen=True)
class HashTextureConfig(HashLevels, TextureConfig):
    """Sets a two-dimensional hash grid and a small MLP for each layer (CoDeF, section 3.1)."""

    kind: ClassVar[str] = "hash"
    growth: float = 1.44  # ratio of the resolutions of neighboring levels
    width: int = 64  # neurons of a hidden layer
    hidden_layers: int = 2  # of the network behind the hash grid
    margin: float = DEFAULT_MARGIN  # share of the frame by which the canonical picture extends beyond each side
    learning_rate: float = 1e-3  # of the tables and the network

    def __post_init__(self) -> None:
        require_valid(min(self.width, self.hidden_layers) >= 1, "width and hidden_layers must be at least 1")
        require_valid(self.margin >= 0, "margin must not be negative")

    @property
    def frame_margin(self) -> float:
        """See `TextureConfig.frame_margin`."""
        return self.margin

    def build(self, shape: ModelShape) -> list[HashTexture]:
        """See `TextureConfig.build`."""
        return [HashTexture(self, layer.box) for layer in shape.layers]

    def plan_image(self, box: Box, finer: float, size: tuple[int, int]) -> tuple[Box, int, int]:
        """See `TextureConfig.plan_image`; a texel for each pixel.

        Args:
            box: the part of the canonical plane that is used, in uv units.
            finer: number of texels per pixel of the frame that are needed.
            size: (width, height) of the frames in pixels.
        """
        return (box, *compute_image_size(box, finer, size))


class HashTexture(Texture):
    """Computes a layer's colors with a 2-D hash grid and a small network, which also reads the raw position.

    Ouyang et al., "CoDeF" (2024), section 3.1. The colors are not bounded; they are clipped to [0, 1] for display. The
    tables repeat beyond the box.

    Args:
        settings: sizes of the grid and the network.
        box: the part of the canonical plane that the grid covers, in uv units.
    """

    def __init__(self, settings: HashTextureConfig, box: Box) -> None:
        super().__init__()
        self.box = box
        self.learning_rate = settings.learning_rate
        self.grid = HashGrid(2, settings.grid_config)
        self.network = build_hash_network(2 + self.grid.out_dim, 3, settings.width, settings.hidden_layers)

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points; [0, 1] is the displayable range."""
        place = coords.box_to_unit(uv.reshape(-1, 2), self.box)
        return evaluate_in_parts(self._evaluate_unit_square, place).view(*uv.shape[:-1], 3)

    def _evaluate_unit_square(self, place: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
        """Returns the colors at positions from 0 to 1 across the box."""
        return self.network(torch.cat([place, self.grid(place)], dim=1))

    def param_groups(self) -> list[dict]:
        """Returns the tables and the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.learning_rate, **PAPER_ADAM}]

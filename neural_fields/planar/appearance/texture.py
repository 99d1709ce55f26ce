"""Textures: the colors of the canonical plane of a layer, (u, v) -> rgb."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config import planar
from neural_fields.core import coords
from neural_fields.core.coords import Box
from neural_fields.nn.fourier import Fourier
from neural_fields.nn.hash_grid import HashGrid
from neural_fields.nn.mlp import MLP
from neural_fields.planar.mappings.frame_grid import mean_squared_steps
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM, build_hash_network, make_hash_grid_config


@dataclass(frozen=True)
class MipmapSettings:
    """Settings of the smaller pictures of an image texture."""

    max_halvings: int = 4  # of each side
    slack: float = 0.6  # halvings: pixels may lie 2^0.6 = 1.5 texels apart before the next smaller picture is taken


DEFAULTS = MipmapSettings()


class Texture(nn.Module):
    """The colors of one layer's canonical plane."""

    @abstractmethod
    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points; [0, 1] is the displayable range."""

    def sample_filtered(self, uv: Float[Tensor, "*n 2"], step: Float[Tensor, "m 2"] | None) -> Float[Tensor, "*n 3"]:
        """Returns the RGB of pixels that lie `step` apart along u and v.

        Args:
            uv: of the pixels.
            step: one for each entry of the first axis of `uv`; None where it is not known.
        """
        return self(uv)

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns what the optimizer changes, with learning rates."""


class ImageTexture(Texture):
    """A picture of texels that covers a box; beyond it the edge goes on.

    Args:
        box: in uv units.
        width, height: in texels, multiples of 2^max_halvings.
        learning_rate: of the colors.
        settings: of the smaller pictures.
    """

    def __init__(
        self, box: Box, width: int, height: int, learning_rate: float, settings: MipmapSettings = DEFAULTS
    ) -> None:
        super().__init__()
        self.box = box
        self.settings = settings
        self.learning_rate = learning_rate
        self.image = nn.Parameter(torch.full((3, height, width), 0.5))

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points, interpolated between the texels of the full picture."""
        return self._sample_picture(self.image, uv)

    def sample_filtered(self, uv: Float[Tensor, "*n 2"], step: Float[Tensor, "m 2"] | None) -> Float[Tensor, "*n 3"]:
        """Returns the RGB of pixels; where they lie more than a texel apart, from a picture with fewer texels.

        Otherwise a frame that shows the layer small would use single texels with gaps between them, and training would
        change the colors of just these: a pattern of dots in the picture that people paint on.
        """
        if step is None:
            return self(uv)
        levels = self.choose_levels(step)
        parts = levels.unique(dim=0)
        if len(parts) == 1:
            return self._sample_picture(self.downsample_image(*parts[0].tolist()), uv)
        color = uv.new_zeros(*uv.shape[:-1], 3)
        for part in parts:
            chosen = torch.nonzero((levels == part).all(1))[:, 0]
            found = self._sample_picture(self.downsample_image(*part.tolist()), uv[chosen])
            color = color.index_copy(0, chosen, found)
        return color

    def choose_levels(self, step: Float[Tensor, "m 2"]) -> Int[Tensor, "m 2"]:
        """Returns how often to halve the picture across and down for pixels that lie `step` apart along u and v."""
        height, width = self.image.shape[1:]
        texels = step * step.new_tensor([width / self.box.width, height / self.box.height])  # between two pixels
        return (texels.clamp_min(1.0).log2() - self.settings.slack).ceil().long().clamp(0, self.settings.max_halvings)

    def downsample_image(self, across: int, down: int) -> Float[Tensor, "3 height width"]:
        """Returns the picture with its width halved `across` times and its height `down` times."""
        if across == down == 0:
            return self.image
        # Even cells only: cells that share texels would give these more of the gradient, which shows as a pattern.
        return F.avg_pool2d(self.image, (2**down, 2**across))

    def _sample_picture(
        self, image: Float[Tensor, "3 height width"], uv: Float[Tensor, "*n 2"]
    ) -> Float[Tensor, "*n 3"]:
        """Reads a picture that covers the box at any points."""
        # One picture per frame of the batch: grid_sample works on them in parallel.
        batch = uv if uv.ndim == 4 else uv.reshape(1, 1, -1, 2)
        images = image.expand(len(batch), -1, -1, -1)
        return coords.sample_canonical(images, self.box, batch).permute(0, 2, 3, 1).reshape(*uv.shape[:-1], 3)

    def compute_roughness(self) -> Float[Tensor, ""]:
        """Computes the mean squared difference between neighboring texels."""
        return mean_squared_steps(self.image[None])

    def param_groups(self) -> list[dict]:
        """Returns the texels with their learning rate."""
        return [{"params": [self.image], "lr": self.learning_rate}]


class MlpTexture(Texture):
    """One layer's square of a plane that all layers share: a ReLU network over Fourier features of the position in it.

    Kasten et al., "Layered Neural Atlases" (2021), section 3.1. `make_mlp_textures` makes one for each layer; only the
    first of them registers the network, so that a checkpoint holds it once.

    Args:
        settings: learning rate.
        network: from positions in the plane to colors from -1 to 1.
        center, half_side: the middle and half the side of the square; uv in [-1, 1]^2 fill it.
        owner: this layer registers and trains the network.
    """

    def __init__(
        self,
        settings: planar.MlpTextureConfig,
        network: nn.Module,
        center: tuple[float, float],
        half_side: float,
        owner: bool,
    ) -> None:
        super().__init__()
        self.learning_rate = settings.learning_rate
        self.center = center
        self.half_side = half_side
        if owner:
            self.network = network
        self._shared = (network,)  # a module inside a tuple is not registered

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points, in [0, 1]."""
        place = uv.reshape(-1, 2) * self.half_side + uv.new_tensor(self.center)
        return ((evaluate_in_parts(self._shared[0], place) + 1) / 2).view(*uv.shape[:-1], 3)

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network with their learning rate; none unless this layer owns it."""
        return [{"params": list(self.parameters()), "lr": self.learning_rate, **PAPER_ADAM}]


def make_mlp_textures(settings: planar.MlpTextureConfig, layers: int) -> list[MlpTexture]:
    """Makes a texture for each layer, front to back, over one network.

    The paper's two layers lie in the quadrants 0.5 uv + 0.5 (foreground) and 0.5 uv - 0.5 (background). Two more fit
    beside them; beyond four layers the squares get smaller. The background has the square nearest to (-1, -1).
    """
    fourier = Fourier(2, settings.octaves)
    skips = tuple(settings.skips)
    network = nn.Sequential(
        fourier, MLP(fourier.out_dim, 3, settings.width, settings.layers, skips=skips, output="tanh")
    )
    side = 2  # squares along each axis of the plane
    while side * side < layers:
        side += 1
    middles = [(2 * index + 1) / side - 1 for index in reversed(range(side))]
    centers = [(u, v) for v in middles for u in middles]
    used = [*centers[: layers - 1], centers[-1]]
    return [MlpTexture(settings, network, center, 1 / side, number == 0) for number, center in enumerate(used)]


class HashTexture(Texture):
    """A 2-D hash grid over `box` and a small network, which also reads the raw position; beyond it the tables repeat.

    Ouyang et al., "CoDeF" (2024), section 3.1. Nothing bounds the colors; they are cut to [0, 1] where they are shown.
    """

    def __init__(self, settings: planar.HashTextureConfig, box: Box) -> None:
        super().__init__()
        self.box = box
        self.learning_rate = settings.learning_rate
        self.grid = HashGrid(2, make_hash_grid_config(settings))
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

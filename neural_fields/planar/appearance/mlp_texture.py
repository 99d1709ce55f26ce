"""The texture of Layered Neural Atlases: one network for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.config.presets import require_valid
from neural_fields.nn.fourier import Fourier
from neural_fields.nn.mlp import MLP
from neural_fields.planar.appearance.texture import Texture, TextureConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM
from neural_fields.planar.mappings.mlp import MlpMappingConfig


@dataclass(frozen=True)
class MlpTextureConfig(TextureConfig):
    """Sets one MLP for all layers, each in a different quadrant of the plane (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    mappings: ClassVar[tuple[type, ...]] = (MlpMappingConfig,)  # whose uv stay inside the layer's square
    layers: int = 8  # linear layers, the last one included
    width: int = 256  # neurons of a hidden layer
    octaves: int = 10  # frequencies of the Fourier features
    skips: tuple[int, ...] = (4, 7)  # layers, counted from 0, that read the input again
    learning_rate: float = 1e-4  # of the network

    def __post_init__(self) -> None:
        require_valid(min(self.layers, self.width, self.octaves) >= 1, "layers, width and octaves must be at least 1")
        require_valid(
            all(0 < skip < self.layers for skip in self.skips),
            f"skips must lie between 1 and {self.layers - 1}, the last of the layers",
        )

    def build(self, shape: ModelShape) -> list[MlpTexture]:
        """See `TextureConfig.build`."""
        return make_mlp_textures(self, len(shape.layers))


class MlpTexture(Texture):
    """Computes a layer's colors in its square of a shared plane, with a ReLU network over Fourier features.

    Kasten et al., "Layered Neural Atlases" (2021), section 3.1. `make_mlp_textures` makes one for each layer; only the
    first of them registers the network, so that a checkpoint holds it once.

    Args:
        settings: learning rate.
        network: from positions in the plane to colors from -1 to 1.
        center: the middle of the square in the plane.
        half_side: half of its side; uv in [-1, 1]^2 fill the square.
        owner: whether this layer registers and trains the network.
    """

    is_unbounded = True

    def __init__(
        self,
        settings: MlpTextureConfig,
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


def make_mlp_textures(settings: MlpTextureConfig, layers: int) -> list[MlpTexture]:
    """Makes the textures of all layers over one network.

    The paper's two layers are in the quadrants 0.5 uv + 0.5 (foreground) and 0.5 uv - 0.5 (background). Two more layers
    fit beside them; with more than four layers the squares get smaller. The background has the square nearest to
    (-1, -1).

    Args:
        settings: sizes of the network.
        layers: number of layers.

    Returns:
        A texture for each layer, front to back.
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

"""Texture, opacity and gain of "Hashing Neural Video Decomposition", each a hash grid with a small network behind it.

Chan et al., "Hashing Neural Video Decomposition with Multiplicative Residuals in Space-Time" (2023), by the networks of
their code. All coordinates run from -1 to 1; the tables learn a hundred times faster than the networks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config import planar
from neural_fields.nn.hash_grid import HashGrid
from neural_fields.nn.mlp import MLP, OutputActivation
from neural_fields.planar.appearance.gain import Gain
from neural_fields.planar.appearance.opacity import Opacity
from neural_fields.planar.appearance.texture import Texture
from neural_fields.planar.mappings.frame_points import evaluate_in_parts, frame_points
from neural_fields.planar.mappings.mapping import PAPER_ADAM, make_hash_grid_config


class HashNetwork(nn.Module):
    """A hash grid over [-1, 1]^D and a ReLU network that reads nothing else.

    Args:
        settings: sizes and learning rates.
        in_dim, out_dim: axes of the points, values.
        output: activation of the last layer.
    """

    def __init__(self, settings: planar.HashNetworkConfig, in_dim: int, out_dim: int, output: OutputActivation) -> None:
        super().__init__()
        self.settings = settings
        self.grid = HashGrid(in_dim, make_hash_grid_config(settings))
        self.network = MLP(self.grid.out_dim, out_dim, settings.width, settings.layers, output=output)

    def forward(self, points: Float[Tensor, "n axes"]) -> Float[Tensor, "n values"]:
        """Returns the values at points of [-1, 1]^D."""
        return evaluate_in_parts(lambda part: self.network(self.grid(part / 2 + 0.5)), points)

    def param_groups(self) -> list[dict]:
        """Returns tables and network, each with its own learning rate."""
        return [
            {"params": list(self.grid.parameters()), "lr": self.settings.table_learning_rate, **PAPER_ADAM},
            {"params": list(self.network.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM},
        ]


class BoundedHashTexture(Texture):
    """One layer's colors over all of [-1, 1]^2: (tanh + 1) / 2 of a hash network."""

    def __init__(self, settings: planar.BoundedHashTextureConfig) -> None:
        super().__init__()
        self.colors = HashNetwork(settings, 2, 3, "tanh")

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points, in [0, 1]."""
        return ((self.colors(uv.reshape(-1, 2)) + 1) / 2).view(*uv.shape[:-1], 3)

    def param_groups(self) -> list[dict]:
        """See `HashNetwork.param_groups`."""
        return self.colors.param_groups()


class HashOpacity(Opacity):
    """(tanh + 1) / 2 of a hash network of (x, y, t), one value for each front layer."""

    def __init__(self, settings: planar.HashOpacityConfig, front: int) -> None:
        super().__init__()
        self.alphas: HashNetwork | None = HashNetwork(settings, 3, front, "tanh") if front else None

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the alphas at any points, in [1e-5, 1 - 1e-5]."""
        if self.alphas is None:
            return xyt.new_ones(len(xyt), 0)
        margin = 1e-5  # from 0 and 1, so that logarithms of weights stay finite
        return ((self.alphas(xyt) + 1) / 2).clamp(margin, 1 - margin)

    def param_groups(self) -> list[dict]:
        """See `HashNetwork.param_groups`; empty without front layers."""
        return self.alphas.param_groups() if self.alphas is not None else []


class HashGain(Gain):
    """softplus of a hash network of (u, v, t): the "multiplicative residual" of one layer, a factor for each channel.

    uv are detached, so that the gain never moves the mapping.
    """

    on_canonical = True

    def __init__(self, settings: planar.HashGainConfig) -> None:
        super().__init__()
        self.light = HashNetwork(settings, 3, 3, "softplus")

    def sample_canonical(self, uv: Float[Tensor, "n 2"], time: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
        """Returns the gain of canonical points at any time, whether they are visible then or not."""
        return self.light(torch.cat([uv.detach(), time[:, None]], dim=1))

    def forward(self, xyt: Float[Tensor, "n 3"], uv: Float[Tensor, "n 2"] | None = None) -> Float[Tensor, "n 3"]:
        """Returns the gains at the points `uv`, which are required, and the times of `xyt`."""
        assert uv is not None
        return self.sample_canonical(uv, xyt[:, 2])

    def sample_frames(
        self,
        frames: Int[Tensor, " frames"],
        frame_count: int,
        size: tuple[int, int],
        uv: Float[Tensor, "frames height width 2"] | None = None,
    ) -> Float[Tensor, "frames height width 3"]:
        """See `Gain.sample_frames`; `uv` is required."""
        assert uv is not None
        time = frame_points(frames, frame_count, size)[:, 2]
        return self.sample_canonical(uv.reshape(-1, 2), time).view(len(frames), size[1], size[0], 3)

    def param_groups(self) -> list[dict]:
        """See `HashNetwork.param_groups`."""
        return self.light.param_groups()

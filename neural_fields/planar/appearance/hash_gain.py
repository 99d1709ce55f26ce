"""The gain of Hashing Neural Video Decomposition: light that is fixed to the canonical plane and changes over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.planar.appearance.gain import Gain, GainConfig
from neural_fields.planar.appearance.hash_network import HashNetwork, HashNetworkConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import frame_points
from neural_fields.planar.mappings.mapping import PointFunction


@dataclass(frozen=True)
class HashGainConfig(HashNetworkConfig, GainConfig, PointFunction):
    """Sets a `HashNetwork` of (u, v, t) for each layer: light fixed to the canonical plane that changes over time."""

    kind: ClassVar[str] = "hash"

    def build(self, shape: ModelShape) -> list[HashGain]:
        """See `GainConfig.build`."""
        return [HashGain(self) for _ in shape.layers]


class HashGain(Gain):
    """Computes the "multiplicative residual" of a layer: the softplus of a hash network of (u, v, t), for each channel.

    The uv are detached, so that the gain does not train the mapping.
    """

    on_canonical = True

    def __init__(self, settings: HashGainConfig) -> None:
        super().__init__()
        self.light = HashNetwork(settings, 3, 3, "softplus")

    def sample_canonical(self, uv: Float[Tensor, "n 2"], time: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
        """Computes the gain of canonical points at any time, whether they are visible or not."""
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
        """See `Gain.sample_frames`; `uv` is required.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.
            uv: canonical positions of the pixels, which are required here.
        """
        assert uv is not None
        time = frame_points(frames, frame_count, size)[:, 2]
        return self.sample_canonical(uv.reshape(-1, 2), time).view(len(frames), size[1], size[0], 3)

    def param_groups(self) -> list[dict]:
        """See `HashNetwork.param_groups`."""
        return self.light.param_groups()

"""The mapping of Layered Neural Atlases: a plain network, warmed up to the identity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.progress import Progress
from neural_fields.nn.adam import Adam
from neural_fields.nn.mlp import MLP
from neural_fields.planar.init.geometry import LayerGeometry
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM, Mapping, MappingConfig, PointFunction


@dataclass(frozen=True)
class MlpMappingConfig(MappingConfig, PointFunction):
    """Sets an MLP of (x, y, t) without encoding, warmed up to a scaled identity (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: tuple[int, ...] = (6, 4)  # linear layers of the networks of front layers, of the background
    width: int = 256  # neurons of a hidden layer
    uv_scale: float = 0.8  # the warm-up target is uv_scale * (x, y)
    background_uv_scale: float = 0.0  # the same for the background; 0: as uv_scale
    warm_up: int = 100  # warm-up steps for each frame
    learning_rate: float = 1e-4  # of the network

    def __post_init__(self) -> None:
        require_valid(len(self.layers) == 2, "layers takes two numbers: front layers, background")
        require_valid(min(self.layers) >= 1 and self.width >= 1, "layers and width must be at least 1")
        require_valid(0 < self.uv_scale < 1, "uv_scale must lie between 0 and 1: the network cannot reach beyond 1")
        require_valid(
            0 <= self.background_uv_scale < 1, "background_uv_scale must lie between 0 and 1 (0: as uv_scale)"
        )
        require_valid(self.warm_up >= 0, "warm_up must not be negative")

    def build(self, shape: ModelShape, spans: Sequence[tuple[int, int]]) -> list[MlpMapping]:
        """See `MappingConfig.build`."""
        uv_scale = self.background_uv_scale or self.uv_scale
        mappings = [MlpMapping(self, self.layers[0]) for _ in range(shape.front_count)]
        return [*mappings, MlpMapping(replace(self, uv_scale=uv_scale), self.layers[1])]

    def plan_box(self, size: tuple[int, int], margin: float) -> tuple[Box, float]:
        """See `MappingConfig.plan_box`; the range of tanh. The export measures the part that is used."""
        return Box(-1.0, -1.0, 1.0, 1.0), 1 / self.uv_scale


class MlpMapping(Mapping):
    """Maps with a ReLU network of (x, y, t) that ends in tanh and has no encoding, so that it stays smooth.

    Kasten et al., "Layered Neural Atlases" (2021), section 3.1. The uv are in (-1, 1); `warm_up` initializes the
    network to `uv_scale` times the identity.

    Args:
        settings: sizes of the network, and its warm-up.
        layers: number of linear layers.
    """

    def __init__(self, settings: MlpMappingConfig, layers: int) -> None:
        super().__init__()
        self.settings = settings
        self.uv_scale = settings.uv_scale
        self.network = MLP(3, 2, settings.width, layers, output="tanh")

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points, in (-1, 1)."""
        return evaluate_in_parts(self.network, xyt)

    def initialize(
        self, number: int, shape: ModelShape, geometry: LayerGeometry | None, options: WarmUpOptions
    ) -> None:
        """See `Mapping.initialize`; the identity (`warm_up`).

        Args:
            number: of the layer, front to back.
            shape: sizes of the model.
            geometry: is not read.
            options: seed, device and time limit of a start that takes steps.
        """
        warm_up(self, shape.frame_count, shape.size, options.for_layer(number, len(shape.layers)))

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM}]


def warm_up(mapping: MlpMapping, frame_count: int, size: tuple[int, int], options: WarmUpOptions) -> float:
    """Teaches `mapping` that uv = uv_scale * xy, and returns the mean distance that is left, in uv units.

    As the code of Kasten et al., "Layered Neural Atlases" (2021): `warm_up` rounds of one step for each frame, Adam,
    the mean distance over random pixels of that frame. The mapping comes back to the device where it was.

    Args:
        mapping: changed in place.
        frame_count: of the clip.
        size: (width, height) of the clip.
        options: seed, device and limits.
    """
    settings = mapping.settings
    home = next(mapping.parameters()).device
    mapping.to(options.device)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([options.seed, 1]).generate_state(1)[0]))
    optimizer = Adam([{"params": list(mapping.parameters()), "lr": settings.learning_rate, **PAPER_ADAM}])
    total = settings.warm_up * frame_count
    begin = time.monotonic()
    distance = torch.zeros(())
    with torch.enable_grad():
        for step in range(total):
            if options.stop() or (options.seconds is not None and time.monotonic() - begin > options.seconds):
                break
            # xyt of random pixels of one frame.
            count = min(options.max_points, size[0] * size[1])
            pixel = (torch.rand(count, 2, generator=generator) * torch.tensor(size)).floor()
            xy = coords.normalize_pixels(pixel + 0.5, *size)
            t = float(coords.normalize_time(float(step % frame_count), frame_count))
            xyt = torch.cat([xy, torch.full((count, 1), t)], dim=1).to(options.device)
            distance = (mapping(xyt) - settings.uv_scale * xyt[:, :2]).norm(dim=1).mean()
            optimizer.zero_grad()
            distance.backward()
            optimizer.step()
            if step % options.report_every == 0:
                options.report(Progress("geometry", step, total))
    mapping.to(home)
    return float(distance.detach())

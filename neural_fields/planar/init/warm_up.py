"""The warm-up of a mapping that is a network: it is taught the identity before training begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from neural_fields.core import coords
from neural_fields.nn.adam import Adam
from neural_fields.planar.mappings.mapping import PAPER_ADAM, MlpMapping


@dataclass(frozen=True)
class WarmUpOptions:
    """Options of warm-ups. Without `seconds` and `stop`, the same seed gives the same weights."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where the steps are computed
    seconds: float | None = None  # after which a warm-up ends, finished or not
    stop: Callable[[], bool] = lambda: False  # asked before each step; True ends the warm-up
    progress: Callable[[int, int], None] = lambda done, total: None  # steps done and all steps
    report_every: int = 20  # steps between two calls of `progress`
    max_points: int = 10_000  # of a frame, for each step; no more than the frame has pixels

    def for_layer(self, number: int, layers: int) -> WarmUpOptions:
        """Returns the options for one of several layers: its own random points, its share of the time."""
        seconds = None if self.seconds is None else self.seconds / layers
        return replace(self, seed=self.seed * layers + number, seconds=seconds)


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
                options.progress(step, total)
    mapping.to(home)
    return float(distance.detach())

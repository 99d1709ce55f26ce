"""Pretraining of a mapping with the colors of the frames, for a start that needs no optical flow.

Chen et al., "NaRCan: Natural Refined Canonical Image with Integration of Diffusion Prior for Video Editing" (2024), by
the steps of their code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_fields.core.progress import Progress
from neural_fields.data.dataset import ClipDataset
from neural_fields.nn.adam import Adam
from neural_fields.nn.siren import Siren
from neural_fields.planar.init.warm_up import WarmUpOptions


@dataclass(frozen=True)
class ColorPretraining:
    """Describes the part of a mapping that is trained with colors before the first step, and how.

    Attributes:
        network: the part of the mapping; its parameters do not change after the pretraining.
        map_points: maps points [n, 3] of the video to one canonical plane [n, 2] of the whole clip, by `network`.
        steps: number of steps.
        learning_rate: of `network` and of the canonical network.
        width: neurons of a layer of the canonical network.
        omega: radians a unit: frequency of a sine layer of the canonical network.
    """

    network: nn.Module
    map_points: Callable[[Tensor], Tensor]
    steps: int
    learning_rate: float
    width: int
    omega: float


@dataclass(frozen=True)
class ColorPretrainingSettings:
    """Settings of a pretraining with colors."""

    canonical_hidden_layers: int = 4  # hidden layers of the canonical network, which is dropped after the pretraining
    pixel_divisor: int = 4  # a step sees the pixels of a frame divided by this


DEFAULTS = ColorPretrainingSettings()


def pretrain_with_colors(
    plan: ColorPretraining,
    clip: ClipDataset,
    options: WarmUpOptions,
    settings: ColorPretrainingSettings = DEFAULTS,
) -> None:
    """Trains a part of a mapping together with one canonical network for the whole clip, which is then dropped.

    As the paper's code: mean squared error of colors from -1 to 1, Adam, a fourth of a frame's pixels in each step.
    Steps whose gradients are not finite are left out.

    Args:
        plan: what is trained, and how long; its network is changed in place and comes back to the device where it was.
        clip: the frames.
        options: seed, device and time limit.
        settings: sizes.
    """
    network = plan.network
    home = next(network.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        canonical = Siren(2, 3, plan.width, settings.canonical_hidden_layers, plan.omega).to(options.device)
    network.to(options.device).requires_grad_(True)
    params = [*network.parameters(), *canonical.parameters()]
    adam = Adam([{"params": params, "lr": plan.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}])  # torch's defaults
    pixels = max(1, clip.size[0] * clip.size[1] // settings.pixel_divisor)
    begin = time.monotonic()
    with torch.enable_grad():
        for step in range(plan.steps):
            if options.stop() or (options.seconds is not None and time.monotonic() - begin > options.seconds):
                break
            batch = clip.draw_pixels(pixels, step, options.seed)
            shown = canonical(plan.map_points(batch.xyt.to(options.device)))
            loss = F.mse_loss(shown, 2 * batch.rgb.to(options.device) - 1)
            adam.zero_grad()
            loss.backward()
            if all(bool(torch.isfinite(gradient).all()) for gradient in adam.iterate_gradients()):
                adam.step()
            if step % options.report_every == 0:
                options.report(Progress("geometry", step, plan.steps))
    network.to(home).requires_grad_(False)

"""Noise schedules: the amount of signal and noise in a picture at every time of a diffusion model.

Every model used here noises a clean picture x0 to

    x_t = signal_t * x0 + noise_t * n

and predicts n (epsilon), x0 (sample), v = signal_t * n - noise_t * x0 (Salimans and Ho, Progressive Distillation, 2022,
appendix D) or the velocity n - x0 (flow matching, Lipman et al., 2023, with signal_t = 1 - noise_t). From any of them
follow both x0 and n, so that samplers, inversion and score distillation are written once, for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

PredictionKind = Literal["epsilon", "v_prediction", "sample", "flow"]
Latents = Float[Tensor, "n channels rows columns"]


@dataclass(frozen=True)
class DenoisedLatents:
    """Holds the clean picture and the noise that a model predicts for noised latents."""

    clean: Latents
    noise: Latents


@dataclass(frozen=True)
class NoiseSchedule:
    """Holds the noise levels of a model, for its training times 0 (almost clean) to T - 1 (almost noise).

    Attributes:
        signal: factor of x0 at each time.
        noise: factor of the noise at each time.
        network_time: the time as the network takes it.
        kind: what the network predicts.
        spacing: how times are selected for fewer steps (`timestep_spacing` of diffusers).
        offset: offset of the selected times (`steps_offset` of diffusers).

    Example:
        >>> schedule = NoiseSchedule.from_config({}, torch.linspace(0.999, 0.005, 1000))
        >>> schedule.select_times(steps=4), schedule.select_times(steps=4, strength=0.5)
        ([750, 500, 250, 0], [250, 0])
    """

    signal: Float[Tensor, " times"]
    noise: Float[Tensor, " times"]
    network_time: Float[Tensor, " times"]
    kind: PredictionKind
    spacing: str = "leading"
    offset: int = 0

    @staticmethod
    def from_config(config: Mapping[str, Any], alphas_cumprod: Float[Tensor, " times"] | None) -> NoiseSchedule:
        """Makes the schedule that a diffusers scheduler describes.

        Args:
            config: the scheduler's configuration.
            alphas_cumprod: its squared signal factors; None for a flow-matching scheduler.
        """
        if alphas_cumprod is None:
            count, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift") or 1.0)
            level = torch.linspace(1 / count, 1, count)
            level = shift * level / (1 + (shift - 1) * level)
            return NoiseSchedule(1 - level, level, count * level, "flow", "trailing")
        squared = alphas_cumprod.float().cpu()
        return NoiseSchedule(
            squared.sqrt(),
            (1 - squared).sqrt(),
            torch.arange(len(squared), dtype=torch.float32),
            config.get("prediction_type", "epsilon"),
            config.get("timestep_spacing", "leading"),
            int(config.get("steps_offset", 0)),
        )

    def select_times(self, steps: int, strength: float = 1.0) -> list[int]:
        """Selects the times of the denoising steps, noisiest first.

        Args:
            steps: number of steps from pure noise to a picture, at least 1.
            strength: share of these steps to run, in (0, 1]; below 1 the run starts from less noise (SDEdit).
        """
        count = len(self.signal)
        steps = min(max(1, steps), count)
        if self.spacing == "trailing":
            times = [round(count - i * count / steps) - 1 for i in range(steps)]
        elif self.spacing == "linspace":
            times = [round(float(t)) for t in torch.linspace(count - 1, 0, steps, dtype=torch.float64)]
        else:
            ratio = count // steps
            times = [min(i * ratio + self.offset, count - 1) for i in reversed(range(steps))]
        remaining = min(max(1, round(steps * strength)), steps)
        return times[steps - remaining :]

    def add_noise(self, clean: Latents, noise: Latents, time: int) -> Latents:
        """Computes the noised latents x_t.

        Args:
            clean: clean latents x0.
            noise: noise of the same shape.
            time: noise level, an index into the schedule.
        """
        return self.signal[time].item() * clean + self.noise[time].item() * noise

    def decompose_output(self, latents: Latents, output: Latents, time: int) -> DenoisedLatents:
        """Computes the clean picture and the noise from a network's output.

        Args:
            latents: noised latents.
            output: output of the network for them.
            time: noise level of the latents, an index into the schedule.
        """
        a, s = self.signal[time].item(), self.noise[time].item()
        if self.kind == "epsilon":
            return DenoisedLatents((latents - s * output) / a, output)
        if self.kind == "sample":
            return DenoisedLatents(output, (latents - a * output) / s)
        if self.kind == "v_prediction":
            return DenoisedLatents(a * latents - s * output, s * latents + a * output)
        return DenoisedLatents(latents - s * output, latents + (1 - s) * output)

    def mix_latents(self, denoised: DenoisedLatents, time: int | None) -> Latents:
        """Mixes a clean picture and noise to the latents of a time.

        This is a step of deterministic DDIM (Song et al., 2021, eq. 12), and an Euler step for flow matching.

        Args:
            denoised: the clean picture and the noise.
            time: noise level, an index into the schedule; None returns the clean picture.
        """
        return denoised.clean if time is None else self.add_noise(denoised.clean, denoised.noise, time)

    def assume_clean(self, latents: Latents, clean: Latents, time: int) -> DenoisedLatents:
        """Computes the noise in noised latents for a given clean picture.

        Args:
            latents: noised latents.
            clean: the clean latents.
            time: noise level of the noised latents, an index into the schedule.
        """
        return DenoisedLatents(clean, (latents - self.signal[time].item() * clean) / self.noise[time].item())


def pair_with_next(times: Sequence[int]) -> list[tuple[int, int | None]]:
    """Pairs each time with the next one, and the last one with None, which stands for the clean picture.

    Example:
        >>> pair_with_next([750, 500, 250])
        [(750, 500), (500, 250), (250, None)]
    """
    return list(zip(times, [*times[1:], None], strict=True))

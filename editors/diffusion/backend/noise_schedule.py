"""Noise schedules: how much signal and how much noise a picture has at every time of a diffusion model.

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
    """The clean picture and the noise that a model sees in noised latents, `signal * clean + level * noise`."""

    clean: Latents
    noise: Latents


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of a model, for its training times 0 (nearly clean) to T - 1 (nearly noise).

    Attributes:
        signal, noise: the factors of x0 and of the noise.
        network_time: the time as it is given to the network.
        kind: what the network predicts.
        spacing, offset: which of the times are used for fewer steps (diffusers' `timestep_spacing`, `steps_offset`).
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
            config: the scheduler's config.
            alphas_cumprod: its squared signal levels; None for a flow-matching scheduler.
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
        """Selects the times of a run of `steps` steps, noisiest first.

        Args:
            steps: of a whole run from pure noise, at least 1.
            strength: in (0, 1]; below 1 only the last share of the steps is run, from less noise on (SDEdit).
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
        """Computes x_t of a clean picture."""
        return self.signal[time].item() * clean + self.noise[time].item() * noise

    def decompose_output(self, latents: Latents, output: Latents, time: int) -> DenoisedLatents:
        """Computes the clean picture and the noise from a network's output.

        Args:
            latents: noised, of `time`.
            output: of the network for them.
            time: as the schedule counts.
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
        """Mixes the clean picture and the noise to latents of a time; returns the clean picture where `time` is None.

        This is a step of DDIM without randomness (Song et al., 2021, eq. 12), and for flow matching one of Euler.
        """
        return denoised.clean if time is None else self.add_noise(denoised.clean, denoised.noise, time)

    def assume_clean(self, latents: Latents, clean: Latents, time: int) -> DenoisedLatents:
        """Computes the noise that remains when the clean picture in noised latents is assumed to be `clean`.

        Args:
            latents: noised, of `time`.
            clean: the clean latents.
            time: as the schedule counts.
        """
        return DenoisedLatents(clean, (latents - self.signal[time].item() * clean) / self.noise[time].item())


def pair_with_next(times: Sequence[int]) -> list[tuple[int, int | None]]:
    """Pairs each time with the next one, the last with None, which is the clean picture."""
    return list(zip(times, [*times[1:], None], strict=True))

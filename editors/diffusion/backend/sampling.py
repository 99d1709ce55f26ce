"""Sampling loops that editors share: denoising, denoising of a region only, and inversion to noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule, pair_with_next
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing

Denoiser = Callable[[Latents, int], DenoisedLatents]  # noised latents and their time
LatentsCallback = Callable[[Latents, int | None], Latents]  # latents after a step and their time, None for clean ones


def denoise_latents(
    latents: Latents,
    times: Sequence[int],
    schedule: NoiseSchedule,
    predict: Denoiser,
    report: ProgressReporter = report_nothing,
    change_latents: LatentsCallback | None = None,
) -> Latents:
    """Denoises latents with deterministic DDIM (Song et al., 2021), or with Euler steps for flow matching.

    Args:
        latents: noised latents at the time `times[0]`.
        times: indices into the schedule, noisiest first.
        schedule: noise schedule of the model.
        predict: predicts the clean picture and the noise.
        report: called after each step.
        change_latents: called after each step; returns changed latents.

    Returns:
        Clean latents.
    """
    pairs = pair_with_next(times)
    for done, (time, after) in enumerate(pairs, start=1):
        latents = schedule.mix_latents(predict(latents, time), after)
        if change_latents is not None:
            latents = change_latents(latents, after)
        report(Progress("denoising", done, len(pairs)))
    return latents


def denoise_region(
    latents: Latents,
    times: Sequence[int],
    schedule: NoiseSchedule,
    predict: Denoiser,
    *,
    original: Latents,
    noise: Latents,
    region: Float[Tensor, "#n 1 rows columns"],
    report: ProgressReporter = report_nothing,
) -> Latents:
    """Denoises only a region; outside, the latents stay the original's at every time (Blended Latent Diffusion, 2023).

    Args:
        latents: noised latents at the time `times[0]`.
        times: indices into the schedule, noisiest first.
        schedule: noise schedule of the model.
        predict: predicts the clean picture and the noise.
        original: clean latents of the picture.
        noise: the noise in `latents`; it noises the original at every time.
        region: 1 where the picture may change, else 0.
        report: called after each step.

    Returns:
        Clean latents.
    """

    def keep_outside(inside: Latents, time: int | None) -> Latents:
        outside = original if time is None else schedule.add_noise(original, noise, time)
        return region * inside + (1 - region) * outside

    return denoise_latents(latents, times, schedule, predict, report, keep_outside)


def invert_latents(
    clean: Latents,
    times: Sequence[int],
    schedule: NoiseSchedule,
    predict: Denoiser,
    refinements: int = 0,
    report: ProgressReporter = report_nothing,
) -> list[Latents]:
    """Finds the noised latents from which `denoise_latents` returns to a picture: DDIM inversion (Song et al., 2021).

    Args:
        clean: clean latents of the picture.
        times: indices into the schedule, noisiest first, as for `denoise_latents`.
        schedule: noise schedule of the model.
        predict: predicts the clean picture and the noise.
        refinements: fixed-point iterations per step; each brings the step closer to the exact inverse of a denoising
            step (AIDI, Pan et al., 2023).
        report: called after each step.

    Returns:
        The latents at each of `times`, in the same order.
    """
    path: list[Latents] = []
    latents, before = clean, None
    for done, time in enumerate(reversed(times), start=1):
        noised = latents
        # The denoising step predicts from the latents that are sought here: start from the known ones and iterate.
        for _ in range(refinements + 1):
            predicted = predict(noised, time)
            if schedule.kind == "flow":  # along the velocity: at pure noise the predicted noise is the latents
                level = 0.0 if before is None else schedule.noise[before].item()
                noised = latents + (schedule.noise[time].item() - level) * (predicted.noise - predicted.clean)
            elif before is None:
                noised = schedule.add_noise(latents, predicted.noise, time)
            else:
                clean_now = (latents - schedule.noise[before].item() * predicted.noise) / schedule.signal[before].item()
                noised = schedule.mix_latents(DenoisedLatents(clean_now, predicted.noise), time)
        latents, before = noised, time
        path.append(latents)
        report(Progress("inverting", done, len(times)))
    return path[::-1]


def noise_to_start(original: Latents, noise: Latents, times: Sequence[int], schedule: NoiseSchedule) -> Latents:
    """Noises the original to the first of `times` (SDEdit, Meng et al., 2022).

    Args:
        original: clean latents.
        noise: noise of the same shape.
        times: indices into the schedule, noisiest first.
        schedule: noise schedule of the model.
    """
    return schedule.add_noise(original, noise, times[0])


def shrink_mask_to_latents(
    mask: Float[Tensor, "#m 1 height width"], latents: Latents
) -> Float[Tensor, "#m 1 rows columns"]:
    """Shrinks a mask of pixels to a binary mask of latents; a latent that shows any of the region belongs to it.

    Soft edges are left to the overlay: a value of 0.5 would mix noise and picture here.

    Args:
        mask: mask of pixels, in [0, 1].
        latents: latents with the size of the result.

    Returns:
        A mask of 0 and 1.
    """
    return (torch.nn.functional.adaptive_max_pool2d(mask, latents.shape[-2:]) > 0).to(mask)

"""Loops over time that editors share: denoise, denoise only a region, and the way back to noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.schedule import Denoised, Latents, Schedule, following

Predict = Callable[[Latents, int], Denoised]  # noised latents and their time
Step = Callable[[int, int], None]  # steps done, steps in all
Mend = Callable[[Latents, int | None], Latents]  # latents after a step and their time, None for clean ones


def denoise(
    latents: Latents,
    times: Sequence[int],
    schedule: Schedule,
    predict: Predict,
    step: Step | None = None,
    mend: Mend | None = None,
) -> Latents:
    """Clean latents from noised ones: DDIM without randomness (Song et al., 2021), Euler for flow matching.

    Args:
        latents: of the time `times[0]`.
        times: noisiest first.
        mend: what becomes of the latents after each step.
    """
    pairs = following(times)
    for done, (time, after) in enumerate(pairs, start=1):
        latents = schedule.join(predict(latents, time), after)
        if mend is not None:
            latents = mend(latents, after)
        if step is not None:
            step(done, len(pairs))
    return latents


def denoise_region(
    latents: Latents,
    times: Sequence[int],
    schedule: Schedule,
    predict: Predict,
    *,
    original: Latents,
    noise: Latents,
    region: Float[Tensor, "#n 1 rows columns"],
    step: Step | None = None,
) -> Latents:
    """Denoises only a region: outside, the latents are the original's at every time (Blended Latent Diffusion, 2023).

    Args:
        original: the clean latents of the picture.
        noise: that `latents` were noised with, so that the outside is one path through time.
        region: 1 where the picture may change.
    """

    def blended(inside: Latents, time: int | None) -> Latents:
        outside = original if time is None else schedule.add_noise(original, noise, time)
        return region * inside + (1 - region) * outside

    return denoise(latents, times, schedule, predict, step, blended)


def invert(
    clean: Latents,
    times: Sequence[int],
    schedule: Schedule,
    predict: Predict,
    refine: int = 0,
    step: Step | None = None,
) -> list[Latents]:
    """The noised latents from which `denoise` comes back to a picture: DDIM run backwards (Song et al., 2021, 4.3).

    Args:
        times: as for `denoise`, noisiest first.
        refine: fixed-point iterations a step: each makes the step back the inverse of the step forth more exactly
            (AIDI, Pan et al., 2023).

    Returns:
        The latents of each of `times`, in their order.
    """
    path: list[Latents] = []
    latents, before = clean, None
    for done, time in enumerate(reversed(times), start=1):
        found = latents
        # The step forth predicts from what is sought here: start from what is known, and go on from the result.
        for _ in range(refine + 1):
            found = _noised(latents, predict(found, time), before, time, schedule)
        latents, before = found, time
        path.append(latents)
        if step is not None:
            step(done, len(times))
    return path[::-1]


def _noised(latents: Latents, said: Denoised, before: int | None, time: int, schedule: Schedule) -> Latents:
    """Latents of a noisier time that a step with this prediction takes to `latents` at the time `before`."""
    if schedule.kind == "flow":  # along the velocity: at pure noise the predicted noise is the latents themselves
        done = 0.0 if before is None else schedule.noise[before].item()
        return latents + (schedule.noise[time].item() - done) * (said.noise - said.clean)
    if before is None:
        return schedule.add_noise(latents, said.noise, time)
    clean = (latents - schedule.noise[before].item() * said.noise) / schedule.signal[before].item()
    return schedule.join(Denoised(clean, said.noise), time)


def starting(original: Latents, noise: Latents, times: Sequence[int], schedule: Schedule) -> Latents:
    """The latents at the first of `times`: the original noised so far (SDEdit, Meng et al., 2022)."""
    return schedule.add_noise(original, noise, times[0])


def region_of(mask: Float[Tensor, "#m 1 height width"], latents: Latents) -> Float[Tensor, "#m 1 rows columns"]:
    """A mask of pixels at the size of latents, 0 or 1: a latent that shows any of the region belongs to it.

    How much of a soft edge is seen is the overlay's matter: half a region here would be half noise, half picture.
    """
    return (torch.nn.functional.adaptive_max_pool2d(mask, latents.shape[-2:]) > 0).to(mask)

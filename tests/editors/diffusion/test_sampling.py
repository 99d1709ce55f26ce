"""Loops over time against denoisers that are known in closed form: one picture, and Gaussian pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule, PredictionKind
from editors.diffusion.backend.sampling import (
    Denoiser,
    denoise_latents,
    denoise_region,
    invert_latents,
    noise_to_start,
    shrink_mask_to_latents,
)
from neural_fields.core.progress import Progress

SHAPE = (1, 2, 6, 8)


def schedules() -> list[NoiseSchedule]:
    """As Stable Diffusion noises (for each thing a network may predict), and as flow matching does."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    squared = (1 - betas).cumprod(0).float()
    noising = [
        NoiseSchedule.from_config({"prediction_type": kind}, squared) for kind in ("epsilon", "v_prediction", "sample")
    ]
    return [*noising, NoiseSchedule.from_config({"num_train_timesteps": 1000, "shift": 3.0}, None)]


ALL = pytest.mark.parametrize("schedule", schedules(), ids=lambda schedule: schedule.kind)


def gaussian(schedule: NoiseSchedule, mean: Latents, spread: float) -> Denoiser:
    """The best denoiser of pictures that are Gaussian around a mean: their posterior mean."""

    def predict(latents: Latents, time: int) -> DenoisedLatents:
        a, s = schedule.signal[time].item(), schedule.noise[time].item()
        clean = (spread**2 * a * latents + s**2 * mean) / (spread**2 * a**2 + s**2)
        return schedule.assume_clean(latents, clean, time)

    return predict


def randn(seed: int) -> Latents:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("steps", [1, 7])
def test_a_model_that_knows_one_picture_arrives_at_it_from_any_noise(schedule: NoiseSchedule, steps: int) -> None:
    mean = randn(0)
    found = denoise_latents(randn(1), schedule.select_times(steps), schedule, gaussian(schedule, mean, 0.0))
    torch.testing.assert_close(found, mean)


@pytest.mark.slow
@ALL
def test_gaussian_noise_becomes_the_gaussian_of_the_pictures(schedule: NoiseSchedule) -> None:
    """In the limit of small steps x_t - a m is carried along in units of its own deviation (Song et al., 2021)."""
    mean, spread, start = randn(0), 0.6, randn(1)
    times = schedule.select_times(250)
    first = times[0]
    a, s = schedule.signal[first].item(), schedule.noise[first].item()
    found = denoise_latents(start, times, schedule, gaussian(schedule, mean, spread))
    expected = mean + spread * (start - a * mean) / math.hypot(a * spread, s)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@ALL
def test_outside_of_a_region_the_latents_are_the_originals_at_every_step(schedule: NoiseSchedule) -> None:
    original, noise, mean = randn(0), randn(1), randn(2)
    region = torch.zeros(1, 1, *SHAPE[2:])
    region[..., 1:4, 2:5] = 1
    times = schedule.select_times(6, 0.5)
    seen = []
    predict = gaussian(schedule, mean, 0.0)

    def watched(latents: Latents, time: int) -> DenoisedLatents:
        seen.append((latents.clone(), time))
        return predict(latents, time)

    first = noise_to_start(original, noise, times, schedule)
    found = denoise_region(first, times, schedule, watched, original=original, noise=noise, region=region)
    assert torch.equal((found * (1 - region)), original * (1 - region))
    torch.testing.assert_close(found * region, mean * region)
    assert [time for _, time in seen] == times and len(times) == 3
    for latents, time in seen:
        expected = schedule.add_noise(original, noise, time)
        torch.testing.assert_close(latents * (1 - region), expected * (1 - region))


@ALL
def test_a_region_of_everything_is_plain_denoising(schedule: NoiseSchedule) -> None:
    predict, times, noise = gaussian(schedule, randn(0), 0.5), schedule.select_times(9), randn(1)
    whole = torch.ones(1, 1, *SHAPE[2:])
    found = denoise_region(noise, times, schedule, predict, original=randn(3), noise=noise, region=whole)
    torch.testing.assert_close(found, denoise_latents(noise, times, schedule, predict))


@ALL
def test_noising_as_far_as_the_strength_says_keeps_more_of_the_picture_the_weaker(schedule: NoiseSchedule) -> None:
    """With pictures around a mean, SDEdit pulls the original towards it: the further the more it is noised."""
    original, mean, noise = randn(0), torch.zeros(SHAPE), torch.zeros(SHAPE)
    predict, distances = gaussian(schedule, mean, 0.3), []
    for strength in (0.1, 0.4, 0.7, 1.0):
        times = schedule.select_times(40, strength)
        found = denoise_latents(noise_to_start(original, noise, times, schedule), times, schedule, predict)
        distances.append((found - original).norm().item())
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[-1]


@ALL
@pytest.mark.parametrize("steps", [4, 12])
def test_inversion_leads_to_latents_from_which_sampling_comes_back(schedule: NoiseSchedule, steps: int) -> None:
    picture = randn(0)
    predict, times = gaussian(schedule, randn(1), 0.8), schedule.select_times(steps)
    plain, refined = (
        (
            denoise_latents(invert_latents(picture, times, schedule, predict, refine)[0], times, schedule, predict)
            - picture
        )
        .abs()
        .max()
        for refine in (0, 25)
    )
    assert refined < 1e-3
    assert refined <= plain


@ALL
def test_the_path_of_an_inversion_is_the_path_of_sampling(schedule: NoiseSchedule) -> None:
    picture = randn(0)
    predict, times = gaussian(schedule, randn(1), 0.8), schedule.select_times(6)
    path = invert_latents(picture, times, schedule, predict, 25)
    assert len(path) == len(times)
    passed: list[Latents] = []

    def watched(latents: Latents, time: int) -> DenoisedLatents:
        passed.append(latents)
        return predict(latents, time)

    denoise_latents(path[0], times, schedule, watched)
    for inverted, sampled in zip(path, passed, strict=True):
        torch.testing.assert_close(inverted, sampled, atol=2e-3, rtol=0)


def test_every_step_is_reported() -> None:
    schedule, said = schedules()[0], list[Progress]()
    times, predict = schedule.select_times(3), gaussian(schedules()[0], randn(0), 0.0)
    denoise_latents(randn(1), times, schedule, predict, said.append)
    invert_latents(randn(1), times, schedule, predict, report=said.append)
    steps = [(progress.stage, progress.done, progress.total) for progress in said]
    assert steps == [(stage, done, 3) for stage in ("denoising", "inverting") for done in (1, 2, 3)]


def test_what_is_predicted_makes_no_difference_to_the_clean_picture_that_follows() -> None:
    epsilon = schedules()[0]
    latents, clean, time = randn(0), randn(1), 400
    noise = epsilon.assume_clean(latents, clean, time).noise
    a, s = epsilon.signal[time].item(), epsilon.noise[time].item()
    outputs: dict[PredictionKind, Latents] = {"epsilon": noise, "sample": clean, "v_prediction": a * noise - s * clean}
    for kind, output in outputs.items():
        found = replace(epsilon, kind=kind).decompose_output(latents, output, time)
        torch.testing.assert_close(found.clean, clean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.noise, noise, atol=1e-4, rtol=1e-4)


def test_a_latent_that_shows_any_of_a_mask_belongs_to_the_region() -> None:
    mask = torch.zeros(1, 1, 12, 16)
    mask[..., 5, 9] = 0.1
    region = shrink_mask_to_latents(mask, torch.zeros(SHAPE))
    assert region.sum() == 1 and region[0, 0, 2, 4] == 1

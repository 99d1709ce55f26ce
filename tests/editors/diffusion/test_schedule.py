"""Noise schedules: what follows from their definition, and that they agree with diffusers' schedulers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editors.diffusion.backend.noise_schedule import DenoisedLatents, NoiseSchedule, PredictionKind, pair_with_next

pytestmark = pytest.mark.slow

KINDS: tuple[PredictionKind, ...] = ("epsilon", "v_prediction", "sample", "flow")


def make(kind: PredictionKind, **more: Any) -> NoiseSchedule:
    if kind == "flow":
        return NoiseSchedule.from_config({"num_train_timesteps": 1000, "shift": 3.0}, None)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return NoiseSchedule.from_config({"prediction_type": kind, **more}, (1 - betas).cumprod(0))


def true_output(
    kind: PredictionKind, schedule: NoiseSchedule, clean: torch.Tensor, noise: torch.Tensor, time: int
) -> torch.Tensor:
    a, s = schedule.signal[time], schedule.noise[time]
    return {"epsilon": noise, "sample": clean, "v_prediction": a * noise - s * clean, "flow": noise - clean}[kind]


@pytest.mark.parametrize("kind", KINDS)
@given(time=st.integers(1, 998), seed=st.integers(0, 99))
def test_a_true_output_splits_latents_into_their_clean_picture_and_their_noise(
    kind: PredictionKind, time: int, seed: int
) -> None:
    schedule, generator = make(kind), torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(1, 4, 3, 2, generator=generator) for _ in range(2))
    latents = schedule.add_noise(clean, noise, time)
    found = schedule.decompose_output(latents, true_output(kind, schedule, clean, noise, time), time)
    torch.testing.assert_close(found.clean, clean, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.noise, noise, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_true_outputs_end_at_the_clean_picture(kind: PredictionKind) -> None:
    schedule = make(kind)
    clean, noise = torch.randn(2, 1, 4, 5, 5, generator=torch.Generator().manual_seed(3))
    times = schedule.select_times(7)
    latents = schedule.add_noise(clean, noise, times[0])
    for time, after in pair_with_next(times):
        output = true_output(kind, schedule, clean, noise, time)
        latents = schedule.mix_latents(schedule.decompose_output(latents, output, time), after)
    torch.testing.assert_close(latents, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_times_and_steps_are_those_of_diffusers_ddim(kind: PredictionKind, spacing: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1 if spacing == "leading" else 0,
        prediction_type=kind,
        timestep_spacing=spacing,
    )
    ours = NoiseSchedule.from_config(theirs.config, theirs.alphas_cumprod)
    theirs.set_timesteps(10)
    times = ours.select_times(10)
    assert times == theirs.timesteps.tolist()
    latents = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    other = latents
    for time, after in pair_with_next(times)[:-1]:
        output = torch.tanh(latents)
        latents = ours.mix_latents(ours.decompose_output(latents, output, time), after)
        other = theirs.step(torch.tanh(other), time, other).prev_sample
        if spacing != "linspace":  # whose times diffusers does not step through evenly
            torch.testing.assert_close(latents, other, atol=1e-4, rtol=1e-4)


def test_flow_steps_are_those_of_diffusers_euler() -> None:
    diffusers = pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = NoiseSchedule.from_config(theirs.config, None)
    times = ours.select_times(10)
    theirs.set_timesteps(sigmas=[(time + 1) / 1000 for time in times])
    torch.testing.assert_close(ours.network_time[times], theirs.timesteps, atol=1e-2, rtol=0)
    latents = other = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for (time, after), when in zip(pair_with_next(times), theirs.timesteps, strict=True):
        latents = ours.mix_latents(ours.decompose_output(latents, torch.tanh(latents), time), after)
        other = theirs.step(torch.tanh(other), when, other).prev_sample
    torch.testing.assert_close(latents, other, atol=1e-4, rtol=1e-4)


@given(steps=st.integers(1, 1000), strength=st.floats(0.01, 1))
def test_times_fall_and_their_number_is_the_strength_s_share(steps: int, strength: float) -> None:
    for spacing in ("leading", "trailing", "linspace"):
        times = make("epsilon", timestep_spacing=spacing).select_times(steps, strength)
        assert len(times) == min(max(1, round(steps * strength)), steps)
        assert all(earlier > later for earlier, later in pairwise(times))
        assert 0 <= times[-1] <= times[0] <= 999


def test_a_replaced_clean_picture_changes_the_noise_so_that_the_latents_stay() -> None:
    schedule = make("epsilon")
    latents, clean = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    found = schedule.assume_clean(latents, clean, 500)
    assert isinstance(found, DenoisedLatents)
    torch.testing.assert_close(schedule.mix_latents(found, 500), latents)

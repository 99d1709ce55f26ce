"""Score distillation: a diffusion model as a loss for a picture that is optimized.

A picture's latents x0 are noised to x_t, the model predicts the noise, and the difference from the added noise is the
direction to a likelier picture (DreamFusion: Poole et al., 2023, section 3, eq. 3). The gradient skips the network, so
that only the encoder is differentiated. All variants share the factor w(t) and one form of inputs:

    sds    w (u + g (c - u) - n)                              Poole et al., 2023
    csd    w g (c - u)                                        Yu et al., 2023: classifier score distillation
    nfsd   w (u + g (c - u))         for t < 0.2 T            Katzir et al., 2023: noise-free score distillation
           w (u - b + g (c - u))     from there on
    dds    w (e(x_t, prompt) - e(y_t, prompt of the source))  Hertz et al., 2023: delta denoising score

where n is the added noise, c the prediction with the prompt, u without it (with the negative prompt), b with a prompt
for bad pictures, g the guidance, e = u + g (c - u), and y the source's latents under the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.backend.diffusers_model import DiffusionModel
from editors.diffusion.backend.noise_schedule import Latents, NoiseSchedule
from neural_fields.core.errors import bad_input

Variant = Literal["sds", "csd", "nfsd", "dds"]
DenoiserOutputs = Callable[
    [Latents, int], tuple[Latents, Latents]
]  # the network's own outputs: without the prompt, with it


@dataclass(frozen=True)
class DistillationSettings:
    """Settings of score distillation; times are shares of all times of a schedule."""

    clean_below: float = 0.2  # noise-free distillation assumes that the model predicts a real picture's noise there
    bad_prompt: str = "blurry, low quality"  # from which noise-free distillation leads away
    min_time: float = 0.02  # times are drawn from here
    max_time: float = 0.98  # to here (Poole et al., 2023, section 3)


DEFAULTS = DistillationSettings()


@dataclass(frozen=True)
class NoisedSample:
    """The point at which a gradient of score distillation is computed.

    Attributes:
        clean: latents of the current picture.
        time: of the schedule.
        noise: to add to them.
        source: latents of the picture before the edit, for the variant that compares with it.
    """

    clean: Latents
    time: int
    noise: Latents
    source: Latents | None = None


Score = Callable[[NoisedSample], Latents]  # the gradient with respect to the clean latents


def compute_time_weight(schedule: NoiseSchedule, time: int) -> float:
    """Computes w(t): the noise's share of the variance, in [0, 1].

    It is 1 - alpha_bar for the models of Stable Diffusion, the published choice. A flow-matching model gets the weight
    of the same signal-to-noise ratio.
    """
    signal, noise = schedule.signal[time].item(), schedule.noise[time].item()
    return noise**2 / (signal**2 + noise**2)


def make_sds_score(outputs: DenoiserOutputs, schedule: NoiseSchedule, guidance: float) -> Score:
    """Makes the score of SDS, which leads to the modes of the model's pictures of the prompt."""

    def compute_gradient(at: NoisedSample) -> Latents:
        without, prompted = _predict_noises(outputs, schedule, at.clean, at)
        return compute_time_weight(schedule, at.time) * (without + guidance * (prompted - without) - at.noise)

    return compute_gradient


def make_csd_score(outputs: DenoiserOutputs, schedule: NoiseSchedule, guidance: float) -> Score:
    """Makes the score of CSD: only the part of SDS that the guidance multiplies."""

    def compute_gradient(at: NoisedSample) -> Latents:
        without, prompted = _predict_noises(outputs, schedule, at.clean, at)
        return compute_time_weight(schedule, at.time) * guidance * (prompted - without)

    return compute_gradient


def make_nfsd_score(
    outputs: DenoiserOutputs,
    bad: DenoiserOutputs,
    schedule: NoiseSchedule,
    guidance: float,
    settings: DistillationSettings = DEFAULTS,
) -> Score:
    """Makes the score of NFSD: SDS without the part that is only noise; works at the usual guidance of sampling, 7.5.

    Args:
        outputs: of the network for the prompt.
        bad: the same for a prompt that describes bad pictures.
        schedule: of the model.
        guidance: 1 is the prompt alone.
        settings: of the distillation.
    """

    def compute_gradient(at: NoisedSample) -> Latents:
        without, prompted = _predict_noises(outputs, schedule, at.clean, at)
        domain = without
        if at.time >= settings.clean_below * len(schedule.signal):
            domain = without - _predict_noises(bad, schedule, at.clean, at)[1]
        return compute_time_weight(schedule, at.time) * (domain + guidance * (prompted - without))

    return compute_gradient


def make_dds_score(
    outputs: DenoiserOutputs, source: DenoiserOutputs, schedule: NoiseSchedule, guidance: float
) -> Score:
    """Makes the score of DDS: that of the picture less that of the source, so that common parts stay.

    Args:
        outputs: of the network for the prompt.
        source: the same for a prompt that describes the source.
        schedule: of the model.
        guidance: 1 is the prompt alone.
    """

    def predict_guided(outputs: DenoiserOutputs, clean: Latents, at: NoisedSample) -> Latents:
        without, prompted = _predict_noises(outputs, schedule, clean, at)
        return without + guidance * (prompted - without)

    def compute_gradient(at: NoisedSample) -> Latents:
        assert at.source is not None, "delta denoising compares with the source"
        edited, original = predict_guided(outputs, at.clean, at), predict_guided(source, at.source, at)
        return compute_time_weight(schedule, at.time) * (edited - original)

    return compute_gradient


@dataclass(frozen=True)
class DistillationPrompts:
    """Prompts: what the picture should show, what it should not show, and what the source shows."""

    prompt: str
    negative: str = ""
    source: str = ""


def make_score(
    model: DiffusionModel,
    variant: Variant,
    prompts: DistillationPrompts,
    guidance: float,
    settings: DistillationSettings = DEFAULTS,
) -> Score:
    """Makes the score of a variant under a model.

    Args:
        model: the text-to-image model.
        variant: of score distillation.
        prompts: the prompts.
        guidance: 1 is the prompt alone.
        settings: of the distillation.

    Raises:
        UserError: the model's denoiser needs more inputs than a picture and a prompt (exit 3).
    """
    if int(model.denoiser.config.in_channels) != model.latent_channels:
        raise bad_input(
            "this model was trained to inpaint or to follow instructions",
            why="score distillation needs a text-to-image model, which predicts the noise of a picture alone",
            fix="--model FOLDER with a text-to-image model",
        )

    def make_outputs(prompt: str, negative: str) -> DenoiserOutputs:
        text = model.encode_prompt(prompt, negative)
        return lambda latents, time: model.run_denoiser(latents, time, text)

    wanted = make_outputs(prompts.prompt, prompts.negative if variant != "nfsd" else "")
    if variant == "sds":
        return make_sds_score(wanted, model.schedule, guidance)
    if variant == "csd":
        return make_csd_score(wanted, model.schedule, guidance)
    if variant == "nfsd":
        bad = make_outputs(prompts.negative or settings.bad_prompt, "")
        return make_nfsd_score(wanted, bad, model.schedule, guidance, settings)
    return make_dds_score(wanted, make_outputs(prompts.source, prompts.negative), model.schedule, guidance)


def draw_time(
    schedule: NoiseSchedule,
    done: float,
    anneal: bool,
    generator: torch.Generator,
    span: tuple[float, float] = (DEFAULTS.min_time, DEFAULTS.max_time),
) -> int:
    """Draws a random time for a step.

    Args:
        schedule: of the model.
        done: share of the run that is finished, in [0, 1].
        anneal: lets the noisiest time fall evenly over the run to the middle of the span: large shapes form first,
            details after them (after DreamTime, Huang et al., 2024, whose times fall as well).
        generator: of the random numbers.
        span: from which times are drawn, as shares of all times.
    """
    first, last = span
    last -= (last - first) / 2 * done * anneal
    share = first + (last - first) * torch.rand((), generator=generator).item()
    return min(int(share * len(schedule.signal)), len(schedule.signal) - 1)


def gradient_loss(values: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Computes a loss whose gradient with respect to `values` is `gradient`.

    Infinite or undefined gradients, from a network in half precision, count as 0.
    """
    return (values * replace_nonfinite(gradient.detach()).to(values)).sum()


def replace_nonfinite(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Replaces values that are infinite or no number by 0."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _predict_noises(
    outputs: DenoiserOutputs, schedule: NoiseSchedule, clean: Latents, at: NoisedSample
) -> tuple[Latents, Latents]:
    """Predicts the noise in noised latents without and with the prompt, for every kind of model."""
    noised = schedule.add_noise(clean, at.noise, at.time)
    without, prompted = outputs(noised, at.time)
    return schedule.decompose_output(noised, without, at.time).noise, schedule.decompose_output(
        noised, prompted, at.time
    ).noise

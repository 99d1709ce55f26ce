"""Score distillation: a diffusion model as a loss for a picture that is optimised.

A picture's latents x0 are noised to x_t, the model says which noise it sees, and the difference from what was put there
is the way to a likelier picture (DreamFusion: Poole et al., 2023, section 3, eq. 3). The gradient jumps over the
network, so that only the encoder is differentiated. All variants share the factor w(t) and one form of inputs:

    sds    w (u + g (c - u) - n)                              Poole et al., 2023
    csd    w g (c - u)                                        Yu et al., 2023: classifier score distillation
    nfsd   w (u + g (c - u))         for t < 0.2 T            Katzir et al., 2023: noise-free score distillation
           w (u - b + g (c - u))     from there on
    dds    w (e(x_t, prompt) - e(y_t, prompt of the source))  Hertz et al., 2023: delta denoising score

where n is the noise that was put, c what the model says with the prompt, u without it (with the negative prompt), b
with a prompt for bad pictures, g the guidance, e = u + g (c - u), and y the source's latents under the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.schedule import Latents, Schedule
from editors.diffusion.wrapper import DiffusionModel
from neural_fields.errors import bad_input

Variant = Literal["sds", "csd", "nfsd", "dds"]
Outputs = Callable[[Latents, int], tuple[Latents, Latents]]  # the network's own outputs: without the prompt, with it

CLEAN_BELOW = 0.2  # of all times: noise-free distillation takes the model's noise there to be a real picture's
BAD_PICTURE = "blurry, low quality"  # what noise-free distillation leads away from
FIRST, LAST = 0.02, 0.98  # of all times: the span from which times are drawn (Poole et al., 2023, section 3)


@dataclass(frozen=True)
class Sample:
    """Where a gradient of score distillation is taken.

    Attributes:
        clean: latents of the picture as it is now.
        time: of the schedule.
        noise: put on them.
        source: latents of the picture before the edit, where the variant compares with it.
    """

    clean: Latents
    time: int
    noise: Latents
    source: Latents | None = None


Score = Callable[[Sample], Latents]  # the gradient with respect to the clean latents


def weight(schedule: Schedule, time: int) -> float:
    """w(t): the noise's share of the variance, in [0, 1].

    It is 1 - alpha_bar for the models of Stable Diffusion, the published choice. A flow-matching model gets the weight
    that a picture of the same signal-to-noise ratio has there.
    """
    signal, noise = schedule.signal[time].item(), schedule.noise[time].item()
    return noise**2 / (signal**2 + noise**2)


def score_distillation(outputs: Outputs, schedule: Schedule, guidance: float) -> Score:
    """SDS: towards the modes of the model's pictures of the prompt."""

    def gradient(at: Sample) -> Latents:
        without, prompted = _noises(outputs, schedule, at.clean, at)
        return weight(schedule, at.time) * (without + guidance * (prompted - without) - at.noise)

    return gradient


def classifier_score(outputs: Outputs, schedule: Schedule, guidance: float) -> Score:
    """CSD: only what tells the prompt from other prompts; the part of SDS that the guidance multiplies."""

    def gradient(at: Sample) -> Latents:
        without, prompted = _noises(outputs, schedule, at.clean, at)
        return weight(schedule, at.time) * guidance * (prompted - without)

    return gradient


def noise_free(outputs: Outputs, bad: Outputs, schedule: Schedule, guidance: float) -> Score:
    """NFSD: SDS without the part that is only noise; works at the guidance that is usual for sampling, 7.5.

    Args:
        bad: the outputs for a prompt that describes bad pictures, in place of the prompt.
    """

    def gradient(at: Sample) -> Latents:
        without, prompted = _noises(outputs, schedule, at.clean, at)
        domain = without
        if at.time >= CLEAN_BELOW * len(schedule.signal):
            domain = without - _noises(bad, schedule, at.clean, at)[1]
        return weight(schedule, at.time) * (domain + guidance * (prompted - without))

    return gradient


def delta_denoising(outputs: Outputs, source: Outputs, schedule: Schedule, guidance: float) -> Score:
    """DDS: the score of the picture less that of the source, so that what both share stays.

    Args:
        source: the outputs for a prompt that describes the source, in place of the prompt.
    """

    def guided(outputs: Outputs, clean: Latents, at: Sample) -> Latents:
        without, prompted = _noises(outputs, schedule, clean, at)
        return without + guidance * (prompted - without)

    def gradient(at: Sample) -> Latents:
        assert at.source is not None, "delta denoising compares with the source"
        return weight(schedule, at.time) * (guided(outputs, at.clean, at) - guided(source, at.source, at))

    return gradient


@dataclass(frozen=True)
class Words:
    """What the picture should show, what it should not, and what the source shows."""

    prompt: str
    negative: str = ""
    source: str = ""


def score_of(model: DiffusionModel, variant: Variant, words: Words, guidance: float) -> Score:
    """The gradient of a variant under a model.

    Raises:
        UserError: the model's denoiser wants more than a picture and a prompt (exit 3).
    """
    if int(model.denoiser.config.in_channels) != model.channels:
        raise bad_input(
            "this model was trained to inpaint or to follow instructions",
            why="score distillation asks a text-to-image model what it sees in a noised picture",
            fix="--model FOLDER with a text-to-image model",
        )

    def outputs(prompt: str, negative: str) -> Outputs:
        text = model.text(prompt, negative)
        return lambda latents, time: model.outputs(latents, time, text)

    wanted = outputs(words.prompt, words.negative if variant != "nfsd" else "")
    if variant == "sds":
        return score_distillation(wanted, model.schedule, guidance)
    if variant == "csd":
        return classifier_score(wanted, model.schedule, guidance)
    if variant == "nfsd":
        return noise_free(wanted, outputs(words.negative or BAD_PICTURE, ""), model.schedule, guidance)
    return delta_denoising(wanted, outputs(words.source, words.negative), model.schedule, guidance)


def draw_time(
    schedule: Schedule,
    done: float,
    anneal: bool,
    generator: torch.Generator,
    span: tuple[float, float] = (FIRST, LAST),
) -> int:
    """A random time for a step.

    Args:
        done: share of the run that is behind, in [0, 1].
        anneal: lets the noisiest time fall evenly over the run to the middle of all: large shapes are settled first,
            details after them (after DreamTime, Huang et al., 2024, whose times fall as well).
        span: from which times are drawn, in parts of all.
    """
    first, last = span
    last -= (last - first) / 2 * done * anneal
    share = first + (last - first) * torch.rand((), generator=generator).item()
    return min(int(share * len(schedule.signal)), len(schedule.signal) - 1)


def pull(values: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to `values` is `gradient`.

    What a network in half precision could not hold moves nothing.
    """
    return (values * finite(gradient.detach()).to(values)).sum()


def finite(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values with 0 where there is no number."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _noises(outputs: Outputs, schedule: Schedule, clean: Latents, at: Sample) -> tuple[Latents, Latents]:
    """The noise that a network sees in noised latents without and with its prompt, whatever it predicts itself."""
    noised = schedule.add_noise(clean, at.noise, at.time)
    without, prompted = outputs(noised, at.time)
    return schedule.split(noised, without, at.time).noise, schedule.split(noised, prompted, at.time).noise

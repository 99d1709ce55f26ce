"""Score distillation: a diffusion model as the loss of a picture that is optimized.

A picture's latents x0 are noised to x_t, the model predicts the noise, and the difference from the added noise is the
direction to a more likely picture (DreamFusion: Poole et al., 2023, section 3, eq. 3). The gradient skips the network,
so that only the encoder is differentiated. All variants share the factor w(t) and one form of inputs:

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

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.backend.diffusers_model import DiffusionModel
from editors.diffusion.backend.noise_schedule import Latents, NoiseSchedule
from editors.options.distillation import Variant
from neural_fields.core.errors import bad_input

DenoiserOutputs = Callable[
    [Latents, int], tuple[Latents, Latents]
]  # the network's own outputs: without the prompt, with it


@dataclass(frozen=True)
class DistillationSettings:
    """Settings of score distillation; times are shares of all times of a schedule."""

    clean_below: float = 0.2  # noise-free distillation assumes below this that the model predicts the true noise
    bad_prompt: str = "blurry, low quality"  # from which noise-free distillation leads away
    min_time: float = 0.02  # times are drawn from here
    max_time: float = 0.98  # to here (Poole et al., 2023, section 3)


DEFAULTS = DistillationSettings()


@dataclass(frozen=True)
class NoisedSample:
    """Holds the inputs of a gradient of score distillation.

    Attributes:
        clean: clean latents of the current picture.
        time: noise level, an index into the schedule.
        noise: the noise to add to the latents.
        source: clean latents of the picture before the edit, for the variant "dds".
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

    Args:
        schedule: noise schedule of the model.
        time: noise level, an index into the schedule.
    """
    signal, noise = schedule.signal[time].item(), schedule.noise[time].item()
    return noise**2 / (signal**2 + noise**2)


def make_sds_score(outputs: DenoiserOutputs, schedule: NoiseSchedule, guidance: float) -> Score:
    """Makes the score of SDS, which leads to modes of the model's distribution for the prompt (Poole et al., 2023).

    Args:
        outputs: runs the network for the prompt.
        schedule: noise schedule of the model.
        guidance: scale of the guidance; 1 uses the prompt alone.
    """

    def compute_gradient(at: NoisedSample) -> Latents:
        without, prompted = _predict_noises(outputs, schedule, at.clean, at)
        return compute_time_weight(schedule, at.time) * (without + guidance * (prompted - without) - at.noise)

    return compute_gradient


def make_csd_score(outputs: DenoiserOutputs, schedule: NoiseSchedule, guidance: float) -> Score:
    """Makes the score of CSD: only the guidance term of SDS (Yu et al., 2023).

    Args:
        outputs: runs the network for the prompt.
        schedule: noise schedule of the model.
        guidance: scale of the guidance.
    """

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
    """Makes the score of NFSD: SDS without its pure noise term (Katzir et al., 2023). It works at a guidance of 7.5.

    Args:
        outputs: runs the network for the prompt.
        bad: runs the network for a prompt that describes bad pictures.
        schedule: noise schedule of the model.
        guidance: scale of the guidance; 1 uses the prompt alone.
        settings: the time below which the noise term is left out.
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
    """Makes the score of DDS: the picture's score minus the source's, which cancels common parts (Hertz et al., 2023).

    Args:
        outputs: runs the network for the prompt.
        source: runs the network for a prompt that describes the source.
        schedule: noise schedule of the model.
        guidance: scale of the guidance; 1 uses the prompt alone.
    """

    def predict_guided(outputs: DenoiserOutputs, clean: Latents, at: NoisedSample) -> Latents:
        """Predicts the noise with guidance.

        Args:
            outputs: runs the network.
            clean: latents without noise.
            at: noise and time of the sample.
        """
        without, prompted = _predict_noises(outputs, schedule, clean, at)
        return without + guidance * (prompted - without)

    def compute_gradient(at: NoisedSample) -> Latents:
        assert at.source is not None, "delta denoising compares with the source"
        edited, original = predict_guided(outputs, at.clean, at), predict_guided(source, at.source, at)
        return compute_time_weight(schedule, at.time) * (edited - original)

    return compute_gradient


@dataclass(frozen=True)
class DistillationPrompts:
    """Holds the prompts: what the picture should show, what it should not show, and what the source shows."""

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
        variant: the variant of score distillation: "sds", "csd", "nfsd" or "dds".
        prompts: the prompts.
        guidance: scale of the guidance; 1 uses the prompt alone.
        settings: settings of the distillation.

    Raises:
        UserError: the model's denoiser needs other inputs than a picture and a prompt (exit 3).
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
        schedule: noise schedule of the model.
        done: share of the run that is done, in [0, 1].
        anneal: whether the noisiest time decreases linearly over the run to the middle of the span: large shapes form
            first, then details (after DreamTime, Huang et al., 2024, whose times decrease too).
        generator: random generator of the times.
        span: range of the times, as shares of the schedule.

    Returns:
        An index into the schedule.
    """
    first, last = span
    last -= (last - first) / 2 * done * anneal
    share = first + (last - first) * torch.rand((), generator=generator).item()
    return min(int(share * len(schedule.signal)), len(schedule.signal) - 1)


def gradient_loss(values: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Computes a loss whose gradient with respect to `values` is `gradient`.

    Infinite or undefined gradients, from a network in half precision, count as 0.

    Args:
        values: the values that are optimized.
        gradient: the gradient that they should get.

    Example:
        >>> values = torch.zeros(3, requires_grad=True)
        >>> gradient_loss(values, torch.tensor([1.0, -2.0, float("nan")])).backward()
        >>> values.grad.tolist()
        [1.0, -2.0, 0.0]
    """
    return (values * replace_nonfinite(gradient.detach()).to(values)).sum()


def replace_nonfinite(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Replaces infinite and undefined values with 0."""
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

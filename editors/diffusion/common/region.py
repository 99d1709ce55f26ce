"""The region of an edit: an entire layer, the user's mask, or the part of it that some words describe.

Words are located in one of two ways. Without further weights, as in DiffEdit (Couairon et al., ICLR 2023, section 3.2,
step 1): the model predicts the noise in the noised picture once for the current content and once for the desired
content, and the two predictions differ in the region of the edit. Or with CLIPSeg (Lüddecke and Ecker, CVPR 2022),
which was trained to segment what words describe. Neither extends beyond the user's mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.source import EditSource
from editors.diffusion.backend.device_placement import fetch_model
from editors.diffusion.backend.diffusers_model import DiffusionModel, EncodedPrompt, Images
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import Denoiser
from editors.diffusion.backend.settings import DiffusionEditor
from editors.diffusion.backend.weights import WeightsSource, check_model_folder, explain_load_errors
from editors.diffusion.common.canvas import Canvas, open_canvas, open_canvases
from editors.options.regions import RegionOptions
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter

RegionMap = Float[Tensor, "1 1 height width"]


@dataclass(frozen=True)
class RegionFindingSettings:
    """Settings of finding the region that words name."""

    noise_count: int = 10  # noises over which the difference is averaged (DiffEdit, section 4.1)
    noise_level: float = 0.5  # share of the schedule's times at which the picture is noised (DiffEdit, section 4.1)
    full_quantile: float = 0.99  # quantile of the differences that counts as 1, because the largest are outliers
    full_mean_factor: float = 3.0  # this many times the mean difference counts as 1 too
    min_texel_value: float = 0.5  # least value of a texel in the region
    min_region_share: float = 0.002  # least share of the editable part of a layer; with less nothing was found


DEFAULTS = RegionFindingSettings()


@dataclass(frozen=True, kw_only=True)
class RegionEditor(RegionOptions, DiffusionEditor):
    """Defines the base of editors that repaint a region, with the settings that they share."""


def open_regions(
    model: DiffusionModel,
    source: EditSource,
    settings: RegionEditor,
    report: ProgressReporter,
    finding: RegionFindingSettings = DEFAULTS,
) -> tuple[list[Canvas], tuple[str, ...]]:
    """Opens the canvases of the layers to edit.

    Args:
        model: the text-to-image model.
        source: the run, and the layers to edit.
        settings: settings of the editor.
        report: called with the progress.
        finding: settings of locating the region that words describe.

    Returns:
        One canvas per layer, and notes for the user on their regions.

    Raises:
        UserError: a mask of the wrong shape, or words that are not found (exit 3).
    """
    side = settings.side or model.trained_side
    regions = {layer: source.read_region(layer) for layer in source.layers}
    notes: list[str] = []
    if settings.region.strip():
        segment = None
        if settings.region_model:
            words = [word.strip() for word in settings.region.split("+") if word.strip()]
            segment = load_segmenter(WeightsSource(settings.region_model, "cpu", settings.unsafe_weights), words)
        found: dict[str, Float[np.ndarray, "_ _"]] = {}
        for layer, region in regions.items():
            canvas = open_canvas(source.pictures[layer], region, side, model.side_multiple)
            if segment is None:
                inside = _find_by_contrast(model, canvas, settings, report, finding)
            else:
                inside = (segment(canvas.image) > settings.region_threshold).float()
            part = region * (canvas.resample_to_picture(inside, source.pictures[layer]) > finding.min_texel_value)
            share = float(part.sum() / region.sum())
            if share < finding.min_region_share:
                notes.append(f"the words of --region are not found on {layer}, which stays as it is")
                continue
            notes.append(f"the region found on {layer} is {share:.0%} of it")
            found[layer] = part.astype(np.float32)
        if not found:
            raise bad_input(
                f"nothing is found for --region {settings.region!r}",
                where=", ".join(source.layers),
                why=f"less than {finding.min_region_share:.1%} of the layer is above the threshold "
                f"{settings.region_threshold:g}",
                fix=f"--region-threshold {settings.region_threshold / 2:g}, or paint a --mask",
            )
        regions = found
    return open_canvases(source.pictures, regions, side, model.side_multiple, settings.feather), tuple(notes)


def make_inpainting_inputs(
    model: DiffusionModel, image: Images, inside: Float[Tensor, "#n 1 rows columns"]
) -> Latents | None:
    """Makes the inputs of an inpainting model beside the latents: the mask of the region, and the picture without it.

    Args:
        model: the text-to-image model.
        image: the picture, in [0, 1].
        inside: 1 in the region, else 0.

    Returns:
        The channels; None for a model without such inputs.

    Raises:
        UserError: the denoiser needs other inputs (exit 3).
    """
    wanted = int(model.denoiser.config.in_channels) - model.latent_channels
    if wanted == 0:
        return None
    if wanted != 1 + model.latent_channels:
        raise bad_input(
            f"the model needs {wanted} channels beside the latents",
            why="models that follow instructions have 4 more, models for inpainting 5",
            fix="--editor instruct for a model that follows instructions",
        )
    hole = torch.nn.functional.interpolate(inside, image.shape[-2:])
    return torch.cat([inside, model.encode_images(image * (1 - hole) + 0.5 * hole)], dim=1)


@torch.no_grad()
def measure_disagreement(
    clean: Latents,
    schedule: NoiseSchedule,
    now: Denoiser,
    wanted: Denoiser,
    noises: Float[Tensor, "many channels rows columns"],
    level: float = DEFAULTS.noise_level,
) -> RegionMap:
    """Measures the difference of the predicted noise between the current and the desired content (DiffEdit, 3.2).

    Args:
        clean: clean latents of one picture.
        schedule: noise schedule of the model.
        now: the model's prediction for a prompt of the current content.
        wanted: the model's prediction for a prompt of the desired content.
        noises: several noises of the shape of `clean`.
        level: share of the schedule's times at which the picture is noised, in (0, 1).

    Returns:
        The mean absolute difference over noises and channels: at least 0, not yet scaled.
    """
    time = min(len(schedule.signal) - 1, max(0, round(level * len(schedule.signal)) - 1))
    total = torch.zeros_like(clean[:, :1])
    for noise in noises.split(1):
        noised = schedule.add_noise(clean, noise, time)
        total += (wanted(noised, time).noise - now(noised, time).noise).abs().mean(dim=1, keepdim=True)
    return total / len(noises)


def scale_differences(values: RegionMap, inside: RegionMap, settings: RegionFindingSettings = DEFAULTS) -> RegionMap:
    """Scales differences in a region to [0, 1] by a large one among them.

    That is the `full_quantile`, or `full_mean_factor` times the mean if that is less: the first is right if most of the
    region differs, the second if a small part differs.

    Args:
        values: differences, at least 0.
        inside: above 0 in the region.
        settings: quantile and factor of the scaling.

    Returns:
        Values in [0, 1]; 0 outside of the region.

    Example:
        >>> values, inside = torch.tensor([[[[0.0, 1.0, 2.0, 8.0]]]]), torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]])
        >>> [round(value, 2) for value in scale_differences(values, inside).flatten().tolist()]
        [0.0, 0.51, 1.0, 0.0]
    """
    chosen = values[inside > 0]
    if not len(chosen):
        return torch.zeros_like(values)
    large = torch.minimum(torch.quantile(chosen, settings.full_quantile), settings.full_mean_factor * chosen.mean())
    return (values / large.clamp(min=1e-12)).clamp(0, 1) * (inside > 0)


def load_segmenter(weights: WeightsSource, words: Sequence[str]) -> Callable[[Images], RegionMap]:
    """Loads CLIPSeg.

    Args:
        weights: the model to load, and its device.
        words: descriptions of what to segment.

    Returns:
        A function from pictures to the largest confidence in any of the words, in [0, 1].

    Raises:
        UserError: transformers is not installed, or the model does not exist or is of another kind (exit 3).
    """
    weights.check_name()
    with explain_load_errors(weights):
        from transformers import AutoTokenizer, CLIPSegForImageSegmentation

        folder = weights.local_folder or fetch_model(weights)
        if check_model_folder(folder, weights.unsafe).get("model_type") != "clipseg":
            raise bad_input(f"{weights.model} is no CLIPSeg", fix="--region-model FOLDER of a CLIPSeg model")
        network = CLIPSegForImageSegmentation.from_pretrained(folder, use_safetensors=not weights.unsafe or None)
        tokens = AutoTokenizer.from_pretrained(folder)(list(words), padding=True, return_tensors="pt")
    network.eval()
    side = int(cast(Any, network.config.vision_config).image_size)
    # CLIPSeg was trained with the statistics of ImageNet.
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    spread = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)

    @torch.no_grad()
    def segment(images: Images) -> RegionMap:
        small = torch.nn.functional.interpolate(images.cpu(), (side, side), mode="bilinear", antialias=True)
        pixels = ((small - mean) / spread).expand(len(words), -1, -1, -1)
        logits = network(
            pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).logits
        confidence = logits.reshape(len(words), 1, side, side).sigmoid().amax(dim=0, keepdim=True)
        return torch.nn.functional.interpolate(confidence, images.shape[-2:], mode="bilinear").clamp(0, 1)

    return segment


@torch.no_grad()
def _find_by_contrast(
    model: DiffusionModel,
    canvas: Canvas,
    settings: RegionEditor,
    report: ProgressReporter,
    finding: RegionFindingSettings,
) -> RegionMap:
    """Finds where the predictions for the prompt and for the words of the region differ: 1 there, 0 elsewhere."""
    clean = model.encode_images(canvas.image.to(model.device))
    extra = make_inpainting_inputs(model, canvas.image.to(model.device), torch.ones_like(clean[:, :1]))
    now, wanted = (model.encode_prompt(words, settings.negative) for words in (settings.region, settings.prompt))
    noises = torch.cat([model.draw_noise(clean, settings.seed + index) for index in range(finding.noise_count)])
    done = 0

    def predict(noised: Latents, time: int, text: EncodedPrompt) -> DenoisedLatents:
        """Predicts the picture without noise for a prompt, and reports the progress.

        Args:
            noised: latents with noise.
            time: their noise time.
            text: the prompt.
        """
        nonlocal done
        done += 1
        report(Progress("looking for the region", done, 2 * finding.noise_count))
        return model.predict_denoised(noised, time, text, 1.0, extra=extra)

    values = measure_disagreement(
        clean,
        model.schedule,
        lambda noised, time: predict(noised, time, now),
        lambda noised, time: predict(noised, time, wanted),
        noises,
        finding.noise_level,
    )
    size = canvas.image.shape[-2:]
    smooth = torch.nn.functional.interpolate(values, size, mode="bicubic").cpu()
    return (scale_differences(smooth, canvas.region, finding) > settings.region_threshold).float()

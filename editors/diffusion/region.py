"""Where an edit goes: all of a layer, a mask of the user's, or the part of it that some words name.

Words are found in one of two ways. Without further weights as in DiffEdit (Couairon et al., ICLR 2023, section 3.2,
step 1): the model predicts the noise in the noised picture once for what is there and once for what shall be there, and
the two disagree where the edit belongs. Or by CLIPSeg (Lüddecke and Ecker, CVPR 2022), which was trained to segment
what words name. Neither reaches outside the user's mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editors.base import Report, Source
from editors.diffusion.canvas import Canvas, open_canvas, open_canvases
from editors.diffusion.placing import fetched
from editors.diffusion.sampling import Predict
from editors.diffusion.schedule import Latents, Schedule
from editors.diffusion.settings import Prompted, wrong_setting
from editors.diffusion.weights import Weights, check_folder, loading
from editors.diffusion.wrapper import DiffusionModel, Images
from neural_fields.errors import bad_input

NOISES = 10  # over which the difference is averaged, and
LEVEL = 0.5  # how far along the times of the schedule they are: both as in DiffEdit, section 4.1
EXTREME = 0.99  # quantile of the differences that counts as 1: the largest are outliers
LARGE = 3.0  # times their mean counts as 1 too
PIXEL_MEAN, PIXEL_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as CLIPSeg was trained with
LEAST = 0.002  # of what is seen of a layer: less than that is nothing found

Map = Float[Tensor, "1 1 height width"]


@dataclass(frozen=True, kw_only=True)
class Regional(Prompted):
    """What editors share that repaint a region: where it is, and how much of it is kept."""

    strength: float = 1.0
    """How much of the picture in the region is lost to noise first, in (0, 1]; 1 keeps nothing of it."""
    region: str = ""
    """Words for what is there now and shall change, such as "a car" (default: all of the layer, or of the mask)."""
    region_model: str = ""
    """A folder of CLIPSeg, which then finds the words; several things are joined by + (default: the model itself)."""
    region_threshold: float = 0.5
    """How sure a part must be to belong to the region, in (0, 1); lower takes more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise wrong_setting("strength", self.strength, "it is above 0 and at most 1", "--strength 0.6")
        if not 0 < self.region_threshold < 1:
            raise wrong_setting(
                "region-threshold", self.region_threshold, "it is between 0 and 1", "--region-threshold 0.5"
            )
        if self.region_model and not self.region.strip():
            raise wrong_setting("region", self.region, "a region model looks for words", '--region "a car"')


def open_regions(
    model: DiffusionModel, source: Source, settings: Regional, report: Report
) -> tuple[list[Canvas], tuple[str, ...]]:
    """The canvases of the layers to edit, and what to tell the user of their regions.

    Raises:
        UserError: a mask that does not fit, or words that nothing is found for (exit 3).
    """
    side = settings.side or model.size
    regions = {layer: source.region(layer) for layer in source.layers}
    notes: list[str] = []
    if settings.region.strip():
        whole = {
            layer: open_canvas(source.pictures[layer], region, side, model.multiple)
            for layer, region in regions.items()
        }
        find = _finder(model, settings)
        regions, notes = _found(
            source, regions, {layer: find(canvas, report) for layer, canvas in whole.items()}, whole
        )
        if not regions:
            raise bad_input(
                f"nothing is found for --region {settings.region!r}",
                where=", ".join(source.layers),
                why=f"less than {LEAST:.1%} of the layer is above the threshold {settings.region_threshold:g}",
                fix=f"--region-threshold {settings.region_threshold / 2:g}, or paint a --mask",
            )
    return open_canvases(source.pictures, regions, side, model.multiple, settings.feather), tuple(notes)


def inpainting_inputs(
    model: DiffusionModel, image: Images, inside: Float[Tensor, "#n 1 rows columns"]
) -> Latents | None:
    """What an inpainting model sees beside the latents: where the region is, and the picture without it.

    None for a model without such inputs.

    Raises:
        UserError: the denoiser wants something else still (exit 3).
    """
    wanted = int(model.denoiser.config.in_channels) - model.channels
    if wanted == 0:
        return None
    if wanted != 1 + model.channels:
        raise bad_input(
            f"the model wants {wanted} channels beside the latents",
            why="models that follow instructions have 4 more, models for inpainting 5",
            fix="--editor instruct for a model that follows instructions",
        )
    hole = torch.nn.functional.interpolate(inside, image.shape[-2:])
    return torch.cat([inside, model.encode(image * (1 - hole) + 0.5 * hole)], dim=1)


@torch.no_grad()
def disagreement(
    clean: Latents,
    schedule: Schedule,
    now: Predict,
    wanted: Predict,
    noises: Float[Tensor, "many channels rows columns"],
    level: float = LEVEL,
) -> Map:
    """How differently a picture is denoised for what is there and for what shall be there (DiffEdit, section 3.2).

    Args:
        clean: latents of one picture.
        now, wanted: the model's predictions for the two prompts.
        noises: several, of the shape of `clean`.
        level: how far along the schedule's times the picture is noised, in (0, 1).

    Returns:
        The mean over the noises and channels of the absolute difference; not negative, not yet scaled.
    """
    time = min(len(schedule.signal) - 1, max(0, round(level * len(schedule.signal)) - 1))
    total = torch.zeros_like(clean[:, :1])
    for noise in noises.split(1):
        noised = schedule.add_noise(clean, noise, time)
        total += (wanted(noised, time).noise - now(noised, time).noise).abs().mean(dim=1, keepdim=True)
    return total / len(noises)


def scaled(values: Map, inside: Map) -> Map:
    """Differences in a region as shares of a large one among them, clipped to [0, 1]; 0 outside of the region.

    A large one is the `EXTREME` quantile, or `LARGE` times the mean where that is less: the one is right where most of
    the region differs, the other where a little of it does.
    """
    chosen = values[inside > 0]
    if not len(chosen):
        return torch.zeros_like(values)
    large = torch.minimum(torch.quantile(chosen, EXTREME), LARGE * chosen.mean())
    return (values / large.clamp(min=1e-12)).clamp(0, 1) * (inside > 0)


def segmented(weights: Weights, words: Sequence[str]) -> Callable[[Images], Map]:
    """What CLIPSeg says of pictures: how sure it is of any of the words at each pixel, in [0, 1].

    Raises:
        UserError: transformers is not installed, there is no such model, or it is another one (exit 3).
    """
    weights.check_name()
    with loading(weights):
        from transformers import AutoTokenizer, CLIPSegForImageSegmentation

        folder = weights.local or fetched(weights)
        if check_folder(folder, weights.unsafe).get("model_type") != "clipseg":
            raise bad_input(f"{weights.model} is no CLIPSeg", fix="--region-model FOLDER of a CLIPSeg model")
        network = CLIPSegForImageSegmentation.from_pretrained(folder, use_safetensors=not weights.unsafe or None)
        tokens = AutoTokenizer.from_pretrained(folder)(list(words), padding=True, return_tensors="pt")
    network.eval()
    side = int(cast(Any, network.config.vision_config).image_size)
    mean, spread = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (PIXEL_MEAN, PIXEL_SPREAD))

    @torch.no_grad()
    def ask(images: Images) -> Map:
        small = torch.nn.functional.interpolate(images.cpu(), (side, side), mode="bilinear", antialias=True)
        pixels = ((small - mean) / spread).expand(len(words), -1, -1, -1)
        logits = network(
            pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).logits
        sure = logits.reshape(len(words), 1, side, side).sigmoid().amax(dim=0, keepdim=True)
        return torch.nn.functional.interpolate(sure, images.shape[-2:], mode="bilinear").clamp(0, 1)

    return ask


def _finder(model: DiffusionModel, settings: Regional) -> Callable[[Canvas, Report], Map]:
    """How the words of the settings are found on a canvas."""
    if not settings.region_model:
        return lambda canvas, report: _contrasted(model, canvas, settings, report)
    words = [word.strip() for word in settings.region.split("+") if word.strip()]
    ask = segmented(Weights(settings.region_model, "cpu", settings.unsafe_weights), words)
    return lambda canvas, report: (ask(canvas.image) > settings.region_threshold).float()


@torch.no_grad()
def _contrasted(model: DiffusionModel, canvas: Canvas, settings: Regional, report: Report) -> Map:
    """Where the prompt and the words for the region make the model see different things: 1 there, 0 elsewhere."""
    clean = model.encode(canvas.image.to(model.device))
    extra = inpainting_inputs(model, canvas.image.to(model.device), torch.ones_like(clean[:, :1]))
    texts = [model.text(words, settings.negative) for words in (settings.region, settings.prompt)]
    noises = torch.cat([model.noise(clean, settings.seed + index) for index in range(NOISES)])
    asked = 0

    def predict(noised: Latents, time: int, which: int):
        nonlocal asked
        asked += 1
        report("looking for the region", asked, 2 * NOISES)
        return model.predict(noised, time, texts[which], 1.0, extra=extra)

    values = disagreement(clean, model.schedule, lambda x, t: predict(x, t, 0), lambda x, t: predict(x, t, 1), noises)
    size = canvas.image.shape[-2:]
    smooth = torch.nn.functional.interpolate(values, size, mode="bicubic").cpu()
    return (scaled(smooth, canvas.region) > settings.region_threshold).float()


def _found(
    source: Source,
    regions: dict[str, Float[np.ndarray, "_ _"]],
    maps: dict[str, Map],
    canvases: dict[str, Canvas],
) -> tuple[dict[str, Float[np.ndarray, "_ _"]], list[str]]:
    """The part of each region that a map says belongs to it, without layers where that is nothing, and notes."""
    kept, notes = {}, []
    for layer, region in regions.items():
        part = region * (canvases[layer].on_picture(maps[layer], source.pictures[layer]) > 0.5)
        share = float(part.sum() / region.sum())
        if share < LEAST:
            notes.append(f"the words of --region are not found on {layer}, which stays as it is")
            continue
        notes.append(f"the region found on {layer} is {share:.0%} of it")
        kept[layer] = part.astype(np.float32)
    return kept, notes

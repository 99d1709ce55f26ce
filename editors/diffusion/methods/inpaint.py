"""Inpainting: the region is generated from a prompt; its surroundings stay, and the model sees them.

`repaint_regions` is shared by all editors that denoise a region: Blended Latent Diffusion (Avrahami, Fried and
Lischinski, ACM TOG 2023, section 3.1) for any model, with the further inputs of models that were trained to inpaint
(Rombach et al., CVPR 2022, 4.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from editors.core.editor import EditorResult, Report
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import ControlInput, DiffusionModel, load_model
from editors.diffusion.backend.sampling import denoise_region, noise_to_start, shrink_mask_to_latents
from editors.diffusion.common.canvas import Canvas, join_canvases, split_joined_picture
from editors.diffusion.common.region import RegionalSettings, make_inpainting_inputs, open_regions


@dataclass(frozen=True, kw_only=True)
class Inpaint(RegionalSettings):
    """Blended Latent Diffusion (Avrahami et al., 2023): denoise the region, keep the rest at every step."""

    name: ClassVar[str] = "inpaint"

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Generates the region of each layer."""
        model = load_model(self.weights_source())
        canvases, notes = open_regions(model, source, self, report)
        return repaint_regions(model, canvases, self, report, notes=notes)


def repaint_regions(
    model: DiffusionModel,
    canvases: Sequence[Canvas],
    settings: RegionalSettings,
    report: Report,
    controls: Sequence[ControlInput] = (),
    notes: Sequence[str] = (),
) -> EditorResult:
    """Denoises the regions of canvases together.

    Args:
        model: the diffusion model.
        canvases: one per layer.
        settings: prompt, steps, strength and so on.
        report: of the progress.
        controls: pictures to follow, at the size of the canvases together.
        notes: what the user should know of the regions.

    Returns:
        An overlay for each layer.

    Raises:
        UserError: a model whose denoiser wants other inputs (exit 3).
    """
    image, region = (part.to(model.device) for part in join_canvases(canvases, model.side_multiple))
    schedule = model.schedule
    with torch.no_grad():
        text = model.encode_prompt(settings.prompt, settings.negative)
        original = model.encode_images(image)
        inside = shrink_mask_to_latents(region, original)
        extra = make_inpainting_inputs(model, image, inside)
        noise = model.draw_noise(original, settings.seed)
        times = schedule.select_times(settings.steps, settings.strength)
        first = noise_to_start(original, noise, times, schedule)
        if settings.strength == 1:  # even the last of the schedule's times has a trace of the picture in it
            first = inside * noise + (1 - inside) * first
        latents = denoise_region(
            first,
            times,
            schedule,
            lambda noised, time: model.predict_denoised(
                noised, time, text, settings.guidance, controls=controls, extra=extra
            ),
            original=original,
            noise=noise,
            region=inside,
            step=lambda done, total: report("denoising", done, total),
        )
        picture = model.decode_latents(latents).cpu()
    parts = split_joined_picture(picture, canvases, model.side_multiple)
    overlays = {canvas.layer: canvas.make_overlay(part) for canvas, part in zip(canvases, parts, strict=True)}
    return EditorResult(overlays, (*model.notes, *notes))

"""Inpainting: the region is generated from a prompt; its surroundings stay, and the model sees them.

`repaint` is shared by all editors that denoise a region: Blended Latent Diffusion (Avrahami, Fried and Lischinski,
ACM TOG 2023, section 3.1) for any model, with the further inputs of models that were trained to inpaint (Rombach et
al., CVPR 2022, 4.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from editors.base import EditorResult, Report, Source
from editors.diffusion.canvas import Canvas, apart, side_by_side
from editors.diffusion.region import Regional, inpainting_inputs, open_regions
from editors.diffusion.sampling import denoise_region, region_of, starting
from editors.diffusion.wrapper import Control, DiffusionModel, load_model


@dataclass(frozen=True, kw_only=True)
class Inpaint(Regional):
    """Blended Latent Diffusion (Avrahami et al., 2023): denoise the region, keep the rest at every step."""

    name: ClassVar[str] = "inpaint"

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """Generates the region of each layer."""
        model = load_model(self.weights())
        canvases, notes = open_regions(model, source, self, report)
        return repaint(model, canvases, self, report, notes=notes)


def repaint(
    model: DiffusionModel,
    canvases: Sequence[Canvas],
    settings: Regional,
    report: Report,
    controls: Sequence[Control] = (),
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
    image, region = (part.to(model.device) for part in side_by_side(canvases, model.multiple))
    schedule = model.schedule
    with torch.no_grad():
        text = model.text(settings.prompt, settings.negative)
        original = model.encode(image)
        inside = region_of(region, original)
        extra = inpainting_inputs(model, image, inside)
        noise = model.noise(original, settings.seed)
        times = schedule.times(settings.steps, settings.strength)
        first = starting(original, noise, times, schedule)
        if settings.strength == 1:  # even the last of the schedule's times has a trace of the picture in it
            first = inside * noise + (1 - inside) * first
        latents = denoise_region(
            first,
            times,
            schedule,
            lambda noised, time: model.predict(noised, time, text, settings.guidance, controls=controls, extra=extra),
            original=original,
            noise=noise,
            region=inside,
            step=lambda done, total: report("denoising", done, total),
        )
        picture = model.decode(latents).cpu()
    parts = apart(picture, canvases, model.multiple)
    overlays = {canvas.layer: canvas.overlay(part) for canvas, part in zip(canvases, parts, strict=True)}
    return EditorResult(overlays, (*model.notes, *notes))

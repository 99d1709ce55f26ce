"""`inpaint`: generates the region from a prompt; its surroundings are preserved, and the model sees them.

`repaint_regions` is shared by all editors that denoise a region: Blended Latent Diffusion (Avrahami, Fried and
Lischinski, ACM TOG 2023, section 3.1) for any model, with the further inputs of models that were trained to inpaint
(Rombach et al., CVPR 2022, 4.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import ControlInput, DiffusionModel, load_model
from editors.diffusion.backend.sampling import denoise_region, noise_to_start, shrink_mask_to_latents
from editors.diffusion.common.canvas import Canvas, join_canvases, split_into_overlays
from editors.diffusion.common.region import RegionEditor, make_inpainting_inputs, open_regions
from editors.options.regions import InpaintOptions
from neural_fields.core.progress import ProgressReporter


@dataclass(frozen=True, kw_only=True)
class Inpaint(InpaintOptions, RegionEditor):
    """Generate a region from a prompt and keep the rest: Blended Latent Diffusion (Avrahami et al., 2023)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Generates the region of each layer.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model that cannot be used, or nothing to edit (exit 3).
        """
        model = load_model(self.weights_source(), report)
        canvases, notes = open_regions(model, source, self, report)
        return repaint_regions(model, canvases, self, report, notes=notes)


def repaint_regions(
    model: DiffusionModel,
    canvases: Sequence[Canvas],
    settings: RegionEditor,
    report: ProgressReporter,
    controls: Sequence[ControlInput] = (),
    notes: Sequence[str] = (),
) -> EditorResult:
    """Denoises the regions of canvases together.

    Args:
        model: the diffusion model.
        canvases: one canvas per layer.
        settings: prompt, steps, strength and so on.
        report: called with the progress.
        controls: control pictures, at the size of the joined canvases.
        notes: notes for the user on the regions.

    Returns:
        One overlay per layer.

    Raises:
        UserError: a model whose denoiser needs other inputs, or that made no picture (exit 3).
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
            report=report,
        )
        picture = model.decode_latents(latents).cpu()
    return EditorResult(split_into_overlays(picture, canvases, model.side_multiple), (*model.notes, *notes))

"""`instruct`: changes a layer as an instruction says, with a model that was trained to follow instructions.

Brooks, Holynski and Efros, InstructPix2Pix, CVPR 2023, section 3.2 and equation 3: the denoiser gets the latents of the
picture beside the noised ones, and the instruction; two guidance scales weight the picture and the instruction. Such
models, of Stable Diffusion 1 and XL, run in a loop of this project that keeps the surroundings of the region at every
step. Others run in their own loop (`backend/instruction_pipelines.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import (
    DiffusionModel,
    EncodedPrompt,
    list_call_arguments,
    load_pipeline,
)
from editors.diffusion.backend.instruction_pipelines import Instruction, check_instruction_pipeline, run_instruction
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import denoise_region, shrink_mask_to_latents
from editors.diffusion.backend.settings import DiffusionEditor
from editors.diffusion.common.canvas import Canvas, join_canvases, open_canvases, split_into_overlays
from editors.options.diffusion import InstructOptions
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter


@dataclass(frozen=True, kw_only=True)
class Instruct(InstructOptions, DiffusionEditor):
    """Follow an instruction: InstructPix2Pix (Brooks et al., 2023), FLUX.1 Kontext, Qwen-Image-Edit."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Changes the region of each layer as the instruction says.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model that does not follow instructions, or nothing to edit (exit 3).
        """
        pipeline, device, notes = load_pipeline(self.weights_source(), self._check_kind)
        if getattr(pipeline, "unet", None) is not None:
            # InstructPix2Pix, in the loop of this project
            model = DiffusionModel(pipeline, device, notes)
            wanted = int(model.denoiser.config.in_channels)
            if wanted != 2 * model.latent_channels:
                raise bad_input(
                    f"{self.model} follows no instructions",
                    why=f"its denoiser takes {wanted} channels; that of InstructPix2Pix takes the latents and those of "
                    f"the picture, {2 * model.latent_channels} channels",
                    fix="--editor inpaint" if wanted > 2 * model.latent_channels else "--editor img2img",
                )
            multiple = model.side_multiple
            canvases, image, region = self._open_layers(source, model.trained_side, multiple)
            with torch.no_grad():
                original = model.encode_images(image.to(device))
                # The model was trained to see latents as the encoder gives them, not at the scale that is noised.
                shown = original / model.vae.config.scaling_factor
                noise, text = model.draw_noise(original, self.seed), model.encode_prompt(self.prompt, self.negative)
                times = model.schedule.select_times(self.steps)
                inside = shrink_mask_to_latents(region.to(device), original)
                guidance = self.guidance or 7.5  # as the authors of InstructPix2Pix chose
                latents = denoise_region(
                    inside * noise + (1 - inside) * model.schedule.add_noise(original, noise, times[0]),
                    times,
                    model.schedule,
                    lambda noised, time: predict_guided(
                        model, noised, time, text, shown, guidance, self.image_guidance
                    ),
                    original=original,
                    noise=noise,
                    region=inside,
                    report=report,
                )
                picture = model.decode_latents(latents)
        else:
            # FLUX.1 Kontext and Qwen-Image-Edit, in the loop of the pipeline
            multiple = 2 * int(getattr(pipeline, "vae_scale_factor", 8))
            default_side = 1024  # pixels at which these models work
            canvases, image, _ = self._open_layers(source, default_side, multiple)
            instruction = Instruction(
                self.prompt,
                self.negative,
                self.steps,
                self.guidance or None,
                self.image_guidance,
                self.seed,
                own_size=self.side is None,
            )
            picture = run_instruction(pipeline, image, instruction, report)
        return EditorResult(split_into_overlays(picture.cpu(), canvases, multiple), notes)

    def _check_kind(self, kind: str) -> None:
        """Refuses a model that does not follow instructions, before its weights are read."""
        if not kind.startswith(("StableDiffusionPipeline", "StableDiffusionXLPipeline")):
            check_instruction_pipeline(self.model, kind, list_call_arguments(kind))

    def _open_layers(self, source: EditSource, side: int, multiple: int) -> tuple[list[Canvas], Tensor, Tensor]:
        """Opens the canvases of the layers; returns them with their joined picture and region."""
        regions = {layer: source.read_region(layer) for layer in source.layers}
        canvases = open_canvases(source.pictures, regions, self.side or side, multiple, self.feather)
        return canvases, *join_canvases(canvases, multiple)


def predict_guided(
    model: DiffusionModel,
    latents: Latents,
    time: int,
    text: EncodedPrompt,
    picture_latents: Latents,
    guidance: float,
    image_guidance: float,
) -> DenoisedLatents:
    """Predicts with guidance by the instruction and by the picture (Brooks et al., 2023, equation 3).

    Args:
        model: an InstructPix2Pix model.
        latents: noised latents.
        time: their noise level, an index into the schedule.
        text: the encoded instruction, and the negative prompt.
        picture_latents: latents of the picture, as the denoiser takes them.
        guidance: scale of the instruction, s_T in the paper.
        image_guidance: scale of the picture, s_I in the paper.
    """
    with_image, with_both = model.run_denoiser(latents, time, text, extra=picture_latents)
    nothing = EncodedPrompt(
        text.states[:1].repeat(2, 1, 1), None if text.pooled is None else text.pooled[:1].repeat(2, 1)
    )
    neither = model.predict_denoised(latents, time, nothing, 1.0, extra=torch.zeros_like(picture_latents))
    return combine_guidance(model.schedule, latents, time, neither, with_image, with_both, (guidance, image_guidance))


def combine_guidance(
    schedule: NoiseSchedule,
    latents: Latents,
    time: int,
    neither: DenoisedLatents,
    with_image: Latents,
    with_both: Latents,
    guides: Sequence[float],
) -> DenoisedLatents:
    """Combines three outputs of the network by classifier-free guidance with two scales (Brooks et al., 2023, eq. 3).

    Clean picture and noise are affine in the network's output, and the factors of the three outputs add up to 1: so
    combining clean pictures and noise is equivalent to combining outputs, whatever the network predicts.

    Args:
        schedule: noise schedule of the model.
        latents: noised latents.
        time: their noise level, an index into the schedule.
        neither: the prediction without instruction and picture.
        with_image: the output for the picture alone.
        with_both: the output for picture and instruction.
        guides: the scale of the instruction (s_T in the paper) and that of the picture (s_I).
    """
    text_guidance, image_guidance = guides
    by_text = schedule.decompose_output(latents, with_image + text_guidance * (with_both - with_image), time)
    by_image = schedule.decompose_output(latents, with_image, time)
    return DenoisedLatents(
        by_text.clean + (image_guidance - 1) * (by_image.clean - neither.clean),
        by_text.noise + (image_guidance - 1) * (by_image.noise - neither.noise),
    )

"""Plug-and-play: the layer keeps its layout, because the model is given its features of the original.

Tumanyan, Geyer, Bagon and Dekel, Plug-and-Play Diffusion Features, CVPR 2023, section 4 and algorithm 1. The canvas is
taken to noise by DDIM run backwards and denoised again with the prompt. At each step the denoiser first sees the
original at that time; for the first share of the steps, the output of one convolution in its decoder and the queries
and keys of self-attention from there on are put into the pass that makes the edit: where things are comes from the
original, how they look from the prompt. The layers are counted from the coarse end of the decoder; a third of the way
in is layer 4 of Stable Diffusion 1.5, the one of the paper.

The original's features come from the very latents of the way to noise, not from a denoising of its own beside the edit,
so that they do not drift from it (Direct Inversion, Ju et al., 2024, does this for its source branch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.editor import EditorResult, Report
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, EncodedPrompt, load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule, pair_with_next
from editors.diffusion.backend.sampling import StepCallback, invert_latents, shrink_mask_to_latents
from editors.diffusion.backend.settings import wrong_setting_error
from editors.diffusion.common.attention import FeatureRecorder, list_self_attention
from editors.diffusion.common.canvas import Canvas, join_canvases, split_joined_picture
from editors.diffusion.common.region import RegionalSettings, open_regions

PredictStep = Callable[
    [Latents, Latents, int], DenoisedLatents
]  # latents, those of the original at the same time, steps done


@dataclass(frozen=True, kw_only=True)
class FeatureInjectionSettings(RegionalSettings):
    """Settings of editors that take the picture to noise and back, with the original at hand at each step."""

    strength: float = 1.0
    """How far back to noise the picture is taken, in (0, 1]; less stays closer to it."""
    steps: int = 50
    """Steps of a whole run from noise to a picture; the way there takes as many."""
    refine: int = 1
    """Passes more for each step of the way to noise, so that the way back without an edit ends nearer the original."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine < 0:
            raise wrong_setting_error("refine", self.refine, "it counts passes", "--refine 1")

    def check_share(self, flag: str, value: float, default: float) -> None:
        """Refuses a value that is no share of the steps.

        Raises:
            UserError: the value is outside [0, 1] (exit 2).
        """
        if not 0 <= value <= 1:
            raise wrong_setting_error(flag, value, "it is a share of the steps, from 0 to 1", f"--{flag} {default}")


@dataclass(frozen=True, kw_only=True)
class PlugAndPlay(FeatureInjectionSettings):
    """Plug-and-Play (Tumanyan et al., 2023): other looks on the same layout, by features of the original."""

    name: ClassVar[str] = "pnp"

    source_prompt: str = ""
    """What the layer shows now (default: no words, as in the paper)."""
    features: float = 0.8
    """Share of the steps, from the first on, in which one convolution's output is the original's."""
    attention: float = 0.5
    """Share of the steps, from the first on, in which self-attention looks where it looked in the original."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("features", self.features, 0.8)
        self.check_share("attention", self.attention, 0.5)

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Repaints the region of each layer in the look that the prompt asks for, its parts where they were."""
        model = load_model(self.weights_source())
        kept = select_decoder_features(model.unet)
        canvases, notes = open_regions(model, source, self, report)
        now, wanted = model.encode_prompt(self.source_prompt), model.encode_prompt(self.prompt, self.negative)
        redo = partial(self._predict_step, model, now, wanted, kept)
        return repaint_from_inversion(model, canvases, self, now, redo, report, notes=notes)

    def _predict_step(
        self,
        model: DiffusionModel,
        now: EncodedPrompt,
        wanted: EncodedPrompt,
        kept: FeatureRecorder,
        latents: Latents,
        original: Latents,
        done: int,
    ) -> DenoisedLatents:
        """Predicts one step with the original's features, for as long as each of them is used."""
        times = model.schedule.select_times(self.steps, self.strength)
        share, time = done / len(times), times[done]
        if share >= max(self.features, self.attention):
            return model.predict_denoised(latents, time, wanted, self.guidance)
        with kept.record_features(model):
            model.predict_denoised(original, time, now, 1.0)
        attention = kept.make_replaying_processors(kept.layers) if share < self.attention else {}
        with kept.inject_features(model, attention, outputs=share < self.features):
            return model.predict_denoised(latents, time, wanted, self.guidance)


def select_decoder_features(unet: Any) -> FeatureRecorder:
    """Selects the features that are put into the edit: those of a UNet's decoder from a third of its layers on.

    Raises:
        UserError: the model is no UNet with self-attention there (exit 3).
    """
    names = list_self_attention(unet)
    layers = [(f"up_blocks.{b}", i) for b, block in enumerate(unet.up_blocks) for i in range(len(block.resnets))]
    first = len(layers) // 3
    prefixes = tuple(f"{block}.attentions.{i}." for block, i in layers[first:])
    attention = [name for name in names if name.startswith(prefixes)]
    # The branch beside the shortcut: the shortcut itself, from the encoder and the coarser layers, stays the edit's.
    block, i = layers[first]
    convolution = f"{block}.resnets.{i}.conv2"
    return FeatureRecorder(attention, {convolution: unet.get_submodule(convolution)})


@torch.no_grad()
def repaint_from_inversion(
    model: DiffusionModel,
    canvases: Sequence[Canvas],
    settings: FeatureInjectionSettings,
    source_text: EncodedPrompt,
    predict_step: PredictStep,
    report: Report,
    compute_mask: Callable[[], Float[Tensor, "#n 1 rows columns"]] | None = None,
    notes: Sequence[str] = (),
) -> EditorResult:
    """Takes the regions of canvases to noise and back.

    Args:
        model: the diffusion model.
        canvases: one per layer.
        settings: steps, strength and refinement.
        source_text: what they show, for the way to noise.
        predict_step: predicts a step on the way back.
        report: of the progress.
        compute_mask: asked after each step for where in the region the picture may change (default: all of it).
        notes: what the user should know of the regions.
    """
    image, region = (part.to(model.device) for part in join_canvases(canvases, model.side_multiple))
    original = model.encode_images(image)
    inside = shrink_mask_to_latents(region, original)
    times = model.schedule.select_times(settings.steps, settings.strength)
    path = invert_latents(
        original,
        times,
        model.schedule,
        lambda noised, time: model.predict_denoised(noised, time, source_text, 1.0),
        settings.refine,
        lambda done, total: report("going to noise", done, total),
    )
    latents = denoise_along_path(
        path,
        times,
        model.schedule,
        predict_step,
        original=original,
        region=lambda: inside if compute_mask is None else inside * compute_mask(),
        step=lambda done, total: report("denoising", done, total),
    )
    parts = split_joined_picture(model.decode_latents(latents).cpu(), canvases, model.side_multiple)
    overlays = {canvas.layer: canvas.make_overlay(part) for canvas, part in zip(canvases, parts, strict=True)}
    return EditorResult(overlays, (*model.notes, *notes))


def denoise_along_path(
    path: Sequence[Latents],
    times: Sequence[int],
    schedule: NoiseSchedule,
    predict_step: PredictStep,
    *,
    original: Latents,
    region: Callable[[], Float[Tensor, "#n 1 rows columns"]],
    step: StepCallback | None = None,
) -> Latents:
    """Denoises from the noisy end of a path: anew in a region, along the path elsewhere.

    Args:
        path: what `invert` returns: the original's latents at each of `times`, noisiest first.
        times: of the schedule.
        schedule: of the model.
        predict_step: called with latents, those of the path, and the number of steps done.
        original: the clean latents at the other end of the path.
        region: called after each prediction: 1 where the picture may change.
        step: called after each step.

    Returns:
        Clean latents.
    """
    latents = path[0]
    for done, (_, after) in enumerate(pair_with_next(times)):
        edited = schedule.mix_latents(predict_step(latents, path[done], done), after)
        outside, inside = original if after is None else path[done + 1], region()
        latents = inside * edited + (1 - inside) * outside
        if step is not None:
            step(done + 1, len(times))
    return latents

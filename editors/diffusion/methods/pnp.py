"""`pnp`: preserves the layout of a layer by injecting features of the original into the denoiser.

Tumanyan, Geyer, Bagon and Dekel, Plug-and-Play Diffusion Features, CVPR 2023, section 4 and algorithm 1. The canvas is
inverted to noise with DDIM and denoised again with the prompt. At each step the denoiser first runs on the original at
that time. In the first share of the steps, the output of one convolution in its decoder, and the queries and keys of
self-attention from there on, are injected into the pass of the edit: the layout comes from the original, the appearance
from the prompt. Layers are counted from the coarse end of the decoder; a third of the way in is layer 4 of Stable
Diffusion 1.5, the one of the paper.

The original's features come directly from the inverted latents, not from a separate denoising of the original, so that
they do not drift (Direct Inversion, Ju et al., 2024, does this for its source branch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, EncodedPrompt, load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule, pair_with_next
from editors.diffusion.backend.sampling import invert_latents, shrink_mask_to_latents
from editors.diffusion.common.attention import FeatureRecorder, list_self_attention
from editors.diffusion.common.canvas import Canvas, join_canvases, split_into_overlays
from editors.diffusion.common.region import RegionEditor, open_regions
from editors.options.feature_injection import FeatureInjectionOptions, PlugAndPlayOptions
from neural_fields.core.progress import Progress, ProgressReporter, rename_stage, report_nothing

PredictStep = Callable[
    [Latents, Latents, int], DenoisedLatents
]  # latents, those of the original at the same time, steps done


@dataclass(frozen=True, kw_only=True)
class FeatureInjectionEditor(FeatureInjectionOptions, RegionEditor):
    """Defines the base of editors that invert the picture to noise and inject features of the original."""


@dataclass(frozen=True, kw_only=True)
class PlugAndPlay(PlugAndPlayOptions, FeatureInjectionEditor):
    """Change the look on the same layout, by features of the original: Plug-and-Play (Tumanyan et al., 2023)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Repaints the region of each layer in the look that the prompt describes, with the layout preserved.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model that cannot be used, or nothing to edit (exit 3).
        """
        model = load_model(self.weights_source(), report)
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
    """Selects the features to inject: those of a UNet's decoder from a third of its layers on.

    Args:
        unet: UNet of the model.

    Raises:
        UserError: the model is not a UNet with self-attention in these layers (exit 3).
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
    settings: FeatureInjectionEditor,
    source_text: EncodedPrompt,
    predict_step: PredictStep,
    report: ProgressReporter,
    compute_mask: Callable[[], Float[Tensor, "#n 1 rows columns"]] | None = None,
    notes: Sequence[str] = (),
) -> EditorResult:
    """Inverts the regions of canvases to noise, and denoises them.

    Args:
        model: the diffusion model.
        canvases: one canvas per layer.
        settings: steps, strength and refinement.
        source_text: encoded prompt of the original, for the inversion.
        predict_step: predicts a step of the denoising.
        report: called with the progress.
        compute_mask: called after each step; returns where in the region the picture may change (default: everywhere).
        notes: notes for the user on the regions.

    Returns:
        One overlay per layer.
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
        rename_stage(report, "going to noise"),
    )
    latents = denoise_along_path(
        path,
        times,
        model.schedule,
        predict_step,
        original=original,
        region=lambda: inside if compute_mask is None else inside * compute_mask(),
        report=report,
    )
    overlays = split_into_overlays(model.decode_latents(latents).cpu(), canvases, model.side_multiple)
    return EditorResult(overlays, (*model.notes, *notes))


def denoise_along_path(
    path: Sequence[Latents],
    times: Sequence[int],
    schedule: NoiseSchedule,
    predict_step: PredictStep,
    *,
    original: Latents,
    region: Callable[[], Float[Tensor, "#n 1 rows columns"]],
    report: ProgressReporter = report_nothing,
) -> Latents:
    """Denoises a region from the noisy end of a path; outside of it, the latents follow the path.

    Args:
        path: the result of `invert_latents`: the original's latents at each of `times`, noisiest first.
        times: indices into the schedule.
        schedule: noise schedule of the model.
        predict_step: called with the latents, those of the path, and the number of steps done.
        original: clean latents of the original.
        region: called after each prediction; returns 1 where the picture may change, else 0.
        report: called after each step.

    Returns:
        Clean latents.
    """
    latents = path[0]
    for done, (_, after) in enumerate(pair_with_next(times)):
        edited = schedule.mix_latents(predict_step(latents, path[done], done), after)
        outside, inside = original if after is None else path[done + 1], region()
        latents = inside * edited + (1 - inside) * outside
        report(Progress("denoising", done + 1, len(times)))
    return latents

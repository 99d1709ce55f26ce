"""Mediated: all keyframes are denoised at once, and at every step the canonical pictures make them agree.

MeDM (Chu, Lin and Chen, AAAI 2024, section 3) gathers the pixels that optical flow joins into repositories, and at each
step replaces what a model predicts of them by their mean. Here the canonical pictures are the repositories: they join
all frames at once, and know what hides what. Two things differ from the paper. The predictions are brought to the
nearest frames that one canonical picture shows (least squares, `lift.agreed`), of which the mean over rounded places is
a first approximation: a single frame comes out as sharp as it was. And this is done with the latents, not with decoded
pictures, which would cost a pass of the decoder and one of the encoder at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from editors.core.editor import EditorResult, Report
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import Denoiser, denoise_region, shrink_mask_to_latents
from editors.diffusion.common.attention import CrossFrameMode, list_seen_frames, make_cross_frame_processors
from editors.diffusion.common.keyframe_fusion import fuse_keyframes, make_overlays, noise_to_first_time
from editors.diffusion.common.keyframes import KeyframedSettings, Keyframes, open_keyframes
from editors.diffusion.common.region import make_inpainting_inputs
from editors.inputs.merging import TexelFootprints, project_to_canonical

SharedAttention = Literal[CrossFrameMode, "paths"]


@dataclass(frozen=True, kw_only=True)
class Mediated(KeyframedSettings):
    """MeDM (Chu et al., 2024): keyframes are denoised together, and agree in the canonical picture at every step."""

    name: ClassVar[str] = "mediated"

    attention: SharedAttention = "own"
    """What each keyframe sees: its own picture, the first, first-previous, all, or all and then its points' paths."""

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Denoises the keyframes together, agreeing in the canonical pictures, and merges them."""
        numbers = self.choose_frames(source)  # a wrong one is told before a large model is read
        model = load_model(self.weights_source())
        keyframes = open_keyframes(source, numbers, self.side or model.trained_side, model.side_multiple, self.feather)
        with torch.no_grad(), share_attention(model, keyframes, self.attention):
            images = keyframes.images.to(model.device)
            original = model.encode_images(images)
            inside = shrink_mask_to_latents(keyframes.change_mask.to(model.device), original)
            places = keyframes.locate_pixels(model.pixels_per_latent, model.device)
            # Keyframes follow what they show, so that the same noise lies at much the same points of it.
            noise = model.draw_noise(original[:1], self.seed).expand_as(original)
            times = model.schedule.select_times(self.steps, self.strength)
            text = model.encode_prompt(self.prompt, self.negative)
            extra = make_inpainting_inputs(model, images, inside)
            latents = denoise_region(
                noise_to_first_time(original, noise, inside, times[0], model.schedule, self.strength),
                times,
                model.schedule,
                mediate_prediction(
                    lambda noised, time: model.predict_denoised(noised, time, text, self.guidance, extra=extra),
                    model.schedule,
                    places,
                ),
                original=original,
                noise=noise,
                region=inside,
                step=lambda done, total: report("denoising keyframes", done, total),
            )
            edited = model.decode_latents(latents).cpu()
        with torch.no_grad():
            return make_overlays(model, text, self, keyframes, fuse_keyframes(keyframes, edited), report)


def mediate_prediction(predict: Denoiser, schedule: NoiseSchedule, footprints: Sequence[TexelFootprints]) -> Denoiser:
    """Makes a prediction for all keyframes whose clean pictures are those of one canonical picture per layer.

    The noise is computed anew from the latents, so that the next step starts from the same picture.

    Args:
        predict: the prediction of the model.
        schedule: of the model.
        footprints: where the latents of the keyframes lie in the canonical picture of each layer.
    """

    def predict_agreeing(latents: Latents, time: int) -> DenoisedLatents:
        clean = predict(latents, time).clean
        for place in footprints:
            clean = project_to_canonical(clean, place)
        return schedule.assume_clean(latents, clean, time)

    return predict_agreeing


@contextmanager
def share_attention(model: DiffusionModel, keyframes: Keyframes, attention: SharedAttention) -> Iterator[None]:
    """Lets the keyframes of a batch see each other in the model's self-attention.

    Args:
        model: the diffusion model.
        keyframes: the batch.
        attention: what each keyframe sees.

    Raises:
        UserError: a model whose attention cannot be changed (exit 3).
    """
    if attention == "own":
        yield
        return
    paths = keyframes.find_token_paths(model.pixels_per_latent) if attention == "paths" else None
    seen = list_seen_frames("all" if attention == "paths" else attention, len(keyframes.frames))
    with model.replace_attention(make_cross_frame_processors(model.unet, seen, paths)):
        yield

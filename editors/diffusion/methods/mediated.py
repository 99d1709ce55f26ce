"""`mediated`: denoises all keyframes at once; at every step the canonical pictures make them consistent.

MeDM (Chu, Lin and Chen, AAAI 2024, section 3) collects the pixels that optical flow connects in repositories, and at
each step replaces the model's predictions for them with their mean. Here the canonical pictures are the repositories:
they connect all frames at once, and handle occlusion. Two things differ from the paper. The predictions are projected
onto the nearest frames that one canonical picture can show (least squares, `project_to_canonical`); the mean over
rounded positions is a first approximation of that. A single frame keeps its sharpness. And this is done with latents,
not with decoded pictures, which would need a pass of the decoder and one of the encoder at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import Denoiser, denoise_region, shrink_mask_to_latents
from editors.diffusion.common.attention import list_seen_frames, make_cross_frame_processors
from editors.diffusion.common.keyframe_fusion import fuse_keyframes, make_overlays, noise_to_first_time
from editors.diffusion.common.keyframes import KeyframeEditor, Keyframes, open_keyframes
from editors.diffusion.common.region import make_inpainting_inputs
from editors.inputs.merging import TexelFootprints, project_to_canonical
from editors.options.keyframes import MediatedOptions, SharedAttention
from neural_fields.core.progress import ProgressReporter, rename_stage


@dataclass(frozen=True, kw_only=True)
class Mediated(MediatedOptions, KeyframeEditor):
    """Denoise keyframes together; at every step they agree in the canonical picture: MeDM (Chu et al., 2024)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Denoises the keyframes together, consistent in the canonical pictures, and merges them.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model or frames that cannot be used, or nothing to edit (exit 3).
        """
        numbers = self.choose_frames(source)  # a wrong one is told before a large model is read
        model = load_model(self.weights_source(), report)
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
                report=rename_stage(report, "denoising keyframes"),
            )
            edited = model.decode_latents(latents).cpu()
        with torch.no_grad():
            return make_overlays(model, text, self, keyframes, fuse_keyframes(keyframes, edited), report)


def mediate_prediction(predict: Denoiser, schedule: NoiseSchedule, footprints: Sequence[TexelFootprints]) -> Denoiser:
    """Wraps a prediction so that its clean pictures are views of one canonical picture per layer.

    The noise is recomputed from the latents, so that the next step starts from the same picture.

    Args:
        predict: predicts the clean pictures and the noise of all keyframes.
        schedule: noise schedule of the model.
        footprints: positions of the keyframes' latents in the canonical picture of each layer.
    """

    def predict_agreeing(latents: Latents, time: int) -> DenoisedLatents:
        clean = predict(latents, time).clean
        for place in footprints:
            clean = project_to_canonical(clean, place)
        return schedule.assume_clean(latents, clean, time)

    return predict_agreeing


@contextmanager
def share_attention(model: DiffusionModel, keyframes: Keyframes, attention: SharedAttention) -> Iterator[None]:
    """Lets the keyframes of a batch attend to each other in the model's self-attention, within the context.

    Args:
        model: the diffusion model.
        keyframes: the keyframes of the batch.
        attention: the keyframes that each one attends to.

    Raises:
        UserError: a model whose attention cannot be replaced (exit 3).
    """
    if attention == "own":
        yield
        return
    paths = keyframes.find_token_paths(model.pixels_per_latent) if attention == "paths" else None
    seen = list_seen_frames("all" if attention == "paths" else attention, len(keyframes.frames))
    with model.replace_attention(make_cross_frame_processors(model.unet, seen, paths)):
        yield

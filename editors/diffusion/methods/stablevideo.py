"""`stablevideo`: edits keyframes one after another, each starting from the edits of the earlier ones.

Chai, Guo, Wang and Lu, ICCV 2023, section 3.2: the first keyframe is generated from noise; for each further one, the
earlier edits are rendered into it through the canonical picture, noised to nine tenths, and denoised with the same
noise, prompt and edges. The keyframes are merged by the median, and their residuals are added back
(`keyframe_fusion.py`, in place of the small network of their section 3.3). Differences: parts that no earlier keyframe
shows are generated from noise like the first keyframe, beside the parts that they show; and the frame around the layers
is preserved, so that the model sees the surroundings of the edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import ControlInput, DiffusionModel, EncodedPrompt, Images, load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import Denoiser, denoise_region, shrink_mask_to_latents
from editors.diffusion.common.control_images import detect_edges, detect_soft_edges, load_controls
from editors.diffusion.common.keyframe_fusion import (
    fuse_keyframes,
    make_overlays,
    noise_to_first_time,
    render_into_keyframes,
)
from editors.diffusion.common.keyframes import KeyframeEditor, Keyframes, open_keyframes
from editors.diffusion.common.region import make_inpainting_inputs
from editors.options.controls import parse_control
from editors.options.keyframes import StableVideoOptions
from neural_fields.core.progress import Progress, ProgressReporter

# By the kind of ControlNet that follows the edges
EDGE_DETECTORS: dict[str, Callable[[Images], Images]] = {"edges": detect_edges, "soft-edges": detect_soft_edges}


@dataclass(frozen=True, kw_only=True)
class StableVideo(StableVideoOptions, KeyframeEditor):
    """Edit keyframes one after another, each starting from the earlier edits: StableVideo (Chai et al., 2023)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Edits the keyframes one after another and merges them.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model or frames that cannot be used, or nothing to edit (exit 3).
        """
        numbers = self.choose_frames(source)  # a wrong one is told before a large model is read
        model = load_model(self.weights_source(), report)
        keyframes = open_keyframes(source, numbers, self.side or model.trained_side, model.side_multiple, self.feather)
        done: list[Images] = []
        with torch.no_grad():
            text = model.encode_prompt(self.prompt, self.negative)
            controls = []
            if self.control:
                canvas = next(iter(keyframes.layers.values())).canvas
                follows = [parse_control(self.control)]
                first_edges = self._detect_edges(keyframes.images[:1])
                controls = load_controls(model, [canvas], follows, lambda *_: first_edges, self.unsafe_weights)
            for index in range(len(keyframes.frames)):
                report(Progress("editing keyframes", index, len(keyframes.frames)))
                here = keyframes[index : index + 1]
                before = fuse_keyframes(keyframes[:index], torch.cat(done)) if done else {}
                start, known = render_into_keyframes(here, before)
                shown = [replace(one, picture=self._detect_edges(here.images)) for one in controls]
                done.append(self._edit_keyframe(model, text, here, start, known, shown))
            found = fuse_keyframes(keyframes, torch.cat(done))
            return make_overlays(model, text, self, keyframes, found, report)

    def _detect_edges(self, images: Images) -> Images:
        return EDGE_DETECTORS[parse_control(self.control).kind](images)

    def _edit_keyframe(
        self,
        model: DiffusionModel,
        text: EncodedPrompt,
        here: Keyframes,
        start: Images,
        known: Float[Tensor, "1 1 height width"],
        controls: Sequence[ControlInput],
    ) -> Images:
        """Edits one keyframe.

        Args:
            model: the diffusion model.
            text: the encoded prompt.
            here: the keyframe.
            start: the keyframe with the earlier edits rendered into it, RGB in [0, 1].
            known: coverage of each pixel by earlier edits, in [0, 1].
            controls: ControlNets with the edges of this keyframe.
        """
        schedule, image = model.schedule, start.to(model.device)
        original = model.encode_images(image)
        noise = model.draw_noise(original, self.seed)
        inside = shrink_mask_to_latents(here.change_mask.to(model.device), original)
        extra = make_inpainting_inputs(model, image, inside)
        times = schedule.select_times(self.steps, self.strength)
        known = torch.nn.functional.avg_pool2d(known, model.pixels_per_latent).to(model.device)
        held = keep_known_latents(
            lambda noised, time: model.predict_denoised(
                noised, time, text, self.guidance, controls=controls, extra=extra
            ),
            schedule,
            original,
            (known > 0.5).float(),  # latents most of which earlier edits fill
            times[: -len(schedule.select_times(self.steps, self.follow))],
        )
        latents = denoise_region(
            noise_to_first_time(original, noise, inside, times[0], schedule, self.strength),
            times,
            schedule,
            held,
            original=original,
            noise=noise,
            region=inside,
        )
        return model.decode_latents(latents).cpu()


def keep_known_latents(
    predict: Denoiser,
    schedule: NoiseSchedule,
    clean: Latents,
    known: Float[Tensor, "#n 1 height width"],
    times: Sequence[int],
) -> Denoiser:
    """Wraps a prediction so that it keeps the known part of a picture at some times; the rest is generated beside it.

    After those times, the known part is as if it had been noised to the last of them and denoised from there.

    Args:
        predict: predicts the clean picture and the noise.
        schedule: noise schedule of the model.
        clean: clean latents of the known picture.
        known: 1 where the picture is known, else 0.
        times: indices into the schedule at which it is kept.
    """

    def predict_keeping_known(latents: Latents, time: int) -> DenoisedLatents:
        prediction = predict(latents, time)
        if time not in times:
            return prediction
        return schedule.assume_clean(latents, prediction.clean + known * (clean - prediction.clean), time)

    return predict_keeping_known

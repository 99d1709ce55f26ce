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

from editors.base import EditorResult, Report, Source
from editors.diffusion.attention import Seen, cross_frame, seen_by
from editors.diffusion.fusing import completed, fused, started
from editors.diffusion.keyframes import Keyed, Keyframes, open_keyframes
from editors.diffusion.region import inpainting_inputs
from editors.diffusion.sampling import Predict, denoise_region, region_of
from editors.diffusion.schedule import Denoised, Latents, Schedule
from editors.diffusion.wrapper import DiffusionModel, load_model
from editors.lift import Places, agreed

Shared = Literal[Seen, "paths"]


@dataclass(frozen=True, kw_only=True)
class Mediated(Keyed):
    """MeDM (Chu et al., 2024): keyframes are denoised together, and agree in the canonical picture at every step."""

    name: ClassVar[str] = "mediated"

    attention: Shared = "own"
    """What each keyframe sees: its own picture, the first, first-previous, all, or all and then its points' paths."""

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """Denoises the keyframes together, agreeing in the canonical pictures, and merges them."""
        numbers = self.numbers(source)  # a wrong one is told before a large model is read
        model = load_model(self.weights())
        keyframes = open_keyframes(source, numbers, self.side or model.size, model.multiple, self.feather)
        with torch.no_grad(), sharing(model, keyframes, self.attention):
            images = keyframes.images.to(model.device)
            original = model.encode(images)
            inside = region_of(keyframes.region.to(model.device), original)
            places = keyframes.places(model.scale, model.device)
            # Keyframes follow what they show, so that the same noise lies at much the same points of it.
            noise = model.noise(original[:1], self.seed).expand_as(original)
            times = model.schedule.times(self.steps, self.strength)
            text = model.text(self.prompt, self.negative)
            extra = inpainting_inputs(model, images, inside)
            latents = denoise_region(
                started(original, noise, inside, times[0], model.schedule, self.strength),
                times,
                model.schedule,
                mediate(
                    lambda noised, time: model.predict(noised, time, text, self.guidance, extra=extra),
                    model.schedule,
                    places,
                ),
                original=original,
                noise=noise,
                region=inside,
                step=lambda done, total: report("denoising keyframes", done, total),
            )
            edited = model.decode(latents).cpu()
        with torch.no_grad():
            return completed(model, text, self, keyframes, fused(keyframes, edited), report)


def mediate(predict: Predict, schedule: Schedule, places: Sequence[Places]) -> Predict:
    """Makes a prediction for all keyframes whose clean pictures are those of one canonical picture per layer.

    The noise is computed anew from the latents, so that the next step starts from the same picture.

    Args:
        predict: the prediction of the model.
        schedule: of the model.
        places: where the latents of the keyframes lie in the canonical picture of each layer.
    """

    def predict_agreeing(latents: Latents, time: int) -> Denoised:
        clean = predict(latents, time).clean
        for place in places:
            clean = agreed(clean, place)
        return schedule.with_clean(latents, clean, time)

    return predict_agreeing


@contextmanager
def sharing(model: DiffusionModel, keyframes: Keyframes, attention: Shared) -> Iterator[None]:
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
    paths = keyframes.paths(model.scale) if attention == "paths" else None
    seen = seen_by("all" if attention == "paths" else attention, len(keyframes.frames))
    with model.attention(cross_frame(model.unet, seen, paths)):
        yield

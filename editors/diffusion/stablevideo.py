"""StableVideo: keyframes are edited one after another, each from the canonical picture as edited by those before it.

Chai, Guo, Wang and Lu, ICCV 2023, section 3.2: the first keyframe is made from noise; for each further one the edits so
far are looked up through the canonical picture, noised to nine tenths, and denoised with the same noise, prompt and
edges. The keyframes are merged by the median, and what that misses of them goes back (`fusing.py`; in place of the
small network of their section 3.3). Different here: what no earlier keyframe shows is made from noise as in the first,
beside what they show; and around the layers the frame stays, so that the model sees what the edit has to fit to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editors.base import EditorResult, Report, Source
from editors.diffusion.conditions import controls_for, edges, follow_of, soft_edges
from editors.diffusion.fusing import completed, fused, shown_in, started
from editors.diffusion.keyframes import Keyed, Keyframes, open_keyframes
from editors.diffusion.region import inpainting_inputs
from editors.diffusion.sampling import Predict, denoise_region, region_of
from editors.diffusion.schedule import Denoised, Latents, Schedule
from editors.diffusion.settings import wrong_setting
from editors.diffusion.wrapper import Control, DiffusionModel, Images, Text, load_model

# By the kind of ControlNet that follows the edges
EDGE_DETECTORS: dict[str, Callable[[Images], Images]] = {"edges": edges, "soft-edges": soft_edges}


@dataclass(frozen=True, kw_only=True)
class StableVideo(Keyed):
    """StableVideo (Chai et al., 2023): keyframes one after another, each from what the edits before it show of it."""

    name: ClassVar[str] = "stablevideo"

    follow: float = 0.9
    """How much noise is put on the earlier edits for the next keyframe, in (0, 1]; less keeps closer to them."""
    control: str = ""
    """A ControlNet that follows the frames' edges: edges=FOLDER or soft-edges=FOLDER, with @SCALE for how strongly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.follow <= 1:
            raise wrong_setting("follow", self.follow, "it is above 0 and at most 1", "--follow 0.8")
        if self.control and follow_of(self.control).kind not in EDGE_DETECTORS:
            why = f"of a frame only these are found: {', '.join(EDGE_DETECTORS)}"
            raise wrong_setting("control", self.control, why, "--control edges=FOLDER")

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """Edits the keyframes one after another and merges them."""
        numbers = self.numbers(source)  # a wrong one is told before a large model is read
        model = load_model(self.weights())
        keyframes = open_keyframes(source, numbers, self.side or model.size, model.multiple, self.feather)
        done: list[Images] = []
        with torch.no_grad():
            text = model.text(self.prompt, self.negative)
            controls = []
            if self.control:
                canvas = next(iter(keyframes.parts.values())).canvas
                follows = [follow_of(self.control)]
                first_edges = self._detect_edges(keyframes.images[:1])
                controls = controls_for(model, [canvas], follows, lambda *_: first_edges, self.unsafe_weights)
            for index in range(len(keyframes.frames)):
                report("editing keyframes", index, len(keyframes.frames))
                here = keyframes[index : index + 1]
                before = fused(keyframes[:index], torch.cat(done)) if done else {}
                start, known = shown_in(here, before)
                shown = [replace(one, picture=self._detect_edges(here.images)) for one in controls]
                done.append(self._edit_keyframe(model, text, here, start, known, shown))
            found = fused(keyframes, torch.cat(done))
            return completed(model, text, self, keyframes, found, report)

    def _detect_edges(self, images: Images) -> Images:
        return EDGE_DETECTORS[follow_of(self.control).kind](images)

    def _edit_keyframe(
        self,
        model: DiffusionModel,
        text: Text,
        here: Keyframes,
        start: Images,
        known: Float[Tensor, "1 1 height width"],
        controls: Sequence[Control],
    ) -> Images:
        """Edits one keyframe.

        Args:
            model: the diffusion model.
            text: the prompt.
            here: the keyframe alone.
            start: what it shows of earlier edits, over its own picture.
            known: how much of each pixel earlier edits fill.
            controls: with the edges of this keyframe.
        """
        schedule, image = model.schedule, start.to(model.device)
        original = model.encode(image)
        noise = model.noise(original, self.seed)
        inside = region_of(here.region.to(model.device), original)
        extra = inpainting_inputs(model, image, inside)
        times = schedule.times(self.steps, self.strength)
        known = torch.nn.functional.avg_pool2d(known, model.scale).to(model.device)
        held = holding(
            lambda noised, time: model.predict(noised, time, text, self.guidance, controls=controls, extra=extra),
            schedule,
            original,
            (known > 0.5).float(),  # latents most of which earlier edits fill
            times[: -len(schedule.times(self.steps, self.follow))],
        )
        latents = denoise_region(
            started(original, noise, inside, times[0], schedule, self.strength),
            times,
            schedule,
            held,
            original=original,
            noise=noise,
            region=inside,
        )
        return model.decode(latents).cpu()


def holding(
    predict: Predict,
    schedule: Schedule,
    clean: Latents,
    known: Float[Tensor, "#n 1 height width"],
    times: Sequence[int],
) -> Predict:
    """Makes a prediction that at some times keeps the known part of a picture; the rest is generated beside it.

    Once those times are over, the known part is as if it had been noised to the last of them and denoised from there.

    Args:
        predict: the prediction of the model.
        schedule: of the model.
        clean: latents of the known picture.
        known: 1 where it is known.
        times: at which it is kept.
    """

    def predict_keeping_known(latents: Latents, time: int) -> Denoised:
        prediction = predict(latents, time)
        if time not in times:
            return prediction
        return schedule.with_clean(latents, prediction.clean + known * (clean - prediction.clean), time)

    return predict_keeping_known

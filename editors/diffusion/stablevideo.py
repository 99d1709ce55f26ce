"""StableVideo: keyframes are edited one after another, each from what those before it make of the canonical picture.

Chai, Guo, Wang and Lu, ICCV 2023, section 3.2: the first keyframe is made from noise; for each further one the edits so
far are looked up through the canonical picture, noised to nine tenths, and denoised with the same noise, prompt and
edges. The keyframes are merged by the median, and what that misses of them goes back (`fusing.py`; in place of the
small network of their section 3.3). Different here: what no earlier keyframe shows is made from noise as in the first,
beside what they show; and around the layers the frame stays, so that the model sees what the edit has to fit to.
"""

from __future__ import annotations

from collections.abc import Sequence
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

FOUND = {"edges": edges, "soft-edges": soft_edges}  # what a ControlNet can be shown of any frame


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
        if self.control and follow_of(self.control).kind not in FOUND:
            why = f"of a frame only these are found: {', '.join(FOUND)}"
            raise wrong_setting("control", self.control, why, "--control edges=FOLDER")

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """The layers as the merged keyframes show them."""
        numbers = self.numbers(source)  # a wrong one is told before a large model is read
        model = load_model(self.weights())
        keyframes = open_keyframes(source, numbers, self.side or model.size, model.multiple, self.feather)
        done: list[Images] = []
        with torch.no_grad():
            text = model.text(self.prompt, self.negative)
            controls = self._controls(model, keyframes)
            for index in range(len(keyframes.frames)):
                report("editing keyframes", index, len(keyframes.frames))
                here = keyframes[index : index + 1]
                before = fused(keyframes[:index], torch.cat(done)) if done else {}
                start, known = shown_in(here, before)
                seen = [replace(one, picture=self._edges(here.images)) for one in controls]
                done.append(self._edited(model, text, here, start, known, seen))
            found = fused(keyframes, torch.cat(done))
            return completed(model, text, self, keyframes, found, report)

    def _edges(self, images: Images) -> Images:
        return FOUND[follow_of(self.control).kind](images)

    def _controls(self, model: DiffusionModel, keyframes: Keyframes) -> list[Control]:
        """The ControlNet, with the edges of the first keyframe."""
        if not self.control:
            return []
        return controls_for(
            model,
            [next(iter(keyframes.parts.values())).canvas],
            [follow_of(self.control)],
            lambda follow, canvas: self._edges(keyframes.images[:1]),
            self.unsafe_weights,
        )

    def _edited(
        self,
        model: DiffusionModel,
        text: Text,
        here: Keyframes,
        start: Images,
        known: Float[Tensor, "1 1 height width"],
        controls: Sequence[Control],
    ) -> Images:
        """One keyframe: `start` is what it shows of earlier edits, where `known`, over its own picture."""
        schedule, image = model.schedule, start.to(model.device)
        original = model.encode(image)
        noise = model.noise(original, self.seed)
        inside = region_of(here.region.to(model.device), original)
        extra = inpainting_inputs(model, image, inside)
        times = schedule.times(self.steps, self.strength)
        kept = torch.nn.functional.avg_pool2d(known, model.scale).to(model.device)
        held = holding(
            lambda noised, time: model.predict(noised, time, text, self.guidance, controls=controls, extra=extra),
            schedule,
            original,
            (kept > 0.5).float(),
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
    """A prediction that at some times says what is `known` already; the rest is made beside it.

    Once those times are over, what is known is as if it had been noised to the last of them and denoised from there.
    """

    def predicted(latents: Latents, time: int) -> Denoised:
        found = predict(latents, time)
        if time not in times:
            return found
        return schedule.with_clean(latents, found.clean + known * (clean - found.clean), time)

    return predicted

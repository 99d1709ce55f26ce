"""Repaints or reshapes the person of a 3D scene from a prompt, a reference picture, or both.

The method is that of Liu et al., "DynVideo-E: Harnessing Dynamic NeRF for Large-Scale Motion- and View-Change
Human-Centric Video Editing", CVPR 2024, section 3. The person is edited in the rest pose, and the bones deform the
edited person into every frame, so that an edit is consistent over all frames, views and poses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from editors.core.editor import EditorResult
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.backend.settings import wrong_setting_error
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common.control_images import load_depth_estimator
from editors.diffusion.common.score_distillation import DistillationPrompts, make_score
from editors.volume.base import VolumeEditor, VolumeSource, tune_part
from editors.volume.body_parts import find_body_parts
from editors.volume.distillation import (
    WHOLE_BODY,
    AdamSettings,
    DiffusionTeacher,
    NovelViewTeacher,
    PersonObjective,
    PersonSubject,
    RandomStreams,
    optimize_parameters,
)
from editors.volume.poses import Pose, PoseSampler
from editors.volume.reference_view import ReferenceWeights, read_reference
from editors.volume.zero123 import load_view_model
from neural_fields.config.flags import Repeated
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import ProgressReporter
from neural_fields.volume.scene import PERSON


@dataclass(frozen=True, kw_only=True)
class DynVideoE(VolumeEditor):
    """Repaint the person of a 3D scene from a prompt, a reference picture or both: DynVideo-E (Liu et al., 2024)."""

    name: ClassVar[str] = "dynvideo_e"
    default_side_px: ClassVar[int] = 128  # of a view; what a model was trained on where that is less

    prompt: str = ""
    """What the person should look like; needs --model."""
    model: str = ""
    """A text-to-image model: a folder in diffusers' layout, or the name of one on the hub."""
    negative: str = ""
    """What the person should not look like."""
    lora: Repeated = ()
    """A LoRA of the model (for example of this person), a safetensors FILE or FILE@STRENGTH. Repeatable."""
    reference: Path | None = None
    """An edited picture of one of the capture's views: the target appearance."""
    reference_view: int = 0
    """Number of that view, 0 is the first."""
    reference_mask: Path | None = None
    """A mask, white on the person of the reference (default: its transparency, or the view's mask)."""
    reference_depth: Path | None = None
    """A depth picture of the reference, brighter where it is nearer; only with --shape."""
    depth_model: str = ""
    """A depth network of transformers that estimates the reference's depth instead; only with --shape."""
    view_model: str = ""
    """A model converted from Zero-1-to-3: makes the other sides consistent with the reference."""
    shape: bool = False
    """Change the shape of the person too, not only the colors."""
    steps: int = 300
    """Steps of the optimization."""
    rate: float = 0.05
    """Learning rate of the colors."""
    shape_rate: float = 0.002
    """Learning rate of the shape."""
    guidance: float = 100.0
    """How strongly the prompt is followed."""
    view_guidance: float = 5.0
    """How strongly the reference is followed by --view-model."""
    times: tuple[float, float] = (0.02, 0.98)
    """Range of the noise levels at which the models score views, as shares of their schedule, in [0, 1]."""
    zoom: float = 0.5
    """How often a view shows a part of the body instead of all of it, in [0, 1]; it grows over the run."""
    part_prompt: str = "{prompt}"
    """The prompt for a part of the body; {part} stands for its name and {prompt} for the prompt."""
    random_poses: float = 0.25
    """Share of the views in random poses, in [0, 1]."""
    source_poses: float = 0.25
    """Share of the views in poses of the video; the rest is in the reference's pose, or any pose without one."""
    rgb_weight: float = 1000.0
    """Weight of the loss on the reference's colors."""
    mask_weight: float = 100.0
    """Weight of the loss on the reference's outline."""
    depth_weight: float = 10.0
    """Weight of the loss on the reference's depth."""
    prompt_weight: float = 0.025
    """Weight of the score distillation by the prompt."""
    view_weight: float = 1.0
    """Weight of the score distillation by --view-model."""
    side: int | None = None
    """Side of the views in pixels (default: 128, or the side that the model was trained on if that is less)."""
    seed: int = 0
    """Seed of the random numbers; another seed gives another result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that runs the models."""
    unsafe_weights: bool = False
    """Also read weights that are not safetensors. Such files can run code: use them only if you trust their source."""

    def __post_init__(self) -> None:
        if not self.prompt.strip() and self.reference is None:
            fix = '--prompt "a person in a blue coat" --model MODEL'
            raise UserError(ExitCode.USAGE, "nothing says what the person should become", fix=fix)
        if bool(self.prompt.strip()) != bool(self.model):
            have, miss = ("prompt", "model MODEL") if self.prompt.strip() else ("model", 'prompt "..."')
            raise UserError(ExitCode.USAGE, f"--{have} needs --{miss.split()[0]}", fix=f"--{miss}")
        first, last = self.times
        shares = self.source_poses + self.random_poses
        weights = (self.rgb_weight, self.mask_weight, self.depth_weight, self.prompt_weight, self.view_weight)
        for wrong, flag, value, why, fix in (
            (self.steps < 1, "steps", self.steps, "at least one is needed", "--steps 300"),
            (not 0 < self.rate < math.inf, "rate", self.rate, "it is above 0", "--rate 0.05"),
            (not 0 < self.shape_rate < math.inf, "shape-rate", self.shape_rate, "it is above 0", "--shape-rate 0.002"),
            (not 0 <= self.guidance < math.inf, "guidance", self.guidance, "it is 0 or more", "--guidance 100"),
            (not 0 <= first < last <= 1, "times", self.times, "they rise from 0 to 1", "--times 0.02 0.98"),
            (not 0 <= self.zoom <= 1, "zoom", self.zoom, "it is a share", "--zoom 0.5"),
            (min(self.source_poses, self.random_poses) < 0 or shares > 1, "source-poses", self.source_poses,
             "with --random-poses it is a share of all views", "--source-poses 0.25 --random-poses 0.25"),
            (min(weights) < 0 or max(weights) == math.inf, "rgb-weight", self.rgb_weight,
             "no weight is below 0 or without end", "--rgb-weight 1000"),
            (bool(self.view_model) and self.reference is None, "view-model", self.view_model,
             "it turns a reference picture", "--reference PICTURE.png"),
            (self.side is not None and self.side < 8, "side", self.side, "it counts pixels", "leave --side out"),
        ):  # fmt: skip
            if wrong:
                raise wrong_setting_error(flag, value, why, fix)

    def edit(self, source: VolumeSource, report: ProgressReporter) -> EditorResult:
        """Edits the person of the scene.

        Args:
            source: the scene, with its cameras and poses.
            report: called with the progress.

        Returns:
            New values of the person's parameters.

        Raises:
            UserError: there is no person, or a model or picture cannot be used.
        """
        motion = source.require_person()
        subject = PersonSubject(source, motion)
        reference = None
        if self.reference is not None:
            depth = self.reference_depth if self.shape else None
            reference = read_reference(source, self.reference, self.reference_view, self.reference_mask, depth)
            if self.shape and self.depth_model and depth is None:
                nearness = load_depth_estimator(self._make_weights(self.depth_model))(reference.composite_on_white())[
                    0
                ].mean(dim=0)
                reference = replace(reference, nearness=nearness.numpy().astype(np.float32))
        model = load_model(self._make_weights(self.model)) if self.prompt else None
        side = self.side or min(self.default_side_px, model.trained_side if model is not None else self.default_side_px)
        parts = find_body_parts(motion.skeleton) if self.zoom > 0 else {}

        # The text-to-image model's teachers of the whole body and of every part.
        teachers = None
        if model is not None:
            prompts = {}
            for part in parts:
                words = self.part_prompt.replace("{part}", part.replace("_", " "))
                prompts[part] = words.replace("{prompt}", self.prompt)
            prompts[WHOLE_BODY] = self.prompt
            with torch.no_grad():
                scores = {
                    prompt: make_score(model, "sds", DistillationPrompts(prompt, self.negative), self.guidance)
                    for prompt in sorted(set(prompts.values()))
                }
                teachers = {
                    part: DiffusionTeacher.from_model(model, scores[prompt], self.prompt_weight)
                    for part, prompt in prompts.items()
                }

        # The teacher of other views: the novel-view model, shown the reference.
        turned = None
        if reference is not None and self.view_model:
            orbit = subject.make_orbit(Pose("reference", motion.transforms[reference.time], reference.time))
            square = reference.resample_square(orbit, 2 * self.default_side_px)
            views = load_view_model(self._make_weights(self.view_model), square)
            azimuth, elevation, _ = orbit.direction_of(reference.camera.position)
            place = orbit.place_at(azimuth, elevation, orbit.distance)
            turned = NovelViewTeacher(views, orbit, place, self.view_guidance, self.view_weight)

        lesson = PersonObjective(
            subject,
            PoseSampler(motion, self._pose_shares(), 0 if reference is None else reference.time),
            side,
            ReferenceWeights(self.rgb_weight, self.mask_weight, self.depth_weight),
            reference=reference,
            words=teachers,
            parts=parts,
            novel_view=turned,
            zoom=self.zoom,
            span=self.times,
            shape=self.shape,
        )
        chance = RandomStreams(self.seed, source.device)
        with tune_part(source.scene, PERSON, self.shape) as chosen:
            descent = AdamSettings(self.steps, self.rate, self.shape_rate)
            optimize_parameters(chosen, lambda done: lesson.compute_loss(done, chance), descent, report)
            notes = () if model is None else model.notes
            return EditorResult(weights=chosen.copy_weights(), parts=(PERSON,), notes=notes)

    def _make_weights(self, name: str) -> WeightsSource:
        return WeightsSource(name, self.device, self.unsafe_weights, self.lora if name == self.model else ())

    def _pose_shares(self) -> tuple[float, float, float]:
        """Returns the share of each kind of pose, in the order of `poses.Kind`."""
        if not self.prompt:
            return 1.0, 0.0, 0.0  # there is a loss of the reference alone, in its own pose
        total = self.source_poses + self.random_poses
        if self.reference is not None:
            return max(0.0, 1 - total), self.source_poses, self.random_poses
        return (0.0, self.source_poses / total, self.random_poses / total) if total else (0.0, 1.0, 0.0)

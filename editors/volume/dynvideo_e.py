"""Repaints or reshapes the person of a 3D scene from a prompt, a reference picture, or both.

The method is that of Liu et al., "DynVideo-E: Harnessing Dynamic NeRF for Large-Scale Motion- and View-Change
Human-Centric Video Editing", CVPR 2024, section 3. The person is edited in the rest pose, and the bones deform the
edited person into every frame, so that an edit is consistent over all frames, views and poses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from editors.core.editor import EditorResult
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common.control_images import load_depth_estimator
from editors.diffusion.common.score_distillation import DistillationPrompts, make_score
from editors.options.scenes import DynVideoEOptions
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
from neural_fields.core.progress import ProgressReporter
from neural_fields.volume.scene import PERSON


@dataclass(frozen=True, kw_only=True)
class DynVideoE(DynVideoEOptions, VolumeEditor):
    """Repaint the person of a 3D scene from a prompt, a reference picture or both: DynVideo-E (Liu et al., 2024)."""

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
        model = load_model(self._make_weights(self.model), report) if self.prompt else None
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

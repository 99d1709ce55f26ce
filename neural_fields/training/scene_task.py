"""The task of training a 3D scene: its batches, losses and learning rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from neural_fields.config.training_stage import TrainingStage
from neural_fields.data.capture.capture import Capture
from neural_fields.runs.run import Run
from neural_fields.training.task import GradientTask
from neural_fields.volume.config import training_stages
from neural_fields.volume.previews import save_volume_previews
from neural_fields.volume.ray_batches import CapturePixels
from neural_fields.volume.record import VolumeRecord, build_scene
from neural_fields.volume.scene import Scene
from neural_fields.volume.stages import (
    SceneTraining,
    compute_step_losses,
    count_stage_rays,
    learning_rate_factor,
    parameter_groups,
)
from neural_fields.volume.visual_hull import carve_prior


class SceneTask(GradientTask):
    """Trains a 3D scene on the pixels of its views.

    Args:
        record: of the run.
        capture: pictures, masks and bones.
        device: of the scene and the pixels.
    """

    model: Scene
    preview_every = 0  # a preview renders whole views, which takes longer than many steps
    retry_advice = "other random numbers, for example --seed 1"

    def __init__(self, record: VolumeRecord, capture: Capture, device: torch.device) -> None:
        self.record = record
        self.capture = capture
        self.stages = training_stages(record.config.training, record.quality, record.motion is not None)
        self.checkpoint_every = record.config.training.checkpoint_every
        self.color_weight = record.config.terms.color
        chosen = tuple(view for view in range(capture.view_count) if view not in record.held_out)
        with_flow = record.motion is not None and record.config.terms.flow > 0
        pixels = CapturePixels(capture, chosen, device, with_flow=with_flow)
        focal = float(np.mean([camera.focal for camera in capture.cameras]))
        scene = build_scene(record)
        if scene.person is not None:
            carve_prior(scene.person.skinning, capture, chosen)
        self.model = scene.to(device)
        self.training = SceneTraining(self.model, record.make_moments(device), pixels, record.config, focal)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `GradientTask.parameter_groups`."""
        return parameter_groups(self.model)

    def learning_rate_factor(self, stage: TrainingStage, step: int, progress: float) -> float:
        """See `GradientTask.learning_rate_factor`.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            progress: share of the training that is done, 0 to 1: by steps or by time, whichever is larger.
        """
        return learning_rate_factor(stage, self.record.config, step)

    def batch_size(self, stage: TrainingStage) -> int:
        """See `TrainingTask.batch_size`."""
        return count_stage_rays(stage, self.record.config)

    def compute_gradients(self, stage: TrainingStage, step: int, batch_divisor: int) -> dict[str, float]:
        """See `GradientTask.compute_gradients`.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            batch_divisor: the factor by which the batch is smaller than a full one, after memory ran out.
        """
        generator = torch.Generator().manual_seed((self.record.seed << 32) + step)
        losses = compute_step_losses(self.training, stage, step, generator, batch_divisor)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if values and all(map(math.isfinite, values.values())):
            torch.stack(list(losses.values())).sum().backward()
        return values

    def save_previews(self, run: Run) -> None:
        """See `TrainingTask.save_previews`."""
        save_volume_previews(run, self.model, self.record, self.capture)

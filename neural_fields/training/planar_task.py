"""The task of training a planar model: its batches, losses and learning rates."""

from __future__ import annotations

import math
from typing import Any

from neural_fields.config.loader import to_mapping
from neural_fields.config.training_stage import TrainingStage
from neural_fields.core.memmap import RELEASE_INTERVAL
from neural_fields.data.dataset import Batch, ClipDataset
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import TrainingConfig, frames_per_step
from neural_fields.planar.losses.objective import accumulate_gradients
from neural_fields.runs.run import Run
from neural_fields.training.previews_planar import save_previews
from neural_fields.training.table_task import TableTask
from neural_fields.training.task import GradientTask


class PlanarTask(GradientTask):
    """Trains a planar model on a clip.

    Args:
        model: initialized, or of the checkpoint's shape.
        clip: frames, masks and flow.
        settings: what a step draws, the schedule of the learning rates, how often to save.
        steps: of the training, 1 or more.
        seed: of the batches.
    """

    model: PlanarModel
    retry_advice = "smaller learning rates, for example --mapping.learning-rate 0.05 --texture.learning-rate 0.001"

    def __init__(
        self, model: PlanarModel, clip: ClipDataset, settings: TrainingConfig, steps: int, seed: int = 0
    ) -> None:
        self.model = model
        self.clip = clip
        self.settings = settings
        self.seed = seed
        self.stages = (TrainingStage("training", 0, steps),)
        self.checkpoint_every = settings.checkpoint_every
        self.preview_every = settings.preview_every
        self.color_weight = model.weights.color

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `GradientTask.parameter_groups`."""
        return self.model.param_groups()

    def learning_rate_factor(self, stage: TrainingStage, step: int, progress: float) -> float:
        """See `GradientTask.learning_rate_factor`.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            progress: share of the training that is done, 0 to 1: by steps or by time, whichever is larger.
        """
        schedule = self.settings.schedule
        if schedule == "cosine":
            return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        if schedule == "halving":
            return 0.5 ** sum(progress >= mark for mark in (0.25, 0.5, 0.75))
        if schedule == "tenths":
            return 0.1 ** sum(progress >= mark for mark in (0.16, 0.64, 0.8))
        return 1.0

    def batch_size(self, stage: TrainingStage) -> int:
        """See `TrainingTask.batch_size`."""
        return self.settings.pixels if self.settings.batch == "pixels" else self.clip.frame_count

    def compute_gradients(self, stage: TrainingStage, step: int, batch_divisor: int) -> dict[str, float]:
        """See `GradientTask.compute_gradients`.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            batch_divisor: the factor by which the batch is smaller than a full one, after memory ran out.
        """
        batch = draw_batch(self.clip, self.settings, step, self.seed, batch_divisor)
        self.model.begin_step(step)
        terms = {name: float(value) for name, value in accumulate_gradients(self.model, batch, step).items()}
        if (step + 1) % RELEASE_INTERVAL == 0:
            self.clip.release_memory()
        return terms

    def save_previews(self, run: Run) -> None:
        """See `TrainingTask.save_previews`."""
        save_previews(run, self.model, self.clip)

    def checkpoint_metadata(self) -> dict[str, Any]:
        """See `TrainingTask.checkpoint_metadata`."""
        return {"shape": to_mapping(self.model.shape)}


def make_planar_task(
    model: PlanarModel, clip: ClipDataset, settings: TrainingConfig, steps: int, seed: int = 0
) -> PlanarTask | TableTask:
    """Makes the task of a training by the solver that its settings name.

    Args:
        model: initialized, or of the checkpoint's shape.
        clip: frames, masks and flow.
        settings: of the training.
        steps: of the training, 1 or more.
        seed: of what a step draws.
    """
    if settings.solver == "gauss_newton":
        return TableTask(model, clip, settings, steps)
    return PlanarTask(model, clip, settings, steps, seed)


def draw_batch(clip: ClipDataset, settings: TrainingConfig, step: int, seed: int, divisor: int = 1) -> Batch:
    """Draws the batch of a step, which is the same for the same (seed, step).

    Args:
        clip: frames, masks and flow.
        settings: whether whole frames or single pixels are drawn, and how many.
        step: from 0.
        seed: of the training.
        divisor: the batch is made smaller by this factor, where memory ran out.
    """
    if settings.batch == "pixels":
        return clip.draw_pixels(max(1, settings.pixels // divisor), step, seed)
    width, height = clip.size
    count = frames_per_step(settings, clip.frame_count, width * height)
    return clip.draw_frames(max(1, count // divisor), step, seed)

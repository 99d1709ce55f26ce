"""The task of the training loop: everything in which the trainings of a planar model and of a 3D scene differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from neural_fields.config.training_stage import TrainingStage
from neural_fields.runs.run import Run


class TrainingTask(ABC):
    """Combines a model with its data; `training.loop` trains it.

    All random numbers of a step come from the task's seed and the step, so a resumed training repeats exactly.

    Attributes:
        model: the trained model; checkpoints hold its state dict.
        stages: the stages in order, with one count of steps; the training ends with the last one.
        checkpoint_every: steps between two checkpoints.
        preview_every: steps between two previews; 0 writes none during the training.
        color_weight: weight of the mean squared error of colors in the loss "color", for the PSNR; 0 without it.
        retry_advice: what a user can try when losses are not finite.
    """

    model: nn.Module
    stages: tuple[TrainingStage, ...]
    checkpoint_every: int
    preview_every: int
    color_weight: float
    retry_advice: str

    @property
    def total_steps(self) -> int:
        """The number of steps of all stages together."""
        return self.stages[-1].last if self.stages else 0

    def find_stage(self, step: int) -> TrainingStage:
        """Returns the stage that a step belongs to.

        Args:
            step: of the training, from 0 to `total_steps` - 1.
        """
        return next(stage for stage in self.stages if step < stage.last)

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the trained parameters in groups with their learning rates, for `Adam`."""

    @abstractmethod
    def learning_rate_factor(self, stage: TrainingStage, step: int, progress: float) -> float:
        """Returns the factor on all learning rates in a step.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            progress: share of the training that is done, 0 to 1: by steps or by time, whichever is larger.
        """

    @abstractmethod
    def batch_size(self, stage: TrainingStage) -> int:
        """Returns the number of pixels, frames or rays of a full batch; the loop can halve it down to one."""

    @abstractmethod
    def compute_gradients(self, stage: TrainingStage, step: int, batch_divisor: int) -> dict[str, float]:
        """Samples the batch of a step and adds its gradients to the parameters, whose gradients were cleared.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            batch_divisor: the factor by which the batch is smaller than a full one, after memory ran out.

        Returns:
            The weighted losses by name; none where the batch has nothing to learn from.
        """

    @abstractmethod
    def save_previews(self, run: Run) -> None:
        """Writes pictures of the current model into the run."""

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Returns the JSON values that a checkpoint needs besides tensors, to build the model again."""
        return {}

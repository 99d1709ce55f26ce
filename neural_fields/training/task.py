"""The task of the training loop: everything in which the trainings of a planar model and of a 3D scene differ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from neural_fields.config.training_stage import TrainingStage
from neural_fields.nn.adam import Adam
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class StepOutcome:
    """Holds the outcome of a step.

    Attributes:
        terms: weighted losses by name; none where there was nothing to learn from.
        is_finite: False where the step was skipped because a number was not finite.
    """

    terms: dict[str, float]
    is_finite: bool = True


class TrainingTask(ABC):
    """Combines a model with its data and the way to fit it; `training.loop` runs the steps.

    All random numbers of a step come from the task's seed and the step, so a resumed training repeats exactly.

    Attributes:
        model: the trained model; checkpoints hold its state dict.
        stages: the stages in order, with one count of steps; the training ends with the last one.
        checkpoint_every: steps between two checkpoints.
        preview_every: steps between two previews; 0 writes none during the training.
        color_weight: weight of the mean squared error of colors in the loss "color", for the PSNR; 0 without it.
        retry_advice: what a user can try when losses are not finite.
        has_converged: whether more steps would change little; the training then ends before its last step.
        first_results: numbers of steps after which the model can be painted on before the end, in order.
    """

    model: nn.Module
    stages: tuple[TrainingStage, ...]
    checkpoint_every: int
    preview_every: int
    color_weight: float
    retry_advice: str
    has_converged: bool = False
    first_results: tuple[int, ...] = ()

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
    def take_step(self, stage: TrainingStage, step: int, progress: float, batch_divisor: int) -> StepOutcome:
        """Runs a step, which changes the model.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            progress: share of the training that is done, 0 to 1: by steps or by time, whichever is larger.
            batch_divisor: the factor by which the batch is smaller than a full one, after memory ran out.
        """

    @abstractmethod
    def state_tensors(self, step: int) -> dict[str, Tensor]:
        """Returns what a checkpoint after `step` steps needs besides the model, so that training goes on as it was."""

    @abstractmethod
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state_tensors` returned; the model has its weights already."""

    @abstractmethod
    def batch_size(self, stage: TrainingStage) -> int:
        """Returns the number of pixels, frames or rays of a full batch; the loop can halve it down to one."""

    @abstractmethod
    def save_previews(self, run: Run) -> None:
        """Writes pictures of the current model into the run."""

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Returns the JSON values that a checkpoint needs besides tensors, to build the model again."""
        return {}


class GradientTask(TrainingTask):
    """Fits a model by steps of Adam."""

    @cached_property
    def adam(self) -> Adam:
        """The optimizer of the model's parameters."""
        return Adam(self.parameter_groups())

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
    def compute_gradients(self, stage: TrainingStage, step: int, batch_divisor: int) -> dict[str, float]:
        """Samples the batch of a step and adds its gradients to the parameters, whose gradients were cleared.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            batch_divisor: the factor by which the batch is smaller than a full one, after memory ran out.

        Returns:
            The weighted losses by name; none where the batch has nothing to learn from.
        """

    def take_step(self, stage: TrainingStage, step: int, progress: float, batch_divisor: int) -> StepOutcome:
        """See `TrainingTask.take_step`.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            progress: share of the training that is done, 0 to 1: by steps or by time, whichever is larger.
            batch_divisor: the factor by which the batch is smaller than a full one, after memory ran out.
        """
        self.adam.rate_factor = self.learning_rate_factor(stage, step, progress)
        self.adam.zero_grad()
        terms = self.compute_gradients(stage, step, batch_divisor)
        if not terms:
            return StepOutcome(terms)
        # One sum per tensor: cheap beside the step itself.
        gradients = self.adam.iterate_gradients()
        if not all(map(math.isfinite, terms.values())) or not all(bool(torch.isfinite(g.sum())) for g in gradients):
            return StepOutcome(terms, is_finite=False)
        self.adam.step()
        return StepOutcome(terms)

    def state_tensors(self, step: int) -> dict[str, Tensor]:
        """See `TrainingTask.state_tensors`; the means of Adam."""
        return self.adam.state_tensors()

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `TrainingTask.load_state_tensors`."""
        self.adam.load_state_tensors(tensors)

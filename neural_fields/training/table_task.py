"""The task of fitting a planar model of tables by passes over the clip."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor

from neural_fields.config.loader import to_mapping
from neural_fields.config.training_stage import TrainingStage
from neural_fields.core.memmap import RELEASE_INTERVAL
from neural_fields.data.dataset import ClipDataset
from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import TrainingConfig, frames_per_step
from neural_fields.planar.gauss_newton.table_fit import TableFit
from neural_fields.runs.run import Run
from neural_fields.training.previews_planar import save_previews
from neural_fields.training.task import StepOutcome, TrainingTask


class TableTask(TrainingTask):
    """Fits a planar model whose parts are tables; ends when a pass brings little, unless a number of steps is set.

    Args:
        model: initialized, or of the checkpoint's shape.
        clip: frames and masks.
        settings: how often to save, and when a pass brings little.
        steps: of the training, 1 or more.
    """

    model: PlanarModel
    retry_advice = "other weights, for example --terms.residual-smoothness 0.002"

    def __init__(self, model: PlanarModel, clip: ClipDataset, settings: TrainingConfig, steps: int) -> None:
        self.model = model
        self.clip = clip
        self.settings = settings
        self.stages = (TrainingStage("training", 0, steps),)
        self.checkpoint_every = settings.checkpoint_every
        self.color_weight = model.weights.color
        width, height = clip.size
        self.fit = TableFit(model, clip, frames_per_step(settings, clip.frame_count, width * height))
        self.preview_every = self.fit.steps_per_pass
        self.first_results = (0, self.fit.steps_per_pass)  # the start of the geometry, then the first pass

    def take_step(self, stage: TrainingStage, step: int, progress: float, batch_divisor: int) -> StepOutcome:
        """See `TrainingTask.take_step`; a few frames, in their order.

        Args:
            stage: the stage of the step.
            step: of the training, from 0.
            progress: not used.
            batch_divisor: not used.
        """
        error = self.fit.take_step(step)
        if (step + 1) % self.fit.steps_per_pass == 0 and not self.settings.steps:
            has_settled = self.fit.last_move_px < self.settings.min_move
            self.has_converged = has_settled and self.fit.last_gain < self.settings.min_gain
        if (step + 1) % RELEASE_INTERVAL == 0:
            self.clip.release_memory()
        return StepOutcome({"color": self.color_weight * error}, math.isfinite(error))

    def state_tensors(self, step: int) -> dict[str, Tensor]:
        """See `TrainingTask.state_tensors`; nothing at the end: what goes on from there accelerates anew."""
        is_in_pass = step % self.fit.steps_per_pass > 0
        if not is_in_pass and (self.has_converged or step >= self.total_steps):
            return {}
        return self.fit.state_tensors(is_in_pass)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `TrainingTask.load_state_tensors`."""
        if tensors:
            self.fit.load_state_tensors(tensors)

    def batch_size(self, stage: TrainingStage) -> int:
        """See `TrainingTask.batch_size`; frames are looked at one by one."""
        return 1

    def save_previews(self, run: Run) -> None:
        """See `TrainingTask.save_previews`."""
        save_previews(run, self.model, self.clip)

    def checkpoint_metadata(self) -> dict[str, Any]:
        """See `TrainingTask.checkpoint_metadata`."""
        return {"shape": to_mapping(self.model.shape)}


def compile_in_background(device: torch.device) -> None:
    """Begins to compile the loops of the fit, or to load them, while the clip is analyzed; the fit waits for them.

    Then those of rendering: the first render finds them.
    """
    if device.type == "cpu" and can_compile_loops():

        def work() -> None:
            from neural_fields.planar.gauss_newton.compiled_looks import compile_loops  # numba takes a second
            from neural_fields.rendering.blend_kernels import compile_blends

            compile_loops()
            compile_blends()

        threading.Thread(target=work, name="compile", daemon=True).start()

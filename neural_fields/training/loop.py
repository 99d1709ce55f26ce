"""The training loop of all models: checkpoints, retries when memory runs out, time budget, stop requests, reports.

Batches, losses and learning rates are those of the task: `training/planar_task.py`, `training/scene_task.py`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from neural_fields.config.training_stage import TrainingStage
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.nn.device import peak_memory_mib
from neural_fields.runs.checkpoints import load_latest_checkpoint, save_checkpoint
from neural_fields.runs.run import Run, append_metrics
from neural_fields.training.task import TrainingTask


@dataclass(frozen=True)
class StepRecord:
    """Holds the result of a step.

    Attributes:
        step: number of steps done.
        stage: name of the stage of the step.
        terms: weighted losses by name; training minimizes their sum.
        seconds: time of the step.
        skipped: number of steps that were skipped because a value was not finite.
        notes: sentences for the user.
    """

    step: int
    stage: str
    terms: dict[str, float]
    seconds: float
    skipped: int = 0
    notes: tuple[str, ...] = ()


@dataclass
class LoopState:
    """Holds the state of the training loop besides the parameters."""

    step: int = 0
    saved_at: int | None = None  # step of the newest checkpoint; None if the run has none
    skipped: int = 0
    batch_divisor: int = 1  # doubled when memory runs out
    train_seconds: float = 0.0
    bad_in_a_row: int = 0
    notes: list[str] = field(default_factory=list)


def run_training(
    task: TrainingTask,
    run: Run,
    report: ProgressReporter,
    stop: Callable[[], bool],
    seconds: float | None = None,
    until: int | None = None,
) -> int:
    """Trains a task to its end, or to a step; reports every step, writes metrics.jsonl and previews.

    Args:
        task: the model with its data; it continues from the newest checkpoint in `run`.
        run: where checkpoints, metrics and previews go.
        report: called after every step.
        stop: asked before each step; True ends the training.
        seconds: time after which the training ends; None for no limit.
        until: step at which it pauses, with a checkpoint; None for the last one.

    Returns:
        The number of steps done.

    Raises:
        UserError: too many non-finite steps in a row (exit 8), no room (4), damaged checkpoints (5).
    """
    metrics_every = 20  # steps between two lines of metrics.jsonl; means are over as many steps
    recent: deque[StepRecord] = deque(maxlen=metrics_every)
    state = restore_state(task, run)
    first_step, began = state.step, time.monotonic()
    for record in train_steps(task, run, seconds, stop, state, until):
        recent.append(record)
        elapsed = time.monotonic() - began
        seconds_left = (task.total_steps - record.step) * elapsed / (record.step - first_step)
        if seconds is not None:
            seconds_left = max(0.0, min(seconds_left, seconds - elapsed))
        progress = Progress(
            "training",
            record.step,
            task.total_steps,
            part=record.stage,
            psnr=measure_psnr(recent, task.color_weight),
            seconds_per_step=round(float(np.mean([one.seconds for one in recent])), 5),
            seconds_left=seconds_left,
            peak_mib=peak_memory_mib(),
            note="; ".join(record.notes),
        )
        report(progress)
        if record.step % metrics_every == 0:
            line = {
                "step": record.step,
                "stage": record.stage,
                "psnr": progress.psnr,
                "terms": {name: round(value, 6) for name, value in record.terms.items()},
                "seconds_a_step": progress.seconds_per_step,
                "seconds": round(time.monotonic() - began, 3),
                "skipped": record.skipped,
                "peak_mib": progress.peak_mib,
            }
            append_metrics(run, line)
        if task.preview_every and record.step % task.preview_every == 0:
            task.save_previews(run)
    return state.step


def train_steps(
    task: TrainingTask,
    run: Run,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    state: LoopState | None = None,
    until: int | None = None,
) -> Iterator[StepRecord]:
    """Trains a task stage by stage, yielding a record after every step.

    A checkpoint is saved every `task.checkpoint_every` steps, when `stop()` turns true, and at the end. A limit in
    seconds ends each stage after its share of the steps. Where memory runs out the batch is halved for the rest of the
    training, and the step says so in its notes.

    Args:
        task: the model with its data.
        run: where checkpoints are saved.
        seconds: time after which the training ends; None for no limit.
        stop: asked before each step; True ends the training.
        state: to continue from, with the task's parameters; by default that of the newest checkpoint in `run`.
        until: step at which the training pauses, with a checkpoint; None for the last one.

    Raises:
        UserError: too many non-finite steps in a row (exit 8), no room (4), damaged checkpoints (5).
    """
    state = state or restore_state(task, run)
    total, first_step, began = task.total_steps, state.step, time.monotonic()
    task.model.train()
    end = total if until is None else min(until, total)
    while state.step < end and not task.has_converged and not stop():
        stage = task.find_stage(state.step)
        # A stage has its share of the time: that of its steps, and of those before it.
        elapsed = time.monotonic() - began
        time_share = 0.0 if seconds is None else elapsed / seconds if seconds > 0 else 1.0
        if time_share >= (stage.last - first_step) / (total - first_step):
            if stage.last == total:
                break
            state.step = stage.last
            continue
        begin = time.perf_counter()
        progress = min(1.0, max(state.step / total, time_share))
        terms = _run_step(task, stage, state, progress)
        step_seconds = time.perf_counter() - begin
        state.step, state.train_seconds = state.step + 1, state.train_seconds + step_seconds
        if state.step % task.checkpoint_every == 0:
            save_state(task, run, state)
        notes, state.notes = tuple(state.notes), []
        yield StepRecord(state.step, stage.name, terms, step_seconds, state.skipped, notes)
    if state.saved_at != state.step:
        save_state(task, run, state)
    task.model.eval()


def _run_step(task: TrainingTask, stage: TrainingStage, state: LoopState, progress: float) -> dict[str, float]:
    """Runs one step and returns the weighted terms.

    Out of memory halves the batch and tries again; numbers that are not finite skip the step.

    Raises:
        UserError: too many steps in a row were skipped (exit 8), or no room even for the smallest batch (exit 4).
    """
    max_bad_in_a_row = 50
    while True:
        try:
            outcome = task.take_step(stage, state.step, progress, state.batch_divisor)
            if not outcome.is_finite:
                state.skipped += 1
                state.bad_in_a_row += 1
                if state.bad_in_a_row >= max_bad_in_a_row:
                    raise UserError(
                        ExitCode.NOT_CONVERGED,
                        f"{max_bad_in_a_row} steps in a row gave numbers that are not finite",
                        where=f"step {state.step}, terms {outcome.terms}",
                        why="checkpoints saved before that are kept",
                        fix=task.retry_advice,
                    )
            elif outcome.terms:
                state.bad_in_a_row = 0
            return outcome.terms
        except torch.OutOfMemoryError as error:
            if state.batch_divisor >= task.batch_size(stage):
                raise UserError(
                    ExitCode.NO_ROOM,
                    "not enough memory for one step",
                    why=str(error),
                    fix="a smaller size, for example --size 240p",
                ) from error
            state.batch_divisor *= 2
            state.notes.append(f"out of memory: the batch is now 1/{state.batch_divisor} of its size")


def measure_psnr(records: Iterable[StepRecord], color_weight: float) -> float | None:
    """Returns the PSNR of the pixels of some steps in dB, from their term "color"; None where it says nothing.

    Args:
        records: of the steps.
        color_weight: of the mean squared difference of colors in that term; 0 if there is none.
    """
    if not color_weight:
        return None
    errors = [record.terms["color"] / color_weight for record in records if "color" in record.terms]
    if not errors or not np.isfinite(errors).all():
        return None
    return round(float(-10 * np.log10(max(1e-10, float(np.mean(errors))))), 3)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def restore_state(task: TrainingTask, run: Run) -> LoopState:
    """Loads the newest good checkpoint of a run into a task.

    Returns:
        The state of the loop: a new one if there is no checkpoint.

    Raises:
        UserError: there are checkpoints and all are damaged (exit 5).
    """
    checkpoint = load_latest_checkpoint(run)
    if checkpoint is None:
        return LoopState()
    task.model.load_state_dict({name: torch.as_tensor(value) for name, value in checkpoint.model.items()})
    task.load_state_tensors({name: torch.as_tensor(value) for name, value in checkpoint.state.items()})
    loop = checkpoint.metadata.get("loop", {})
    task.has_converged = bool(loop.get("has_converged", False))
    return LoopState(
        step=checkpoint.step,
        saved_at=checkpoint.step,
        skipped=int(loop.get("skipped", 0)),
        batch_divisor=int(loop.get("batch_divisor", 1)),
        train_seconds=float(loop.get("train_seconds", 0.0)),
        notes=list(checkpoint.warnings),
    )


def save_state(task: TrainingTask, run: Run, state: LoopState) -> None:
    """Saves a checkpoint of the task's model and state, and of the loop's state.

    Args:
        task: the model and its metadata.
        run: the paths of the run.
        state: of the loop; it keeps the step of the checkpoint.

    Raises:
        UserError: no room on the disk (exit 4).
    """
    loop = {
        "skipped": state.skipped,
        "batch_divisor": state.batch_divisor,
        "train_seconds": state.train_seconds,
        "has_converged": task.has_converged,
    }
    metadata = {**task.checkpoint_metadata(), "loop": loop, "threads": torch.get_num_threads()}
    save_checkpoint(run, state.step, dict(task.model.state_dict()), task.state_tensors(state.step), metadata)
    state.saved_at = state.step

"""The training loop of planar models. All that a step needs comes from (seed, step), so resuming repeats exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from neural_fields.config.planar import TrainingConfig, frames_per_step
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.memmap import RELEASE_INTERVAL, release_memory
from neural_fields.data.dataset import Batch, ClipDataset, draw_frames, draw_pixels
from neural_fields.nn.adam import Adam
from neural_fields.planar.losses.objective import accumulate_gradients
from neural_fields.planar.model import PlanarModel
from neural_fields.runs.checkpoints import load_latest_checkpoint, save_checkpoint
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class Budget:
    """When a training ends: after `steps` steps or, if it comes first, `seconds` from `started` (a monotonic clock)."""

    steps: int
    seconds: float | None = None
    started: float = 0.0

    def progress(self, step: int) -> float:
        """Returns how much of the training is over, 0 to 1: what the learning rate follows."""
        share = step / max(1, self.steps)
        if self.seconds is not None:
            share = max(share, (time.monotonic() - self.started) / self.seconds)
        return min(1.0, share)

    def is_over(self, step: int) -> bool:
        """Returns whether the training ends after `step` steps."""
        return self.progress(step) >= 1.0


@dataclass(frozen=True)
class StepRecord:
    """Outcome of one step."""

    step: int  # steps done so far
    loss: float
    terms: dict[str, float]
    seconds: float  # of this step
    skipped: int = 0  # steps skipped so far because a number was not finite
    notes: tuple[str, ...] = ()


@dataclass
class LoopState:
    """State of the training loop beside the parameters."""

    step: int = 0
    loaded: bool = False  # from a checkpoint
    skipped: int = 0
    batch_divisor: int = 1  # doubled when memory runs out
    train_seconds: float = 0.0
    bad_in_a_row: int = 0
    notes: list[str] = field(default_factory=list)


def train_steps(
    model: PlanarModel,
    clip: ClipDataset,
    settings: TrainingConfig,
    run: Run,
    budget: Budget,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    metadata: dict | None = None,
) -> Iterator[StepRecord]:
    """Trains `model`, yielding a record after every step; continues from the newest checkpoint in `run`.

    A checkpoint is saved every `settings.checkpoint_every` steps, when `stop()` turns true, and at the end.

    Args:
        model: the model, initialized or of the checkpoint's shape.
        clip: frames, masks and flow to train on.
        settings: of the loop.
        run: where checkpoints are saved.
        budget: when to end.
        seed: of the batches.
        stop: asked before each step; True ends the training.
        metadata: metadata that goes into each checkpoint (what is needed to build the model again).

    Raises:
        UserError: too many non-finite steps in a row (exit 8), no room (4), damaged checkpoints (5).
    """
    adam = Adam(model.param_groups())
    state = restore_state(model, adam, run)
    budget = replace(budget, started=budget.started or time.monotonic())
    saved_at = state.step if state.loaded else -1
    model.train()
    while not budget.is_over(state.step) and not stop():
        begin = time.perf_counter()
        adam.rate_factor = learning_rate_factor(settings.schedule, budget.progress(state.step))
        terms = _run_step(model, adam, clip, settings, state, seed)
        seconds = time.perf_counter() - begin
        state.step += 1
        state.train_seconds += seconds
        if settings.checkpoint_every and state.step % settings.checkpoint_every == 0:
            save_state(model, adam, run, state, metadata)
            saved_at = state.step
        if state.step % RELEASE_INTERVAL == 0:
            release_memory(clip.frames)
            release_memory(clip.masks.masks)
        notes, state.notes = tuple(state.notes), []
        yield StepRecord(state.step, sum(terms.values()), terms, seconds, state.skipped, notes=notes)
    if saved_at != state.step:
        save_state(model, adam, run, state, metadata)
    model.eval()


def draw_batch(clip: ClipDataset, settings: TrainingConfig, step: int, seed: int, divisor: int = 1) -> Batch:
    """Draws the batch of a step, which is the same for the same (seed, step)."""
    if settings.batch == "pixels":
        return draw_pixels(clip, max(1, settings.pixels // divisor), step, seed)
    width, height = clip.size
    count = frames_per_step(settings, clip.frame_count, width * height)
    return draw_frames(clip, max(1, count // divisor), step, seed)


def _run_step(
    model: PlanarModel,
    adam: Adam,
    clip: ClipDataset,
    settings: TrainingConfig,
    state: LoopState,
    seed: int,
) -> dict[str, float]:
    """Runs one step of the optimizer and returns the weighted terms.

    Out of memory halves the batch and tries again; numbers that are not finite skip the step.
    """
    while True:
        try:
            batch = draw_batch(clip, settings, state.step, seed, state.batch_divisor)
            adam.zero_grad()
            model.begin_step(state.step)
            values = {name: float(value) for name, value in accumulate_gradients(model, batch, state.step).items()}
            is_finite = all(map(math.isfinite, values.values()))
            # One sum per tensor: cheap beside the step itself.
            if not is_finite or not all(bool(torch.isfinite(gradient.sum())) for gradient in adam.iterate_gradients()):
                count_skipped_step(state, values)
                return values
            adam.step()
            state.bad_in_a_row = 0
            return values
        except torch.OutOfMemoryError as error:
            halve_batch(state, settings.pixels if settings.batch == "pixels" else clip.frame_count, error)


def halve_batch(state: LoopState, batch_size: int, error: torch.OutOfMemoryError) -> None:
    """Halves the batch after a step ran out of memory, and notes it.

    Args:
        state: of the loop; its `batch_divisor` is doubled.
        batch_size: elements of the undivided batch.
        error: what torch raised.

    Raises:
        UserError: the batch is a single element already (exit 4).
    """
    if state.batch_divisor >= batch_size:
        raise UserError(
            ExitCode.NO_ROOM,
            "not enough memory for one step",
            why=str(error),
            fix="a smaller size, for example --size 240p",
        ) from error
    state.batch_divisor *= 2
    state.notes.append(f"out of memory: the batch is now 1/{state.batch_divisor} of its size")


def count_skipped_step(state: LoopState, values: dict[str, float], max_in_a_row: int = 50) -> None:
    """Counts a step that was skipped because a number was not finite.

    Args:
        state: of the loop.
        values: the loss terms of the step, for the message.
        max_in_a_row: skipped steps in a row after which the training is given up.

    Raises:
        UserError: too many of them in a row (exit 8).
    """
    state.skipped += 1
    state.bad_in_a_row += 1
    if state.bad_in_a_row >= max_in_a_row:
        raise UserError(
            ExitCode.NOT_CONVERGED,
            f"{max_in_a_row} steps in a row gave numbers that are not finite",
            where=f"step {state.step}, terms {values}",
            why="checkpoints saved before that are kept",
            fix="smaller learning rates, for example --mapping.learning-rate 0.05 --texture.learning-rate 0.001",
        )


def learning_rate_factor(schedule: str, progress: float) -> float:
    """Returns the learning rate relative to its start, at `progress` (0 to 1) of the training."""
    if schedule == "cosine":
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "halving":
        return 0.5 ** sum(progress >= mark for mark in (0.25, 0.5, 0.75))
    if schedule == "tenths":
        return 0.1 ** sum(progress >= mark for mark in (0.16, 0.64, 0.8))
    return 1.0


# --- checkpoints ----------------------------------------------------------------------------------------------------


def restore_state(model: nn.Module, adam: Adam, run: Run) -> LoopState:
    """Loads the newest good checkpoint into model and optimizer; returns its state, or a new one if there is none."""
    checkpoint = load_latest_checkpoint(run)
    if checkpoint is None:
        return LoopState()
    model.load_state_dict({name: torch.as_tensor(value) for name, value in checkpoint.model.items()})
    adam.load_state_tensors({name: torch.as_tensor(value) for name, value in checkpoint.state.items()})
    loop = checkpoint.metadata.get("loop", {})
    return LoopState(
        step=checkpoint.step,
        loaded=True,
        skipped=int(loop.get("skipped", 0)),
        batch_divisor=int(loop.get("batch_divisor", 1)),
        train_seconds=float(loop.get("train_seconds", 0.0)),
        notes=list(checkpoint.warnings),
    )


def save_state(
    model: nn.Module,
    adam: Adam,
    run: Run,
    state: LoopState,
    metadata: dict | None,
) -> None:
    """Saves a checkpoint of the loop's state; `facts` as for `train_steps`."""
    loop = {"skipped": state.skipped, "batch_divisor": state.batch_divisor, "train_seconds": state.train_seconds}
    kept = {**(metadata or {}), "loop": loop, "threads": torch.get_num_threads()}
    save_checkpoint(run, state.step, dict(model.state_dict()), adam.state_tensors(), kept)

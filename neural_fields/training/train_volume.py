"""`unwrap train` for 3D scenes: from a capture to a trained run. Run again, it continues."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neural_fields.config.volume import TrainingStage, load_volume_config, training_stages
from neural_fields.core.errors import ExitCode, bad_input
from neural_fields.core.interrupt import stop_on_signals
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.capture.capture import Capture
from neural_fields.data.capture.capture_folder import read_capture
from neural_fields.nn.adam import Adam
from neural_fields.nn.device import choose_device, peak_memory_mib
from neural_fields.runs.checkpoints import load_latest_checkpoint
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run, append_metrics, read_run_yaml, write_run_yaml
from neural_fields.training.loop import Budget, LoopState, count_skipped_step, halve_batch, restore_state, save_state
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import TrainResult, default_run_folder, sum_train_seconds
from neural_fields.volume.background import find_blocked_views, find_scene_bounds
from neural_fields.volume.human import check_cameras_outside
from neural_fields.volume.previews import save_volume_previews
from neural_fields.volume.ray_batches import CapturePixels
from neural_fields.volume.record import VolumeRecord, build_scene, choose_held_out_views, write_record
from neural_fields.volume.stages import (
    SceneTraining,
    compute_step_terms,
    count_stage_rays,
    learning_rate_factor,
    parameter_groups,
)
from neural_fields.volume.visual_hull import carve_prior


@dataclass(frozen=True)
class VolumeStep:
    """What one step did.

    Attributes:
        step: steps done so far.
        terms: weighted loss terms by name.
        seconds: of this step.
        skipped: steps skipped so far because a number was not finite.
        notes: what the user should know, one sentence each.
    """

    step: int
    stage: str
    terms: dict[str, float]
    seconds: float
    skipped: int
    notes: tuple[str, ...] = ()


def train_volume(
    source: str | Path, options: TrainOptions, report: ProgressReporter = lambda progress: None
) -> TrainResult:
    """Trains a 3D scene on a capture, or continues a training that was stopped.

    Args:
        source: a folder with a transforms.json; see docs/capture.md.
        options: what is asked for. Masks, flow and a region cannot be chosen here.
        report: called with the progress, often.

    Raises:
        UserError: bad input (3), no room (4), damaged run (5), another process at work (6), not converged (8).
    """
    started = time.monotonic()
    config = load_volume_config(options.config, options.overrides)
    device = choose_device(options.device)
    flow = None if options.flow == "auto" else options.flow
    for flag, value in {"--roi": options.roi, "--frames": options.frames, "--flow": flow}.items():
        if value is not None:
            raise bad_input(
                f"{flag} {value}",
                why=f"{options.config} trains a 3D scene, whose views are listed in transforms.json",
                fix=f"leave out {flag}; unwrap capture chooses frames of videos",
            )
    report(Progress("reading", 0, 1))
    capture = read_capture(source, options.size)
    check_cameras_outside(capture)
    run = Run.create(options.out or default_run_folder(source))
    with lock_run(run) as lock_note, stop_on_signals() as stop:
        notes = [*([lock_note] if lock_note else []), *capture.notes]
        record = VolumeRecord(
            source=Path(source).absolute(),
            preset=options.config,
            quality=options.quality,
            config=config,
            size=capture.size,
            bounds=find_scene_bounds(capture),
            cameras=capture.cameras,
            times=capture.times,
            held_out=choose_held_out_views(capture.view_count, config.training.holdout),
            motion=capture.motion if capture.masks is not None else None,
            switches=capture.switches if config.states else (),
        )
        _check_same(run, record)
        parts = training_stages(
            config.training, options.quality, capture.motion is not None and capture.masks is not None
        )
        total = parts[-1].last
        checkpoint = load_latest_checkpoint(run)
        if checkpoint and checkpoint.step >= total:
            return TrainResult(run, checkpoint.step, total, ExitCode.OK, tuple(notes), was_finished=True)
        write_run_yaml(run, write_record(run, record))
        for text in notes:
            report(Progress("reading", 1, 1, note=text))
        training = prepare_training(record, capture, device, options.seed)
        budget = Budget(total, options.seconds and max(0.1, options.seconds - (time.monotonic() - started)))
        step = _run_loop(run, training, parts, budget, options.seed, report, lambda: stop.signal_number is not None)
        # Cameras that see something right before them: a pose is wrong, or a hand was on the lens.
        states = [int(training.moments.state[time]) for time in record.times]
        views = find_blocked_views(training.scene.background, record.cameras, states)
        if views:
            first = ", ".join(f"{view} (moment {record.times[view]})" for view in views[:3])
            first += " ..." if len(views) > 3 else ""
            notes.append(f"{len(views)} views see something right before their camera: {first}")
            report(Progress("background", 1, 1, note=notes[-1]))
        save_volume_previews(run, training.scene.eval(), record, capture)
        append_metrics(
            run,
            {"event": "stopped" if stop.signal_number is not None else "finished", "steps": step, "total_steps": total,
             "train_seconds": sum_train_seconds(run, time.monotonic() - started), "peak_mib": peak_memory_mib()},
        )  # fmt: skip
        return TrainResult(run, step, total, stop.exit_code, tuple(notes))


def prepare_training(record: VolumeRecord, capture: Capture, device: torch.device, seed: int = 0) -> SceneTraining:
    """Builds an untrained scene with the pixels of the views that it is trained on.

    Args:
        record: of the run.
        capture: pictures, masks and bones.
        device: of the scene and the pixels.
        seed: of the weights.
    """
    chosen = tuple(view for view in range(capture.view_count) if view not in record.held_out)
    pixels = CapturePixels(
        capture, chosen, device, with_flow=record.motion is not None and record.config.terms.flow > 0
    )
    focal = float(np.mean([camera.focal for camera in capture.cameras]))
    scene = build_scene(record, seed)
    if scene.person is not None:
        carve_prior(scene.person.skinning, capture, chosen)
    return SceneTraining(scene.to(device), record.make_moments(device), pixels, record.config, focal)


def _check_same(run: Run, record: VolumeRecord) -> None:
    """Checks that a run is continued with what it was begun with.

    Raises:
        UserError: something else was asked for now.
    """
    if not run.run_yaml.exists():
        return
    before = read_run_yaml(run)
    now = {
        "source": str(record.source),
        "preset": record.preset,
        "size": list(record.size),
        "held_out": list(record.held_out),
    }
    for name, value in now.items():
        if before.get(name) != value:
            raise bad_input(
                f"{run.path} was begun with {name} {before.get(name)}, now it is {value}",
                where=str(run.run_yaml),
                why="a run is continued with what it was begun with",
                fix="another folder: --out ANOTHER",
            )


def _run_loop(
    run: Run,
    training: SceneTraining,
    parts: tuple[TrainingStage, ...],
    budget: Budget,
    seed: int,
    report: ProgressReporter,
    stop: Callable[[], bool],
) -> int:
    """Runs the training loop, reporting; returns the number of steps done."""
    report_every = 20  # steps between two lines of metrics.jsonl; the PSNR is that of the steps between them
    recent: list[VolumeStep] = []
    begin, step = time.monotonic(), 0
    for record in train_volume_steps(run, training, parts, budget, seed, stop):
        step = record.step
        recent = [*recent[-(report_every - 1) :], record]
        seconds = float(np.mean([one.seconds for one in recent]))
        psnr = None
        errors = [one.terms["color"] for one in recent if "color" in one.terms]
        if errors and np.isfinite(errors).all():
            psnr = round(float(-10 * np.log10(max(1e-10, float(np.mean(errors))))), 3)
        line = Progress(
            record.stage,
            step,
            budget.steps,
            psnr,
            seconds,
            seconds * (budget.steps - step),
            peak_memory_mib(),
            "; ".join(record.notes),
        )
        report(line)
        if step % report_every == 0:
            terms = {name: round(value, 6) for name, value in record.terms.items()}
            append_metrics(
                run,
                {"step": step, "stage": record.stage, "psnr": line.psnr, "terms": terms,
                 "seconds": round(time.monotonic() - begin, 3), "skipped": record.skipped, "peak_mib": line.peak_mib},
            )  # fmt: skip
    return step


def train_volume_steps(
    run: Run,
    training: SceneTraining,
    parts: tuple[TrainingStage, ...],
    budget: Budget,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[VolumeStep]:
    """Trains a scene stage by stage, yielding after every step; continues from the newest checkpoint in `run`.

    All that is random in a step comes from (seed, step). A checkpoint is saved every `checkpoint_every` steps, when
    `stop()` turns true, and at the end. A budget of seconds ends each stage after its share of the steps. Where memory
    runs out the batch is halved for the rest of the training, and the step says so in its notes.

    Args:
        run: where checkpoints are.
        training: the scene with its pixels.
        parts: the stages, one after the other.
        budget: of steps and seconds.
        seed: of all that is random.
        stop: asked before each step.

    Raises:
        UserError: too many non-finite steps in a row (exit 8), no room on disk or in memory (4), damaged checkpoints
            (5).
    """
    adam = Adam(parameter_groups(training.scene))
    state = restore_state(training.scene, adam, run)
    began, first_step, saved_at = time.monotonic(), state.step, state.step if state.loaded else -1
    training.scene.train()
    for stage in parts:
        while state.step < stage.last and not stop():
            # A stage has its share of the time: that of its steps, and of those before it.
            share = (stage.last - first_step) / max(1, budget.steps - first_step)
            if budget.seconds is not None and time.monotonic() - began > budget.seconds * share:
                state.step = stage.last
                break
            begin = time.perf_counter()
            adam.rate_factor = learning_rate_factor(stage, training.config, state.step)
            while True:
                try:
                    values = _take_step(training, adam, stage, state, seed)
                    break
                except torch.OutOfMemoryError as error:
                    halve_batch(state, count_stage_rays(stage, training.config), error)
            seconds = time.perf_counter() - begin
            state.step, state.train_seconds = state.step + 1, state.train_seconds + seconds
            if state.step % training.config.training.checkpoint_every == 0:
                save_state(training.scene, adam, run, state, None)
                saved_at = state.step
            notes, state.notes = tuple(state.notes), []
            yield VolumeStep(state.step, stage.name, values, seconds, state.skipped, notes)
    if saved_at != state.step:
        save_state(training.scene, adam, run, state, None)
    training.scene.eval()


def _take_step(
    training: SceneTraining, adam: Adam, stage: TrainingStage, state: LoopState, seed: int
) -> dict[str, float]:
    """Takes one optimizer step; returns the weighted terms."""
    adam.zero_grad()
    generator = torch.Generator().manual_seed((seed << 32) + state.step)
    terms = compute_step_terms(training, stage, state.step, generator, state.batch_divisor)
    values = {name: float(value.detach()) for name, value in terms.items()}
    if not values:
        return values
    if all(map(math.isfinite, values.values())):
        torch.stack(list(terms.values())).sum().backward()
    if not all(map(math.isfinite, values.values())) or not all(
        bool(g.sum().isfinite()) for g in adam.iterate_gradients()
    ):
        count_skipped_step(state, values)
        return values
    adam.step()
    state.bad_in_a_row = 0
    return values

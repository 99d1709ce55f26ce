"""`unwrap train` for scenes in space: from a capture to a fitted run. Run again, it continues."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neural_fields.adam import Adam
from neural_fields.checkpoints import load_latest_checkpoint
from neural_fields.config_volume import Stage, VolumeConfig, load_volume_config, stages
from neural_fields.data.capture import Capture
from neural_fields.data.capture_folder import read_capture
from neural_fields.errors import ExitCode, bad_input
from neural_fields.fit_options import FitOptions, Progress, Reporter
from neural_fields.fitting import FitResult, choose_device, default_run, peak_mib
from neural_fields.interrupt import stop_on_signals
from neural_fields.locking import lock
from neural_fields.run import Run, append_metrics, read_run_yaml, write_run_yaml
from neural_fields.training import Budget, LoopState, count_bad, restore, save
from neural_fields.volume.background import blocked_views, frame_of
from neural_fields.volume.batches import Pixels
from neural_fields.volume.hull import carve
from neural_fields.volume.human import check_cameras_outside
from neural_fields.volume.stages import Fit, parameter_groups, rate, step_terms
from neural_fields.volume_previews import save_volume_previews
from neural_fields.volume_run import VolumeRecord, build_scene, held_out_views, write_record

REPORT_EVERY = 20  # steps between two lines of metrics.jsonl


@dataclass(frozen=True)
class VolumeStep:
    """What one step did."""

    step: int  # steps done so far
    stage: str
    terms: dict[str, float]
    seconds: float
    skipped: int


def fit_volume(source: str | Path, options: FitOptions, report: Reporter = lambda progress: None) -> FitResult:
    """Fits a scene in space to a capture, or continues a fit that was stopped.

    Args:
        source: a folder with a transforms.json; see docs/capture.md.
        options: what is asked for. Of masks, flow and a region there is nothing to choose here.
        report: called with the progress, often.

    Raises:
        UserError: bad input (3), no room (4), damaged run (5), another process at work (6), not converged (8).
    """
    started = time.monotonic()
    config = load_volume_config(options.config, options.overrides)
    device = choose_device(options.device)
    _refuse_planar_flags(options)
    report(Progress("reading", 0, 1))
    capture = read_capture(source, options.size)
    check_cameras_outside(capture)
    run = Run.create(options.out or default_run(source))
    with lock(run) as note, stop_on_signals() as stop:
        notes = [*([note] if note else []), *capture.notes]
        record = _record(Path(source).absolute(), options, config, capture)
        _check_same(run, record)
        parts = stages(config.training, options.quality, capture.motion is not None and capture.masks is not None)
        total = parts[-1].last
        checkpoint = load_latest_checkpoint(run)
        if checkpoint and checkpoint.step >= total:
            return FitResult(run, checkpoint.step, total, ExitCode.OK, tuple(notes), was_finished=True)
        write_run_yaml(run, write_record(run, record))
        for text in notes:
            report(Progress("reading", 1, 1, note=text))
        fit = make_fit(record, capture, device, options.seed)
        budget = Budget(total, options.seconds and max(0.1, options.seconds - (time.monotonic() - started)))
        step = _train(run, fit, parts, budget, options.seed, report, lambda: stop.requested is not None)
        notes += _blocked(fit, record, report)
        save_volume_previews(run, fit.scene.eval(), record, capture)
        append_metrics(
            run,
            {"event": "stopped" if stop.requested is not None else "finished", "steps": step, "total_steps": total,
             "train_seconds": round(time.monotonic() - started, 3), "peak_mib": peak_mib()},
        )  # fmt: skip
        return FitResult(run, step, total, stop.exit_code, tuple(notes))


def make_fit(record: VolumeRecord, capture: Capture, device: torch.device, seed: int = 0) -> Fit:
    """A scene before its fit, with the pixels of the views that it is to see."""
    chosen = tuple(view for view in range(capture.view_count) if view not in record.held_out)
    pixels = Pixels(capture, chosen, device, with_flow=record.motion is not None and record.config.terms.flow > 0)
    focal = float(np.mean([camera.focal for camera in capture.cameras]))
    scene = build_scene(record, seed)
    if scene.person is not None:
        carve(scene.person.skinning, capture, chosen)
    return Fit(scene.to(device), record.moments(device), pixels, record.config, focal)


def _blocked(fit: Fit, record: VolumeRecord, report: Reporter) -> list[str]:
    """What to say of cameras that look at something right before them: a pose is wrong, or a hand was on the lens."""
    states = [int(fit.moments.state[time]) for time in record.times]
    views = blocked_views(fit.scene.background, record.cameras, states)
    if not views:
        return []
    shown = ", ".join(f"{view} (moment {record.times[view]})" for view in views[:3])
    note = f"{len(views)} views see something right before their camera: {shown}{' ...' if len(views) > 3 else ''}"
    report(Progress("background", 1, 1, note=note))
    return [note]


def _refuse_planar_flags(options: FitOptions) -> None:
    given = {
        "--roi": options.roi,
        "--frames": options.frames,
        "--flow": None if options.flow == "auto" else options.flow,
    }
    for flag, value in given.items():
        if value is not None:
            raise bad_input(
                f"{flag} {value}",
                why=f"{options.config} fits a scene in space, whose views stand in transforms.json",
                fix=f"leave out {flag}; unwrap capture chooses frames of videos",
            )


def _record(source: Path, options: FitOptions, config: VolumeConfig, capture: Capture) -> VolumeRecord:
    return VolumeRecord(
        source=source,
        preset=options.config,
        quality=options.quality,
        config=config,
        size=capture.size,
        frame=frame_of(capture),
        cameras=capture.cameras,
        times=capture.times,
        held_out=held_out_views(capture.view_count, config.training.holdout),
        motion=capture.motion if capture.masks is not None else None,
        switches=capture.switches if config.states else (),
    )


def _check_same(run: Run, record: VolumeRecord) -> None:
    """A run is continued with what it was begun with.

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


def _train(
    run: Run,
    fit: Fit,
    parts: tuple[Stage, ...],
    budget: Budget,
    seed: int,
    report: Reporter,
    stop: Callable[[], bool],
) -> int:
    """Runs the loop, reporting; returns the number of steps done."""
    recent: list[VolumeStep] = []
    begin, step = time.monotonic(), 0
    for record in train_volume_steps(run, fit, parts, budget, seed, stop):
        step = record.step
        recent = [*recent[-(REPORT_EVERY - 1) :], record]
        seconds = float(np.mean([one.seconds for one in recent]))
        line = Progress(
            record.stage,
            step,
            budget.steps,
            _psnr(recent),
            seconds,
            seconds * (budget.steps - step),
            peak_mib(),
        )
        report(line)
        if step % REPORT_EVERY == 0:
            terms = {name: round(value, 6) for name, value in record.terms.items()}
            append_metrics(
                run,
                {"step": step, "stage": record.stage, "psnr": line.psnr, "terms": terms,
                 "seconds": round(time.monotonic() - begin, 3), "skipped": record.skipped, "peak_mib": line.peak_mib},
            )  # fmt: skip
    return step


def train_volume_steps(
    run: Run,
    fit: Fit,
    parts: tuple[Stage, ...],
    budget: Budget,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[VolumeStep]:
    """Trains a scene stage by stage, yielding after every step; continues from the newest checkpoint in `run`.

    All that is random in a step comes from (seed, step). A checkpoint is saved every `checkpoint_every` steps, when
    `stop()` turns true, and at the end. A budget of seconds ends each stage after its share of the steps.

    Raises:
        UserError: too many non-finite steps in a row (exit 8), no room (4), damaged checkpoints (5).
    """
    adam = Adam(parameter_groups(fit.scene))
    state = restore(fit.scene, adam, run)
    began, first_step, saved_at = time.monotonic(), state.step, state.step if state.loaded else -1
    fit.scene.train()
    for stage in parts:
        while state.step < stage.last and not stop():
            if budget.seconds is not None and _late(stage, budget, first_step, time.monotonic() - began):
                state.step = stage.last  # the time for this stage is over: the next one begins
                break
            begin = time.perf_counter()
            adam.factor = rate(stage, fit.config, state.step)
            values = _step(fit, adam, stage, state, seed)
            seconds = time.perf_counter() - begin
            state.step, state.train_seconds = state.step + 1, state.train_seconds + seconds
            if state.step % fit.config.training.checkpoint_every == 0:
                save(fit.scene, adam, run, state, None)
                saved_at = state.step
            yield VolumeStep(state.step, stage.name, values, seconds, state.skipped)
    if saved_at != state.step:
        save(fit.scene, adam, run, state, None)
    fit.scene.eval()


def _late(stage: Stage, budget: Budget, first_step: int, elapsed: float) -> bool:
    """Whether a stage has used up its part of the time: the share of its steps, and of those before it."""
    assert budget.seconds is not None, "there is a time to keep"
    share = (stage.last - first_step) / max(1, budget.steps - first_step)
    return elapsed > budget.seconds * share


def _step(fit: Fit, adam: Adam, stage: Stage, state: LoopState, seed: int) -> dict[str, float]:
    """One optimiser step; returns the weighted terms."""
    adam.zero_grad()
    generator = torch.Generator().manual_seed((seed << 32) + state.step)
    terms = step_terms(fit, stage, state.step, generator)
    values = {name: float(value.detach()) for name, value in terms.items()}
    if not values:
        return values
    if all(map(math.isfinite, values.values())):
        torch.stack(list(terms.values())).sum().backward()
    if not all(map(math.isfinite, values.values())) or not all(bool(g.sum().isfinite()) for g in adam.gradients()):
        count_bad(state, values)
        return values
    adam.step()
    state.bad_in_a_row = 0
    return values


def _psnr(recent: list[VolumeStep]) -> float | None:
    """PSNR of the last steps' pixels, from the colour term."""
    errors = [one.terms["color"] for one in recent if "color" in one.terms]
    if not errors or not np.isfinite(errors).all():
        return None
    return round(float(-10 * np.log10(max(1e-10, float(np.mean(errors))))), 3)

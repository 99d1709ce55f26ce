"""`unwrap train` for planar models: from a video to a trained run. It continues a run that was stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neural_fields.atlas.canonical import export_canonical, read_pristine
from neural_fields.atlas.uv_maps import Maps
from neural_fields.config.planar import PlanarConfig, count_steps, load_planar_config, scale_steps
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import read_json, write_json
from neural_fields.core.interrupt import stop_on_signals
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.video.io import read_video
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.evaluation.report import TrainingCost, report_training
from neural_fields.nn.device import choose_device, peak_memory_mib
from neural_fields.planar.init.build import ModelPlan, build_model, initialize_model, plan_model
from neural_fields.planar.init.canonical_extent import measure_shape
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.model import ModelShape, PlanarModel
from neural_fields.runs.checkpoints import Checkpoint, load_latest_checkpoint
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run, append_metrics, read_metrics, write_run_yaml
from neural_fields.training.bake import bake_maps
from neural_fields.training.export_canonical import make_canonical_images
from neural_fields.training.inputs import make_record, prepare_clip, refuse_changed_settings
from neural_fields.training.loop import Budget, StepRecord, train_steps
from neural_fields.training.options import TrainOptions
from neural_fields.training.previews_planar import save_previews


@dataclass(frozen=True)
class TimeBudgetSettings:
    """Settings of how `--seconds` is divided among warm-up, training steps and baking."""

    max_warm_up_share: float = 1 / 3  # of the time, for the warm-up of mappings that are networks
    baked_megapixels_per_second: float = 5.0  # a careful guess of how fast maps are baked
    extra_reserve_seconds: float = 3.0  # kept beside the time for baking
    max_reserve_share: float = 0.5  # of the time, that is kept at most for what comes after the steps
    min_step_seconds: float = 0.1  # for the steps, however little time is left


DEFAULTS = TimeBudgetSettings()


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    run: Run
    step: int
    total: int
    exit_code: ExitCode
    notes: tuple[str, ...]
    was_finished: bool = False  # nothing was left to do


def train(
    video: str | Path,
    options: TrainOptions | None = None,
    report: ProgressReporter = lambda progress: None,
    settings: TimeBudgetSettings = DEFAULTS,
) -> TrainResult:
    """Trains a planar model on a video, or continues a training that was stopped.

    Args:
        video: a video file or a folder of numbered images.
        options: what the user asks for.
        report: called with the progress, often.
        settings: how a time limit is divided.

    Returns:
        The run, the number of steps and how the training ended.

    Raises:
        UserError: bad input (3), no room (4), damaged run (5), another process at work (6), not converged (8).
    """
    started = time.monotonic()
    options = options or TrainOptions()
    config = load_planar_config(options.config, options.overrides)
    device = choose_device(options.device)
    run_path = options.out or default_run_folder(video)
    # Before the run exists, frames are decoded into its cache alone, so that a bad video leaves no run behind.
    decoded = read_video(video, run_path / "cache", options.size, options.frames) if not run_path.exists() else None
    run = Run.create(run_path)
    with lock_run(run) as note, stop_on_signals() as stop:
        # The input, checked against what the run was begun with.
        notes = [note] if note else []
        report(Progress("reading", 0, 1))
        source = decoded or read_video(video, run.cache, options.size, options.frames)
        record = make_record(options, config, source)
        refuse_changed_settings(run, record)
        checkpoint = load_latest_checkpoint(run)
        clip, clip_notes = prepare_clip(run, source, options, config, report, device)
        notes += [*clip_notes, *source.metadata.notes, *(checkpoint.warnings if checkpoint else ())]
        width, height = clip.size
        total = count_steps(config.training, options.quality, clip.frame_count, width * height)
        config = scale_steps(config, total)
        if checkpoint and checkpoint.step >= total and _has_valid_results(run):
            return TrainResult(run, checkpoint.step, total, ExitCode.OK, tuple(notes), was_finished=True)
        write_run_yaml(run, record)
        write_json(run.source_json, source.metadata.to_json())
        for text in notes:
            report(Progress("reading", 1, 1, note=text))

        # The model, initialized from the clip or of the checkpoint's shape.
        report(Progress("geometry", 0, 1))
        warm_up = WarmUpOptions(
            options.seed,
            device,
            None if options.seconds is None else options.seconds * settings.max_warm_up_share,
            lambda: stop.signal_number is not None,
            lambda done, all_: report(Progress("geometry", done, all_)),
        )
        model = make_planar_model(config, clip, checkpoint, warm_up).to(device)
        if checkpoint is None and stop.signal_number is not None:  # initialized in part only: nothing of it is kept
            _append_final_metrics(run, 0, total, time.monotonic() - started, stop.signal_number)
            return TrainResult(run, 0, total, stop.exit_code, tuple(notes))

        # Training, then maps, canonical images and the report.
        had_flow = clip.flow is not None
        if not config.terms.uses_flow:
            clip = replace(clip, flow=None)  # it has served its purpose: unmapped, it takes no memory
        if device.type == "cuda":
            clip = clip.copy_to_device(device)
        budget = _make_budget(options, total, started, clip, settings)
        step = _run_steps(run, model, clip, config, budget, options, report, lambda: stop.signal_number is not None)
        if stop.signal_number is None:
            bake_and_export(run, model, step, report)
            cost = TrainingCost(step, sum_train_seconds(run, time.monotonic() - started), peak_memory_mib())
            made = report_training(
                run, model, clip.frames, cost, had_flow, lambda done, all_: report(Progress("report", done, all_))
            )
            report(Progress("report", 1, 1, note=f"{made.verdict_sentence} See {run.report}"))
        _append_final_metrics(run, step, total, time.monotonic() - started, stop.signal_number)
        return TrainResult(run, step, total, stop.exit_code, tuple(notes))


def default_run_folder(video: str | Path) -> Path:
    """Returns the folder of a video's run: `runs/` and the name of the video, also for "." and ".."."""
    return Path("runs") / (Path(os.path.abspath(video)).stem or "video")


def _has_valid_results(run: Run) -> bool:
    """Whether what a training leaves beside its weights can be read; otherwise a finished training writes it again."""
    try:
        VideoMetadata.from_json(read_json(run.source_json))
        for layer in Maps.open(run).layers:
            read_pristine(run.canonical, layer)
    except UserError:
        return False
    return True


# --- model ----------------------------------------------------------------------------------------------------------


def make_planar_model(
    config: PlanarConfig, clip: ClipDataset, checkpoint: Checkpoint | None, how: WarmUpOptions | None = None
) -> PlanarModel:
    """Makes an initialized model, or one of the checkpoint's shape whose weights are loaded later; on the CPU.

    Args:
        config: the parts of the model.
        clip: frames, masks and flow that a new model is initialized from.
        checkpoint: the one to continue from, or None.
        how: seed of the weights; device and time limit of the warm-up that mappings which are networks begin with.
    """
    how = how or WarmUpOptions()
    if checkpoint is not None:
        return build_model(config, ModelShape.from_json(checkpoint.metadata["shape"]))
    start: ModelPlan = plan_model(config, clip)
    model = build_model(config, start.shape, how.seed)
    initialize_model(model, start, clip, how)
    return model


# --- training and finishing -----------------------------------------------------------------------------------------


def _make_budget(
    options: TrainOptions, total: int, started: float, clip: ClipDataset, settings: TimeBudgetSettings
) -> Budget:
    """Returns the step count, and the time that is left for steps when the whole command has to end in time."""
    if options.seconds is None:
        return Budget(total)
    width, height = clip.size
    baked_pixels = clip.frame_count * width * height * len(clip.layer_names)
    baking_seconds = baked_pixels / (settings.baked_megapixels_per_second * 1e6)
    reserve = min(settings.extra_reserve_seconds + baking_seconds, options.seconds * settings.max_reserve_share)
    elapsed = time.monotonic() - started
    return Budget(total, max(settings.min_step_seconds, options.seconds - elapsed - reserve), time.monotonic())


def _run_steps(
    run: Run,
    model: PlanarModel,
    clip: ClipDataset,
    config: PlanarConfig,
    budget: Budget,
    options: TrainOptions,
    report: ProgressReporter,
    stop: Callable[[], bool],
) -> int:
    """Trains the model, reports its progress, and returns the number of steps done."""
    metrics_every = 20  # steps between two lines of metrics.jsonl; means are over as many steps
    metadata = {"shape": model.shape.to_json()}
    recent: list[StepRecord] = []
    begin = time.monotonic()
    first = None
    step = 0
    for record in train_steps(model, clip, config.training, run, budget, options.seed, stop, metadata):
        step = record.step
        first = step - 1 if first is None else first
        recent = [*recent[-(metrics_every - 1) :], record]
        seconds_left = (budget.steps - step) * (time.monotonic() - begin) / max(1, step - first)
        if budget.seconds is not None:
            seconds_left = max(0.0, min(seconds_left, budget.seconds - (time.monotonic() - budget.started)))
        # PSNR of the pixels of the last steps in dB, from the color term.
        psnr: float | None = None
        errors: list[float] = []
        if config.terms.color:
            errors = [old.terms["color"] / config.terms.color for old in recent if "color" in old.terms]
        if errors and np.isfinite(errors).all():
            psnr = round(float(-10 * np.log10(max(1e-10, float(np.mean(errors))))), 3)
        progress = Progress(
            "training",
            step,
            budget.steps,
            psnr,
            round(float(np.mean([record.seconds for record in recent])), 5),
            seconds_left,
            peak_memory_mib(),
            "; ".join(record.notes),
        )
        report(progress)
        if step % metrics_every == 0:
            line = {
                "step": step,
                "psnr": progress.psnr,
                "terms": {name: round(value, 6) for name, value in record.terms.items()},
                "seconds_a_step": progress.seconds_per_step,
                "seconds": round(time.monotonic() - begin, 3),
                "skipped": record.skipped,
                "peak_mib": progress.peak_mib,
            }
            append_metrics(run, line)
        if step % config.training.preview_every == 0:
            save_previews(run, model, clip)
    if not recent:  # the checkpoint was at the end already
        checkpoint = load_latest_checkpoint(run)
        return checkpoint.step if checkpoint else 0
    return step


@torch.no_grad()
def bake_and_export(
    run: Run, model: PlanarModel, step: int, report: ProgressReporter = lambda progress: None
) -> list[str]:
    """Bakes the uv maps and exports the canonical images; returns notes for the user."""
    model = model.to("cpu").eval()
    model.shape = measure_shape(model)
    maps = bake_maps(
        run, model, step, lambda done, total: report(Progress("baking", done, total, peak_mib=peak_memory_mib()))
    )
    notes: list[str] = []
    for image, frames_seen in make_canonical_images(model, maps):
        notes += export_canonical(run.canonical, image, frames_seen).notes
    for note in notes:
        report(Progress("baking", 1, 1, note=note))
    return notes


def sum_train_seconds(run: Run, seconds: float) -> float:
    """Adds the seconds of this session to those of the sessions before it, as the newest line of metrics.jsonl says."""
    before = [line["train_seconds"] for line in read_metrics(run) if "train_seconds" in line]
    return round(seconds + (before[-1] if before else 0.0), 3)


def _append_final_metrics(run: Run, step: int, total: int, seconds: float, stopped: int | None) -> None:
    """Appends the last line of metrics.jsonl, with the time of all sessions of the training together."""
    append_metrics(
        run,
        {
            "event": "stopped" if stopped is not None else "finished",
            "steps": step,
            "total_steps": total,
            "train_seconds": sum_train_seconds(run, seconds),
            "peak_mib": peak_memory_mib(),
        },
    )

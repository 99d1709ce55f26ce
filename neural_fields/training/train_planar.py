"""`unwrap train` for planar models: from a video to a trained run. It continues a run that was stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from neural_fields.atlas.canonical import export_canonical
from neural_fields.config.loader import to_mapping
from neural_fields.core.errors import UserError
from neural_fields.core.files import write_json
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks, split_mask_spec
from neural_fields.data.video.io import probe_video, read_video
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.evaluation.report import TrainingCost, report_training
from neural_fields.nn.device import choose_device, peak_memory_mib
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.composition.canonical_extent import measure_shape
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import count_steps, load_planar_config, scale_steps
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.runs.checkpoints import load_latest_checkpoint, remove_older_checkpoints
from neural_fields.runs.run import Run
from neural_fields.training.bake import bake_maps
from neural_fields.training.estimate import TrainingEstimate, estimate_training, require_room
from neural_fields.training.export_canonical import make_canonical_images
from neural_fields.training.initialize import make_planar_model
from neural_fields.training.inputs import (
    make_hinted_masks,
    make_record,
    prepare_clip,
    read_given_masks,
    refuse_changed_settings,
)
from neural_fields.training.loop import run_training
from neural_fields.training.options import TrainOptions
from neural_fields.training.planar_task import PlanarTask
from neural_fields.training.session import TrainingSession, TrainResult, default_run_folder, open_session


@dataclass(frozen=True)
class TimeBudgetSettings:
    """Settings of how `--seconds` is divided among warm-up, training steps and baking."""

    max_warm_up_share: float = 1 / 3  # of the time, for the warm-up of mappings that are networks
    baked_megapixels_per_second: float = 5.0  # a careful guess of how fast maps are baked
    extra_reserve_seconds: float = 3.0  # kept beside the time for baking
    max_reserve_share: float = 0.5  # of the time, that is kept at most for what comes after the steps
    min_step_seconds: float = 0.1  # for the steps, however little time is left
    few_steps: int = 20  # with fewer a note says that the time was too short


DEFAULTS = TimeBudgetSettings()


def train(
    video: str | Path,
    options: TrainOptions | None = None,
    report: ProgressReporter = report_nothing,
    settings: TimeBudgetSettings = DEFAULTS,
) -> TrainResult:
    """Trains a planar model on a video, or continues a training that was stopped.

    Args:
        video: a video file or a folder of numbered images.
        options: the options of `unwrap train`.
        report: called with the progress.
        settings: the division of a time budget.

    Returns:
        The run, the number of steps and the result of the training.

    Raises:
        UserError: input that cannot be used (exit 3), no room (4), a damaged run (5), a run that another process trains
            (6), or losses that are not finite (8).
    """
    started = time.monotonic()
    options = options or TrainOptions()
    config = load_planar_config(options.config, options.overrides)
    device = choose_device(options.device)
    run_path = options.out or default_run_folder(video)
    metadata, given, _ = plan_training(video, options, report)
    if options.hints:
        options = make_hinted_masks(video, Run(run_path), options, report)
        given = read_given_masks(metadata, options, config, report)
    # Before the run exists, frames are decoded into its cache alone, so that a bad video leaves no run behind.
    decoded = read_video(metadata, run_path / "cache", options.size, options.frames) if not run_path.exists() else None
    run = Run.create(run_path)
    with open_session(run, report, started) as session:
        # The input, checked against what the run was begun with.
        report(Progress("reading", 0, 1))
        source = decoded or read_video(metadata, run.cache, options.size, options.frames)
        record = make_record(run, options, config, source)
        refuse_changed_settings(run, record)
        checkpoint = load_latest_checkpoint(run)
        clip, clip_notes = prepare_clip(run, source, options, config, report, device, given=given)
        session.notes += [*clip_notes, *source.metadata.notes, *(checkpoint.warnings if checkpoint else ())]
        total = count_steps(config.training, options.quality, clip.frame_count, clip.size[0] * clip.size[1])
        config = scale_steps(config, total)
        if checkpoint and checkpoint.step >= total and _has_valid_results(run):
            return session.was_finished(checkpoint.step, total)
        session.write_record(record)
        write_json(run.source_json, to_mapping(source.metadata))

        # The model, initialized from the clip or of the checkpoint's shape.
        report(Progress("geometry", 0, 1))
        warm_up = WarmUpOptions(
            options.seed,
            device,
            None if options.seconds is None else options.seconds * settings.max_warm_up_share,
            session.is_stopped,
            report,
        )
        model = make_planar_model(config, clip, checkpoint, warm_up).to(device)
        if checkpoint is None and session.is_stopped():  # initialized in part only: nothing of it is kept
            return session.finish(0, total)

        # Training, then maps, canonical images and the report.
        flow = clip.flow
        if flow is not None and not config.terms.uses_flow:
            flow.release_memory()  # the steps do without it, the report needs it again
            clip = replace(clip, flow=None)
        if device.type == "cuda":
            clip = clip.copy_to_device(device)
        seconds = _find_step_seconds(options.seconds, session.elapsed_seconds(), clip, settings)
        task = PlanarTask(model, clip, config.training, total, options.seed)
        step = run_training(task, run, report, session.is_stopped, seconds)
        if not session.is_stopped():
            bake_and_export(run, model, step, report)
            remove_older_checkpoints(run)
            _report_result(session, model, clip.frames, flow, step)
            if options.seconds is not None and step < min(settings.few_steps, total):
                note = f"only {step} of {total} steps fit into --seconds {options.seconds:g}"
                session.add_note("report", f"{note}: the same command goes on, and a smaller --size begins sooner")
        return session.finish(step, total)


def plan_training(
    video: str | Path, options: TrainOptions, report: ProgressReporter = report_nothing
) -> tuple[VideoMetadata, LayerMasks | None, TrainingEstimate]:
    """Checks all that can be checked before a training: video, frames, size, masks, and room. Nothing is written.

    Args:
        video: a video file or a folder of numbered images.
        options: the options of `unwrap train`.
        report: called with the progress.

    Returns:
        The metadata of the video, the masks of the user (None where masks are found or made), and what the training
        will take.

    Raises:
        UserError: input that cannot be used (exit 3), or no room for a new run (4).
    """
    config = load_planar_config(options.config, options.overrides)
    for spec in () if options.finds_masks or options.masks == ("none",) else options.masks:
        split_mask_spec(spec)  # a typo is answered before a long video is looked through
    metadata = probe_video(video)
    estimate = estimate_training(metadata, options, config)
    run_path = options.out or default_run_folder(video)
    if not run_path.exists():
        require_room(estimate, run_path)
        report(Progress("reading", 0, 1, note=estimate.sentence))
        if options.seconds is not None and (advice := estimate.advise_on_budget(options.seconds)):
            report(Progress("reading", 0, 1, note=advice))
    return metadata, read_given_masks(metadata, options, config, report), estimate


def _report_result(
    session: TrainingSession,
    model: PlanarModel,
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    step: int,
) -> None:
    """Writes the report of a finished training, and says what it says."""
    run, report = session.run, session.report
    cost = TrainingCost(step, session.sum_train_seconds(), peak_memory_mib())
    made = report_training(require_planar(run, "the report"), model, frames, flow, cost, report)
    session.figures = {"psnr": made.to_json()["psnr"], "verdict": made.verdict.level}
    report(Progress("report", 1, 1, note=f"{made.verdict_sentence} See {run.report}"))
    if made.sheet.colors:
        look = f"Does each layer hold its object? Look at {run.layers_picture}"
        report(Progress("report", 1, 1, note=look))


def _has_valid_results(run: Run) -> bool:
    """Whether what a training leaves beside its weights can be read; otherwise a finished training writes it again."""
    try:
        found = require_planar(run, "this training")
        _ = found.stored_metadata, found.canonicals
    except UserError:
        return False
    return True


# --- training and finishing -----------------------------------------------------------------------------------------


def _find_step_seconds(
    seconds: float | None, elapsed: float, clip: ClipDataset, settings: TimeBudgetSettings
) -> float | None:
    """Returns the time that is left for steps when the whole command has to end `seconds` after it began."""
    if seconds is None:
        return None
    width, height = clip.size
    baked_pixels = clip.frame_count * width * height * len(clip.layer_names)
    baking_seconds = baked_pixels / (settings.baked_megapixels_per_second * 1e6)
    reserve = min(settings.extra_reserve_seconds + baking_seconds, seconds * settings.max_reserve_share)
    return max(settings.min_step_seconds, seconds - elapsed - reserve)


@torch.no_grad()
def bake_and_export(run: Run, model: PlanarModel, step: int, report: ProgressReporter = report_nothing) -> list[str]:
    """Bakes the uv maps and exports the canonical pictures.

    Args:
        run: the paths of the run.
        model: the trained model.
        step: number of steps that it was trained for.
        report: called with the progress.

    Returns:
        Notes for the user, one sentence each.
    """
    model = model.to("cpu").eval()
    model.shape = measure_shape(model)
    maps = bake_maps(run, model, step, report)
    notes: list[str] = []
    for image, frames_seen in make_canonical_images(model, maps):
        notes += export_canonical(run.canonical, image, frames_seen).notes
    for note in notes:
        report(Progress("baking", 1, 1, note=note))
    return notes

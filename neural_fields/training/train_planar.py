"""`unwrap train` for planar models: from a video to a trained run. It continues a run that was stopped."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from neural_fields.atlas.canonical import export_canonical
from neural_fields.config.loader import to_mapping
from neural_fields.core.errors import UserError
from neural_fields.core.files import write_json
from neural_fields.core.progress import Progress, ProgressReporter, rename_stage, report_nothing, report_part
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks, split_mask_spec
from neural_fields.data.video.io import probe_video, read_video
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.nn.device import choose_device, peak_memory_mib
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.composition.canonical_extent import measure_shape
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import PlanarConfig, load_planar_config, scale_steps
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.record import parse_planar_record
from neural_fields.runs.checkpoints import Checkpoint, load_latest_checkpoint, remove_older_checkpoints
from neural_fields.runs.cleanup import remove_clip_cache
from neural_fields.runs.run import Run, read_run_yaml
from neural_fields.training.bake import bake_maps
from neural_fields.training.estimate import DEFAULTS as COSTS
from neural_fields.training.estimate import (
    CostSettings,
    TrainingEstimate,
    choose_size,
    estimate_training,
    require_room,
)
from neural_fields.training.export_canonical import make_canonical_images, sharpen_pictures
from neural_fields.training.first_pictures import export_first_pictures
from neural_fields.training.initialize import ModelPlan, make_planar_model
from neural_fields.training.inputs import (
    make_hinted_masks,
    make_record,
    prepare_clip,
    read_given_masks,
    refuse_changed_settings,
)
from neural_fields.training.loop import run_training
from neural_fields.training.options import TrainOptions
from neural_fields.training.planar_task import make_planar_task
from neural_fields.training.session import TrainingSession, TrainResult, default_run_folder, open_session
from neural_fields.training.table_task import compile_in_background
from neural_fields.training.task import TrainingTask


@dataclass(frozen=True)
class TrainingPlan:
    """Holds what is known of a training before it begins.

    Attributes:
        run: the paths of its run, which may not be there yet.
        options: with a size.
        config: of the model.
        metadata: of the video.
        masks: of the user; None where masks are found or made.
        estimate: what the training will take.
    """

    run: Run
    options: TrainOptions
    config: PlanarConfig
    metadata: VideoMetadata
    masks: LayerMasks | None
    estimate: TrainingEstimate


def train(
    video: str | Path,
    options: TrainOptions | None = None,
    report: ProgressReporter = report_nothing,
    settings: CostSettings = COSTS,
) -> TrainResult:
    """Trains a planar model on a video, or continues a training that was stopped.

    Args:
        video: a video file or a folder of numbered images.
        options: the options of `unwrap train`.
        report: called with the progress.
        settings: what stages cost, and the division of a time budget.

    Returns:
        The run, the number of steps and the result of the training.

    Raises:
        UserError: input that cannot be used (exit 3), no room (4), a damaged run (5), a run that another process trains
            (6), or losses that are not finite (8).
    """
    started = time.monotonic()
    device = choose_device((options or TrainOptions()).device)
    plan = plan_training(video, options or TrainOptions(), report, settings)
    options, config, metadata, given = plan.options, plan.config, plan.metadata, plan.masks
    if options.hints:
        options = make_hinted_masks(video, plan.run, options, report)
        given = read_given_masks(metadata, options, config, report)
    if config.training.solver == "gauss_newton":
        compile_in_background(device)
    # Before the run exists, frames are decoded into its cache alone, so that a bad video leaves no run behind.
    read_source = partial(read_video, metadata, plan.run.cache, options.size, options.frames, report)
    decoded = read_source() if not plan.run.path.exists() else None
    run = Run.create(plan.run.path)
    with open_session(run, report, started) as session:
        # The input, checked against what the run was begun with.
        record = make_record(run, options, config, metadata)
        refuse_changed_settings(run, record)
        checkpoint = load_latest_checkpoint(run)
        session.notes += [*metadata.notes, *(checkpoint.warnings if checkpoint else ())]
        total = plan.estimate.steps
        has_converged = checkpoint is not None and checkpoint.metadata.get("loop", {}).get("has_converged", False)
        if checkpoint and (checkpoint.step >= total or has_converged) and _has_valid_results(run, record):
            return session.was_finished(checkpoint.step, min(total, checkpoint.step))
        clip, clip_notes = prepare_clip(run, decoded or read_source(), options, config, report, device, given=given)
        session.notes += clip_notes
        config = scale_steps(config, total)
        session.write_record(record)
        write_json(run.source_json, to_mapping(metadata))

        # The model, initialized from the clip or of the checkpoint's shape.
        report(Progress("geometry", 0, 1))
        warm_up_s = None if options.seconds is None else options.seconds * settings.max_warm_up_share
        warm_up = WarmUpOptions(options.seed, device, warm_up_s, session.is_stopped, report)
        show = partial(_show_first_pictures, session, config, clip, plan.estimate, settings)
        model = make_planar_model(config, clip, checkpoint, warm_up, show).to(device)
        if checkpoint is None and session.is_stopped():  # initialized in part only: nothing of it is kept
            return session.finish(0, total)

        # Training, then maps, canonical pictures and the report.
        flow = clip.flow
        if flow is not None and not config.terms.uses_flow:
            flow.release_memory()  # the steps do without it, the report needs it again
            clip = replace(clip, flow=None)
        if device.type == "cuda":
            clip = clip.copy_to_device(device)
        seconds = plan.estimate.find_step_seconds(options.seconds, session.elapsed_seconds(), settings)
        task = make_planar_task(model, clip, config.training, total, options.seed)
        step = _train_in_view(session, task, model, checkpoint, plan.estimate, seconds, settings)
        total = step if task.has_converged else total
        if not session.is_stopped():
            bake_and_export(run, model, step, report, tuple(record["canonical_size"]))
            remove_older_checkpoints(run)
            _report_result(session, model, clip.frames, flow, step)
            if step >= total:
                remove_clip_cache(run)
            if options.seconds is not None and step < min(settings.few_steps, total):
                note = f"only {step} of {total} steps fit into --seconds {options.seconds:g}"
                session.add_note("report", f"{note}: the same command goes on, and a smaller --size begins sooner")
        return session.finish(step, total)


def _show_first_pictures(
    session: TrainingSession,
    config: PlanarConfig,
    clip: ClipDataset,
    estimate: TrainingEstimate,
    settings: CostSettings,
    plan: ModelPlan,
    early: range,
) -> None:
    """Brings out pictures of the frames that are placed first, where it takes long until there are those of all."""
    rest = estimate.stage_seconds["geometry"] / 2 + sum(estimate.stage_seconds[s] for s in ("textures", "baking"))
    if rest < settings.min_wait_s or config.training.solver != "gauss_newton" or session.is_stopped():
        return
    export_first_pictures(session.run, config, clip, plan, early, session.report)
    first = session.run.canonical / f"{clip.layer_names[0]}.png"
    note = f"a first picture to paint on: {first}; edits can be added in about {math.ceil(rest)} s"
    session.report(Progress("pictures", 1, 1, note=note))


def _train_in_view(
    session: TrainingSession,
    task: TrainingTask,
    model: PlanarModel,
    checkpoint: Checkpoint | None,
    estimate: TrainingEstimate,
    seconds: float | None,
    settings: CostSettings,
) -> int:
    """Trains; where the rest takes long, brings out pictures to paint on as soon as the model is good enough.

    Edits can be added while the training goes on. They stay valid: passes refine where frames lie on the canonical
    plane, and move the plane itself by a small part of a pixel (a test measures it).

    Args:
        session: of the training.
        task: the model with its data.
        model: the model.
        checkpoint: that the training goes on from; None for a new one.
        estimate: what a whole training takes.
        seconds: time after which the training ends; None for no limit.
        settings: how long the rest must take for pictures to come first.

    Returns:
        The number of steps done.
    """
    before = checkpoint.step if checkpoint else 0
    run, report, trained_s, step, least_s = session.run, session.report, 0.0, before, settings.min_rest_s
    expected_s = estimate.stage_seconds["training"]
    with ExitStack() as in_view:
        for until in (mark for mark in task.first_results if before < mark or mark == before == 0):
            left = None if seconds is None else seconds - trained_s
            if until > 0:
                began = time.monotonic()
                step = run_training(task, run, report, session.is_stopped, left, until=until)
                trained_s += time.monotonic() - began
            done = step - before
            rest = (trained_s / done if done else expected_s / task.total_steps) * (task.total_steps - step)
            rest = rest if seconds is None else min(rest, seconds - trained_s)
            if rest <= least_s or step >= task.total_steps or task.has_converged or session.is_stopped():
                continue
            in_view.close()  # edits wait while pictures are replaced
            if step == 0:  # pictures belong to a checkpoint
                run_training(task, run, report, session.is_stopped, left, until=0)
            shape, device = model.shape, model.device
            bake_and_export(run, model, step, rename_stage(report, "pictures"))
            model.shape = shape  # of the tables; the pictures may cover less
            model.to(device)
            first = run.canonical / f"{model.layers[0]}.png"
            note = f"you can paint now: {first}; the training refines the result for up to {rest:.0f} s more"
            in_view.enter_context(session.let_others_write())
            report(Progress("pictures", 1, 1, note=f"{note}, and what is edited meanwhile stays in place"))
            least_s = settings.min_long_rest_s
        return run_training(task, run, report, session.is_stopped, None if seconds is None else seconds - trained_s)


def plan_training(
    video: str | Path,
    options: TrainOptions,
    report: ProgressReporter = report_nothing,
    settings: CostSettings = COSTS,
) -> TrainingPlan:
    """Checks all that can be checked before a training: video, frames, size, masks, and room. Nothing is written.

    Args:
        video: a video file or a folder of numbered images.
        options: the options of `unwrap train`.
        report: called with the progress.
        settings: what stages cost, and the division of a time budget.

    Raises:
        UserError: input that cannot be used (exit 3), or no room for a new run (4).
    """
    config = load_planar_config(options.config, options.overrides)
    for spec in () if options.finds_masks or options.masks == ("none",) else options.masks:
        split_mask_spec(spec)  # a typo is answered before a long video is looked through
    report(Progress("reading", 0, 1))
    metadata = probe_video(video)
    run = Run(options.out or default_run_folder(video))
    is_chosen, before = options.size == "auto", None
    if run.run_yaml.is_file():
        before = parse_planar_record(run, read_run_yaml(run))
    if options.canonical_size == "auto":
        size = (before.canonical_size or before.size) if before else (metadata.width, metadata.height)
        options = replace(options, canonical_size=f"{size[0]}x{size[1]}")
    if is_chosen and before:
        width, height = before.size
        options = replace(options, size=f"{width}x{height}")
    elif is_chosen:
        options = replace(options, size=choose_size(metadata, options, config, settings))
    estimate = estimate_training(metadata, options, config, settings)
    if not run.path.exists():
        require_room(estimate, run.path, settings)
        plan = None if estimate.seconds is None else estimate.stage_seconds
        report(Progress("reading", 0, 1, note=estimate.sentence, plan=plan))
        if is_chosen and options.size != settings.sizes[0]:
            note = f"the size is {options.size}, which --seconds {options.seconds:g} has time for"
            report(Progress("reading", 0, 1, note=f"{note}: --size {settings.sizes[0]} shows more, and takes longer"))
        if options.seconds is not None and (advice := estimate.advise_on_budget(options.seconds, settings)):
            report(Progress("reading", 0, 1, note=advice))
    masks = read_given_masks(metadata, options, config, report)
    return TrainingPlan(run, options, config, metadata, masks, estimate)


def _report_result(
    session: TrainingSession,
    model: PlanarModel,
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    step: int,
) -> None:
    """Writes the report of a finished training, and says what it says."""
    from neural_fields.evaluation.report import TrainingCost, report_training  # pictures come before it

    run, report = session.run, session.report
    cost = TrainingCost(step, session.sum_train_seconds(), peak_memory_mib())
    made = report_training(require_planar(run, "the report"), model, frames, flow, cost, report)
    session.figures = {"psnr": made.to_json()["psnr"], "verdict": made.verdict.level}
    report(Progress("report", 1, 1, note=f"{made.verdict_sentence} See {run.report}"))
    if made.sheet.colors:
        look = f"Does each layer hold its object? Look at {run.layers_picture}"
        report(Progress("report", 1, 1, note=look))


def _has_valid_results(run: Run, record: dict[str, Any]) -> bool:
    """Whether what a training leaves beside its weights can be read, and its pictures have the size of the record.

    Otherwise a finished training writes it again.
    """
    try:
        found = require_planar(run, "this training")
        _ = found.stored_metadata, found.canonicals
    except UserError:
        return False
    return list(found.record.canonical_size or found.record.size) == record["canonical_size"]


# --- training and finishing -----------------------------------------------------------------------------------------


@torch.no_grad()
def bake_and_export(
    run: Run,
    model: PlanarModel,
    step: int,
    report: ProgressReporter = report_nothing,
    canonical_size: tuple[int, int] | None = None,
) -> list[str]:
    """Bakes the uv maps and exports the canonical pictures.

    Args:
        run: the paths of the run.
        model: the trained model.
        step: number of steps that it was trained for.
        report: called with the progress.
        canonical_size: (width, height) of frames whose texels the pictures get; they take their detail from the source.
            None: those of the model, without more detail.

    Returns:
        Notes for the user, one sentence each.
    """
    model = model.to("cpu").eval()
    model.shape = measure_shape(model)
    report_maps, report_pictures, report_details = (
        report_part(report, "baking", *part)
        for part in (((0.0, 0.5), (0.5, 0.6), (0.6, 1.0)) if canonical_size else ((0.0, 0.7), (0.7, 1.0), (1.0, 1.0)))
    )
    maps = bake_maps(run, model, step, report_maps)
    images = make_canonical_images(model, maps, report_pictures)
    if canonical_size:
        opened = require_planar(run, "the pictures")
        images = sharpen_pictures(opened, list(images), canonical_size, report_details)
    notes: list[str] = []
    for image, frames_seen in images:
        notes += export_canonical(run.canonical, image, frames_seen).notes
    for note in notes:
        report(Progress("baking", 1, 1, note=note))
    return notes

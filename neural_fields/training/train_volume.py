"""`unwrap train` for 3D scenes: from a capture to a trained run. Run again, it continues."""

from __future__ import annotations

import time
from pathlib import Path

from neural_fields.config.loader import to_mapping
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.capture.capture_folder import read_capture
from neural_fields.nn.device import choose_device
from neural_fields.runs.checkpoints import load_latest_checkpoint, remove_older_checkpoints
from neural_fields.runs.run import Run, read_run_yaml
from neural_fields.training.loop import run_training
from neural_fields.training.options import TrainOptions
from neural_fields.training.scene_task import SceneTask
from neural_fields.training.session import TrainResult, default_run_folder, open_session, refuse_changed_record
from neural_fields.volume.background import find_blocked_views, find_scene_bounds
from neural_fields.volume.config import load_volume_config, training_stages
from neural_fields.volume.human import check_cameras_outside
from neural_fields.volume.record import (
    VolumeRecord,
    choose_held_out_views,
    make_run_yaml_values,
    parse_run_yaml_values,
    write_scene_files,
)


def train_volume(source: str | Path, options: TrainOptions, report: ProgressReporter = report_nothing) -> TrainResult:
    """Trains a 3D scene on a capture, or continues a training that was stopped.

    Args:
        source: a folder with a transforms.json; see docs/capture.md.
        options: the options of `unwrap train`, except for masks, flow, frames and a region.
        report: called with the progress.

    Returns:
        The run, the number of steps and the result of the training.

    Raises:
        UserError: input that cannot be used (exit 3), no room (4), a damaged run (5), a run that another process trains
            (6), or losses that are not finite (8).
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
    capture = read_capture(source, "480p" if options.size == "auto" else options.size)
    check_cameras_outside(capture)
    run = Run.create(options.out or default_run_folder(source))
    with open_session(run, report, started) as session:
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
            seed=options.seed,
        )
        values = make_run_yaml_values(record)
        if run.run_yaml.is_file():
            before = to_mapping(parse_run_yaml_values(run, read_run_yaml(run)))
            free = ("quality", "center", "radius")  # a training may continue for longer; the bounds are the capture's
            refuse_changed_record(run, before, values, free, "capture, size, seed and config")
        checkpoint = load_latest_checkpoint(run)
        session.notes += [*capture.notes, *(checkpoint.warnings if checkpoint else ())]
        stages = training_stages(config.training, options.quality, record.motion is not None)
        total = stages[-1].last if stages else 0
        if checkpoint and checkpoint.step >= total:
            return session.was_finished(checkpoint.step, total)
        if not stages:
            session.notes.append(f"the training has no steps at {options.quality} quality: the scene is not trained")
        write_scene_files(run, record)
        session.write_record(values)
        task = SceneTask(record, capture, device)
        seconds = options.seconds and max(0.1, options.seconds - session.elapsed_seconds())
        step = run_training(task, run, report, session.is_stopped, seconds)
        # Cameras that see something right before them: a pose is wrong, or a hand was on the lens.
        states = [int(task.training.moments.state[time]) for time in record.times]
        views = find_blocked_views(task.model.background, record.cameras, states)
        if views:
            first = ", ".join(f"{view} (moment {record.times[view]})" for view in views[:3])
            first += " ..." if len(views) > 3 else ""
            session.add_note("background", f"{len(views)} views see something right before their camera: {first}")
        task.save_previews(run)
        if not session.is_stopped():
            remove_older_checkpoints(run)
        return session.finish(step, total)

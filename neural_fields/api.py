"""The Python functions behind the commands that read a run, of a video or of a 3D scene.

Each function does what the command of its name does, with the same options; `train` is in `training/train.py`.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.evaluation.options import EvalOptions
from neural_fields.open_runs.base import OpenRun
from neural_fields.open_runs.opening import RunLike, open_run
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.rendering import render_planar
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.retiming.timeline import parse_timing
from neural_fields.training.session import TrainResult


def describe_next_steps(result: TrainResult) -> list[str]:
    """Returns lines of text that tell a user what to do after a finished training."""
    path, name = result.run.path, shlex.quote(str(result.run.path))
    if isinstance(open_run(result.run), SceneRun):
        first = f"done: {result.step} steps. Look at {path / 'previews' / 'scene.png'}, then"
        return [first, f"  unwrap render {name} --what reconstruction --camera orbit"]
    first = f"done: {result.step} steps. Paint on a picture in {path / 'canonical'}, then"
    return [first, f"  unwrap edit {name} PAINTED.png --layer NAME && unwrap render {name}"]


def render(run: RunLike, options: RenderOptions | None = None, report: ProgressReporter = report_nothing) -> list[Path]:
    """Renders a run: the edited video, or the model's reconstruction of it.

    Args:
        run: an open run, its paths, or its folder.
        options: the options of `unwrap render`. Options for 3D scenes must keep their defaults for a video, and the
            other way round.
        report: called after each frame.

    Returns:
        The files written: one file, or one for each layer with `what="layers"`.

    Raises:
        UserError: an unknown edit, an option that the run does not support, or an output that exists (exit 3), no room
            (exit 4), or a damaged run (exit 5).

    Example:
        render("runs/car", RenderOptions(edits=("painted",), out=Path("painted.mp4")))
    """
    options, opened = options or RenderOptions(), open_run(run)
    if isinstance(opened, SceneRun):
        from neural_fields.rendering.render_volume import render_volume

        if parse_timing(options.speed, options.rate, options.freeze).changes_something:
            raise bad_input(
                "a 3D scene has no --speed, --rate or --freeze",
                where=str(opened.path),
                why="its frames are views, each at its own moment",
                fix="--time 20 shows one moment all along",
            )
        if options.frames is not None or options.start_number is not None:
            raise bad_input(
                "a 3D scene has no --frames or --start-number",
                where=str(opened.path),
                why="its frames are views, each at its own moment",
                fix="--time 20 shows one moment all along",
            )
        return render_volume(opened, options, report)
    if options.what == "depth" or options.what == "opacity":
        raise _volume_option_error(opened, f"--what {options.what}")
    if options.camera != "source":
        raise _volume_option_error(opened, f"--camera {options.camera}")
    if options.time is not None:
        raise _volume_option_error(opened, f"--time {options.time}")
    if options.pose is not None:
        raise _volume_option_error(opened, f"--pose {options.pose}")
    return render_planar.render(opened, options, report)


def _volume_option_error(run: OpenRun, flag: str) -> UserError:
    return bad_input(
        flag,
        where=str(run.path),
        why="the run has canonical pictures of a video, not a 3D scene with cameras and bones",
        fix="leave it out, or train on a 3D scene: unwrap train SCENE --config hosnerf",
    )


def evaluate(
    run: RunLike, options: EvalOptions | None = None, report: ProgressReporter = report_nothing
) -> dict[str, Any]:
    """Measures how well a run reproduces its source.

    Args:
        run: an open run, its paths, or its folder.
        options: the options of `unwrap eval`; they must keep their defaults for a 3D scene.
        report: called after each frame or view.

    Returns:
        The metrics as plain values: those of `unwrap eval RUN --json`.

    Raises:
        UserError: an option that the run does not support, a source that is gone or changed (exit 3), or a damaged run
            (exit 5).

    Example:
        evaluate("runs/car")["psnr"]
    """
    options, opened = options or EvalOptions(), open_run(run)
    if isinstance(opened, SceneRun):
        from neural_fields.evaluation.evaluate_volume import evaluate_volume

        for flag, value in {"--masks": options.masks, "--lpips": options.lpips, "--html": options.html}.items():
            if value:
                raise bad_input(
                    flag,
                    where=str(opened.path),
                    why="it is about the canonical pictures of a video, and the run is of a 3D scene",
                    fix=f"unwrap eval {opened.path} --json, and look at previews/scene.png",
                )
        return evaluate_volume(opened, report)
    from neural_fields.evaluation import evaluate_planar

    return evaluate_planar.evaluate(opened, options, report)

"""Opens runs: the only entry for commands, editors, exporters and scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neural_fields.config.presets import VOLUME_KIND
from neural_fields.core.errors import bad_input
from neural_fields.open_runs.base import OpenRun
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.runs.run import Run, read_run_yaml

RunLike = OpenRun | Run | Path | str  # an open run, the paths of one, or its folder


def open_run(run: RunLike, values: Mapping[str, Any] | None = None) -> OpenRun:
    """Opens a run.

    Args:
        run: its folder or its paths; an open run is returned unchanged.
        values: the content of its run.yaml, where that was read already.

    Returns:
        A `PlanarRun` for a video, a `SceneRun` for a 3D scene.

    Raises:
        UserError: the folder is missing or is not a run (exit 3), or its run.yaml was not written by this program
            (exit 5 or 7).

    Example:
        run = open_run("runs/bear")
        run.layers                       # ("foreground", "background")
        run.canonical("foreground").rgba
        run.read_frame(12)
        run.frame_to_canonical("foreground", 12, np.array([[100.5, 60.5]])).texels
    """
    if isinstance(run, OpenRun):
        return run
    files = run if isinstance(run, Run) else Run.open(run)
    values = read_run_yaml(files) if values is None else values
    return (SceneRun if values.get("kind") == VOLUME_KIND else PlanarRun)(files, values)


def require_planar(run: RunLike, what: str) -> PlanarRun:
    """Opens a run of a video; refuses a run of a 3D scene, which has no canonical pictures.

    Args:
        run: a run, as for `open_run`.
        what: the operation that needs canonical pictures, for the message.

    Returns:
        The open run.

    Raises:
        UserError: a run of a 3D scene (exit 3), and the errors of `open_run`.
    """
    found = open_run(run)
    if isinstance(found, PlanarRun):
        return found
    raise bad_input(
        f"{what} needs the canonical pictures of a video, and {found.path} is a 3D scene",
        where=str(found.files.run_yaml),
        why="its preset trains a background and a person in 3D, which are edited by tuning them",
        fix=f"unwrap edit {found.path} --editor dynvideo_e --prompt TEXT --model FOLDER",
    )


def require_scene(run: RunLike, what: str) -> SceneRun:
    """Opens a run of a 3D scene; refuses a run of a video.

    Args:
        run: a run, as for `open_run`.
        what: the operation that needs a 3D scene, for the message.

    Returns:
        The open run.

    Raises:
        UserError: a run of a video (exit 3), and the errors of `open_run`.
    """
    found = open_run(run)
    if isinstance(found, SceneRun):
        return found
    raise bad_input(
        f"{what} needs a 3D scene, and {found.path} is of a video",
        where=str(found.files.run_yaml),
        why="the run has canonical pictures of a video",
        fix="unwrap train SCENE --config hosnerf",
    )

"""Planar run or 3D scene."""

from __future__ import annotations

from neural_fields.config.volume import VOLUME_KIND
from neural_fields.core.errors import bad_input
from neural_fields.runs.run import Run, read_run_yaml


def is_volume_run(run: Run) -> bool:
    """Says whether a run is of a 3D scene.

    Raises:
        UserError: as `read_run_yaml`.
    """
    return read_run_yaml(run).get("kind") == VOLUME_KIND


def require_planar(run: Run, what: str) -> None:
    """Refuses the run of a 3D scene where a layered atlas is needed.

    Raises:
        UserError: the run is of a 3D scene (exit 3).
    """
    if is_volume_run(run):
        raise bad_input(
            f"{what} needs the canonical images of a video, and {run.path} is a 3D scene",
            where=str(run.run_yaml),
            why="its preset trains a background and a person in 3D, which are edited by tuning them",
            fix=f"unwrap edit {run.path} --editor dynvideo_e --prompt TEXT --model FOLDER",
        )

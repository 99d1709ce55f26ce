"""The record of a planar training in run.yaml, checked when it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neural_fields.config.loader import from_mapping
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import sha256_file
from neural_fields.data.video.image_sequence import hash_images, list_images
from neural_fields.planar.config import PlanarConfig
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class PlanarRecord:
    """Holds the source and the settings of a training: the content of run.yaml, except for schema and version.

    Attributes:
        video: the source; where it was found, if the run was moved with it.
        video_from_run: its path relative to the run.
        sha256: of the source, in hexadecimal.
        frames: those of the source that were used.
        size: (width, height) of the frames in training, pixels.
        preset, quality, masks, flow: as given to `unwrap train`.
        config: all settings.
        roi: the region of interest as a text; None without one.
        seed: of the random numbers.
        threads: of the processor that the training used.
    """

    video: Path
    sha256: str
    frames: range
    size: tuple[int, int]
    preset: str
    quality: str
    masks: tuple[str, ...]
    flow: str
    config: PlanarConfig
    roi: str | None = None
    seed: int = 0
    threads: int = 1
    video_from_run: str = ""

    def __post_init__(self) -> None:
        if not len(self.frames) or min(self.size) < 1:
            raise ValueError(f"frames {self.frames.start}:{self.frames.stop} or size {self.size} is empty")


def parse_planar_record(run: Run, values: Mapping[str, Any]) -> PlanarRecord:
    """Parses what run.yaml holds.

    Args:
        run: whose run.yaml it is; errors name it.
        values: of run.yaml.

    Raises:
        UserError: it is not what `unwrap train` writes (exit 5).
    """
    try:
        record = from_mapping(PlanarRecord, {key: values[key] for key in values if key not in ("schema", "version")})
        return replace(record, video=find_source_video(run, record))
    except UserError as error:
        why = f"{error.what} ({error.why})" if error.why else error.what
        fix = f"restore {run.run_yaml} from a copy, or start another run with unwrap train --out"
        raise UserError(
            ExitCode.DAMAGED_RUN, "run.yaml is damaged", where=str(run.run_yaml), why=why, fix=fix
        ) from error


def find_source_video(run: Run, record: PlanarRecord) -> Path:
    """Finds the video of a run: where it was, or where it has gone with the run, if its content is the same.

    Args:
        run: the run.
        record: with the path that was written.

    Returns:
        The path; the written one if no such video is found.
    """
    if record.video.exists():
        return record.video
    name = record.video.name
    for path in (run.path / record.video_from_run, run.path / name, run.path.parent / name):
        path = Path(os.path.abspath(path))
        if record.video_from_run and path.exists() and path != run.path.absolute():
            with suppress(UserError, OSError):
                if (hash_images(list_images(path)) if path.is_dir() else sha256_file(path)) == record.sha256:
                    return path
    return record.video


def require_source_video(run: Run, record: PlanarRecord) -> Path:
    """Returns the path of the source video of a run.

    Raises:
        UserError: it is not there any more (exit 3).
    """
    if not record.video.exists():
        raise bad_input(
            f"the source video {record.video.name} is not there any more",
            where=str(record.video),
            why="a run refers to its source and does not copy it; an edit is put onto the source itself. The same file "
            "was looked for beside the run, and where it was as seen from the run",
            fix=f"put it back, or beside {run.path}, or change 'video' in {run.run_yaml}",
        )
    return record.video

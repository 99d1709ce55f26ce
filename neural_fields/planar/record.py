"""The record of a planar training in run.yaml, checked when it is read; its config is in `recorded_config.py`."""

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
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class PlanarRecord:
    """Holds the source and the options of a training: the content of run.yaml, except for schema, version and config.

    Attributes:
        video: the source; where it was found, if the run was moved with it.
        video_from_run: its path relative to the run.
        sha256: of the source, in hexadecimal.
        frames: those of the source that were used.
        size: (width, height) of the frames in training, pixels.
        canonical_size: (width, height) of frames whose resolution canonical pictures have; None: that of the training.
        preset, quality, masks, flow: as given to `unwrap train`.
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
    roi: str | None = None
    seed: int = 0
    threads: int = 1
    video_from_run: str = ""
    canonical_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not len(self.frames) or min(self.size) < 1:
            raise ValueError(f"frames {self.frames.start}:{self.frames.stop} or size {self.size} is empty")


def parse_planar_record(run: Run, values: Mapping[str, Any]) -> PlanarRecord:
    """Parses what run.yaml holds, except for the config.

    Args:
        run: whose run.yaml it is; errors name it.
        values: of run.yaml.

    Raises:
        UserError: it is not what `unwrap train` writes (exit 5).
    """
    others = ("schema", "version", "config")
    try:
        record = from_mapping(PlanarRecord, {key: values[key] for key in values if key not in others})
        return replace(record, video=find_source_video(run, record))
    except UserError as error:
        raise damaged_record_error(run, error) from error


def damaged_record_error(run: Run, cause: UserError) -> UserError:
    """Makes the error for a run.yaml that `unwrap train` did not write (exit 5).

    Args:
        run: the run.
        cause: what is wrong with a value.
    """
    why = f"{cause.what} ({cause.why})" if cause.why else cause.what
    fix = f"restore {run.run_yaml} from a copy, or start another run with unwrap train --out"
    return UserError(ExitCode.DAMAGED_RUN, "run.yaml is damaged", where=str(run.run_yaml), why=why, fix=fix)


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
    from neural_fields.data.video.image_sequence import hash_images, list_images

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

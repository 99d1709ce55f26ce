"""The record of a planar training in run.yaml, checked when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_fields.config.loader import from_mapping
from neural_fields.config.planar import PlanarConfig
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.runs.run import Run, read_run_yaml


@dataclass(frozen=True)
class PlanarRecord:
    """What a run was trained on, and how."""

    video: Path
    sha256: str
    frames: range  # of the source that were used
    size: tuple[int, int]  # (width, height) of the frames in training, pixels
    preset: str
    quality: str
    masks: tuple[str, ...]
    flow: str
    config: PlanarConfig


def read_planar_record(run: Run) -> PlanarRecord:
    """Reads the record of a run.

    Raises:
        UserError: run.yaml is missing, or does not hold what `unwrap train` writes (exit 5), or is unsafe (7).
    """
    values = read_run_yaml(run)
    texts = {}
    for name in ("video", "sha256", "frames", "preset", "quality", "flow"):
        texts[name] = _require_type(run, values, name, str)
    masks, size = _require_type(run, values, "masks", list), _require_type(run, values, "size", list)
    try:
        start, stop, step = (int(part) for part in texts["frames"].split(":"))
        frames = range(start, stop, step)
        width, height = (int(side) for side in size)
    except (ValueError, TypeError) as error:
        raise _damaged_error(run, f"frames {texts['frames']!r} and size {size!r} are not a range and a size") from error
    if not len(frames) or min(width, height, start + 1) < 1:
        raise _damaged_error(run, f"frames {texts['frames']!r} or size {size!r} is empty")
    config = _require_type(run, values, "config", dict)
    try:
        settings = from_mapping(PlanarConfig, config, where=str(run.run_yaml))
    except UserError as error:
        raise _damaged_error(run, error.what) from error
    return PlanarRecord(
        video=Path(texts["video"]),
        sha256=texts["sha256"],
        frames=frames,
        size=(width, height),
        preset=texts["preset"],
        quality=texts["quality"],
        masks=tuple(map(str, masks)),
        flow=texts["flow"],
        config=settings,
    )


def require_source_video(run: Run, record: PlanarRecord) -> Path:
    """Returns the path of the source video of a run.

    Raises:
        UserError: it is not there any more (exit 3).
    """
    if not record.video.exists():
        raise bad_input(
            f"the source video {record.video.name} is not there any more",
            where=str(record.video),
            why="a run refers to its source and does not copy it; an edit is put onto the source itself",
            fix=f"put it back, or change 'video' in {run.run_yaml}",
        )
    return record.video


def _require_type(run: Run, values: dict[str, Any], name: str, kind: type) -> Any:
    """Returns the value called `name`; raises `UserError` (exit 5) if it is missing or not of type `kind`."""
    if not isinstance(values.get(name), kind):
        raise _damaged_error(run, f"{name} is {values.get(name)!r}, expected a {kind.__name__}")
    return values[name]


def _damaged_error(run: Run, why: str) -> UserError:
    return UserError(
        ExitCode.DAMAGED_RUN,
        "run.yaml is damaged",
        where=str(run.run_yaml),
        why=why,
        fix=f"restore {run.run_yaml} from a copy, or start another run with unwrap train --out",
    )

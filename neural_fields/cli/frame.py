"""`unwrap frame RUN K`: a frame of the video as a picture to paint on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from neural_fields.cli import commands as base
from neural_fields.config.flags import OverwriteFlag
from neural_fields.core.errors import ExitCode


@dataclass(frozen=True)
class FrameCommand:
    """Write a frame of the video as a picture to paint on, exactly as it is; its number is kept in the file."""

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap frame runs/clip 12",
        "unwrap frame runs/clip 12 -o painted.png",
        "unwrap edit runs/clip painted.png",
    )
    run: Positional[Path]
    """The run's folder."""
    frame: Positional[int]
    """Number of the frame in the source."""
    out: Annotated[Path | None, arg(metavar="FILE", aliases=["-o"])] = None
    """The PNG file (default: frame-00012.png in the current folder)."""
    overwrite: OverwriteFlag = False
    """Replace an existing file."""
    json: bool = False
    """Print one JSON object."""


def run_frame(command: FrameCommand, extra: list[str]) -> int:
    """Runs `unwrap frame` and returns the exit status."""
    base.refuse_overrides(extra, command)
    from neural_fields.export.pictures.frame_picture import write_frame_picture
    from neural_fields.open_runs.opening import open_run, require_planar

    run = require_planar(open_run(command.run), "a frame to paint on")
    made = write_frame_picture(run, command.frame, command.out, command.overwrite)
    if command.json:
        base.print_json({"file": made.path, "frame": made.frame, "size": list(made.size), "source_sha256": made.sha256})
        return ExitCode.OK
    print(made.path)
    base.print_message(f"paint on it, save it under its name, then: unwrap edit {command.run} {made.path}")
    return ExitCode.OK

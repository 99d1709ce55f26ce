"""`unwrap capture`: videos with cameras become a scene folder for the 3D route."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from neural_fields.cli import commands as base
from neural_fields.cli.progress_display import show_progress
from neural_fields.core.errors import ExitCode
from neural_fields.data.capture.options import STAGE_WEIGHTS, CaptureBuildOptions


@dataclass(frozen=True)
class CaptureCommand:
    """Make the scene folder of a 3D scene from videos and their cameras, for `unwrap train --config hosnerf`."""

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap capture scene clip.mp4 --cameras transforms.json --bones walk.bvh",
        "unwrap capture scene left.mp4 right.mp4 --cameras rig.toml --joints walk.trc --joints-axes zxy",
        "unwrap capture scene clip.mp4 --cameras colmap/ --bones bones.json --masks masks/person",
    )
    out: Positional[Path]
    """The folder to make."""
    video: Positional[Annotated[tuple[Path, ...], arg(metavar="VIDEO ...")]]
    """Video files or folders of numbered images; several were filmed at the same time."""
    options: Annotated[CaptureBuildOptions, arg(name="")]
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


def run_capture(command: CaptureCommand, extra: list[str]) -> int:
    """Runs `unwrap capture` and returns the exit status."""
    base.refuse_overrides(extra, command)
    from neural_fields.data.capture.build import build_capture

    with show_progress(STAGE_WEIGHTS, as_json=command.json) as report:
        built = build_capture(command.out, command.video, command.options, report)
    for note in built.notes:
        base.print_message(f"note: {note}")
    if command.json:
        base.print_json(
            {
                "scene": built.folder,
                "views": built.views,
                "moments": built.moments,
                "size": list(built.size),
                "notes": list(built.notes),
            }
        )
    else:
        print(built.folder)
        base.print_message(f"{built.views} views of {built.moments} moments, {built.size[0]}x{built.size[1]}. Next:")
        base.print_message(f"  unwrap train {shlex.quote(str(built.folder))} --config hosnerf")
    return ExitCode.OK

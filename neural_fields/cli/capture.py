"""`unwrap capture`: videos with cameras become a scene folder for the 3D route."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from neural_fields.cli import commands as base
from neural_fields.core.errors import ExitCode
from neural_fields.core.threads import prepare_threads


@dataclass(frozen=True)
class CaptureCommand:
    """Make a scene folder from videos and their cameras, which `unwrap train OUT --config hosnerf` reads."""

    out: Positional[Path]
    """The folder to make."""
    video: Positional[Annotated[tuple[Path, ...], arg(metavar="VIDEO ...")]]
    """Video files or folders of numbered images; several were filmed at the same time."""
    cameras: Path
    """A calibration (.toml), a transforms.json, or the folder of a COLMAP model."""
    bones: Path | None = None
    """Where the person's bones are in every frame: bones.json or .bvh."""
    joints: Path | None = None
    """Tracked joints of the person: .trc."""
    joints_axes: str = "xyz"
    """Order of the world's axes in a .trc or .bvh: zxy for a file with y up and cameras with z up."""
    joints_scale: float = 1.0
    """World units for one of the file's: 0.01 for a .bvh in centimeters and cameras in meters."""
    masks: UseAppendAction[tuple[str, ...]] = ()
    """auto (the default), none, or a path for each video: where the person and what they carry are."""
    frames: str | None = None
    """Frames to use of every video: A:B or A:B:STEP."""
    size: str = "480p"
    """Size of the pictures: 240p, 480p, Np, WxH or source. Never enlarges."""
    states: Path | None = None
    """A states.json: the frames at which what is carried changes."""
    pose_model: Path | None = None
    """A folder of pose networks (.tflite): joints from two or more cameras, or masks from one."""
    json: bool = False
    """Print one JSON object."""


def run_capture(command: CaptureCommand, extra: list[str]) -> int:
    """Runs `unwrap capture` and returns the exit status."""
    base.refuse_overrides(extra, command)
    prepare_threads()
    from neural_fields.data.capture.build import CaptureBuildOptions, build_capture

    options = CaptureBuildOptions(
        cameras=command.cameras,
        bones=command.bones,
        joints=command.joints,
        axes=command.joints_axes,
        scale=command.joints_scale,
        masks=command.masks or ("auto",),
        frames=command.frames,
        size=command.size,
        states=command.states,
        pose_model=command.pose_model,
    )
    built = build_capture(command.out, command.video, options, base.LiveLine())
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

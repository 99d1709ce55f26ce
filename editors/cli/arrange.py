"""The arrangement of an edit on the command line: flags of `unwrap edit`, and `unwrap arrange`.

An arrangement is the opacity, the blend mode, the timing, and the place in the stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from neural_fields.cli import commands as base
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.threads import prepare_threads

if TYPE_CHECKING:
    from neural_fields.edits.arrangement import Arrangement
    from neural_fields.open_runs.base import OpenRun

Blend = Literal[
    "normal", "multiply", "screen", "overlay", "soft_light", "darken", "lighten", "add", "color", "luminosity"
]


@dataclass(frozen=True, kw_only=True)
class ArrangementOptions:
    """Holds the arrangement of an edit; each command that adds an edit has these flags."""

    opacity: float | None = None
    """Opacity of the edit, 0 to 1 (default: 1)."""
    blend: Blend | None = None
    """Blend mode of the edit with the picture below (default: normal)."""
    start: str | None = None
    """First frame that shows the edit: a number, or seconds such as 1.5s (default: from the beginning)."""
    end: str | None = None
    """Last frame that shows the edit (default: to the end)."""
    fade_in: str | None = None
    """Length of the fade after the start, in frames, or in seconds such as 0.5s."""
    fade_out: str | None = None
    """Length of the fade before the end, in frames, or in seconds such as 0.5s."""


@dataclass(frozen=True, kw_only=True)
class ArrangeCommand(ArrangementOptions):
    """Change an edit's opacity, blend mode, timing or place in the stack. `unwrap undo` undoes the change."""

    run: Positional[Path]
    """The run's folder."""
    edit: Positional[str]
    """Name or number of the edit."""
    always: bool = False
    """Remove start, end and fades."""
    above: str | None = None
    """Move it directly above this edit."""
    below: str | None = None
    """Move it directly below this edit."""
    top: bool = False
    """Move it to the top of the stack."""
    bottom: bool = False
    """Move it to the bottom of the stack."""


def read_arrangement_values(command: ArrangementOptions, run: OpenRun) -> dict[str, Any]:
    """Reads the values that were given, by the field names of `Arrangement`.

    Args:
        command: the flags.
        run: the open run, for timecodes.

    Raises:
        UserError: a timecode that cannot be read, or is outside of the video (exit 3).
    """
    found: dict[str, Any] = {name: getattr(command, name) for name in ("opacity", "blend")}
    if any(getattr(command, name) is not None for name in ("start", "end", "fade_in", "fade_out")):
        from neural_fields.data.video.timecode import parse_frame, parse_frame_count
        from neural_fields.open_runs.opening import require_planar

        metadata = require_planar(run, "an edit with a place in time").metadata
        for name in ("start", "end"):
            text = getattr(command, name)
            found[name] = None if text is None else parse_frame(text, metadata, f"--{name}")
        for name in ("fade_in", "fade_out"):
            text = getattr(command, name)
            found[name] = None if text is None else parse_frame_count(text, metadata, "--" + name.replace("_", "-"))
    return {name: value for name, value in found.items() if value is not None}


def read_arrangement(command: ArrangementOptions, run: OpenRun) -> Arrangement:
    """Reads the arrangement of a new edit.

    Args:
        command: the flags.
        run: the open run, for timecodes.

    Raises:
        UserError: invalid values (exit 3).
    """
    from neural_fields.config.loader import from_mapping
    from neural_fields.edits.arrangement import Arrangement

    values = read_arrangement_values(command, run)
    try:
        return from_mapping(Arrangement, values)
    except UserError as problem:
        raise bad_input(f"the edit cannot be arranged so: {problem.what}", fix="--start 24 --fade-in 12") from None


def run_arrange(command: ArrangeCommand, extra: list[str]) -> int:
    """Runs `unwrap arrange`."""
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.core.stack import arrange_edit
    from neural_fields.open_runs.opening import open_run
    from neural_fields.runs.locking import lock_run

    run = open_run(command.run)
    named = {name: getattr(command, name) for name in ("above", "below", "top", "bottom")}
    moves = [(name, value if isinstance(value, str) else "") for name, value in named.items() if value]
    if len(moves) > 1:
        where = " and ".join(f"--{name}" for name, _ in moves)
        raise UserError(ExitCode.USAGE, f"{where} at once", why="an edit has one place in the stack", fix="--top")
    values = read_arrangement_values(command, run)
    if command.always:
        values = {"start": None, "end": None, "fade_in": 0, "fade_out": 0} | values
    with lock_run(run.files):
        found = arrange_edit(run.files, command.edit, values, moves[0] if moves else None)
    print(f"{found.folder.name}  {describe_arrangement(found.arrangement)}")
    return ExitCode.OK


def describe_arrangement(arrangement: Arrangement) -> str:
    """Describes an arrangement in a few words; returns an empty text for the default arrangement."""
    parts = []
    if arrangement.opacity != 1:
        parts.append(f"{arrangement.opacity:.0%}")
    if arrangement.blend != "normal":
        parts.append(arrangement.blend)
    if arrangement.changes_in_time:
        start = "" if arrangement.start is None else arrangement.start
        end = "" if arrangement.end is None else arrangement.end
        parts.append(f"frames {start}-{end}")
    if arrangement.fade_in or arrangement.fade_out:
        parts.append(f"fades {arrangement.fade_in}, {arrangement.fade_out}")
    return ", ".join(parts)

"""The arrangement of an edit on the command line: flags of `unwrap edit`, and `unwrap arrange`.

It is the opacity, the blend mode, the time, and the place in the stack.
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
    from neural_fields.runs.run import Run

Blend = Literal[
    "normal", "multiply", "screen", "overlay", "soft_light", "darken", "lighten", "add", "color", "luminosity"
]


@dataclass(frozen=True, kw_only=True)
class ArrangementOptions:
    """The arrangement of an edit; each command that adds an edit has these flags."""

    opacity: float | None = None
    """How strongly it shows, 0 to 1 (default: 1)."""
    blend: Blend | None = None
    """How paint and what is under it mix (default: normal)."""
    start: str | None = None
    """The first frame that shows it: a number, or seconds such as 1.5s (default: from the beginning)."""
    end: str | None = None
    """The last frame that shows it (default: to the end)."""
    fade_in: str | None = None
    """Frames, or seconds, over which it comes after its start."""
    fade_out: str | None = None
    """Frames, or seconds, over which it goes before its end."""


@dataclass(frozen=True, kw_only=True)
class ArrangeCommand(ArrangementOptions):
    """Change the arrangement of an edit: opacity, blend mode, time, place in the stack. `unwrap undo` takes it back."""

    run: Positional[Path]
    """The run's folder."""
    edit: Positional[str]
    """Name or number of the edit."""
    always: bool = False
    """Forget start, end and fades."""
    above: str | None = None
    """Put it right above another edit."""
    below: str | None = None
    """Put it right below another edit."""
    top: bool = False
    """Put it above all others."""
    bottom: bool = False
    """Put it below all others."""


def read_arrangement_values(command: ArrangementOptions, run: Run) -> dict[str, Any]:
    """Reads the values that were given, as those of an `Arrangement`.

    Raises:
        UserError: a timecode that cannot be read, or is outside of the video (exit 3).
    """
    found: dict[str, Any] = {name: getattr(command, name) for name in ("opacity", "blend")}
    if any(getattr(command, name) is not None for name in ("start", "end", "fade_in", "fade_out")):
        from neural_fields.data.video.timecode import parse_frame, parse_frame_count
        from neural_fields.runs.kind import require_planar
        from neural_fields.runs.source import read_source_metadata

        require_planar(run, "an edit with a place in time")
        metadata, _ = read_source_metadata(run)
        for name in ("start", "end"):
            text = getattr(command, name)
            found[name] = None if text is None else parse_frame(text, metadata, f"--{name}")
        for name in ("fade_in", "fade_out"):
            text = getattr(command, name)
            found[name] = None if text is None else parse_frame_count(text, metadata, "--" + name.replace("_", "-"))
    return {name: value for name, value in found.items() if value is not None}


def read_arrangement(command: ArrangementOptions, run: Run) -> Arrangement:
    """Reads the arrangement of a new edit.

    Raises:
        UserError: values that cannot be (exit 3).
    """
    from neural_fields.edits.arrangement import Arrangement

    try:
        return Arrangement().replace_values(read_arrangement_values(command, run))
    except ValueError as problem:
        raise bad_input(f"the edit cannot be arranged so: {problem}", fix="--start 24 --fade-in 12") from None


def run_arrange(command: ArrangeCommand, extra: list[str]) -> int:
    """`unwrap arrange`."""
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.core.stack import arrange_edit
    from neural_fields.runs.locking import lock_run
    from neural_fields.runs.run import Run

    run = Run.open(command.run)
    named = {name: getattr(command, name) for name in ("above", "below", "top", "bottom")}
    moves = [(name, value if isinstance(value, str) else "") for name, value in named.items() if value]
    if len(moves) > 1:
        where = " and ".join(f"--{name}" for name, _ in moves)
        raise UserError(ExitCode.USAGE, f"{where} at once", why="an edit has one place in the stack", fix="--top")
    values = read_arrangement_values(command, run)
    if command.always:
        values = {"start": None, "end": None, "fade_in": 0, "fade_out": 0} | values
    with lock_run(run):
        found = arrange_edit(run, command.edit, values, moves[0] if moves else None)
    print(f"{found.folder.name}  {describe_arrangement(found.arrangement)}")
    return ExitCode.OK


def describe_arrangement(arrangement: Arrangement) -> str:
    """Describes an arrangement in a few words; empty for an edit that is shown plainly, fully and always."""
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

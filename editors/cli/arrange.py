"""The arrangement of an edit on the command line: flags of `unwrap edit`, and `unwrap arrange`.

An arrangement is the opacity, the blend mode, the timing, and the place in the stack.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import Positional

from neural_fields.cli import commands as base
from neural_fields.config.loader import load_json
from neural_fields.config.presets import VOLUME_KIND
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.imaging.blend_names import BlendMode
from neural_fields.runs.run import Run, read_run_yaml

if TYPE_CHECKING:
    from neural_fields.edits.arrangement import Arrangement
    from neural_fields.edits.read_stack import Edit


@dataclass(frozen=True, kw_only=True)
class ArrangementOptions:
    """Holds the arrangement of an edit; each command that adds an edit has these flags."""

    opacity: float | None = None
    """Opacity of the edit, 0 to 1 (default: 1)."""
    blend: BlendMode | None = None
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

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap arrange runs/clip logo --opacity 0.5 --blend multiply",
        "unwrap arrange runs/clip logo --start 24 --end 3s --fade-in 12",
        "unwrap arrange runs/clip logo --above title",
    )
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
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        """Refuses several places at once.

        Raises:
            UserError: see above (exit 2).
        """
        if len(self.moves) > 1:
            where = " and ".join(f"--{name}" for name, _ in self.moves)
            raise UserError(ExitCode.USAGE, f"{where} at once", why="an edit has one place in the stack", fix="--top")

    @property
    def moves(self) -> list[tuple[str, str]]:
        """The new places in the stack: a way, and the name of another edit where it needs one."""
        named = {name: getattr(self, name) for name in ("above", "below", "top", "bottom")}
        return [(name, value if isinstance(value, str) else "") for name, value in named.items() if value]


def read_arrangement_values(command: ArrangementOptions, run: Run) -> dict[str, Any]:
    """Reads the values that were given, by the field names of `Arrangement`.

    Args:
        command: the flags.
        run: the run, for timecodes.

    Raises:
        UserError: a timecode that cannot be read, or is outside of the video (exit 3).
    """
    found: dict[str, Any] = {name: getattr(command, name) for name in ("opacity", "blend")}
    if any(getattr(command, name) is not None for name in ("start", "end", "fade_in", "fade_out")):
        from neural_fields.data.video.metadata import VideoMetadata
        from neural_fields.data.video.timecode import parse_frame, parse_frame_count

        if read_run_yaml(run).get("kind") == VOLUME_KIND:
            raise bad_input(
                "an edit of a 3D scene cannot be arranged in time",
                where=str(run.path),
                fix="leave out --start, --end and fades",
            )
        metadata = load_json(VideoMetadata, run.source_json, "run unwrap train again with the same --out")
        for name in ("start", "end"):
            text = getattr(command, name)
            found[name] = None if text is None else parse_frame(text, metadata, f"--{name}")
        for name in ("fade_in", "fade_out"):
            text = getattr(command, name)
            found[name] = None if text is None else parse_frame_count(text, metadata, "--" + name.replace("_", "-"))
    return {name: value for name, value in found.items() if value is not None}


def read_arrangement(command: ArrangementOptions, run: Run) -> Arrangement:
    """Reads the arrangement of a new edit.

    Args:
        command: the flags.
        run: the run, for timecodes.

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
    from editors.core.history import arrange_edit
    from neural_fields.runs.locking import MAX_WAIT_S, lock_run

    run = Run.open(command.run)
    values = read_arrangement_values(command, run)
    if command.always:
        values = {"start": None, "end": None, "fade_in": 0, "fade_out": 0} | values
    with lock_run(run, MAX_WAIT_S):
        found = arrange_edit(run, command.edit, values, command.moves[0] if command.moves else None)
    if command.json:
        from neural_fields.config.loader import to_mapping

        base.print_json({"edit": found.folder.name, **to_mapping(found.arrangement)})
    else:
        print(f"{found.folder.name}  {describe_arrangement(found.arrangement)}")
    return ExitCode.OK


def describe_arrangement(arrangement: Arrangement) -> str:
    """Describes an arrangement in a few words; returns an empty text for the default arrangement."""
    parts = []
    if arrangement.opacity != 1:
        parts.append(f"{arrangement.opacity:.0%}")
    if arrangement.blend != "normal":
        parts.append(arrangement.blend)
    parts.append(describe_times(arrangement))
    parts.append(describe_fades(arrangement))
    return ", ".join(part for part in parts if part)


def describe_times(arrangement: Arrangement) -> str:
    """Describes which frames show an edit; returns an empty text for all frames."""
    start, end = arrangement.start, arrangement.end
    if start is None and end is None:
        return ""
    if end is None:
        return f"from frame {start}"
    return f"until frame {end}" if start is None else f"frames {start} to {end}"


def describe_fades(arrangement: Arrangement) -> str:
    """Describes the fades of an edit; returns an empty text for none."""
    fades = {"fade in": arrangement.fade_in, "fade out": arrangement.fade_out}
    return ", ".join(f"{name} {length}" for name, length in fades.items() if length)


def format_edits(edits: Sequence[Edit]) -> str:
    """Formats the edits of a run as a table, one a line, in their order: the lowest first.

    Args:
        edits: the edits, as `list_edits` gives them.
    """
    rows = [("#", "name", "editor", "layers", "frames", "fades", "opacity", "blend", "state", "made from")]
    for edit in edits:
        origin, arrangement = edit.record.origin, edit.arrangement
        texts = [str(origin.settings[name]) for name in ("prompt", "text") if origin.settings.get(name)]
        made_from = texts[0] if texts else ", ".join(source.file for source in origin.sources)
        rows.append(
            (
                str(edit.number),
                edit.name,
                origin.editor or "",
                ", ".join(edit.layers),
                describe_times(arrangement).removeprefix("frames ") or "all",
                describe_fades(arrangement).replace("fade ", ""),
                f"{arrangement.opacity:.0%}",
                arrangement.blend,
                "shown" if edit.active else "undone",
                " ".join(made_from.split())[:40],
            )
        )

    def width(text: str) -> int:
        """Measures a text in columns of a terminal, where Chinese letters take two."""
        return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)

    columns = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text + " " * (most - width(text)) for text, most in zip(row, columns, strict=True)).rstrip()
        for row in rows
    )

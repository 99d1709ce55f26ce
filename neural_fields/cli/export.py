"""`unwrap export RUN WHAT`: each name leads to a class whose fields are the command's flags."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from tyro.conf import Positional

from neural_fields.cli import commands as base
from neural_fields.cli.progress_display import show_progress
from neural_fields.core.class_paths import import_class, read_docstring
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word
from neural_fields.export.options import ExportOptions

EXPORTS = {
    "canonical": "neural_fields.export.pictures.canonical.CanonicalExporter",
    "stmap": "neural_fields.export.maps.stmap.STMapExporter",
    "matte": "neural_fields.export.pictures.mattes.MatteExporter",
    "layers": "neural_fields.export.pictures.mattes.LayersExporter",
    "unwrapped": "neural_fields.export.pictures.unwrapped.UnwrappedExporter",
    "tracks": "neural_fields.export.tracks.tracks.TracksExporter",
    "labels": "neural_fields.export.tracks.labels.LabelsExporter",
}


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write files for other programs: canonical, stmap, matte, layers, unwrapped, tracks or labels.

    The settings of each: `unwrap export RUN WHAT --help`.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap export runs/clip canonical --format psd",
        "unwrap export runs/clip stmap --for nuke",
        "unwrap export runs/clip matte --layer foreground --format prores4444",
        "unwrap export runs/clip layers --format exr",
        "unwrap export runs/clip unwrapped --layer foreground",
        'unwrap export runs/clip tracks --frame 12 --point "340,200" --point "410,180"',
        "unwrap export runs/clip labels --frame 12 --labels classes.png",
    )
    run: Positional[Path]
    """The run's folder."""
    what: Positional[str]
    """canonical, stmap, matte, layers, unwrapped, tracks or labels."""
    options: Annotated[ExportOptions, tyro.conf.arg(name="")]
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


def make_export_command(words: Sequence[str]) -> type | None:
    """Makes the command class with the settings of the export that a command line names; None where none is named.

    Raises:
        UserError: there is no such export (exit 2).
    """
    plain = [word for word in words[1:3] if not word.startswith("-")]
    if len(plain) < 2:
        return None
    require_export(plain[1])
    from neural_fields.export.exporter_options import OPTIONS

    kind = OPTIONS.get(plain[1]) or find_export_class(plain[1])
    settings: Any = Annotated[kind, tyro.conf.arg(name="")]
    made = make_dataclass(
        ExportCommand.__name__, [("settings", settings)], bases=(ExportCommand,), frozen=True, kw_only=True
    )
    made.__doc__ = read_docstring(EXPORTS[plain[1]])
    made.line = f"unwrap export RUN {plain[1]}"  # type: ignore[attr-defined]
    made.examples = tuple(line for line in made.examples if line.split()[3] == plain[1])  # type: ignore[attr-defined]
    return made


def require_run_first(words: Sequence[str]) -> None:
    """Refuses a line that names what to export before the run.

    Args:
        words: of the line, from "export" on.

    Raises:
        UserError: the order is wrong (exit 2).
    """
    plain = [word for word in words[1:3] if not word.startswith("-")]
    if plain and plain[0] in EXPORTS and not Path(plain[0]).exists():
        run = shlex.quote(plain[1]) if len(plain) > 1 and plain[1] not in EXPORTS else "RUN"
        raise UserError(
            ExitCode.USAGE,
            f"there is no run {plain[0]}",
            where="unwrap export",
            why="the run comes first, then what to export",
            fix=f"unwrap export {run} {plain[0]}",
        )


def require_export(name: str) -> None:
    """Refuses the name of an export that does not exist.

    Raises:
        UserError: there is no such export (exit 2).
    """
    if name not in EXPORTS:
        guess = nearest_word(name, EXPORTS)
        raise UserError(
            ExitCode.USAGE,
            f"there is no export {name!r}",
            why=f"did you mean {guess}?" if guess else f"there are: {', '.join(EXPORTS)}",
            fix=f"unwrap export RUN {guess or 'stmap'} --help",
        )


def find_export_class(name: str) -> type:
    """Returns the class of an export.

    Raises:
        UserError: there is no such export (exit 2).
    """
    require_export(name)
    return import_class(EXPORTS[name])


def run_export(command: Any, extra: list[str]) -> int:
    """Runs `unwrap export` and returns the exit status."""
    base.refuse_overrides(extra, command)
    with show_progress(as_json=command.json) as report:
        from neural_fields.export.base import export_run  # takes seconds, which are shown

        exporter = find_export_class(command.what)(**vars(command.settings))
        found = export_run(command.run, exporter, command.options, report)
    for note in found.notes:
        base.print_message(f"note: {note}")
    if command.json:
        files = [str(path) for path in found.paths]
        base.print_json({"folder": str(found.folder), "files": files, "notes": list(found.notes)})
    else:
        base.print_message(f"{len(found.paths)} files, in:")
        print(found.folder)
    return ExitCode.OK

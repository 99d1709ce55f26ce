"""`unwrap`: all commands in one program. The editing ones are here, the others in `neural_fields.cli.commands`."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction

from editors.cli.arrange import ArrangeCommand, ArrangementOptions, describe_arrangement, read_arrangement, run_arrange
from editors.cli.editors import EditByEditorCommand, check_edit_command, make_editor_command
from editors.cli.watch import WatchCommand, run_watch
from editors.evaluation_options import EditEvalOptions
from neural_fields.cli import capture, export, mask
from neural_fields.cli import commands as base
from neural_fields.cli.progress_display import show_progress
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word
from neural_fields.core.threads import prepare_threads
from neural_fields.masking.hints import split_hint_words

if TYPE_CHECKING:
    from editors.api import EditResult
    from editors.core.stack import StackChange


@dataclass(frozen=True, kw_only=True)
class EditCommand(ArrangementOptions):
    """Add an edit: a painted canonical picture (--layer), painted frames (--frame), or one made by an editor.

    `unwrap edit RUN --editor NAME --help` shows the settings of an editor.
    """

    run: Positional[Path]
    """The run's folder."""
    images: Positional[tuple[Path, ...]] = ()
    """The picture, in any common format; several with as many --frame; or an .ora or .psd that was exported."""
    layer: str | None = None
    """The layer whose canonical picture was painted; with --frame, the layer that takes the change."""
    frame: UseAppendAction[tuple[int, ...]] = ()
    """Number of the painted frame in the source. Once for each picture."""
    frames: Path | None = None
    """Instead of pictures: a folder or video of frames that another program edited, to be made consistent."""
    strength: float = 1.0
    """With --frames: how much of the edit is shown, above 0 and at most 1."""
    unwrapped: Path | None = None
    """Instead of pictures: an edited version of the clip that unwrap export RUN unwrapped wrote."""
    upscaled: bool = False
    """The picture is an enlarged canonical picture that is shown as a whole, not only what was painted on it."""
    name: str | None = None
    """Name of the edit (default: the name of the picture)."""
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


@dataclass(frozen=True, kw_only=True)
class EvalEditCommand(base.EvalCommand):
    """Measure how well a run reproduces its video, or with --edit the effect of an edit."""

    edit_options: Annotated[EditEvalOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class EditsCommand:
    """List the edits of a run, the lowest first."""

    run: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class UndoCommand:
    """Undo the last step: an edit, or a change of an edit's arrangement. Everything stays on disk."""

    run: Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class RedoCommand:
    """Redo the step that was undone last."""

    run: Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class DemoCommand:
    """Run the complete workflow on a built-in clip: train, paint, render, measure the drift of the painted star."""

    out: Path = Path("demo")
    """Folder for the results."""
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


def run_edit(command: EditCommand, extra: list[str]) -> int:
    """Runs `unwrap edit`."""
    base.refuse_overrides(extra, command)
    check_edit_command(command)
    prepare_threads()
    from editors.api import edit
    from editors.effects.external_frames import Frames
    from editors.effects.painted import UnwrappedClip
    from neural_fields.open_runs.opening import open_run

    run = open_run(command.run)
    what: dict[str, Any]
    if command.frames is not None:
        what = {"editor": Frames(frames=command.frames, strength=command.strength)}
    elif command.unwrapped is not None:
        what = {"editor": UnwrappedClip(clip=command.unwrapped)}
    elif command.frame:
        what = {"image": dict(zip(command.frame, command.images, strict=True))}
    else:
        what = {"image": command.images[0], "upscaled": command.upscaled}
    with show_progress(as_json=command.json) as report:
        made = edit(
            run,
            **what,
            layer=command.layer,
            name=command.name,
            arrangement=read_arrangement(command, run),
            report=report,
        )
    return _print_added(made, command)


def run_editor(command: Any, extra: list[str]) -> int:
    """Runs `unwrap edit RUN --editor NAME`."""
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.api import edit
    from neural_fields.open_runs.opening import open_run

    run = command.opened or open_run(command.run)
    with show_progress(as_json=command.json) as report:
        made = edit(
            run,
            editor=command.settings,
            layers=command.layer,
            mask=command.mask,
            name=command.name,
            arrangement=read_arrangement(command, run),
            report=report,
        )
    return _print_added(made, command)


def _print_added(made: EditResult, command: Any) -> int:
    """Prints the edit that was added."""
    for note in made.notes:
        base.print_message(f"note: {note}")
    if command.json:
        base.print_json({"edit": made.edit.folder.name, "layers": list(made.edit.layers), "notes": list(made.notes)})
    else:
        print(made.edit.folder)
        base.print_message(f"next: unwrap render {command.run}")
    return ExitCode.OK


def run_eval(command: EvalEditCommand, extra: list[str]) -> int:
    """Runs `unwrap eval`."""
    asked = [
        name for name in ("prompt", "clip_model", "pickscore_model") if getattr(command.edit_options, name) is not None
    ]
    if not command.edit_options.edits:
        if asked:
            flag = "--" + asked[0].replace("_", "-")
            raise UserError(
                ExitCode.USAGE, f"{flag} measures an edit", fix=f"unwrap eval {command.run} --edit NAME {flag} ..."
            )
        return base.run_eval(command, extra)
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.evaluate_edit import measure_edits

    found = measure_edits(command.run, command.edit_options)
    if command.json:
        base.print_json(found)
    else:
        for name, value in found.items():
            if value is not None:
                print(f"{name:<30}{value:.6g}" if isinstance(value, float) else f"{name:<30}{value}")
    return ExitCode.OK


def run_edits(command: EditsCommand, extra: list[str]) -> int:
    """Runs `unwrap edits`."""
    base.refuse_overrides(extra, command)
    from neural_fields.config.loader import to_mapping
    from neural_fields.open_runs.opening import open_run

    found = open_run(command.run).edits
    if command.json:
        rows = [
            {
                "edit": e.folder.name,
                "layers": list(e.layers),
                "active": e.active,
                **to_mapping(e.arrangement, without_defaults=True),
            }
            for e in found
        ]
        base.print_json({"edits": rows})
        return ExitCode.OK
    for item in found:
        parts = [
            item.folder.name,
            ", ".join(item.layers),
            describe_arrangement(item.arrangement),
            "" if item.active else "(undone)",
        ]
        print("  ".join(part for part in parts if part))
    return ExitCode.OK


def run_undo(command: UndoCommand, extra: list[str]) -> int:
    """Runs `unwrap undo`."""
    base.refuse_overrides(extra, command)
    from editors.api import undo

    print(f"undone: {_describe_step(undo(command.run))}")
    return ExitCode.OK


def _describe_step(found: StackChange) -> str:
    """Describes the step that was undone or redone."""
    change = "the arrangement of " if found.operation == "set" else ""
    return f"{change}{found.edit.folder.name}"


def run_redo(command: RedoCommand, extra: list[str]) -> int:
    """Runs `unwrap redo`."""
    base.refuse_overrides(extra, command)
    from editors.api import redo

    print(f"again: {_describe_step(redo(command.run))}")
    return ExitCode.OK


def run_demo(command: DemoCommand, extra: list[str]) -> int:
    """Runs `unwrap demo`."""
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.demo import STAGE_WEIGHTS, run_demonstration

    with show_progress(STAGE_WEIGHTS, as_json=command.json) as report:
        figures = run_demonstration(command.out, report)
    if command.json:
        base.print_json(figures)
    else:
        for name, value in figures.items():
            print(f"{name:<22}{value}")
    return ExitCode.OK


COMMANDS: dict[str, type] = {
    "capture": capture.CaptureCommand,
    "mask": mask.MaskCommand,
    "train": base.TrainCommand,
    "edit": EditCommand,
    "edits": EditsCommand,
    "arrange": ArrangeCommand,
    "undo": UndoCommand,
    "redo": RedoCommand,
    "watch": WatchCommand,
    "render": base.RenderCommand,
    "export": export.ExportCommand,
    "eval": EvalEditCommand,
    "info": base.InfoCommand,
    "doctor": base.DoctorCommand,
    "demo": DemoCommand,
}
HANDLERS: dict[type, Any] = {
    **base.HANDLERS,
    capture.CaptureCommand: capture.run_capture,
    mask.MaskCommand: mask.run_mask,
    EditCommand: run_edit,
    EvalEditCommand: run_eval,
    EditsCommand: run_edits,
    ArrangeCommand: run_arrange,
    WatchCommand: run_watch,
    UndoCommand: run_undo,
    RedoCommand: run_redo,
    DemoCommand: run_demo,
}
# Commands whose classes are made with the settings of an editor or an export.
BASE_HANDLERS: list[tuple[type, Any]] = [(EditByEditorCommand, run_editor), (export.ExportCommand, export.run_export)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. `--debug` shows the traceback of an error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if "--version" in words[:1]:
        from neural_fields.core.version import __version__

        print(__version__)
        return ExitCode.OK
    base.show_warnings()
    if sys.platform == "win32":
        text = "error: unwrap runs on Linux and macOS\n  try   WSL 2, the Linux in Windows"
        return _print_failure(text, ExitCode.USAGE, debug)
    try:
        command, extra = parse_command(words)
        made = next((run for kind, run in BASE_HANDLERS if isinstance(command, kind)), None)
        handler = made or HANDLERS[type(command)]
        return int(handler(command, extra))
    except UserError as error:
        return _print_failure(str(error), error.code, debug)
    except KeyboardInterrupt:
        return _print_failure("interrupted", ExitCode.INTERRUPTED, debug)
    except BrokenPipeError:
        return ExitCode.OK  # the reader of our output has had enough
    except MemoryError:
        return _print_failure("error: out of memory\n  try   a smaller --size", ExitCode.NO_ROOM, debug)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _print_failure(f"error: the disk is full\n  where {error.filename or ''}", ExitCode.NO_ROOM, debug)
        return _print_failure(f"error: {error}", ExitCode.BAD_INPUT, debug)
    except Exception as error:  # the last border: whatever gets here is our mistake, and is said to be
        text = f"bug: {type(error).__name__}: {error}\n  try   the same command with --debug, and report what it prints"
        return _print_failure(text, ExitCode.BUG, debug)


def parse_command(words: Sequence[str]) -> tuple[Any, list[str]]:
    """Parses a command line.

    Args:
        words: the words after `unwrap`.

    Returns:
        The command, and the rest of the line (dotted settings of the config).

    Raises:
        UserError: there is no such command.
        SystemExit: the help was requested (0), or an argument is missing or of the wrong type (2).
    """
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        guess = nearest_word(words[0], COMMANDS)
        why = f"did you mean {guess}?" if guess else f"commands: {', '.join(COMMANDS)}"
        raise UserError(ExitCode.USAGE, f"unknown command {words[0]}", why=why, fix="unwrap --help")
    hints, rest = split_hint_words(words) if words[:1] in (["mask"], ["train"]) else ((), list(words))
    commands = dict(COMMANDS)
    if words[:1] == ["edit"]:
        commands["edit"] = make_editor_command(words) or EditCommand
    if words[:1] == ["export"]:
        commands["export"] = export.make_export_command(words) or export.ExportCommand
    members = [Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in commands.items()]
    union: Any = members[0]
    for member in members[1:]:
        union = union | member
    command, extra = tyro.cli(
        Annotated[union, tyro.conf.FlagCreatePairsOff],
        prog="unwrap",
        description="Unwrap turns a video into a few still pictures, lets you change them, and puts the change back.",
        args=rest,
        return_unknown_args=True,
    )
    return (replace(command, options=replace(command.options, hints=hints)) if hints else command), extra


def _print_failure(text: str, code: ExitCode, debug: bool) -> int:
    """Prints an error; returns the exit status."""
    if debug:
        traceback.print_exc()
    base.print_message(text)
    return int(code)

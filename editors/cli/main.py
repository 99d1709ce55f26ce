"""`unwrap`: all commands in one program. The editing ones are here, the others in `neural_fields.cli.commands`."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction

from editors.cli.arrange import ArrangeCommand, ArrangementOptions, describe_arrangement, read_arrangement, run_arrange
from editors.cli.editors import EditByEditorCommand, check_edit_command, make_editor_command
from editors.cli.watch import WatchCommand, run_watch
from neural_fields.cli import capture, export
from neural_fields.cli import commands as base
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word
from neural_fields.core.threads import prepare_threads

if TYPE_CHECKING:
    from editors.api import EditResult
    from editors.core.stack import StackChange


@dataclass(frozen=True, kw_only=True)
class EditCommand(ArrangementOptions):
    """Take an edit: a painted canonical picture (--layer), painted frames (--frame), or one that an editor makes.

    `unwrap edit RUN --editor NAME --help` shows the settings of an editor.
    """

    run: Positional[Path]
    """The run's folder."""
    images: Positional[tuple[Path, ...]] = ()
    """The picture, in any common format; several with as many --frame; or an .ora or .psd that was exported."""
    layer: str | None = None
    """The layer whose canonical picture was painted; with --frame, the layer that takes the change."""
    frame: UseAppendAction[tuple[int, ...]] = ()
    """The number of the painted frame; 0 is the first. Once for each picture."""
    frames: Path | None = None
    """Instead of pictures: a folder or video of frames that another program edited, to be made consistent."""
    strength: float = 1.0
    """With --frames: how much of them is shown, 0 to 1."""
    unwrapped: Path | None = None
    """Instead of pictures: an edited version of the flat clip that unwrap export RUN unwrapped wrote."""
    upscaled: bool = False
    """The picture is an enlarged canonical picture that is shown as a whole, not only what was painted on it."""
    name: str | None = None
    """Name of the edit (default: that of the picture)."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class EvalEditCommand(base.EvalCommand):
    """Measure how well a run shows its video, or with --edit what an edit does to it."""

    edit: UseAppendAction[tuple[str, ...]] = ()
    """Edits to measure, by name or number: what they leave untouched, and how steady they are."""
    prompt: str | None = None
    """What the edit was asked for; with --clip-model, how well the frames show it."""
    clip_model: str | None = None
    """A CLIP, in a folder of transformers or on the hub: do the frames agree with each other and with the prompt?"""
    pickscore_model: str | None = None
    """A CLIP tuned to people's choices (PickScore); with --prompt."""


@dataclass(frozen=True)
class EditsCommand:
    """List the edits of a run, the lowest first."""

    run: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class UndoCommand:
    """Take back what was done last: an edit, or a change of its arrangement. Everything stays on disk."""

    run: Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class RedoCommand:
    """Bring back what was undone last."""

    run: Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class DemoCommand:
    """The whole job on a clip that the program makes itself: train, paint, render, measure the drift of the mark."""

    out: Path = Path("demo")
    """Where the demonstration goes."""
    json: bool = False
    """Print one JSON object."""


def run_edit(command: EditCommand, extra: list[str]) -> int:
    """`unwrap edit`."""
    base.refuse_overrides(extra, command)
    check_edit_command(command)
    prepare_threads()
    from editors.api import edit, edit_painted_frames, edit_unwrapped, edit_with
    from neural_fields.runs.run import Run

    run = Run.open(command.run)
    report = _make_report()
    more: dict[str, Any] = {"name": command.name, "arrangement": read_arrangement(command, run)}
    if command.frames is not None:
        from editors.effects.external_frames import Frames

        frames = Frames(frames=command.frames, strength=command.strength)
        layers = (command.layer,) if command.layer else ()
        made = edit_with(run, frames, layers=layers, report=report, **more)
    elif command.unwrapped is not None:
        made = edit_unwrapped(run, command.unwrapped, layer=command.layer, report=report, **more)
    elif len(command.images) > 1:
        painted = dict(zip(command.frame, command.images, strict=True))
        made = edit_painted_frames(run, painted, layer=command.layer, **more)
    else:
        frame = command.frame[0] if command.frame else None
        made = edit(run, command.images[0], layer=command.layer, frame=frame, upscaled=command.upscaled, **more)
    return _print_added(made, command)


def run_editor(command: Any, extra: list[str]) -> int:
    """`unwrap edit RUN --editor NAME`."""
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.api import edit_with
    from neural_fields.runs.run import Run

    run = Run.open(command.run)
    made = edit_with(
        run,
        command.settings,
        layers=command.layer,
        mask=command.mask,
        name=command.name,
        arrangement=read_arrangement(command, run),
        report=_make_report(),
    )
    return _print_added(made, command)


def _make_report() -> Any:
    """Makes a report of an editor's progress: a line that renews itself."""
    from neural_fields.core.progress import Progress

    line = base.LiveLine()
    return lambda stage, done, total: line(Progress(stage, done, total))


def _print_added(made: EditResult, command: Any) -> int:
    """Prints which edit was added."""
    for note in made.notes:
        base.print_message(f"note: {note}")
    if command.json:
        base.print_json({"edit": made.edit.folder.name, "layers": list(made.edit.layers), "notes": list(made.notes)})
    else:
        print(made.edit.folder)
        base.print_message(f"next: unwrap render {command.run}")
    return ExitCode.OK


def run_eval(command: EvalEditCommand, extra: list[str]) -> int:
    """`unwrap eval`."""
    asked = [name for name in ("prompt", "clip_model", "pickscore_model") if getattr(command, name) is not None]
    if not command.edit:
        if asked:
            flag = "--" + asked[0].replace("_", "-")
            raise UserError(
                ExitCode.USAGE, f"{flag} measures an edit", fix=f"unwrap eval {command.run} --edit NAME {flag} ..."
            )
        return base.run_eval(command, extra)
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.evaluate_edit import measure_edits
    from neural_fields.runs.run import Run

    found = measure_edits(
        Run.open(command.run), command.edit, command.prompt, command.clip_model, command.pickscore_model
    )
    if command.json:
        base.print_json(found)
    else:
        for name, value in found.items():
            if value is not None:
                print(f"{name:<30}{value:.6g}" if isinstance(value, float) else f"{name:<30}{value}")
    return ExitCode.OK


def run_edits(command: EditsCommand, extra: list[str]) -> int:
    """`unwrap edits`."""
    base.refuse_overrides(extra, command)
    from neural_fields.edits.read_stack import list_edits
    from neural_fields.runs.run import Run

    found = list_edits(Run.open(command.run))
    if command.json:
        rows = [
            {"edit": e.folder.name, "layers": list(e.layers), "active": e.active, **e.arrangement.to_json()}
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
    """`unwrap undo`."""
    base.refuse_overrides(extra, command)
    from editors.core.stack import undo
    from neural_fields.runs.locking import lock_run
    from neural_fields.runs.run import Run

    run = Run.open(command.run)
    with lock_run(run):
        print(f"undone: {_describe_step(undo(run))}")
    return ExitCode.OK


def _describe_step(found: StackChange) -> str:
    """Describes what was taken back or brought back."""
    change = "the arrangement of " if found.operation == "set" else ""
    return f"{change}{found.edit.folder.name}"


def run_redo(command: RedoCommand, extra: list[str]) -> int:
    """`unwrap redo`."""
    base.refuse_overrides(extra, command)
    from editors.core.stack import redo
    from neural_fields.runs.locking import lock_run
    from neural_fields.runs.run import Run

    run = Run.open(command.run)
    with lock_run(run):
        print(f"again: {_describe_step(redo(run))}")
    return ExitCode.OK


def run_demo(command: DemoCommand, extra: list[str]) -> int:
    """`unwrap demo`."""
    base.refuse_overrides(extra, command)
    prepare_threads()
    from editors.demo import run_demonstration

    figures = run_demonstration(command.out, base.LiveLine())
    if command.json:
        base.print_json(figures)
    else:
        for name, value in figures.items():
            print(f"{name:<22}{value}")
    return ExitCode.OK


COMMANDS: dict[str, type] = {
    "capture": capture.CaptureCommand,
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
    """Runs one command; returns its exit status. `--debug` shows where an error came from."""
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
    """Parses a command line: the command and what is left of the line (dotted settings of the config).

    Raises:
        UserError: there is no such command.
        SystemExit: the help was asked for (0), or an argument is missing or of the wrong kind (2).
    """
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        guess = nearest_word(words[0], COMMANDS)
        why = f"did you mean {guess}?" if guess else f"commands: {', '.join(COMMANDS)}"
        raise UserError(ExitCode.USAGE, f"unknown command {words[0]}", why=why, fix="unwrap --help")
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
        args=list(words),
        return_unknown_args=True,
    )
    return command, extra


def _print_failure(text: str, code: ExitCode, debug: bool) -> int:
    """Prints an error; returns the exit status."""
    if debug:
        traceback.print_exc()
    base.print_message(text)
    return int(code)

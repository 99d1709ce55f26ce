"""`unwrap`: all commands in one program. The editing ones are here, the others in `neural_fields.cli.commands`."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from tyro.conf import Positional, UseAppendAction

from editors.cli.arrange import ArrangeCommand, ArrangementOptions, format_edits, read_arrangement, run_arrange
from editors.cli.completion import CompletionCommand, run_completion
from editors.cli.editors import EditByEditorCommand, check_edit_command, make_editor_command
from editors.cli.synonyms import unknown_command_error
from editors.cli.watch import WatchCommand, run_watch
from editors.editors_table import find_editor_class, list_editors
from editors.evaluation_options import EditEvalOptions
from neural_fields.cli import capture, export, frame, gc, mask
from neural_fields.cli import commands as base
from neural_fields.cli.command_line import parse_options
from neural_fields.cli.given_paths import require_given, suggest_line
from neural_fields.cli.progress_display import show_progress
from neural_fields.core.errors import ExitCode, UserError, explain_system_error
from neural_fields.core.threads import prepare_threads
from neural_fields.masking.hints import split_hint_words
from neural_fields.runs.run import Run

if TYPE_CHECKING:
    from editors.api import EditResult
    from editors.core.history import StackChange


@dataclass(frozen=True, kw_only=True)
class EditCommand(ArrangementOptions):
    """Add an edit: a painted picture of a layer, painted frames, or an edit that an editor makes.

    The settings of an editor: `unwrap edit RUN --editor NAME --help`.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap edit runs/clip painted.png --layer foreground",
        "unwrap edit runs/clip frame.png --frame 12",
        'unwrap edit runs/clip --editor place --image logo.png --frame 12 --box "300,120,80,40"',
    )
    run: Positional[Path]
    """The run's folder."""
    images: Positional[tuple[Path, ...]] = ()
    """The picture, in any common format; several with as many --frame; or an .ora or .psd that was exported."""
    layer: str | None = None
    """The layer whose canonical picture was painted; with --frame, the layer that takes the change."""
    frame: UseAppendAction[tuple[int, ...]] = ()
    """Number of the painted frame in the source. Once for each picture."""
    frames: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
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

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap edits runs/clip",
        "unwrap edits runs/clip --json",
        "unwrap arrange runs/clip 2 --top",
    )
    run: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class UndoCommand:
    """Undo the last step: an edit, or a change of its opacity, blend mode, timing or place; all stays on disk."""

    examples: ClassVar[tuple[str, ...]] = ("unwrap undo runs/clip", "unwrap redo runs/clip", "unwrap edits runs/clip")
    run: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class RedoCommand:
    """Redo the step that was undone last."""

    examples: ClassVar[tuple[str, ...]] = ("unwrap redo runs/clip", "unwrap undo runs/clip", "unwrap edits runs/clip")
    run: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class DemoCommand:
    """Run the complete workflow on a built-in clip: train, paint, render, measure the drift of the painted star."""

    examples: ClassVar[tuple[str, ...]] = ("unwrap demo", "unwrap demo --out /tmp/demo", "unwrap demo --json")
    out: Path = Path("demo")
    """Folder for the results."""
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


def run_edit(command: EditCommand, extra: list[str]) -> int:
    """Runs `unwrap edit`."""
    base.refuse_overrides(extra, command)
    with show_progress(as_json=command.json) as report:
        from editors.api import edit  # takes seconds, which are shown
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
        made = edit(
            run,
            **what,
            layer=command.layer,
            name=command.name,
            arrangement=read_arrangement(command, run.files),
            report=report,
        )
    return _print_added(made, command)


def run_editor(command: Any, extra: list[str]) -> int:
    """Runs `unwrap edit RUN --editor NAME`."""
    base.refuse_overrides(extra, command)
    with show_progress(as_json=command.json) as report:
        from editors.api import edit  # takes seconds, which are shown
        from neural_fields.open_runs.opening import open_run
        from neural_fields.open_runs.scene_run import SceneRun

        run = open_run(command.run, command.run_values)
        kind = find_editor_class(command.editor, is_scene=isinstance(run, SceneRun))
        made = edit(
            run,
            editor=kind(**vars(command.settings)),
            layers=command.layer,
            mask=command.mask,
            name=command.name,
            arrangement=read_arrangement(command, run.files),
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
    from neural_fields.edits.read_stack import list_edits

    found = list_edits(Run.open(command.run))
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
    if not found:
        base.print_message(f"no edit yet; next: unwrap edit {command.run} IMAGE --layer NAME")
        return ExitCode.OK
    print(format_edits(found))
    base.print_message("the last line is on top: it covers those above it in this list")
    return ExitCode.OK


def run_undo(command: UndoCommand, extra: list[str]) -> int:
    """Runs `unwrap undo`."""
    base.refuse_overrides(extra, command)
    from editors.core.history import undo
    from neural_fields.runs.locking import MAX_WAIT_S, lock_run

    run = Run.open(command.run)
    with lock_run(run, MAX_WAIT_S):
        found = undo(run)
    _print_step("undone", found, command.json)
    return ExitCode.OK


def _print_step(done: str, found: StackChange, as_json: bool) -> None:
    """Prints the step that was undone or redone."""
    name = found.edit.folder.name
    if as_json:
        base.print_json({"edit": name, "operation": found.operation, "done": done})
    else:
        what = f"change to {name} (opacity, blend, timing, place)" if found.operation == "set" else name
        print(f"{done}: {what}")


def run_redo(command: RedoCommand, extra: list[str]) -> int:
    """Runs `unwrap redo`."""
    base.refuse_overrides(extra, command)
    from editors.core.history import redo
    from neural_fields.runs.locking import MAX_WAIT_S, lock_run

    run = Run.open(command.run)
    with lock_run(run, MAX_WAIT_S):
        found = redo(run)
    _print_step("redone", found, command.json)
    return ExitCode.OK


def run_demo(command: DemoCommand, extra: list[str]) -> int:
    """Runs `unwrap demo`."""
    base.refuse_overrides(extra, command)
    from editors.demo import STAGE_WEIGHTS, run_demonstration

    with show_progress(STAGE_WEIGHTS, as_json=command.json) as report:
        figures = run_demonstration(command.out, report)
    if command.json:
        base.print_json(figures)
    else:
        for name, value in figures.items():
            print(f"{name:<22}{value}")
    return ExitCode.OK


COMMANDS: dict[str, type] = {  # in the order of the help
    "train": base.TrainCommand,
    "edit": EditCommand,
    "render": base.RenderCommand,
    "mask": mask.MaskCommand,
    "frame": frame.FrameCommand,
    "edits": EditsCommand,
    "arrange": ArrangeCommand,
    "undo": UndoCommand,
    "redo": RedoCommand,
    "watch": WatchCommand,
    "export": export.ExportCommand,
    "eval": EvalEditCommand,
    "info": base.InfoCommand,
    "gc": gc.GcCommand,
    "doctor": base.DoctorCommand,
    "demo": DemoCommand,
    "capture": capture.CaptureCommand,
    "completion": CompletionCommand,
}
HANDLERS: dict[type, Any] = {
    **base.HANDLERS,
    capture.CaptureCommand: capture.run_capture,
    frame.FrameCommand: frame.run_frame,
    gc.GcCommand: gc.run_gc,
    mask.MaskCommand: mask.run_mask,
    EditCommand: run_edit,
    EvalEditCommand: run_eval,
    EditsCommand: run_edits,
    ArrangeCommand: run_arrange,
    WatchCommand: run_watch,
    UndoCommand: run_undo,
    RedoCommand: run_redo,
    DemoCommand: run_demo,
    CompletionCommand: lambda command, extra: run_completion(command, extra, COMMANDS),
}
# Commands whose classes are made with the settings of an editor or an export.
BASE_HANDLERS: list[tuple[type, Any]] = [(EditByEditorCommand, run_editor), (export.ExportCommand, export.run_export)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. `--debug` shows the traceback of an error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words[:1] in (["--version"], ["-V"], ["version"]):
        from neural_fields.core.version import __version__

        print(__version__)
        return ExitCode.OK
    prepare_threads()
    base.show_warnings()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8, as they are
    if sys.platform == "win32":
        text = "error: unwrap runs on Linux and macOS\n  try   WSL 2, the Linux in Windows"
        return _print_failure(text, ExitCode.USAGE, debug)
    try:
        with suggest_line(words):
            if words[:1] == ["export"]:
                export.require_run_first(words)
            if words[:1] in (["edit"], ["export"]) and not {"-h", "--help"} & set(words):
                for word in words[1:2]:  # a run that is not there is said before a wrong option
                    _ = word.startswith("-") or Run.open(word)
            command, extra = parse_command(words)
            if not extra or isinstance(command, base.TrainCommand):
                if isinstance(command, EditCommand):
                    check_edit_command(command)
                require_given(command)
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
        problem = explain_system_error(error)
        return _print_failure(str(problem), problem.code, debug)
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
        UserError: there is no such command, or an argument is missing or of the wrong type (exit 2).
        SystemExit: the help was requested (0), or there is no word (2).
    """
    if not words or words[0] in ("-h", "--help"):
        print(format_command_list(), file=sys.stdout if words else sys.stderr)
        raise SystemExit(0 if words else ExitCode.USAGE)
    if words[0] not in COMMANDS:
        raise unknown_command_error(words, COMMANDS)
    kind, line = COMMANDS[words[0]], f"unwrap {words[0]}"
    hints, rest = split_hint_words(words) if words[0] in ("mask", "train") else ((), list(words))
    if words[0] == "edit":
        kind = make_editor_command(words) or EditCommand
    if words[0] == "export":
        kind = export.make_export_command(words) or export.ExportCommand
    notes = ""
    if kind is EditCommand and {"-h", "--help"} & set(words):
        notes = "\n".join(["editors:", *(f"  {name:<14}{sentence}" for name, sentence in list_editors().items())])
    command, extra = parse_options(kind, rest[1:], getattr(kind, "line", line), notes)
    return (replace(command, options=replace(command.options, hints=hints)) if hints else command), extra


def format_command_list() -> str:
    """Formats the help of the whole program: every command with a sentence."""
    width = max(map(len, COMMANDS)) + 4
    rows = []
    for name, kind in COMMANDS.items():
        sentence = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        room = min(shutil.get_terminal_size().columns, 120)
        rows.append(textwrap.fill(f"  {name:<{width - 2}}{sentence}", room, subsequent_indent=" " * width))
    return "\n".join(
        [
            "usage: unwrap COMMAND ...",
            "",
            "Unwrap turns a video into a few still pictures, lets you change them, and puts the change back.",
            "",
            "commands:",
            *rows,
            "",
            "examples:",
            "  unwrap train clip.mp4",
            "  unwrap edit runs/clip painted.png --layer foreground",
            "  unwrap render runs/clip",
            "",
            "unwrap COMMAND --help explains a command; unwrap demo shows the complete workflow in minutes.",
        ]
    )


def _print_failure(text: str, code: ExitCode, debug: bool) -> int:
    """Prints an error; returns the exit status."""
    if debug:
        traceback.print_exc()
    base.print_message(text)
    return int(code)

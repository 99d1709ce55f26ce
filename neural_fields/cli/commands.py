"""The commands train, render, eval, info and doctor. `editors.cli.main` adds the editing ones.

stdout is for data, stderr for messages. Heavy packages are imported inside the functions that need them.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from tyro.conf import Positional, Suppress, arg

from neural_fields.cli.hint_flags import HintFlags
from neural_fields.cli.progress_display import print_message, show_progress
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import to_plain_values
from neural_fields.core.progress import Progress
from neural_fields.core.suggestions import nearest_word
from neural_fields.evaluation.options import EvalOptions
from neural_fields.rendering.options import RenderOptions
from neural_fields.training.options import STAGE_WEIGHTS, TrainOptions


@dataclass(frozen=True)
class TrainCommand:
    """Analyze a video and build its editable pictures, or continue.

    Every config value can be set on the command line (--texture.density 2).
    """

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap train clip.mp4",
        "unwrap train clip.mp4 --object person --frame 0 --box 100,60,80,120",
        "unwrap train clip.mp4 --size 240p --seconds 60 --out runs/look",
    )
    video: Positional[Path]
    """A video file, or a folder of numbered images; for a 3D scene a folder with a transforms.json."""
    options: Annotated[TrainOptions, arg(name="")]
    hints: Annotated[HintFlags, arg(name="")]
    dry_run: bool = False
    """Check the input, say what the training would take, and do nothing else."""
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


@dataclass(frozen=True)
class RenderCommand:
    """Render the edited video with the source's size, rate, times and sound."""

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap render runs/clip",
        "unwrap render runs/clip --edit logo --out final.mov --codec prores4444",
        "unwrap render runs/clip --what compare",
    )
    run: Positional[Path]
    """The run's folder."""
    options: Annotated[RenderOptions, arg(name="")]
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


@dataclass(frozen=True)
class EvalCommand:
    """Measure how well a run reproduces its video."""

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap eval runs/clip --html",
        "unwrap eval runs/clip --masks truth/car --json",
        "unwrap eval runs/clip --edit logo",
    )
    run: Positional[Path]
    """The run's folder."""
    options: Annotated[EvalOptions, arg(name="")]
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


@dataclass(frozen=True)
class InfoCommand:
    """Show the properties of a video, or the state of a run."""

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap info clip.mp4",
        "unwrap info frames/",
        "unwrap info runs/clip --json",
    )
    path: Positional[Path]
    """A video, a folder of images, or a run."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class DoctorCommand:
    """Show the environment: versions, devices, active back ends, and why others are not used."""

    examples: ClassVar[tuple[str, ...]] = ("unwrap doctor", "unwrap doctor --json", "unwrap doctor > report.txt")
    json: bool = False
    """Print one JSON object."""


COMMANDS = {
    "train": TrainCommand,
    "render": RenderCommand,
    "eval": EvalCommand,
    "info": InfoCommand,
    "doctor": DoctorCommand,
}


# --- messages -------------------------------------------------------------------------------------------------------


class NoteHandler(logging.Handler):
    """Shows warnings of the modules as notes on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record as one line on stderr, above the bars of the progress where there are any."""
        print_message(f"note: {record.getMessage()}")


def show_warnings() -> None:
    """Shows warnings of our own modules to the user; a second call changes nothing."""
    for name in ("neural_fields", "editors"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, NoteHandler) for handler in logger.handlers):
            logger.addHandler(NoteHandler(logging.WARNING))


def print_json(value: Any) -> None:
    """Prints one JSON object on stdout; numbers that are not finite become null."""
    print(json.dumps(to_plain_values(value), allow_nan=False), flush=True)


def parse_overrides(extra: list[str]) -> dict[str, object]:
    """Parses dotted flags that follow the fixed ones: `--texture.density 2` or `--texture.density=2`.

    Raises:
        UserError: something that is not a dotted flag with a value.
    """
    from neural_fields.config.plain_yaml import parse_yaml

    found: dict[str, object] = {}
    rest = list(extra)
    while rest:
        flag = rest.pop(0)
        name, has_value, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or "." not in name or (not has_value and not rest):
            why = "settings of the config are dotted flags with a value: --texture.density 2"
            raise unknown_option_error(flag, TrainCommand, why)
        found[name.replace("-", "_")] = parse_yaml(value if has_value else rest.pop(0), "the command line")
    return found


# --- commands -------------------------------------------------------------------------------------------------------


def run_train(command: TrainCommand, extra: list[str]) -> int:
    """Runs `unwrap train` and returns the exit status."""
    overrides = parse_overrides(extra)
    options = replace(command.options, overrides=overrides)
    if command.dry_run:
        return run_train_estimate(command, options)
    notes: list[str] = []
    with show_progress(STAGE_WEIGHTS, as_json=command.json) as show:
        from neural_fields.api import describe_next_steps  # takes seconds, which are shown
        from neural_fields.training.train import train

        def report(progress: Progress) -> None:
            notes.extend([progress.note] if progress.note else [])
            show(progress)

        result = train(command.video, options, report)
    path = result.run.path
    if result.was_finished:
        print_message(f"{path} is finished: {result.step} of {result.total} steps (--quality final refines it further)")
    elif result.exit_code != ExitCode.OK:
        print_message(f"saved at step {result.step} of {result.total}; the same command continues")
    else:
        for line in describe_next_steps(result):
            print_message(line)
    if command.json:
        print_json(
            {
                "run": path,
                "step": result.step,
                "steps": result.total,
                "finished": result.step >= result.total,
                **result.figures,
                "report": result.run.report if result.run.report.exists() else None,
                "notes": list(dict.fromkeys([*notes, *result.notes])),
            }
        )
    else:
        print(path)
    return result.exit_code


def run_train_estimate(command: TrainCommand, options: TrainOptions) -> int:
    """Runs `unwrap train --dry-run` and returns the exit status."""
    from neural_fields.training.train_planar import plan_training

    if options.hints:
        why = "masks are made from hints before the training"
        raise UserError(ExitCode.USAGE, "--dry-run with hints", why=why, fix="unwrap mask VIDEO first, then --masks")
    plan = plan_training(command.video, options)
    if command.json:
        print_json({"video": plan.metadata.path, **asdict(plan.estimate)})
    else:
        print(plan.estimate.sentence)
    return ExitCode.OK


def run_render(command: RenderCommand, extra: list[str]) -> int:
    """Runs `unwrap render` and returns the exit status."""
    refuse_overrides(extra, command)
    began = time.monotonic()
    with show_progress(as_json=command.json) as report:
        from neural_fields.api import render  # takes seconds, which are shown

        written = render(command.run, command.options, report)
    if command.json:
        sizes = [sum(f.stat().st_size for f in (path.iterdir() if path.is_dir() else [path])) for path in written]
        print_json({"files": written, "bytes": sizes, "seconds": round(time.monotonic() - began, 3)})
    else:
        print(*written, sep="\n")
    return ExitCode.OK


def run_eval(command: EvalCommand, extra: list[str]) -> int:
    """Runs `unwrap eval` and returns the exit status."""
    refuse_overrides(extra, command)
    with show_progress(as_json=command.json) as report:
        from neural_fields.api import evaluate  # takes seconds, which are shown

        result = evaluate(command.run, command.options, report)
    if command.json:
        print_json(result)
        return ExitCode.OK
    for name, value in result.items():
        if isinstance(value, int | float):
            print(f"{name:<18}{value}")
    for name in ("psnr_per_layer", "alpha_iou"):
        for layer, value in (result.get(name) or {}).items():
            print(f"{name:<18}{value}  {layer}")
    if command.options.html:
        print(f"{'report':<18}{result['report']['path']}  {result['report']['title']}")
    if result.get("lpips_note") and result["lpips"] is None:
        print_message(f"note: {result['lpips_note']}")
    return ExitCode.OK


def run_info(command: InfoCommand, extra: list[str]) -> int:
    """Runs `unwrap info` and returns the exit status."""
    refuse_overrides(extra, command)
    if (command.path / "run.yaml").is_file():
        from neural_fields.open_runs.summary import run_metadata

        metadata = run_metadata(command.path)
    else:
        from neural_fields.data.video.plain_metadata import video_metadata

        metadata = video_metadata(command.path)
    if command.json:
        print_json(metadata)
    else:
        for name, value in metadata.items():
            text = ", ".join(str(item) for item in value) if isinstance(value, list) else value
            print(f"{name:<16}{text}")
    return ExitCode.OK


def run_doctor(command: DoctorCommand, extra: list[str]) -> int:
    """Runs `unwrap doctor` and returns the exit status."""
    refuse_overrides(extra, command)
    from neural_fields.nn.environment import collect_environment

    environment = collect_environment()
    if command.json:
        print_json(environment)
    else:
        for name, value in environment.items():
            print(f"{name:<22}  {value}")  # names of networks are longer
    return ExitCode.OK


def refuse_overrides(extra: list[str], command: object) -> None:
    """Refuses unknown arguments: only `train` takes settings of the config.

    Raises:
        UserError: there is something left on the command line.
    """
    if extra:
        raise unknown_option_error(extra[0], type(command))


def list_flags(command: type) -> list[str]:
    """Lists the long flags of a command, or of settings that are flags, in the order of their fields."""
    found = []
    hints = get_type_hints(command, include_extras=True)
    for entry in fields(command):
        marks = getattr(hints[entry.name], "__metadata__", ())
        names = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        if "" in names:  # a class of options whose fields are flags of the command
            found += [flag for flag in list_flags(get_args(hints[entry.name])[0]) if flag != "--help"]
        elif Positional not in marks and Suppress not in marks:
            word = (names[0] if names else entry.name).replace("_", "-")
            found.append(f"--no-{word}" if entry.default is True else f"--{word}")
    return [*found, "--help"]


def unknown_option_error(flag: str, command: type, why: str = "") -> UserError:
    """Makes an error that names the option of `command` that was probably meant.

    Args:
        flag: the option, or the word, as it was given.
        command: the class of the command; its name begins with the word of the command line, unless its attribute
            `line` is how the command begins.
        why: explanation if no option is similar.
    """
    known = list_flags(command)
    # Every command is one word, the first of its class's name: TrainCommand is "train", EvalEditCommand is "eval".
    word = re.match("[A-Z][a-z]*", command.__name__)
    line = getattr(command, "line", f"unwrap {word[0].lower()}" if word else "unwrap")
    bare = nearest_word(flag.partition("=")[0].lstrip("-"), [name.lstrip("-") for name in known])
    why = f"did you mean --{bare}?" if bare else why or f"options: {', '.join(known)}"
    kind = "option" if flag.startswith("-") else "argument"
    return UserError(ExitCode.USAGE, f"unknown {kind} {flag}", where=line, why=why, fix=f"{line} --help")


HANDLERS: dict[type, Any] = {
    TrainCommand: run_train,
    RenderCommand: run_render,
    EvalCommand: run_eval,
    InfoCommand: run_info,
    DoctorCommand: run_doctor,
}

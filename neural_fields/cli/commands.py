"""The commands train, render, eval, info and doctor. `editors.cli.main` adds the editing ones.

stdout is for data, stderr for messages. Heavy packages are imported inside the functions that need them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from neural_fields.config.loader import parse_yaml
from neural_fields.config.planar import Quality
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import to_plain_values
from neural_fields.core.suggestions import nearest_word
from neural_fields.core.threads import prepare_threads

if TYPE_CHECKING:
    from neural_fields.core.progress import Progress

from tyro.conf import Positional, UseAppendAction, arg

YesFlag = Annotated[bool, arg(aliases=["-y"])]


@dataclass(frozen=True)
class TrainCommand:
    """Train a model on a video, or continue a training. Settings of the config are flags too (--texture.density 2)."""

    video: Positional[Path]
    """A video file, or a folder of numbered images; for a 3D scene a folder with a transforms.json."""
    out: Path | None = None
    """The run's folder (default: runs/ and the name of the video)."""
    config: str = "atlas"
    """A preset, or a YAML file."""
    quality: Quality = "normal"
    """How long to refine."""
    size: str = "480p"
    """Size of training: 240p, 480p, Np, WxH or source. Never enlarges; rendering is at the source's size anyway."""
    seconds: float | None = None
    """Stop well after this time, everything included, and keep the result."""
    frames: str | None = None
    """Frames to use: A:B or A:B:STEP."""
    masks: UseAppendAction[tuple[str, ...]] = ()
    """[NAME=]PATH for each front layer, front first; or auto (segment by motion, the default), or none."""
    roi: str | None = None
    """A region of frame K to track, its corners in pixels: "K:x,y x,y x,y x,y". It becomes the front layer."""
    flow: str = "auto"
    """auto, dis, raft, raft-large, a RAFT .pth file, or a folder of flow files."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    seed: int = 0
    """Seed of everything random."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class RenderCommand:
    """Render the edited video (or what the model shows) with the source's size, rate, times and sound."""

    run: Positional[Path]
    """The run's folder."""
    edit: UseAppendAction[tuple[str, ...]] = ()
    """Name or number of an edit (may be repeated; default: all active edits)."""
    out: Path | None = None
    """The file to write (default: renders/<edit> in the run)."""
    what: Literal["edit", "reconstruction", "compare", "layers", "depth", "opacity"] = "edit"
    """What to show; depth and opacity are those of a 3D scene."""
    camera: str = "source"
    """Of a 3D scene: source (the views that were filmed), orbit, or a transforms.json."""
    time: int | None = None
    """Of a 3D scene: the moment at which time stands still."""
    pose: Path | None = None
    """Of a 3D scene: a bones.json whose poses the person takes."""
    size: str = "source"
    """Size of the output: source, 240p, Np or WxH."""
    codec: Literal["h264", "ffv1", "prores4444", "png"] = "h264"
    """ffv1 is lossless; ffv1, prores4444 and png carry alpha."""
    speed: str = "1"
    """How fast: 0.5 or 1/2 is slow motion, half as fast; frames between frames are made."""
    rate: str = ""
    """Frames a second, such as 60 or 30000/1001 (default: the source's)."""
    freeze: UseAppendAction[tuple[str, ...]] = ()
    """FRAME:SECONDS, such as 20:2: a frame of the source that stands still for so long. May be repeated."""
    no_metadata: bool = False
    """Leave out of the file what made it."""
    yes: YesFlag = False
    """Replace an output that exists."""


@dataclass(frozen=True)
class EvalCommand:
    """Measure how well a run shows its video."""

    run: Positional[Path]
    """The run's folder."""
    masks: UseAppendAction[tuple[str, ...]] = ()
    """True masks, [NAME=]PATH for each front layer, front first."""
    lpips: Path | None = None
    """Weights of an LPIPS backbone (SqueezeNet 1.1, AlexNet or VGG-16)."""
    html: bool = False
    """Also write report.html into the run: a page with pictures that says whether the clip suits the model."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class InfoCommand:
    """Show the metadata of a video or of a run."""

    path: Positional[Path]
    """A video, a folder of images, or a run."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class DoctorCommand:
    """Show the environment: versions, devices, active back ends, and why others are not used."""

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


def print_message(text: str) -> None:
    """Prints one line for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


class NoteHandler(logging.Handler):
    """Shows warnings of the modules as notes on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record as one line on stderr; on a terminal it first clears the line of the progress."""
        print_message(("\r\x1b[K" if sys.stderr.isatty() else "") + f"note: {record.getMessage()}")


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


@dataclass
class LiveLine:
    """Shows progress on stderr: one line that renews itself on a terminal, one line every few seconds elsewhere."""

    interval_seconds: float = 10.0  # seconds between lines where stderr is not a terminal
    terminal_interval_seconds: float = 0.1  # seconds between two renewals on a terminal
    printed_at: float = field(default=-math.inf)  # when the last line was printed, in seconds
    stage: str = ""  # of the last line

    def __call__(self, progress: Progress) -> None:
        """Prints a progress; skips it soon after the last line, unless it is a note, a new stage or the last step."""
        if progress.note:
            self._print_line(f"note: {progress.note}", permanent=True)
            return
        now = time.monotonic()
        on_terminal = sys.stderr.isatty()
        last = progress.done == progress.total
        interval = self.terminal_interval_seconds if on_terminal else self.interval_seconds
        if progress.stage == self.stage and not last and now - self.printed_at < interval:
            return
        self.stage, self.printed_at = progress.stage, now
        self._print_line(format_progress(progress), permanent=not on_terminal or last)

    def _print_line(self, text: str, permanent: bool) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K" + text + ("\n" if permanent else ""))
            sys.stderr.flush()
        else:
            print_message(text)


def format_progress(progress: Progress) -> str:
    """Formats a progress as one line: step, time a step, time left, PSNR, memory."""
    parts = [f"{progress.stage:<9}", f"{progress.done}/{progress.total}"]
    if progress.seconds_per_step is not None:
        parts.append(f"{1000 * progress.seconds_per_step:.0f} ms/step")
    if progress.seconds_left is not None:
        parts.append(f"{format_duration(progress.seconds_left)} left")
    if progress.psnr is not None:
        parts.append(f"PSNR {progress.psnr:.2f} dB")
    if progress.peak_mib:
        parts.append(f"{progress.peak_mib:.0f} MiB")
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """Formats a duration for people: 75 becomes 1:15."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


# --- commands -------------------------------------------------------------------------------------------------------


def run_train(command: TrainCommand, extra: list[str]) -> int:
    """Runs `unwrap train` and returns the exit status."""
    overrides = parse_overrides(extra)
    prepare_threads()
    from neural_fields.api import describe_next_steps, train
    from neural_fields.training.options import TrainOptions

    options = TrainOptions(
        out=command.out,
        config=command.config,
        overrides=overrides,
        quality=command.quality,
        size=command.size,
        seconds=command.seconds,
        frames=command.frames,
        masks=command.masks or ("auto",),
        roi=command.roi,
        flow=command.flow,
        device=command.device,
        seed=command.seed,
    )
    result = train(command.video, options, LiveLine())
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
                "finished": result.exit_code == ExitCode.OK,
                "notes": list(result.notes),
            }
        )
    else:
        print(path)
    return result.exit_code


def run_render(command: RenderCommand, extra: list[str]) -> int:
    """Runs `unwrap render` and returns the exit status."""
    refuse_overrides(extra, command)
    prepare_threads()
    from neural_fields.api import render_run
    from neural_fields.rendering.render_planar import RenderOptions
    from neural_fields.rendering.render_volume import VolumeRenderOptions

    line = LiveLine()
    common = RenderOptions(
        command.edit,
        command.out,
        size=command.size,
        codec=command.codec,
        overwrite=command.yes,
        speed=command.speed,
        rate=command.rate,
        freeze=command.freeze,
        metadata=not command.no_metadata,
    )
    options = VolumeRenderOptions(common, command.what, command.camera, command.time, command.pose)

    def show_progress(done: int, total: int) -> None:
        from neural_fields.core.progress import Progress

        line(Progress("rendering", done, total))

    for path in render_run(command.run, options, show_progress):
        print(path)
    return ExitCode.OK


def run_eval(command: EvalCommand, extra: list[str]) -> int:
    """Runs `unwrap eval` and returns the exit status."""
    refuse_overrides(extra, command)
    prepare_threads()
    from neural_fields.api import evaluate_run

    result = evaluate_run(command.run, command.masks, command.lpips, command.html)
    if command.json:
        print_json(result)
        return ExitCode.OK
    for name, value in result.items():
        if isinstance(value, int | float):
            print(f"{name:<16}{value}")
    for name in ("psnr_per_layer", "alpha_iou"):
        for layer, value in (result.get(name) or {}).items():
            print(f"{name:<16}{value}  {layer}")
    if command.html:
        print(f"{'report':<16}{result['report']['path']}  {result['report']['title']}")
    if result.get("lpips_note") and result["lpips"] is None:
        print_message(f"note: {result['lpips_note']}")
    return ExitCode.OK


def run_info(command: InfoCommand, extra: list[str]) -> int:
    """Runs `unwrap info` and returns the exit status."""
    refuse_overrides(extra, command)
    from neural_fields.api import run_metadata, video_metadata

    is_run = (command.path / "run.yaml").is_file()
    metadata = run_metadata(command.path) if is_run else video_metadata(command.path)
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
    prepare_threads()
    from neural_fields.nn.environment import collect_environment

    environment = collect_environment()
    if command.json:
        print_json(environment)
    else:
        for name, value in environment.items():
            print(f"{name:<24}{value}")
    return ExitCode.OK


def refuse_overrides(extra: list[str], command: object) -> None:
    """Refuses what is left on the command line: only `train` takes settings of the config.

    Raises:
        UserError: there is something left on the command line.
    """
    if extra:
        raise unknown_option_error(extra[0], type(command))


def unknown_option_error(flag: str, command: type, why: str = "") -> UserError:
    """Makes an error that names the option of `command` that was probably meant.

    Args:
        flag: what was given.
        command: the class of the command; its name begins with the word of the command line.
        why: what to say where no option is similar.
    """
    known = ["--" + entry.name.replace("_", "-") for entry in fields(command)] + ["--help"]
    guess = nearest_word(flag.partition("=")[0], known) if flag.startswith("-") else None
    why = f"did you mean {guess}?" if guess else why or f"options: {', '.join(known)}"
    # Every command is one word, the first of its class's name: TrainCommand is "train", EvalEditCommand is "eval".
    word = re.match("[A-Z][a-z]*", command.__name__)
    line = f"unwrap {word[0].lower()}" if word else "unwrap"
    return UserError(ExitCode.USAGE, f"unknown option {flag}", where=line, why=why, fix=f"{line} --help")


HANDLERS: dict[type, Any] = {
    TrainCommand: run_train,
    RenderCommand: run_render,
    EvalCommand: run_eval,
    InfoCommand: run_info,
    DoctorCommand: run_doctor,
}

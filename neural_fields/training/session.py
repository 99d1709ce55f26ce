"""The frame around a training: the lock of the run, requests to stop, notes for the user, and the result."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, bad_input
from neural_fields.core.interrupt import StopRequest, stop_on_signals
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.runs.locking import MAX_WAIT_S, lock_run, lock_training
from neural_fields.runs.run import Run, append_metrics, read_metrics, write_run_yaml


@dataclass(frozen=True)
class TrainResult:
    """Describes how a training ended.

    Attributes:
        run: the paths of the run.
        step: number of steps that are done.
        total: number of steps of the training.
        exit_code: exit status of the command.
        notes: sentences for the user.
        was_finished: whether the training was already complete before the call.
        figures: what programs want to know: "train_seconds", "peak_mib", and of a video "psnr", "verdict".
    """

    run: Run
    step: int
    total: int
    exit_code: ExitCode
    notes: tuple[str, ...]
    was_finished: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class TrainingSession:
    """Holds the state of a call of `train`, which begins or continues a training.

    Attributes:
        run: the paths of the locked run.
        report: called with the progress.
        started: start of the call, in seconds of the monotonic clock.
        stop_request: a request of the user or the system to stop.
        writing: holds the lock of the run.
        notes: sentences for the user.
        figures: of the result; they are written to metrics.jsonl at the end.
    """

    run: Run
    report: ProgressReporter
    started: float
    stop_request: StopRequest
    writing: ExitStack
    notes: list[str]
    figures: dict[str, Any] = field(default_factory=dict)

    def is_stopped(self) -> bool:
        """Returns whether the training was asked to stop."""
        return self.stop_request.signal_number is not None

    def elapsed_seconds(self) -> float:
        """Returns the time since the call began."""
        return time.monotonic() - self.started

    def sum_train_seconds(self) -> float:
        """Returns the seconds of this and all earlier sessions, whose sum is in metrics.jsonl."""
        before = [line["train_seconds"] for line in read_metrics(self.run) if "train_seconds" in line]
        return round(self.elapsed_seconds() + (before[-1] if before else 0.0), 3)

    @contextmanager
    def let_others_write(self) -> Iterator[None]:
        """Lets edits be added to the run until the block ends; then waits for whoever is adding one."""
        self.writing.close()
        try:
            yield
        finally:
            self.writing.enter_context(lock_run(self.run, MAX_WAIT_S))

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Writes run.yaml, and reports the notes so far."""
        write_run_yaml(self.run, record)
        for note in self.notes:
            self.report(Progress("reading", 1, 1, note=note))

    def add_note(self, stage: str, note: str) -> None:
        """Adds a note for the user, and reports it."""
        self.notes.append(note)
        self.report(Progress(stage, 1, 1, note=note))

    def finish(self, step: int, total: int) -> TrainResult:
        """Appends the last line of metrics.jsonl and returns how the training ended.

        Args:
            step: steps done.
            total: number of steps of the training.
        """
        from neural_fields.nn.device import peak_memory_mib

        line = {
            "event": "stopped" if self.is_stopped() else "finished",
            "steps": step,
            "total_steps": total,
            "train_seconds": self.sum_train_seconds(),
            "peak_mib": peak_memory_mib(),
            **self.figures,
        }
        append_metrics(self.run, line)
        figures = {key: line[key] for key in ("train_seconds", "peak_mib", *self.figures)}
        return TrainResult(self.run, step, total, self.stop_request.exit_code, tuple(self.notes), figures=figures)

    def was_finished(self, step: int, total: int) -> TrainResult:
        """Returns the result of a call that finds nothing left to do; arguments as for `finish`."""
        ends = [line for line in read_metrics(self.run) if line.get("event") == "finished"]
        names = ("train_seconds", "peak_mib", "psnr", "verdict")
        figures = {key: ends[-1][key] for key in names if ends and key in ends[-1]}
        return TrainResult(self.run, step, total, ExitCode.OK, tuple(self.notes), was_finished=True, figures=figures)


@contextmanager
def open_session(run: Run, report: ProgressReporter, started: float) -> Iterator[TrainingSession]:
    """Locks a run and handles signals during the training.

    Args:
        run: what is trained.
        report: called with the progress.
        started: when the call of `train` began, by the monotonic clock.

    Raises:
        UserError: another process writes to the run (exit 6).
    """
    with lock_training(run), ExitStack() as writing, stop_on_signals() as stop_request:
        note = writing.enter_context(lock_run(run))
        yield TrainingSession(run, report, started, stop_request, writing, [note] if note else [])


def refuse_changed_record(
    run: Run, begun_with: Mapping[str, Any], record: Mapping[str, Any], free: Collection[str], constants: str
) -> None:
    """Refuses to continue a run with other settings than it was begun with.

    Of the config, the section `training` may change on the way: the number of steps, and how often to save.

    Args:
        run: the run to continue.
        begun_with: content of its run.yaml, with a config that was parsed and written again: settings that came with a
            later version of the program have their defaults.
        record: what would be written to its run.yaml now.
        free: entries that may change.
        constants: what a run has one of from beginning to end, for the message.

    Raises:
        UserError: the settings differ (exit 3).
    """
    changed = [key for key in record if key not in free and begun_with.get(key) != record[key]]
    if "config" in changed:
        old, new = begun_with["config"], record["config"]
        parts = [f"config.{key}" for key in new if key != "training" and old.get(key) != new[key]]
        place = changed.index("config")
        changed[place : place + 1] = parts
    if changed:
        raise bad_input(
            f"{run.path} was begun with other settings: {', '.join(changed).replace('sha256', 'another video')}",
            where=str(run.run_yaml),
            why=f"a run has one {constants} from beginning to end",
            fix=f"another folder: --out {run.path}-2",
        )


def default_run_folder(source: str | Path) -> Path:
    """Returns the folder of a source's run: `runs/` and the name of the source, also for "." and ".."."""
    return Path("runs") / (Path(os.path.abspath(source)).stem or "video")

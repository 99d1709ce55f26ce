"""How commands show their progress on stderr: bars on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from neural_fields.core.files import to_plain_values
from neural_fields.core.progress import Progress, ProgressReporter, StageWeights, overall_share

MIN_ETA_SHARE = 0.05  # of the whole job: before that, its end is a guess, unless the job has a plan
MIN_ETA_S = 1.0  # of a stage, and of the job: an estimate from less time is none


@contextmanager
def show_progress(weights: StageWeights | None = None, as_json: bool = False) -> Iterator[ProgressReporter]:
    """Shows the progress of a job on stderr, for as long as the block runs.

    What was shown last is shown again while nothing is reported: a program that imports a library, or waits for a disk,
    must not look like one that hangs.

    Args:
        weights: the stages of the job in order, which make one overall bar; without them each stage has its own.
        as_json: whether to write JSON lines, wherever stderr leads.

    Yields:
        What the job reports to.
    """
    display: ProgressDisplay
    if as_json:
        display = JsonLines(weights or {})
    elif sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown"):
        display = ProgressBars(weights or {})
    else:
        display = PlainLines(weights or {})
    thread = threading.Thread(target=display.keep_showing, name="progress", daemon=True)
    thread.start()
    try:
        yield display
    finally:
        display.stop()
        thread.join()


def print_message(text: str) -> None:
    """Prints one line for the user, on stderr; above the bars where there are any."""
    print(text, file=sys.stderr, flush=True)


class ProgressDisplay(ABC):
    """Takes the progress of a job, and shows it with an estimate of the time that is left.

    Args:
        weights: weights of the stages, as for `show_progress`.
    """

    interval_s: float  # the least time between two progresses of one stage that are shown

    def __init__(self, weights: StageWeights) -> None:
        self._estimate = TimeEstimate(weights)
        self._lock = threading.RLock()  # stages report from threads too, and a silent one is shown again from another
        self._has_ended = threading.Event()
        self._last = Progress("starting", 0, 1)
        self._last_share = 0.0
        self._shown_at = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Shows a note at once, and a progress unless the last one was shown just now."""
        with self._lock:
            if progress.plan is not None:
                self._estimate.take_plan(progress.plan)
            if progress.note:
                self.show_note(progress)
                return
            is_first = progress.name != self._last.name
            self._last = progress
            self.show_again(is_first or progress.done == progress.total)

    def show_again(self, at_once: bool = False) -> None:
        """Shows the last progress if nothing was shown for a while.

        Args:
            at_once: whether to show it in any case.
        """
        with self._lock:
            now = time.monotonic()
            job_left = self._estimate.update(self._last)
            progress = self._estimate.complete(self._last)
            if not at_once and now - self._shown_at < self.interval_s:
                return
            self._shown_at = now
            share = overall_share(self._estimate.weights, progress)
            if share is not None:
                # A stage may come twice, such as the masks of each of several videos: the job never goes back.
                share = self._last_share = max(self._last_share, share)
                is_guess = progress.seconds_left is None or share < MIN_ETA_SHARE
                job_left = None if is_guess and not self._estimate.has_plan else job_left
            self.show(progress, share, job_left)

    @abstractmethod
    def show(self, progress: Progress, share: float | None, job_left: float | None) -> None:
        """Shows a progress.

        Args:
            progress: of a stage, with the seconds that are left of it.
            share: of the whole job that is done, 0 to 1; None for a stage that it does not have.
            job_left: seconds to its end; None where they are not known.
        """

    def show_note(self, progress: Progress) -> None:
        """Shows the note of a progress."""
        print_message(f"note: {progress.note}")

    def keep_showing(self, every_s: float = 0.25) -> None:
        """Shows the last progress again wherever nothing was reported for a while, until the display is stopped.

        Args:
            every_s: how often to look, in seconds.
        """
        with suppress(OSError, ValueError):  # nobody reads stderr any more
            while not self._has_ended.wait(every_s):
                self.show_again()

    def stop(self) -> None:
        """Ends the display."""
        self._has_ended.set()


class PlainLines(ProgressDisplay):
    """Shows progress as lines for logs: a stage when it begins and ends, and every few seconds between."""

    interval_s = 1.5

    def __init__(self, weights: StageWeights) -> None:
        super().__init__(weights)
        self._began = time.monotonic()

    def show(self, progress: Progress, share: float | None, job_left: float | None) -> None:
        """See `ProgressDisplay.show`.

        Args:
            progress: of the stage.
            share: of the whole job that is done, 0 to 1; None where it is not known.
            job_left: seconds to the end of the job; None where they are not known.
        """
        if time.monotonic() - self._began > 60:
            self.interval_s = 4.5  # the log of a long job must not become long too
        whole = "" if share is None or job_left is None else f"  (all {share:.0%}, {format_duration(job_left)} left)"
        print_message(f"{progress.name:<9}  {describe_progress(progress)}{whole}")


class JsonLines(ProgressDisplay):
    """Shows progress as JSON objects, one a line: the fields of `Progress`, and what is known of the whole job.

    "overall" is the share that is done, "overall_seconds_left" the time to the end. Values that are not known are null.
    """

    interval_s = 1.0

    def show(self, progress: Progress, share: float | None, job_left: float | None) -> None:
        """See `ProgressDisplay.show`.

        Args:
            progress: of the stage.
            share: of the whole job that is done, 0 to 1; None where it is not known.
            job_left: seconds to the end of the job; None where they are not known.
        """
        line: dict[str, Any] = {**asdict(progress), "overall": None if share is None else round(share, 4)}
        del line["plan"]
        line |= {name: line[name] or None for name in ("peak_mib", "note", "part")}
        line["overall_seconds_left"] = job_left
        for name in ("seconds_left", "overall_seconds_left"):
            line[name] = None if line[name] is None else round(line[name], 2)
        print_message(json.dumps(to_plain_values(line), allow_nan=False))

    def show_note(self, progress: Progress) -> None:
        """See `ProgressDisplay.show_note`."""
        self.show(progress, None, None)


class ProgressBars(ProgressDisplay):
    """Shows progress as bars on a terminal: the whole job, and below it the stage with its count and figures."""

    interval_s = 0.0

    def __init__(self, weights: StageWeights) -> None:
        super().__init__(weights)
        # rich takes a tenth of a second to import: only commands that draw bars pay for it
        from rich import progress as rich
        from rich.console import Console

        self._bars = rich.Progress(
            rich.SpinnerColumn("line"),
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=24),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            refresh_per_second=5,
            redirect_stdout=False,  # stdout is for data
        )
        self._overall = self._bars.add_task("all", total=1.0, visible=False, text="")
        self._stage = self._bars.add_task("  starting", total=1.0, text="")
        self._bars.start()
        self._bars.console.show_cursor()  # rich hides it, and a second Ctrl-C ends the process without showing it again

    def show(self, progress: Progress, share: float | None, job_left: float | None) -> None:
        """See `ProgressDisplay.show`.

        Args:
            progress: of the stage.
            share: of the whole job that is done, 0 to 1; None where it is not known.
            job_left: seconds to the end of the job; None where they are not known.
        """
        if share is not None:
            text = "" if job_left is None else f"{format_duration(job_left)} left"
            self._bars.update(self._overall, completed=share, text=text, visible=True)
        text = describe_progress(progress)
        self._bars.update(self._stage, description=f"  {progress.name}", completed=progress.share, text=text)

    def stop(self) -> None:
        """Leaves the bars as they are, and gives the terminal back."""
        super().stop()
        self._bars.stop()


class TimeEstimate:
    """Estimates when a job of weighted stages ends, from the time that its stages took so far, and from its plan.

    Args:
        weights: weights of the stages, in any unit.
    """

    def __init__(self, weights: StageWeights) -> None:
        self.weights = weights
        self.has_plan = False
        self._began = self._stage_began = time.monotonic()
        self._first_share = 0.0  # of the stage, when it was first heard of: a training may go on from the middle
        self._seen: list[str] = []

    def take_plan(self, plan: StageWeights) -> None:
        """Replaces the weights by the seconds that stages are expected to take.

        Args:
            plan: seconds by the name of the stage. Other stages of the job keep their weight beside these.
        """
        usual = sum(self.weights.get(stage, 0.0) for stage in plan)
        scale = sum(plan.values()) / usual if usual else 0.0
        kept = {stage: scale * weight for stage, weight in self.weights.items()}
        self.weights = {**kept, **plan}
        self.has_plan = True

    def complete(self, progress: Progress) -> Progress:
        """Returns a progress with the seconds that are left of its stage, where it does not say them itself."""
        took = self._measure_stage(progress)
        if progress.seconds_left is not None or progress.share <= self._first_share or took < MIN_ETA_S:
            return progress
        return replace(progress, seconds_left=self._estimate_stage(progress, took))

    def update(self, progress: Progress) -> float | None:
        """Returns the seconds to the end of the job; None while nothing is known, or for an unknown stage."""
        took = self._measure_stage(progress)
        if progress.stage not in self.weights:
            return None
        stage_left = progress.seconds_left
        if stage_left is None:
            if progress.share <= self._first_share and not self.has_plan:
                return None
            stage_left = self._estimate_stage(progress, took)
        # Stages that were left out took no time, and say nothing about those that follow. A plan counts like a quarter
        # of the job.
        seen = sum(self.weights.get(stage, 0.0) for stage in set(self._seen))
        stages = list(self.weights)
        later = sum(self.weights[stage] for stage in stages[stages.index(progress.stage) + 1 :])
        planned = sum(self.weights.values()) / 4 if self.has_plan else 0.0
        took = time.monotonic() - self._began + stage_left
        return stage_left + later * (took + planned) / max(seen + planned, 1e-9)

    def _measure_stage(self, progress: Progress) -> float:
        """Returns the seconds since a stage began: since its first progress."""
        now = time.monotonic()
        if progress.stage not in self._seen[-1:]:
            self._stage_began, self._first_share = now, progress.share if progress.share < 1 else 0.0
            self._seen.append(progress.stage)
        return now - self._stage_began

    def _estimate_stage(self, progress: Progress, took: float) -> float:
        """Returns the seconds that are left of a stage; a plan counts like a tenth of the stage."""
        trust = 0.1 if self.has_plan else 0.0
        planned = trust * self.weights.get(progress.stage, 0.0)
        return (took + planned) * (1 - progress.share) / (progress.share - self._first_share + trust)


def describe_progress(progress: Progress) -> str:
    """Describes how far a stage is: steps, time a step, time left, PSNR, memory."""
    parts = [f"{progress.done}/{progress.total}"]
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

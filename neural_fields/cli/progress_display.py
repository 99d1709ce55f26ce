"""How commands show their progress on stderr: bars on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from neural_fields.core.files import to_plain_values
from neural_fields.core.progress import Progress, ProgressReporter, StageWeights, overall_share

MIN_ETA_SHARE = 0.05  # of the whole job: before that, its end is a guess


@contextmanager
def show_progress(weights: StageWeights | None = None, as_json: bool = False) -> Iterator[ProgressReporter]:
    """Shows the progress of a job on stderr, for as long as the block runs.

    Args:
        weights: the stages of the job in order, which make one overall bar; without them each stage has its own.
        as_json: whether to write JSON lines, wherever stderr leads.

    Yields:
        What the job reports to.
    """
    if as_json:
        yield JsonLines(weights or {})
    elif sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown"):
        bars = ProgressBars(weights or {})
        try:
            yield bars
        finally:
            bars.stop()
    else:
        yield PlainLines()


def print_message(text: str) -> None:
    """Prints one line for the user, on stderr; above the bars where there are any."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class LineLimit:
    """Decides which progress is worth a line: a new stage, the last step, or one after a while.

    Attributes:
        interval_s: the least time between two other lines of a stage.
        name, written_at: of the last line.
    """

    interval_s: float
    name: str = ""
    written_at: float = -math.inf

    def allows(self, progress: Progress) -> bool:
        """Tells whether to write a line, and counts it as written."""
        now = time.monotonic()
        is_last = progress.done == progress.total
        if progress.name == self.name and not is_last and now - self.written_at < self.interval_s:
            return False
        self.name, self.written_at = progress.name, now
        return True


@dataclass
class PlainLines:
    """Shows progress as lines for logs: a stage when it begins and ends, and every ten seconds between."""

    limit: LineLimit = field(default_factory=lambda: LineLimit(10.0))

    def __call__(self, progress: Progress) -> None:
        """Prints a note at once, and a progress unless the last one was printed just now."""
        if progress.note:
            print_message(f"note: {progress.note}")
        elif self.limit.allows(progress):
            print_message(f"{progress.name:<9}  {describe_progress(progress)}")


@dataclass
class JsonLines:
    """Shows progress as JSON objects, one a line: the fields of `Progress`, and "overall", the share of the whole job.

    Values that are not known are null.
    """

    weights: StageWeights
    limit: LineLimit = field(default_factory=lambda: LineLimit(1.0))

    def __call__(self, progress: Progress) -> None:
        """Prints a note at once, and a progress unless the last one was printed within a second."""
        if progress.note or self.limit.allows(progress):
            share = None if progress.note else overall_share(self.weights, progress)
            line: dict[str, Any] = {**asdict(progress), "overall": None if share is None else round(share, 4)}
            line |= {name: line[name] or None for name in ("peak_mib", "note", "part")}
            if progress.seconds_left is not None:
                line["seconds_left"] = round(progress.seconds_left, 2)
            print_message(json.dumps(to_plain_values(line), allow_nan=False))


class ProgressBars:
    """Shows progress as bars on a terminal: the whole job, and below it the stage with its count and figures.

    Attributes:
        weights: weights of the stages, as for `show_progress`.
    """

    def __init__(self, weights: StageWeights) -> None:
        # rich takes a tenth of a second to import: only commands that draw bars pay for it
        from rich import progress as rich
        from rich.console import Console

        self.weights = weights
        self._share = 0.0
        self._eta = TimeEstimate(weights)
        self._bars = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=24),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            refresh_per_second=5,
            redirect_stdout=False,  # stdout is for data
        )
        self._overall = self._bars.add_task("all", total=1.0, visible=False, text="")
        self._stage = self._bars.add_task("", total=1.0, visible=False, text="")
        self._bars.start()
        self._bars.console.show_cursor()  # rich hides it, and a second Ctrl-C ends the process without showing it again

    def __call__(self, progress: Progress) -> None:
        """Prints a note above the bars, or moves them."""
        if progress.note:
            print_message(f"note: {progress.note}")
            return
        share = overall_share(self.weights, progress)
        seconds_left = self._eta.update(progress)
        if share is not None:
            known = seconds_left is not None and share >= MIN_ETA_SHARE
            text = f"{format_duration(seconds_left or 0.0)} left" if known else ""
            # A stage may come twice, such as the masks of each of several videos: the bar never goes back.
            self._share = max(self._share, share)
            self._bars.update(self._overall, completed=self._share, text=text, visible=True)
        text = describe_progress(progress)
        self._bars.update(
            self._stage, description=f"  {progress.name}", completed=progress.share, text=text, visible=True
        )

    def stop(self) -> None:
        """Leaves the bars as they are, and gives the terminal back."""
        self._bars.stop()


class TimeEstimate:
    """Estimates when a job of weighted stages ends, from the time that its stages took so far."""

    def __init__(self, weights: StageWeights) -> None:
        self.weights = weights
        self._began = self._stage_began = time.monotonic()
        self._seen: list[str] = []

    def update(self, progress: Progress) -> float | None:
        """Returns the seconds to the end of the job; None while nothing is known, or for an unknown stage."""
        now = time.monotonic()
        if progress.stage not in self._seen[-1:]:
            self._stage_began = now
            self._seen.append(progress.stage)
        if progress.stage not in self.weights or progress.share == 0:
            return None
        stage_left = progress.seconds_left
        if stage_left is None:
            stage_left = (now - self._stage_began) * (1 - progress.share) / progress.share
        # Stages that were left out took no time, and say nothing about those that follow.
        seen = sum(self.weights.get(stage, 0.0) for stage in set(self._seen))
        stages = list(self.weights)
        later = sum(self.weights[stage] for stage in stages[stages.index(progress.stage) + 1 :])
        return stage_left + later * (now - self._began + stage_left) / seen


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

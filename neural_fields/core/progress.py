"""The progress of a long job: the one type that every reporter takes, from training to editors and exports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

StageWeights = Mapping[str, float]
"""The stages of a job in order, each with the time that it usually takes, in any unit."""


@dataclass(frozen=True)
class Progress:
    """Describes the progress of a stage of a job.

    Attributes:
        stage: the name of the stage: "flow", "training", "rendering".
        done: number of steps, frames or files that are done, 0 to `total`.
        total: number of steps, frames or files of the stage, at least 1.
        psnr: PSNR of the last training steps, in dB.
        seconds_per_step: time of one step.
        seconds_left: estimated time to the end of the stage.
        peak_mib: peak memory so far, in MiB; 0 where it was not measured.
        note: a sentence for the user; progress with a note is shown as the note alone.
        part: the part of the stage that is running, where a stage has several: "person" in a 3D training.
        plan: the seconds that each stage of the job is expected to take, in order, once they are known; given with a
            note.

    Example:
        >>> Progress("rendering", 12, 48).share
        0.25
    """

    stage: str
    done: int
    total: int
    psnr: float | None = None
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    peak_mib: float = 0.0
    note: str = ""
    part: str = ""
    plan: StageWeights | None = None

    @property
    def name(self) -> str:
        """The name to show: the part of the stage where it has parts, otherwise the stage."""
        return self.part or self.stage

    @property
    def share(self) -> float:
        """The share of the stage that is done, 0 to 1."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 1.0


ProgressReporter = Callable[[Progress], None]


def report_nothing(progress: Progress) -> None:
    """Ignores the progress: the default reporter."""


def overall_share(weights: StageWeights, progress: Progress) -> float | None:
    """Computes the share of a job that is done; stages that were skipped count as done.

    Args:
        weights: the stages of the job in order, with their weights.
        progress: progress of one of the stages.

    Returns:
        The share, 0 to 1; None for a stage that the job does not have.

    Example:
        >>> overall_share({"flow": 1.0, "training": 3.0}, Progress("training", 50, 100))
        0.625
    """
    if progress.stage not in weights:
        return None
    stages = list(weights)
    before = sum(weights[stage] for stage in stages[: stages.index(progress.stage)])
    return (before + weights[progress.stage] * progress.share) / sum(weights.values())


def rename_stage(report: ProgressReporter, stage: str) -> ProgressReporter:
    """Makes a reporter that passes progress on under another name of the stage.

    Args:
        report: receives the renamed progress.
        stage: the name that the stage has in the surrounding job.
    """
    return lambda progress: report(replace(progress, stage=stage))


def report_part(report: ProgressReporter, stage: str, first: float, last: float) -> ProgressReporter:
    """Makes a reporter for a part of a stage, which counts hundredths of the stage.

    Args:
        report: receives the progress of the stage.
        stage: its name.
        first: the share of the stage that is done before the part, 0 to 1.
        last: the share that is done after it.

    Example:
        >>> report_part(print, "geometry", 0.5, 0.75)(Progress("views", 1, 2))
        Progress(stage='geometry', done=62, total=100, ...)
    """

    def pass_on(progress: Progress) -> None:
        if progress.note:
            report(replace(progress, stage=stage))
        else:
            report(Progress(stage, math.floor(100 * (first + (last - first) * progress.share) + 1e-9), 100))

    return pass_on

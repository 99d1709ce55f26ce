"""How far a long job is, as commands and pages show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What a training is doing now, for the live line of the command."""

    stage: str  # "reading", "flow", "masks", "following", "geometry", "training", "baking", "report"
    done: int
    total: int
    psnr: float | None = None  # of the last steps, in dB
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    peak_mib: float = 0.0
    note: str = ""


ProgressReporter = Callable[[Progress], None]

"""Options of the start of a mapping that is a network: it is taught for some steps before the training begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from neural_fields.core.progress import ProgressReporter, report_nothing


@dataclass(frozen=True)
class WarmUpOptions:
    """Options of warm-ups. Without `seconds` and `stop`, the same seed gives the same weights."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where the steps are computed
    seconds: float | None = None  # after which a warm-up ends, finished or not
    stop: Callable[[], bool] = lambda: False  # asked before each step; True ends the warm-up
    report: ProgressReporter = report_nothing
    report_every: int = 20  # steps between two calls of `report`
    max_points: int = 10_000  # of a frame, for each step; no more than the frame has pixels

    def for_layer(self, number: int, layers: int) -> WarmUpOptions:
        """Returns the options for one of several layers, with different random points and a share of the time."""
        seconds = None if self.seconds is None else self.seconds / layers
        return replace(self, seed=self.seed * layers + number, seconds=seconds)

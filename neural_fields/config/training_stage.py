"""The stages of a training: one after the other, in one count of steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingStage:
    """Describes a part of a training.

    Attributes:
        name: the name that is shown while it runs.
        first: its first step, counted from the start of the training.
        last: the first step after it.

    Example:
        >>> TrainingStage("person", 1000, 3000).progress(1500)
        0.25
    """

    name: str
    first: int
    last: int

    def progress(self, step: int) -> float:
        """Returns the share of the stage that is done at a step, 0 to 1."""
        return min(1.0, max(0.0, (step - self.first) / max(1, self.last - self.first)))

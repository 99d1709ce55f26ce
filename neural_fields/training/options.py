"""Options of a training, and the progress that it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from neural_fields.config.planar import Quality
from neural_fields.core.errors import bad_input


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training; the defaults are those of the command."""

    out: Path | None = None  # default: runs/<name of the video>
    config: str = "atlas"  # a preset or a YAML file
    overrides: dict[str, object] = field(default_factory=dict)  # dotted keys: {"training.steps": 50}
    quality: Quality = "normal"
    size: str = "480p"  # never enlarges
    seconds: float | None = None  # end after this time, everything included
    frames: str | None = None  # A:B[:STEP]
    masks: tuple[str, ...] = ("auto",)  # [NAME=]PATH, front first; "auto" or "none"
    flow: str = "auto"
    roi: str | None = None  # "K:x,y x,y x,y x,y": a region of frame K, in pixels of the source, as the front layer
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise bad_input(f"--seconds {self.seconds:g}", why="training takes some time: above 0", fix="--seconds 90")
        if not 0 <= self.seed < 2**32:
            raise bad_input(f"--seed {self.seed}", why="expected a whole number from 0 to 2^32 - 1", fix="--seed 0")

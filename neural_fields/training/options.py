"""Options of `unwrap train`, and the time that its stages take."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from neural_fields.config.flags import NotAFlag, Overrides, Repeated
from neural_fields.config.presets import Quality
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import StageWeights
from neural_fields.masking.hints import AnyHint

# Shares of the time of a usual training; on a terminal they make one bar of all stages.
STAGE_WEIGHTS: StageWeights = {
    "reading": 0.07,
    "flow": 0.05,
    "masks": 0.4,
    "following": 0.02,
    "geometry": 0.2,
    "textures": 0.04,
    "training": 0.12,
    "baking": 0.04,
    "report": 0.06,
}


@dataclass(frozen=True)
class TrainOptions:
    """Sets how a model is trained; the fields are the flags of `unwrap train`.

    Raises:
        UserError: a time budget that is not above 0, a seed out of range, hints beside masks, or masks that cannot go
            together (exit 3).

    Example:
        >>> options = TrainOptions(quality="draft", seconds=90.0, overrides={"texture.density": 2.0})
        >>> options.config, options.masks
        ('atlas', ('auto',))
        >>> TrainOptions(seconds=0.0)
        Traceback (most recent call last):
        ...
        neural_fields.core.errors.UserError: error: --seconds 0
          why   training takes some time: above 0
          try   --seconds 90
    """

    out: Path | None = None
    """The run's folder (default: runs/NAME, where NAME is the name of the video)."""
    config: str = "atlas"
    """A preset, or a YAML file."""
    overrides: Overrides = field(default_factory=dict)
    """Values of the config by dotted name; on the command line each of them is a flag."""
    quality: Quality = "normal"
    """How long to refine: draft, normal or final."""
    size: str = "auto"
    """Size of the training: 240p, 480p, Np, WxH or source, never enlarged; auto: that of the run, or 480p, or less
    where --seconds is short. Rendering uses the source's size."""
    canonical_size: str = "auto"
    """Size of frames whose resolution the pictures to paint on get: source, 1080p, Np or WxH; auto: that of the run, or
    the source's. Never less than in the training."""
    seconds: float | None = None
    """Time budget in seconds: finish within about this time, setup included."""
    frames: str | None = None
    """Frames to use: A:B or A:B:STEP."""
    masks: Repeated = ()
    """[NAME=]PATH for each front layer, front first; auto (what moves, the default) or auto:N (at most N); or none."""
    hints: NotAFlag[tuple[AnyHint, ...]] = ()
    """Instead of masks: where objects are in some frames; masks of them are made first, in the run's folder."""
    text_model: str | None = None
    """A network for --text (Grounding DINO, SAM 3): a folder, or a name on the hub."""
    main_model: str | None = None
    """A network for --main (BiRefNet as ONNX): a folder, or a name on the hub."""
    roi: str | None = None
    """A region to track, as the front layer: frame K and four corners in pixels, "K:x,y x,y x,y x,y"."""
    flow: str = "auto"
    """Optical flow: auto, dis, raft, raft-large, a RAFT .pth file, or a folder of flow files."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    seed: int = 0
    """Random seed, 0 to 2^32 - 1."""

    def __post_init__(self) -> None:
        """Fills in the default of `masks`: a repeatable flag would otherwise add to it.

        Raises:
            UserError: a time budget or a seed out of range, hints beside masks, or masks that cannot go
                together (exit 3).
        """
        object.__setattr__(self, "masks", tuple(self.masks) or ("auto",))
        if self.hints and self.masks != ("auto",):
            raise bad_input(
                f"--masks {' '.join(self.masks)} and {self.hints[0].words} at once",
                why="either the masks are there, or they are made from what you point at",
                fix="unwrap mask VIDEO first, then unwrap train VIDEO --masks FOLDER for each",
            )
        if len(self.masks) > 1 and any(spec == "none" or spec.partition(":")[0] == "auto" for spec in self.masks):
            raise bad_input(
                f"--masks {' '.join(self.masks)}: 'auto' and 'none' stand alone",
                why="either the program finds the moving objects, or every layer has a mask of yours",
                fix="--masks PATH for each front layer, front first",
            )
        if self.finds_masks and self.masks[0] != "auto" and not re.fullmatch(r"auto:[1-9]\d?", self.masks[0]):
            raise bad_input(
                f"--masks {self.masks[0]}",
                why="the number says how many moving objects may become layers: 1 to 99",
                fix="--masks auto:2",
            )
        if self.seconds is not None and not self.seconds > 0:
            raise bad_input(f"--seconds {self.seconds:g}", why="training takes some time: above 0", fix="--seconds 90")
        if not 0 <= self.seed < 2**32:
            raise bad_input(f"--seed {self.seed}", why="expected a whole number from 0 to 2^32 - 1", fix="--seed 0")

    @property
    def finds_masks(self) -> bool:
        """Whether masks are found by motion: `--masks auto` or auto:N."""
        return len(self.masks) == 1 and self.masks[0].partition(":")[0] == "auto"

    @property
    def wanted_objects(self) -> int | None:
        """The most objects that are found by motion; None where the user does not say."""
        number = self.masks[0].partition(":")[2] if self.finds_masks else ""
        return int(number) if number else None

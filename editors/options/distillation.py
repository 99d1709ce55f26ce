"""The settings of editors that optimize by the score of a diffusion model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from editors.options.diffusion import DiffusionOptions
from editors.options.wrong_setting import wrong_setting_error

Variant = Literal["sds", "csd", "nfsd", "dds"]


@dataclass(frozen=True, kw_only=True)
class SdsOptions(DiffusionOptions):
    """Holds the settings of `Sds`."""

    name: ClassVar[str] = "sds"

    variant: Variant = "sds"
    """sds, csd (the guidance alone), nfsd (noise-free, for a guidance of 7.5) or dds (difference of two prompts)."""
    source_prompt: str = ""
    """What the layer shows now; used only by dds."""
    steps: int = 300
    """Steps of the optimization."""
    keep: float = 0.0
    """Weight of the source's colors: 0 leaves the region free, 0.1 has a visible effect."""
    rate: float = 0.05
    """Learning rate of Adam."""
    anneal: bool = True
    """Reduce the noise during the optimization: large shapes form first, then details."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.keep < math.inf:
            raise wrong_setting_error("keep", self.keep, "it is 0 or more", "--keep 0.1")
        if not 0 < self.rate < math.inf:
            raise wrong_setting_error("rate", self.rate, "it is above 0", "--rate 0.05")


@dataclass(frozen=True, kw_only=True)
class Text2LiveOptions(DiffusionOptions):
    """Holds the settings of `Text2Live`."""

    name: ClassVar[str] = "text2live"

    model: str = ""
    """A text-to-image model, instead of CLIP: the loss is score distillation of the composite."""
    clip_model: str = ""
    """A folder of a CLIP model, or its name on the hub."""
    source_prompt: str = ""
    """What the layer shows now, such as "a swan": the edit follows the difference of the two prompts."""
    steps: int = 300
    """Number of training steps; the paper uses 1000 for a picture."""
    variant: Variant = "sds"
    """Kind of score distillation with --model: sds, csd, nfsd or dds."""
    structure: float | None = None
    """Weight of the picture's layout (default: 3 with --clip-model, 0 with --model)."""
    sparsity: float = 0.1
    """Weight of the sparsity loss: larger values paint less."""
    rate: float = 2.5e-3
    """Learning rate of Adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.model) == bool(self.clip_model):
            why = "the layer is trained under a CLIP or under a text-to-image model: name one of the two"
            raise wrong_setting_error("clip-model", self.clip_model, why, "--clip-model FOLDER, or --model FOLDER")
        for flag, value in (("structure", self.structure), ("sparsity", self.sparsity)):
            if value is not None and not 0 <= value < math.inf:
                raise wrong_setting_error(flag, value, "it is 0 or more", f"--{flag} 1")
        if not 0 < self.rate < math.inf:
            raise wrong_setting_error("rate", self.rate, "it is above 0", "--rate 0.0025")


@dataclass(frozen=True, kw_only=True)
class ShapeAwareOptions(DiffusionOptions):
    """Holds the settings of `ShapeAware`."""

    name: ClassVar[str] = "shape_aware"

    model: str = ""
    """A folder in diffusers' layout, or the name of a model on the hub. Not needed with --edited."""
    prompt: str = ""
    """What the new object should be. Not needed with --edited."""
    frame: int | None = None
    """Number of the frame in the source to repaint (default: the middle one)."""
    edited: Path | None = None
    """That frame with the new object painted by you, instead of a model."""
    edited_mask: Path | None = None
    """A picture of that frame's shape, bright on the new object (default: it is segmented automatically)."""
    pairs_file: Path | None = None
    """A CSV file of matching points, x, y of the old and x, y of the new object (default: they are matched)."""
    flow: Path | None = None
    """A .flo or .npy file, instead of points: the displacement of each pixel of the old object, in pixels."""
    refine: int = 0
    """Steps of score distillation on the texture afterwards, for what the frame does not show."""

    def __post_init__(self) -> None:
        if self.edited is None or self.model:
            super().__post_init__()
        if self.edited is None and not self.model:
            raise wrong_setting_error(
                "model", self.model, "a model repaints the frame, or you do", "--edited FRAME.png"
            )
        if self.refine < 0 or (self.refine and not self.model):
            raise wrong_setting_error("refine", self.refine, "it counts steps of a model", "--refine 0")

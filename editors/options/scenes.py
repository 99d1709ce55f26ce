"""The settings of editors of 3D scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from editors.options.wrong_setting import wrong_setting_error
from neural_fields.config.flags import Repeated
from neural_fields.core.errors import ExitCode, UserError

Part = Literal["person", "background"]


@dataclass(frozen=True, kw_only=True)
class DynVideoEOptions:
    """Holds the settings of `DynVideoE`."""

    name: ClassVar[str] = "dynvideo_e"
    default_side_px: ClassVar[int] = 128  # of a view; what a model was trained on where that is less

    prompt: str = ""
    """What the person should look like; needs --model."""
    model: str = ""
    """A text-to-image model: a folder in diffusers' layout, or the name of one on the hub."""
    negative: str = ""
    """What the person should not look like."""
    lora: Repeated = ()
    """A LoRA of the model (for example of this person), a safetensors FILE or FILE@STRENGTH. Repeatable."""
    reference: Path | None = None
    """An edited picture of one of the capture's views: the target appearance."""
    reference_view: int = 0
    """Number of that view, 0 is the first."""
    reference_mask: Path | None = None
    """A mask, white on the person of the reference (default: its transparency, or the view's mask)."""
    reference_depth: Path | None = None
    """A depth picture of the reference, brighter where it is nearer; only with --shape."""
    depth_model: str = ""
    """A depth network of transformers that estimates the reference's depth instead; only with --shape."""
    view_model: str = ""
    """A model converted from Zero-1-to-3: makes the other sides consistent with the reference."""
    shape: bool = False
    """Change the shape of the person too, not only the colors."""
    steps: int = 300
    """Steps of the optimization."""
    rate: float = 0.05
    """Learning rate of the colors."""
    shape_rate: float = 0.002
    """Learning rate of the shape."""
    guidance: float = 100.0
    """How strongly the prompt is followed."""
    view_guidance: float = 5.0
    """How strongly the reference is followed by --view-model."""
    times: tuple[float, float] = (0.02, 0.98)
    """Range of the noise levels at which the models score views, as shares of their schedule, in [0, 1]."""
    zoom: float = 0.5
    """How often a view shows a part of the body instead of all of it, in [0, 1]; it grows over the run."""
    part_prompt: str = "{prompt}"
    """The prompt for a part of the body; {part} stands for its name and {prompt} for the prompt."""
    random_poses: float = 0.25
    """Share of the views in random poses, in [0, 1]."""
    source_poses: float = 0.25
    """Share of the views in poses of the video; the rest is in the reference's pose, or any pose without one."""
    rgb_weight: float = 1000.0
    """Weight of the loss on the reference's colors."""
    mask_weight: float = 100.0
    """Weight of the loss on the reference's outline."""
    depth_weight: float = 10.0
    """Weight of the loss on the reference's depth."""
    prompt_weight: float = 0.025
    """Weight of the score distillation by the prompt."""
    view_weight: float = 1.0
    """Weight of the score distillation by --view-model."""
    side: int | None = None
    """Side of the views in pixels (default: 128, or the side that the model was trained on if that is less)."""
    seed: int = 0
    """Seed of the random numbers; another seed gives another result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that runs the models."""
    unsafe_weights: bool = False
    """Also read weights that are not safetensors. Such files can run code: use them only if you trust their source."""

    def __post_init__(self) -> None:
        if not self.prompt.strip() and self.reference is None:
            fix = '--prompt "a person in a blue coat" --model MODEL'
            raise UserError(ExitCode.USAGE, "nothing says what the person should become", fix=fix)
        if bool(self.prompt.strip()) != bool(self.model):
            have, miss = ("prompt", "model MODEL") if self.prompt.strip() else ("model", 'prompt "..."')
            raise UserError(ExitCode.USAGE, f"--{have} needs --{miss.split()[0]}", fix=f"--{miss}")
        first, last = self.times
        shares = self.source_poses + self.random_poses
        weights = (self.rgb_weight, self.mask_weight, self.depth_weight, self.prompt_weight, self.view_weight)
        for wrong, flag, value, why, fix in (
            (self.steps < 1, "steps", self.steps, "at least one is needed", "--steps 300"),
            (not 0 < self.rate < math.inf, "rate", self.rate, "it is above 0", "--rate 0.05"),
            (not 0 < self.shape_rate < math.inf, "shape-rate", self.shape_rate, "it is above 0", "--shape-rate 0.002"),
            (not 0 <= self.guidance < math.inf, "guidance", self.guidance, "it is 0 or more", "--guidance 100"),
            (not 0 <= first < last <= 1, "times", self.times, "they rise from 0 to 1", "--times 0.02 0.98"),
            (not 0 <= self.zoom <= 1, "zoom", self.zoom, "it is a share", "--zoom 0.5"),
            (min(self.source_poses, self.random_poses) < 0 or shares > 1, "source-poses", self.source_poses,
             "with --random-poses it is a share of all views", "--source-poses 0.25 --random-poses 0.25"),
            (min(weights) < 0 or max(weights) == math.inf, "rgb-weight", self.rgb_weight,
             "no weight is below 0 or without end", "--rgb-weight 1000"),
            (bool(self.view_model) and self.reference is None, "view-model", self.view_model,
             "it turns a reference picture", "--reference PICTURE.png"),
            (self.side is not None and self.side < 8, "side", self.side, "it counts pixels", "leave --side out"),
        ):  # fmt: skip
            if wrong:
                raise wrong_setting_error(flag, value, why, fix)


@dataclass(frozen=True, kw_only=True)
class VolumeStyleOptions:
    """Holds the settings of `VolumeStyle`."""

    name: ClassVar[str] = "volume_style"

    style: Path
    """The style picture."""
    features: Path
    """Weights of torchvision's VGG-16, SqueezeNet 1.1 or AlexNet."""
    steps: int = 200
    """Steps of the optimization; each uses one view."""
    rate: float = 0.05
    """Learning rate of the colors."""
    side: int = 128
    """Longer side of the rendered views, in pixels."""
    style_side: int = 256
    """Longer side of the style picture, in pixels; its strokes have the same size in pixels in the views."""
    palette: float = 10.0
    """Weight of the style's color statistics; 0 uses the features alone."""
    content: float = 0.05
    """Weight of the content: how strongly the features of the original views are preserved."""
    seed: int = 0
    """Seed of the random numbers; another seed gives another result."""

    def __post_init__(self) -> None:
        for wrong, flag, value, why, fix in (
            (self.steps < 1, "steps", self.steps, "at least one is needed", "--steps 200"),
            (not 0 < self.rate < math.inf, "rate", self.rate, "it is above 0", "--rate 0.05"),
            (not 0 <= self.palette < math.inf, "palette", self.palette, "it is 0 or more", "--palette 10"),
            (not 0 <= self.content < math.inf, "content", self.content, "it is 0 or more", "--content 0.05"),
            (self.side < 16, "side", self.side, "networks see nothing in fewer pixels", "--side 128"),
            (self.style_side < 16, "style-side", self.style_side, "it counts pixels", "--style-side 256"),
        ):
            if wrong:
                raise wrong_setting_error(flag, value, why, fix)


@dataclass(frozen=True, kw_only=True)
class RemovePartOptions:
    """Holds the settings of `RemovePart`."""

    name: ClassVar[str] = "remove"

    part: Part = "person"
    """The part to remove."""


@dataclass(frozen=True, kw_only=True)
class ReplacePartOptions:
    """Holds the settings of `ReplacePart`."""

    name: ClassVar[str] = "replace"

    part: Part = "person"
    """The part to replace."""
    weights: Path
    """A safetensors file of the other scene's parameters, trained with the same skeleton and the same sizes."""

"""The settings of editors that repaint a region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editors.options.controls import parse_control, parse_control_pictures
from editors.options.diffusion import DiffusionOptions
from editors.options.wrong_setting import wrong_setting_error
from neural_fields.config.flags import Repeated


@dataclass(frozen=True, kw_only=True)
class RegionOptions(DiffusionOptions):
    """Holds the settings that editors which repaint a region share."""

    strength: float = 1.0
    """Share of the denoising steps that run, in (0, 1]: the amount of noise; 1 keeps nothing of the region."""
    region: str = ""
    """What to change, in words, such as "a car" (default: the entire layer, or the mask)."""
    region_model: str = ""
    """A folder of CLIPSeg to locate --region, several things joined by + (default: the model of the edit does it)."""
    region_threshold: float = 0.5
    """Least confidence that a part belongs to --region, in (0, 1); lower values select more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise wrong_setting_error("strength", self.strength, "it is above 0 and at most 1", "--strength 0.6")
        if not 0 < self.region_threshold < 1:
            raise wrong_setting_error(
                "region-threshold", self.region_threshold, "it is between 0 and 1", "--region-threshold 0.5"
            )
        if self.region_model and not self.region.strip():
            raise wrong_setting_error("region", self.region, "a region model looks for words", '--region "a car"')


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(RegionOptions):
    """Holds the settings of `Inpaint`."""

    name: ClassVar[str] = "inpaint"


@dataclass(frozen=True, kw_only=True)
class Img2ImgOptions(InpaintOptions):
    """Holds the settings of `Img2Img`."""

    name: ClassVar[str] = "img2img"

    strength: float = 0.6
    """Share of the denoising steps that run, in (0, 1]: the amount of noise; less stays closer to the original."""


@dataclass(frozen=True, kw_only=True)
class ControlNetOptions(RegionOptions):
    """Holds the settings of `ControlNet`."""

    name: ClassVar[str] = "controlnet"

    control: Repeated = ()
    """A ControlNet: KIND=FOLDER or KIND=FOLDER@SCALE; KIND is edges, soft-edges, depth, pose, picture. Repeatable."""
    control_picture: Repeated = ()
    """KIND=FILE: follow this picture, which has the shape of the canonical picture. Repeatable."""
    depth_model: str = ""
    """A folder of a depth network of transformers, for the kind depth."""
    edge_thresholds: tuple[int, int] = (100, 200)
    """Thresholds of Canny's edge detector; lower values find more lines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.control:
            raise wrong_setting_error("control", "", "there is nothing to follow", "--control edges=FOLDER")
        given = parse_control_pictures(self.control_picture)
        follows = [parse_control(text) for text in self.control]
        for follow in follows:
            in_picture = follow.kind in ("edges", "soft-edges")  # these are found in the canonical picture itself
            if follow.kind in given or in_picture or (follow.kind == "depth" and self.depth_model):
                continue
            other = ", or --depth-model FOLDER" if follow.kind == "depth" else ""
            fix = f"--control-picture {follow.kind}=FILE{other}"
            raise wrong_setting_error(
                "control", f"{follow.kind}={follow.model}", f"there is no {follow.kind} to follow", fix
            )
        if unused := given.keys() - {follow.kind for follow in follows}:
            kind = min(unused)
            fix = f"--control {kind}=FOLDER"
            raise wrong_setting_error("control-picture", f"{kind}={given[kind]}", "no ControlNet follows it", fix)
        if not 0 <= self.edge_thresholds[0] <= self.edge_thresholds[1]:
            why = "the first is 0 or more and not above the second"
            raise wrong_setting_error("edge-thresholds", self.edge_thresholds, why, "--edge-thresholds 100 200")


@dataclass(frozen=True, kw_only=True)
class VidEditOptions(RegionOptions):
    """Holds the settings of `VidEdit`."""

    name: ClassVar[str] = "videdit"

    control: str
    """A folder of a ControlNet of soft edges (HED, scribble) for the model."""
    control_scale: float = 1.0
    """Strength of the edges' influence; 1 as trained."""
    strength: float = 0.8
    """Share of the denoising steps that run, in (0, 1]: the amount of noise; less stays closer to the colors."""
    feather: float = 4.0
    """Pixels of that size over which the edit fades in from the edge of the region."""
    steps: int = 50
    """Number of denoising steps from pure noise to a picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.control_scale < float("inf"):
            raise wrong_setting_error("control-scale", self.control_scale, "it is 0 or more", "--control-scale 1")

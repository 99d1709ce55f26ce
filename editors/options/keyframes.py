"""The settings of editors that work on keyframes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from editors.options.controls import parse_control
from editors.options.diffusion import DiffusionOptions
from editors.options.wrong_setting import wrong_setting_error

CrossFrameMode = Literal["own", "first", "first-previous", "all"]
SharedAttention = Literal[CrossFrameMode, "paths"]
EDGE_KINDS = ("edges", "soft-edges")  # that are found in a frame


@dataclass(frozen=True, kw_only=True)
class KeyframeOptions(DiffusionOptions):
    """Holds the settings that editors of keyframes share."""

    keyframes: str = ""
    """Numbers of the frames to edit, such as 3,10,20 (default: frames that together show the region to edit)."""
    count: int = 4
    """Largest number of frames that are chosen if --keyframes is not given."""
    strength: float = 1.0
    """Share of the denoising steps that run, in (0, 1]: the amount of noise; 1 keeps nothing of the picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise wrong_setting_error("count", self.count, "at least one keyframe is needed", "--count 4")
        if not 0 < self.strength <= 1:
            raise wrong_setting_error("strength", self.strength, "it is above 0 and at most 1", "--strength 0.8")


@dataclass(frozen=True, kw_only=True)
class MediatedOptions(KeyframeOptions):
    """Holds the settings of `Mediated`."""

    name: ClassVar[str] = "mediated"

    attention: SharedAttention = "own"
    """Keyframes that each one attends to: own, first, first-previous, all, or paths (all, then along its points)."""


@dataclass(frozen=True, kw_only=True)
class StableVideoOptions(KeyframeOptions):
    """Holds the settings of `StableVideo`."""

    name: ClassVar[str] = "stablevideo"

    follow: float = 0.9
    """Amount of noise on the earlier edits for the next keyframe, in (0, 1]; less stays closer to them."""
    control: str = ""
    """A ControlNet that follows the frames' edges: edges=FOLDER or soft-edges=FOLDER, with @SCALE for how strongly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.follow <= 1:
            raise wrong_setting_error("follow", self.follow, "it is above 0 and at most 1", "--follow 0.8")
        if self.control and parse_control(self.control).kind not in EDGE_KINDS:
            why = f"of a frame only these are found: {', '.join(EDGE_KINDS)}"
            raise wrong_setting_error("control", self.control, why, "--control edges=FOLDER")


@dataclass(frozen=True, kw_only=True)
class TokenFlowOptions(KeyframeOptions):
    """Holds the settings of `TokenFlow`."""

    name: ClassVar[str] = "tokenflow"

    count: int = 12
    """Number of frames to edit if --keyframes is not given, spread evenly over those that show the layers."""
    block: int = 4
    """Number of frames in a block, of which one is a keyframe at each step. The model runs on one block at a time."""
    correspondences: Literal["maps", "features"] = "maps"
    """Source of correspondences: the uv maps or, as in the paper, nearest neighbors among features of the source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise wrong_setting_error("block", self.block, "at least one frame makes a block", "--block 4")

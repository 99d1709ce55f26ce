"""Options of `unwrap capture`, which builds a scene folder, and the time that its stages take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neural_fields.config.flags import Repeated
from neural_fields.core.progress import StageWeights

STAGE_WEIGHTS: StageWeights = {"reading": 0.3, "poses": 0.3, "flow": 0.15, "masks": 0.2, "writing": 0.05}


@dataclass(frozen=True)
class CaptureBuildOptions:
    """Sets how a scene folder is built from videos; the fields are the flags of `unwrap capture`.

    Example:
        >>> CaptureBuildOptions(cameras=Path("rig.toml"), bones=Path("walk.bvh"), joints_axes="zxy").masks
        ('auto',)
    """

    cameras: Path
    """A calibration (.toml), a transforms.json, or the folder of a COLMAP model."""
    bones: Path | None = None
    """Poses of the person's bones in every frame: bones.json or .bvh."""
    joints: Path | None = None
    """Tracked joints of the person: .trc."""
    joints_axes: str = "xyz"
    """Order of the axes in a .trc or .bvh file: zxy for a file with y up and cameras with z up."""
    joints_scale: float = 1.0
    """World units per unit of the file: 0.01 for a .bvh in centimeters and cameras in meters."""
    masks: Repeated = ()
    """Masks of the person with carried objects: auto (the default), none, or a path for each video."""
    frames: str | None = None
    """Frames to use of every video: A:B or A:B:STEP."""
    size: str = "480p"
    """Size of the pictures: 240p, 480p, Np, WxH or source. Never enlarges."""
    states: Path | None = None
    """A states.json: the frames at which the carried object changes."""
    pose_model: Path | None = None
    """A folder of pose networks (.tflite): joints from two or more cameras, or masks from one camera."""

    def __post_init__(self) -> None:
        """Fills in the default of `masks`: a repeatable flag would otherwise add to it."""
        object.__setattr__(self, "masks", tuple(self.masks) or ("auto",))

"""Settings of 3D scene training: defaults are here, and presets in `configs/<preset>.yaml` change them.

Steps of a stage are given at draft, normal and final quality. This module imports no heavy package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from neural_fields.config.loader import from_mapping, nest_keys
from neural_fields.config.presets import all_presets, load_config_values, require_valid
from neural_fields.config.training_stage import TrainingStage

VOLUME_KIND = "volume"  # what `kind` is in the YAML of such a preset
STAGE_NAMES = ("background", "person", "joint")


@dataclass(frozen=True)
class BackgroundConfig:
    """Sets the sizes of the background field. Lengths are in units of the scene's radius."""

    n_levels: int = 8  # grids, from coarse to fine
    n_features: int = 2  # features of a vertex
    log2_table: int = 17  # entries of a grid at most, as a power of two
    base_resolution: int = 16  # vertices of the coarsest grid along each axis; the grid spans four radii
    finest: int = 256  # vertices of the finest grid along each axis
    width: int = 32  # neurons of a hidden layer
    geometry: int = 15  # geometry features that the color network gets beside the direction
    state_code: int = 64  # length of the code of a state of the carried object; 64 in the paper
    proposed: int = 48  # intervals of a ray whose weights the proposal computes
    samples: int = 16  # intervals of a ray at which the field is evaluated
    proposal_resolution: int = 64  # vertices of the proposal's grid along each axis
    near: float = 0.05  # distance from the camera at which rays start; nothing is nearer
    far: float = 100.0  # distance at which rays end


@dataclass(frozen=True)
class PersonConfig:
    """Sets the sizes of the person's field."""

    n_levels: int = 8  # grids, from coarse to fine
    log2_table: int = 15  # entries of a grid at most, as a power of two
    base_resolution: int = 12  # vertices of the coarsest grid along each axis of the box in rest pose
    finest: int = 160  # vertices of the finest grid along each axis
    width: int = 64  # neurons of a hidden layer, here and in the networks of pose and offset
    state_size: int = 64  # length of the code of a state of the carried object; 64 in the paper
    samples: int = 24  # samples of a ray, in the part of it that is within reach of the bones
    voxels: int = 48  # of the skinning volume along the longest side of the box; 32 in the paper
    octaves: int = 6  # frequencies of the positional encoding of the offset network; the paper's number


@dataclass(frozen=True)
class VolumeLossWeights:
    """Holds the weights of the losses added to the mean squared error of colors; a loss of weight 0 is not computed."""

    interlevel: float = 0.1  # the proposal encloses the background's field (mip-NeRF 360, equation 13)
    distortion: float = 0.01  # the weights of a ray are close together (mip-NeRF 360, equation 15)
    opacity: float = 0.03  # rays end on a surface rather than on the sky
    clearance: float = 0.01  # the space between a camera and the near plane is empty
    mask: float = 0.05  # cross-entropy of the person's opacity against the masks; a tenth of it from half of the stage
    flow: float = 0.003  # distance in pixels between the person's motion by flow and by bones; 0.01 in the paper
    cycle: float = 0.01  # skinning back and forth leads to the same place; the paper's weight
    offset: float = 1.0  # squared length of the pose-dependent offset, in units of the body's span
    pose: float = 3.0  # mean square of the poses' corrections


@dataclass(frozen=True)
class VolumeTrainingConfig:
    """Sets the three stages of the training, one after the other, with one count of steps."""

    background_steps: tuple[int, int, int] = (500, 1000, 6000)  # steps of the background, at draft, normal, final
    person_steps: tuple[int, int, int] = (400, 1000, 5000)  # steps of the person, at draft, normal, final
    joint_steps: tuple[int, int, int] = (100, 200, 2000)  # steps of both together, at draft, normal, final
    rays: int = 2048  # a step, of the background's and of the joint stage
    person_rays: int = 1024  # a step, of the person's stage
    poses_from: float = 0.2  # share of the person's stage after which poses are corrected
    offsets_from: float = 0.4  # share after which the pose-dependent offset starts, one frequency after the other
    offsets_full: float = 0.8  # share at which all frequencies are on
    joint_rate: float = 0.1  # learning rates of the joint stage relative to those before; the paper's number
    holdout: int = 0  # every n-th view is left out of the training, to be measured; 0 leaves out none
    checkpoint_every: int = 500  # steps

    def __post_init__(self) -> None:
        counts = min(self.rays, self.person_rays, self.checkpoint_every)
        require_valid(counts > 0, "rays, person_rays and checkpoint_every must be above 0")
        require_valid(self.holdout == 0 or self.holdout >= 2, "holdout must be 0 or at least 2")
        steps = (*self.background_steps, *self.person_steps, *self.joint_steps)
        require_valid(min(steps) >= 0, "steps must not be negative")
        order = 0 <= self.poses_from <= 1 and 0 <= self.offsets_from <= self.offsets_full <= 1
        require_valid(order, "poses_from, offsets_from and offsets_full must rise from 0 to 1")


@dataclass(frozen=True)
class VolumeConfig:
    """Describes the model of a 3D scene and its training: the content of a 3D preset's YAML file.

    Example:
        >>> VolumeConfig().person.state_size
        64
    """

    kind: ClassVar[str] = VOLUME_KIND
    paper: str = ""  # the publication that a preset follows
    states: bool = True  # whether the carried object has a code for each of its states
    background: BackgroundConfig = field(default_factory=BackgroundConfig)  # sizes of the background field
    person: PersonConfig = field(default_factory=PersonConfig)  # sizes of the person's field
    terms: VolumeLossWeights = field(default_factory=VolumeLossWeights)  # the weights of the losses
    training: VolumeTrainingConfig = field(default_factory=VolumeTrainingConfig)  # stages and batches


def training_stages(training: VolumeTrainingConfig, quality: str, with_person: bool) -> tuple[TrainingStage, ...]:
    """Lists the stages of a training; stages without steps are left out.

    Args:
        training: settings of the training.
        quality: "draft", "normal" or "final".
        with_person: whether the scene has a person; otherwise only the background is trained.

    Returns:
        The stages in order.

    Example:
        >>> [(stage.name, stage.first, stage.last) for stage in training_stages(VolumeTrainingConfig(), "draft", False)]
        [('background', 0, 500)]
    """
    index = ("draft", "normal", "final").index(quality)
    counts = (training.background_steps, training.person_steps, training.joint_steps)
    found, first = [], 0
    for name, steps in zip(STAGE_NAMES, counts, strict=True):
        if steps[index] and (with_person or name == "background"):
            found.append(TrainingStage(name, first, first + steps[index]))
            first += steps[index]
    return tuple(found)


def is_volume_config(name: str) -> bool:
    """Tells whether a preset or a YAML file is for 3D scenes.

    Args:
        name: the name of a preset, or a path that ends in .yaml or .yml.

    Raises:
        UserError: there is no such preset or file (exit 3).

    Example:
        >>> is_volume_config("hosnerf"), is_volume_config("atlas")
        (True, False)
    """
    return load_config_values(name).get("kind") == VOLUME_KIND


def volume_presets() -> list[str]:
    """Lists the presets of 3D scenes."""
    return [name for name in all_presets() if is_volume_config(name)]


def load_volume_config(name: str, overrides: dict[str, object] | None = None) -> VolumeConfig:
    """Loads the config of a 3D preset or of a YAML file.

    Args:
        name: the name of a preset, or a path that ends in .yaml or .yml.
        overrides: values that replace those of the file, by dotted name.

    Returns:
        The checked config.

    Raises:
        UserError: an unknown preset or key (the nearest is named), a wrong type, or a contradiction (exit 3).
    """
    values = {key: value for key, value in load_config_values(name).items() if key != "kind"}
    config = from_mapping(VolumeConfig, values, where=name)
    return (
        from_mapping(VolumeConfig, nest_keys(overrides), base=config, where="the command line") if overrides else config
    )

"""Settings of 3D scene training: defaults here, what a method changes in `configs/<preset>.yaml`.

Steps of a stage are given at draft, normal and final quality. This module imports no heavy package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from neural_fields.config.loader import from_mapping, load_yaml, nest_keys, to_mapping
from neural_fields.config.planar import all_presets, preset_path
from neural_fields.config.planar_parts import require_valid

VOLUME_KIND = "volume"  # what `kind` is in the YAML of such a preset
STAGE_NAMES = ("background", "person", "joint")


@dataclass(frozen=True)
class BackgroundConfig:
    """Sizes of the background field. Lengths are in units of the scene's radius."""

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
    """Sizes of the person's field."""

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
    """Weights of the loss terms beside the mean squared difference of colors; a term of weight 0 is not computed."""

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
    """Settings of the training loop: three stages, one after the other, in one count of steps."""

    background_steps: tuple[int, int, int] = (500, 1000, 6000)  # at draft, normal, final
    person_steps: tuple[int, int, int] = (400, 1000, 5000)
    joint_steps: tuple[int, int, int] = (100, 200, 2000)
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
    """The model of a 3D scene and its training."""

    kind: ClassVar[str] = VOLUME_KIND
    paper: str = ""  # the publication that a preset follows
    states: bool = True  # whether the carried object has a code for each of its states
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    person: PersonConfig = field(default_factory=PersonConfig)
    terms: VolumeLossWeights = field(default_factory=VolumeLossWeights)
    training: VolumeTrainingConfig = field(default_factory=VolumeTrainingConfig)


@dataclass(frozen=True)
class TrainingStage:
    """One of `STAGE_NAMES`, and the steps it takes of the whole count: from `first` to before `last`."""

    name: str
    first: int
    last: int

    def progress(self, step: int) -> float:
        """Returns how much of the stage is over, 0 to 1."""
        return min(1.0, max(0.0, (step - self.first) / max(1, self.last - self.first)))


def training_stages(training: VolumeTrainingConfig, quality: str, with_person: bool) -> tuple[TrainingStage, ...]:
    """Returns the stages of a training without those of no steps; without a person there is only the first."""
    index = ("draft", "normal", "final").index(quality)
    counts = (training.background_steps, training.person_steps, training.joint_steps)
    found, first = [], 0
    for name, steps in zip(STAGE_NAMES, counts, strict=True):
        if steps[index] and (with_person or name == "background"):
            found.append(TrainingStage(name, first, first + steps[index]))
            first += steps[index]
    return tuple(found)


def is_volume_config(name: str) -> bool:
    """Whether a preset or a YAML file is of a 3D scene.

    Raises:
        UserError: there is no such preset or file.
    """
    return _load_values(name).get("kind") == VOLUME_KIND


def volume_presets() -> list[str]:
    """Lists the presets of 3D scenes."""
    return [name for name in all_presets() if is_volume_config(name)]


def load_volume_config(name: str, overrides: dict[str, object] | None = None) -> VolumeConfig:
    """Loads the config of a preset or of a YAML file, with dotted overrides on top.

    Raises:
        UserError: an unknown preset or key (the nearest is named), a wrong type, a contradiction.
    """
    values = {key: value for key, value in _load_values(name).items() if key != "kind"}
    config = from_mapping(VolumeConfig, values, where=name)
    return (
        from_mapping(VolumeConfig, nest_keys(overrides), base=config, where="the command line") if overrides else config
    )


def volume_config_to_mapping(config: VolumeConfig) -> dict[str, Any]:
    """Converts the config to plain values for run.yaml."""
    return to_mapping(config)


def _load_values(name: str) -> dict[str, Any]:
    return load_yaml(Path(name) if name.endswith((".yaml", ".yml")) else preset_path(name))

"""Settings of 3D scene training: defaults are here, and presets in `configs/<preset>.yaml` change them.

The sizes of the background and the person are beside their fields (`background.py`, `human.py`), the weights of losses
beside the losses (`background_losses.py`, `human_losses.py`). Steps of a stage are given at draft, normal and final
quality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from neural_fields.config.loader import from_mapping, nest_keys
from neural_fields.config.presets import VOLUME_KIND, load_config_values, require_valid
from neural_fields.config.training_stage import TrainingStage
from neural_fields.volume.background import BackgroundConfig
from neural_fields.volume.human import PersonConfig
from neural_fields.volume.loss import STAGE_NAMES
from neural_fields.volume.loss_table import VolumeLossWeights


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

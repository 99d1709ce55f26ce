"""The run of a 3D scene on disk: its record in run.yaml, its cameras and bones, and its model.

In addition to the files of every run there is `scene/` with `transforms.json`, `bones.json` and `states.json`, so that
a run can be rendered without the pictures that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from neural_fields.config.loader import from_mapping, to_mapping
from neural_fields.config.presets import VOLUME_KIND
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import make_folder
from neural_fields.data.capture.bones_json import read_bones, read_states, write_bones, write_states
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.data.capture.transforms_json import PosedImage, read_transforms, write_transforms
from neural_fields.edits.payloads import read_weights
from neural_fields.edits.read_stack import Edit, hidden_parts
from neural_fields.runs.checkpoints import Checkpoint, require_checkpoint
from neural_fields.runs.run import Run
from neural_fields.volume.background import BackgroundField, SceneBounds
from neural_fields.volume.color_edit import add_paints
from neural_fields.volume.config import VolumeConfig
from neural_fields.volume.human import PersonModel
from neural_fields.volume.scene import Moments, Scene


@dataclass(frozen=True)
class VolumeRecord:
    """Holds the capture and the settings of a training.

    Attributes:
        source: the folder or video of the capture.
        config: all settings.
        size: (width, height) of the training pictures.
        bounds: the part of the world that is not contracted.
        cameras, times: of all views; `held_out` are the indices of those that were not trained on.
        motion: the bones; None without a person.
        switches: moments at which the carried object changes its state.
        seed: of the weights and of all that is random in a step.
    """

    source: Path
    preset: str
    quality: str
    config: VolumeConfig
    size: tuple[int, int]
    bounds: SceneBounds
    cameras: tuple[Camera, ...]
    times: tuple[int, ...]
    held_out: tuple[int, ...]
    motion: SkeletonMotion | None
    switches: tuple[int, ...]
    seed: int

    @property
    def state_count(self) -> int:
        """The number of states of the carried object."""
        return len(self.switches) + 1

    def make_moments(self, device: torch.device | None = None) -> Moments:
        """Returns the poses and states of all moments of the capture."""
        return Moments.from_motion(self.motion, self.switches, max(self.times) + 1, device)


@dataclass(frozen=True, kw_only=True)
class SceneRunYaml:
    """Holds the content of run.yaml, except for schema and version.

    Attributes:
        source: the folder or video of the capture.
        preset, quality: as they were asked for.
        size: (width, height) of the training pictures.
        center, radius: the part of the world that is not contracted.
        held_out: indices of the views that were not trained on.
        seed: of the weights and of all that is random in a step.
        config: all settings.
    """

    kind: ClassVar[str] = VOLUME_KIND

    source: Path
    preset: str
    quality: str
    size: tuple[int, int]
    center: tuple[float, float, float]
    radius: float
    held_out: tuple[int, ...]
    seed: int
    config: VolumeConfig


def write_scene_files(run: Run, record: VolumeRecord) -> None:
    """Writes the cameras, bones and states of a record to `scene/`."""
    pictures = [
        PosedImage(run.scene / f"view{index:05d}.png", camera, time=time)
        for index, (camera, time) in enumerate(zip(record.cameras, record.times, strict=True))
    ]
    make_folder(run.scene)
    write_transforms(run.scene / "transforms.json", pictures)
    if record.motion is not None:
        write_bones(run.scene / "bones.json", record.motion)
    write_states(run.scene / "states.json", record.switches)


def make_run_yaml_values(record: VolumeRecord) -> dict[str, Any]:
    """Makes the content of run.yaml, except for schema and version."""
    values = SceneRunYaml(
        source=record.source,
        preset=record.preset,
        quality=record.quality,
        size=record.size,
        center=record.bounds.center,
        radius=record.bounds.radius,
        held_out=record.held_out,
        seed=record.seed,
        config=record.config,
    )
    return to_mapping(values)


def parse_run_yaml_values(run: Run, values: Mapping[str, Any]) -> SceneRunYaml:
    """Parses what run.yaml holds.

    Args:
        run: whose run.yaml it is; errors name it.
        values: of run.yaml.

    Raises:
        UserError: it is not what `unwrap train` writes for a 3D scene (exit 5).
    """
    try:
        kept = {key: values[key] for key in values if key not in ("schema", "version")}
        return from_mapping(SceneRunYaml, kept, where=str(run.run_yaml))
    except UserError as error:
        raise _make_damage_error(run, error) from error


def parse_volume_record(run: Run, values: Mapping[str, Any]) -> VolumeRecord:
    """Parses what run.yaml holds, and reads the files in scene/.

    Args:
        run: the run.
        values: of its run.yaml.

    Raises:
        UserError: they are incomplete, missing or damaged (exit 5).
    """
    found = parse_run_yaml_values(run, values)
    try:
        pictures = read_transforms(run.scene / "transforms.json")
        bones = run.scene / "bones.json"
        return VolumeRecord(
            source=found.source,
            preset=found.preset,
            quality=found.quality,
            config=found.config,
            size=found.size,
            bounds=SceneBounds(found.center, found.radius),
            cameras=tuple(picture.camera for picture in pictures),
            times=tuple(picture.time or 0 for picture in pictures),
            held_out=found.held_out,
            motion=read_bones(bones) if bones.is_file() else None,
            switches=read_states(run.scene / "states.json"),
            seed=found.seed,
        )
    except UserError as error:
        raise _make_damage_error(run, error) from error


def _make_damage_error(run: Run, cause: UserError) -> UserError:
    return UserError(
        ExitCode.DAMAGED_RUN,
        f"the scene of {run.path} cannot be read",
        where=cause.where or str(run.scene),
        why=cause.what,
        fix=f"restore {run.scene} and run.yaml from a copy, or start another run with unwrap train --out",
    )


def build_scene(record: VolumeRecord) -> Scene:
    """Builds an untrained scene; its weights come from the record's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(record.seed)
        background = BackgroundField(record.bounds, record.state_count, record.config.background)
        person = None
        if record.motion is not None:
            person = PersonModel(
                record.motion.skeleton, record.state_count, record.config.person, poses=record.motion.transforms
            )
        return Scene(background, person)


def load_scene(run: Run, record: VolumeRecord) -> tuple[Scene, Checkpoint]:
    """Loads the scene of a run from its newest checkpoint.

    Raises:
        UserError: no checkpoint yet, or all are damaged.
    """
    checkpoint = require_checkpoint(run, f"unwrap train {record.source} --config {record.preset} --out {run.path}")
    scene = build_scene(record)
    scene.load_state_dict({name: torch.as_tensor(value) for name, value in checkpoint.model.items()})
    return scene.eval(), checkpoint


def apply_edits(scene: Scene, edits: Sequence[Edit]) -> tuple[Scene, frozenset[str]]:
    """Applies edits to a copy of a scene.

    Args:
        scene: the trained scene; it is not changed.
        edits: of its run, the lowest first.

    Returns:
        The edited scene, and the parts that are not removed.

    Raises:
        UserError: a damaged edit, or one of another scene.
    """
    weights = [read_weights(edit) for edit in edits]
    edited = deepcopy(scene)
    add_paints(edited, [name for values in weights for name in values])
    state = dict(edited.state_dict())
    for edit, values in zip(edits, weights, strict=True):
        for name, value in values.items():
            if name not in state or state[name].shape != value.shape:
                raise UserError(
                    ExitCode.DAMAGED_RUN,
                    f"the edit {edit.folder.name} is of another scene",
                    where=str(edit.folder),
                    why=f"{name} is not a parameter of this scene, or of another shape",
                    fix=f"move {edit.folder} out of the run",
                )
            state[name] = torch.from_numpy(value)
    edited.load_state_dict(state)
    return edited, scene.parts - hidden_parts(edits)


def choose_held_out_views(count: int, every: int) -> tuple[int, ...]:
    """Returns the views that training leaves out: one in the middle of every so many; none for 0."""
    return tuple(range(every // 2, count, every)) if every else ()

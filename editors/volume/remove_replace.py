"""Removal of a part of a 3D scene, and its replacement by that of another scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from editors.core.editor import Report
from editors.volume.base import VolumeEditor, VolumeSource, WeightEdit
from neural_fields.core.errors import bad_input
from neural_fields.volume.scene import PERSON, Scene

Part = Literal["person", "background"]


@dataclass(frozen=True, kw_only=True)
class RemovePart(VolumeEditor):
    """Removes the person or the background; what was behind them is what the capture showed of it."""

    name: ClassVar[str] = "remove"

    part: Part = "person"
    """What goes."""

    def __call__(self, source: VolumeSource, report: Report) -> WeightEdit:
        """Removes the part."""
        if self.part == PERSON:
            source.require_person()
        return WeightEdit({}, (self.part,), hidden=(self.part,))


@dataclass(frozen=True, kw_only=True)
class ReplacePart(VolumeEditor):
    """Replaces the person or the background by that of another training, moved as this one was."""

    name: ClassVar[str] = "replace"

    part: Part = "person"
    """What is replaced."""
    weights: Path
    """A safetensors file of the other scene's parameters, trained with the same bones and the same sizes."""

    def __call__(self, source: VolumeSource, report: Report) -> WeightEdit:
        """Replaces the part."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.part == PERSON:
            source.require_person()
        try:
            weights = load_file(self.weights)
        except (OSError, SafetensorError) as problem:
            raise bad_input(
                f"{self.weights} cannot be read", why=str(problem).splitlines()[0], fix="--weights FILE.safetensors"
            ) from problem
        return WeightEdit(select_part_weights(source.scene, self.part, weights, str(self.weights)), (self.part,))


def select_part_weights(scene: Scene, part: str, weights: Mapping[str, Tensor], where: str = "") -> dict[str, Tensor]:
    """Selects the parameters of a part among those of another scene, as this scene can hold them.

    Args:
        scene: that they are put into.
        part: "person" or "background".
        weights: of the other scene, by name.
        where: the file they come from, for messages.

    Raises:
        UserError: there is nothing of the part, or it does not fit into this scene (exit 3).
    """
    own = {name: value for name, value in scene.state_dict().items() if name.startswith(part + ".")}
    wanted = {name: value for name, value in own.items() if ".paint." not in name}
    missing = [name for name in wanted if name not in weights]
    other = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    if missing or other:
        name = (missing or other)[0]
        why = "it is missing there"
        if not missing:
            why = f"{list(weights[name].shape)} there, {list(wanted[name].shape)} here"
        raise bad_input(
            f"the {part} does not fit into this scene",
            where=where,
            why=f"of {name}: {why}",
            fix="train both scenes with the same bones and the same settings",
        )
    cleared = {name: torch.zeros_like(value) for name, value in own.items() if name not in wanted}  # old paint is gone
    return cleared | {name: value for name, value in weights.items() if name.startswith(part + ".")}

"""Removes a part of a 3D scene, or replaces it with that of another scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from editors.core.editor import EditorResult
from editors.core.stack import EditEffects
from editors.options.scenes import RemovePartOptions, ReplacePartOptions
from editors.volume.base import VolumeEditor, VolumeSource
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter
from neural_fields.volume.scene import PERSON, Scene


@dataclass(frozen=True, kw_only=True)
class RemovePart(RemovePartOptions, VolumeEditor):
    """Remove the person or the background; the capture's other views show what was behind it."""

    def edit(self, source: VolumeSource, report: ProgressReporter) -> EditorResult:
        """Removes the part.

        Args:
            source: the scene.
            report: called with the progress.

        Raises:
            UserError: there is no person in the scene (exit 3).
        """
        if self.part == PERSON:
            source.require_person()
        return EditorResult(parts=(self.part,), effects=EditEffects(hidden=(self.part,)))


@dataclass(frozen=True, kw_only=True)
class ReplacePart(ReplacePartOptions, VolumeEditor):
    """Replace the person or the background with that of another trained scene, moved like this one."""

    def edit(self, source: VolumeSource, report: ProgressReporter) -> EditorResult:
        """Replaces the part.

        Args:
            source: the scene.
            report: called with the progress.

        Raises:
            UserError: the file cannot be read, or its parameters do not match the scene (exit 3).
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if self.part == PERSON:
            source.require_person()
        try:
            weights = load_file(self.weights)
        except (OSError, SafetensorError) as problem:
            raise bad_input(
                f"{self.weights} cannot be read", why=str(problem).splitlines()[0], fix="--weights FILE.safetensors"
            ) from problem
        chosen = select_part_weights(source.scene, self.part, weights, str(self.weights))
        return EditorResult(weights=chosen, parts=(self.part,))


def select_part_weights(
    scene: Scene, part: str, weights: Mapping[str, Shaped[np.ndarray, "..."]], where: str = ""
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Selects the parameters of a part from another scene, and clears the paint that this scene has on the part.

    Args:
        scene: the scene that takes them.
        part: "person" or "background".
        weights: parameters of the other scene, by name.
        where: the file that they come from, for messages.

    Raises:
        UserError: the other scene does not have the part, or its shapes differ from this scene's (exit 3).
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
    cleared = {name: np.zeros_like(own[name].numpy()) for name in own if name not in wanted}  # old paint is gone
    return cleared | {name: value for name, value in weights.items() if name.startswith(part + ".")}

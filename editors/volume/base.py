"""The input and the result of an editor of 3D scenes.

As in two dimensions, an editor is a frozen dataclass of its settings that can be called. It renders the trained scene
from any camera and returns new values for some of the scene's parameters, by their names in its state dict.
Whatever it does not name stays, bit for bit: an edit of the person cannot touch the background.

Colors are edited through a `Paint` that is added to a part's own colors. Density does not depend on it, so that an
edit of colors keeps every outline where it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from editors.core.editor import Report
from editors.volume.views import estimate_up_direction
from neural_fields.core.errors import bad_input
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.volume.color_edit import FIELD_MODULES, add_paint
from neural_fields.volume.scene import Moments, Scene


@dataclass(frozen=True)
class VolumeSource:
    """A trained scene as an editor sees it.

    Attributes:
        scene: with the active edits in it. An editor leaves it as it was.
        moments: poses and states of the capture.
        cameras, times: one a view; the moment of each is an index into `moments`.
        motion: the bones; None for a scene without a person.
        masks: where the person is seen in the views, if that is known.
    """

    scene: Scene
    moments: Moments
    cameras: tuple[Camera, ...]
    times: tuple[int, ...]
    motion: SkeletonMotion | None = None
    masks: Bool[np.ndarray, "views height width"] | None = None

    @cached_property
    def up_direction(self) -> Float[np.ndarray, "3"]:
        """The up direction of the world."""
        return estimate_up_direction(self.cameras)

    @property
    def device(self) -> torch.device:
        """The device of the scene."""
        return self.moments.transforms.device

    def require_person(self) -> SkeletonMotion:
        """Returns the bones of the person.

        Raises:
            UserError: there is nobody in the scene (exit 3).
        """
        if self.motion is None or self.scene.person is None:
            raise bad_input(
                "there is no person in this scene",
                why="it was trained without bones and masks, as background alone",
                fix="--editor volume_style",
            )
        return self.motion


@dataclass(frozen=True)
class WeightEdit:
    """The result of an editor.

    Attributes:
        weights: new values of parameters, by their names in the scene's state dict.
        parts: the parts of the scene that it changes.
        hidden: the parts that it removes.
        notes: what the user should know, one sentence each.
        metadata: metadata in edit.json beside the editor's settings.
    """

    weights: Mapping[str, Tensor]
    parts: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VolumeEditor(ABC):
    """The base of all editors of 3D scenes: a dataclass of settings that can be called."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, source: VolumeSource, report: Report) -> WeightEdit:
        """Makes the edit; changes nothing on disk, and restores the scene."""


@dataclass(frozen=True)
class TunedParameters:
    """Parameters of a part that an editor may change, by name.

    Attributes:
        paint: of its colors.
        shape: of its density and own colors; empty where the shape is to stay.
    """

    paint: Mapping[str, nn.Parameter]
    shape: Mapping[str, nn.Parameter]

    def parameter_groups(self, rate: float, shape_rate: float) -> list[dict]:
        """Returns parameter groups for an optimizer, with a learning rate for each kind."""
        kinds = ((self.paint, rate), (self.shape, shape_rate))
        return [{"params": list(kind.values()), "lr": lr} for kind, lr in kinds if kind]

    def copy_weights(self) -> dict[str, Tensor]:
        """Copies the values as they are now."""
        return {name: value.detach().cpu().clone() for name, value in {**self.paint, **self.shape}.items()}


@contextmanager
def tune_part(scene: Scene, part: str, shape: bool = False) -> Iterator[TunedParameters]:
    """Makes the paint of a part trainable, and its shape if that is wanted; restores the scene at the end.

    Args:
        scene: that is changed meanwhile.
        part: "person" or "background".
        shape: whether density and own colors may change too.
    """
    holder = scene.get_submodule(FIELD_MODULES[part])
    had = holder.paint is not None
    learning = {name: parameter.requires_grad for name, parameter in scene.named_parameters()}
    add_paint(scene, part)
    own = {name: value for name, value in scene.named_parameters() if name.startswith(FIELD_MODULES[part] + ".")}
    paint = {name: value for name, value in own.items() if name.startswith(FIELD_MODULES[part] + ".paint.")}
    rest = {name: value for name, value in own.items() if name not in paint}
    chosen = TunedParameters(paint, rest if shape else {})
    before = chosen.copy_weights()
    open_ones = {*chosen.paint, *chosen.shape}
    for name, parameter in scene.named_parameters():
        parameter.requires_grad_(name in open_ones)
    try:
        yield chosen
    finally:
        with torch.no_grad():
            for name, parameter in scene.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
                parameter.grad = None
                parameter.requires_grad_(learning.get(name, True))
        if not had:
            holder.paint = None  # type: ignore[assignment]

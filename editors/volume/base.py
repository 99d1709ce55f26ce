"""The base of editors of 3D scenes, and the source that they read.

Such an editor renders the trained scene from any camera and returns new values for some of the scene's parameters, by
their names in its state dict. All other parameters keep their values, bit for bit: an edit of the person cannot change
the background.

Colors are edited through a `Paint` that is added to a part's trained colors. Density does not depend on it, so that an
edit of colors does not move any outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import nn

from editors.core.editor import Editor
from editors.inputs.picture_input import PictureInput
from editors.volume.views import estimate_up_direction
from neural_fields.core.errors import bad_input
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.open_runs.base import OpenRun
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.volume.color_edit import FIELD_MODULES, add_paint
from neural_fields.volume.scene import Moments, Scene


@dataclass(frozen=True)
class VolumeSource:
    """Gives an editor access to a trained 3D scene.

    Attributes:
        scene: the scene, with the active edits applied. An editor must restore it.
        moments: poses and states of the capture.
        cameras: one camera per view.
        times: the moment of each view, an index into `moments`.
        motion: the skeleton in motion; None for a scene without a person.
        masks: pixels of the views that show the person; None if unknown.
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
        """Returns the moving skeleton of the person.

        Raises:
            UserError: there is no person in the scene (exit 3).
        """
        if self.motion is None or self.scene.person is None:
            raise bad_input(
                "there is no person in this scene",
                why="it was trained without bones and masks, as background alone",
                fix="--editor volume_style",
            )
        return self.motion


@dataclass(frozen=True, kw_only=True)
class VolumeEditor(Editor[VolumeSource]):
    """Defines the base of editors of 3D scenes, which tune parameters of a trained scene and then restore it."""

    def open_source(self, run: OpenRun, layers: Sequence[str], mask: PictureInput | None) -> VolumeSource:
        """Opens a 3D scene with its active edits.

        Args:
            run: the open run.
            layers: must be empty: 3D scenes have no layers.
            mask: must be None: 3D scenes take no mask.

        Raises:
            UserError: a run of a video, or layers or a mask given (exit 3).
        """
        if not isinstance(run, SceneRun):
            raise bad_input(
                f"{self.title} is for 3D scenes",
                where=str(run.path),
                why="the run has canonical pictures of a video",
                fix="unwrap train SCENE --config dynvideo_e, or an editor such as inpaint",
            )
        if layers or mask is not None:
            what = layers[0] if layers else str(mask) if isinstance(mask, str | Path) else "a mask"
            raise bad_input(
                f"{what} is no part of a 3D scene",
                where=str(run.path),
                why="its parts are the background and the person, and each editor says which it changes",
                fix="leave out --layer and --mask",
            )
        record, (edited, _) = run.record, run.apply_edits()
        masks = run.capture.masks if record.source.is_dir() else None
        return VolumeSource(edited, record.make_moments(), record.cameras, record.times, record.motion, masks)


@dataclass(frozen=True)
class TunedParameters:
    """Holds the parameters of a part that an editor may change, by name.

    Attributes:
        paint: parameters of the paint on its colors.
        shape: parameters of its density and trained colors; empty if the shape must not change.
    """

    paint: Mapping[str, nn.Parameter]
    shape: Mapping[str, nn.Parameter]

    def parameter_groups(self, rate: float, shape_rate: float) -> list[dict]:
        """Returns parameter groups for an optimizer.

        Args:
            rate: learning rate of the paint.
            shape_rate: learning rate of the shape.
        """
        kinds = ((self.paint, rate), (self.shape, shape_rate))
        return [{"params": list(kind.values()), "lr": lr} for kind, lr in kinds if kind]

    def copy_weights(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Copies the current values, by their names in the scene's state dict."""
        return {name: value.detach().cpu().clone().numpy() for name, value in {**self.paint, **self.shape}.items()}


@contextmanager
def tune_part(scene: Scene, part: str, shape: bool = False) -> Iterator[TunedParameters]:
    """Makes the paint of a part trainable, and its shape if requested; restores the scene on exit.

    Args:
        scene: the scene; it is modified within the context.
        part: "person" or "background".
        shape: whether density and trained colors may change too.
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
                    parameter.copy_(torch.from_numpy(before[name]))
                parameter.grad = None
                parameter.requires_grad_(learning.get(name, True))
        if not had:
            holder.paint = None  # type: ignore[assignment]

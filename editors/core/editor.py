"""The contract of editors: what an editor gets and what it returns.

An editor is a frozen dataclass of its settings. It reads an open run (the canonical pictures, frames and maps of a
video, or a 3D scene) and returns the changes: overlays, deformations and effects by layer, or parameters of the scene.
It writes nothing: `add_result` propagates overlays to all charts and puts the edit on the stack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Shaped

from editors.core.source import EditSource
from editors.core.stack import EditEffects
from editors.inputs.picture_input import PictureInput
from neural_fields.atlas.placed_picture import Paint
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter
from neural_fields.edits.record import SourceFile
from neural_fields.edits.shape import Deformation
from neural_fields.open_runs.base import OpenRun
from neural_fields.open_runs.opening import require_planar

Source = TypeVar("Source")


@dataclass(frozen=True)
class EditorResult:
    """Holds the changes that an editor made.

    Attributes:
        overlays: painted overlays, by layer.
        notes: what the user should know, one sentence each.
        details: plain values for edit.json that describe the edit, in addition to the editor's settings.
        shapes: deformations of layers, by layer; they also deform the overlays of these layers.
        effects: further changes of layers; for a 3D scene, the parts to hide.
        sources: the files that the edit was made from.
        frames: numbers (in the source) of the frames that were painted.
        weights: new values of a 3D scene's parameters, by their names in its state dict. All other parameters keep
            their values, bit for bit.
        parts: the parts of a 3D scene that change.
    """

    overlays: Mapping[str, Paint] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    shapes: Mapping[str, Deformation] = field(default_factory=dict)
    effects: EditEffects = field(default_factory=EditEffects)
    sources: tuple[SourceFile, ...] = ()
    frames: tuple[int, ...] = ()
    weights: Mapping[str, Shaped[np.ndarray, "..."]] = field(default_factory=dict)
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Editor(ABC, Generic[Source]):
    """Defines the contract of all editors: a frozen dataclass whose fields are its settings.

    Each field is a flag of `unwrap edit RUN --editor NAME` and a keyword of `editors.edit(run, editor=NAME)`.

    Attributes:
        name: name of the editor on the command line and in edit.json.
    """

    name: ClassVar[str]

    @property
    def title(self) -> str:
        """The editor as error messages name it."""
        return f"the editor {self.name}"

    @property
    def edit_name(self) -> str:
        """The default name of its edits."""
        return self.name

    @abstractmethod
    def open_source(self, run: OpenRun, layers: Sequence[str], mask: PictureInput | None) -> Source:
        """Opens the data that the editor reads.

        Args:
            run: the open run.
            layers: names of the layers to edit, in any order; empty for the layers that the editor starts with.
            mask: a picture of the shape of the layer's canonical picture, bright where the edit may go.

        Returns:
            The source that `edit` takes.

        Raises:
            UserError: a run of the wrong family, an unknown layer, or a mask that the editor does not support (exit 3).
        """

    @abstractmethod
    def edit(self, source: Source, report: ProgressReporter) -> EditorResult:
        """Makes the edit. It writes nothing to the disk and does not modify the source.

        Args:
            source: the source that `open_source` returned.
            report: called with the progress.

        Returns:
            The changes, with notes for the user.

        Raises:
            UserError: settings or a source that the editor cannot use.
        """

    def describe_settings(self) -> dict[str, Any]:
        """Returns the settings as edit.json stores them: plain values by name."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


# How programs name an editor: its name, its class, an instance, or a function of a picture.
EditorChoice = str | type[Editor[Any]] | Editor[Any] | Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class PlanarEditor(Editor[EditSource]):
    """Defines the base of editors of videos, which work on canonical pictures.

    Attributes:
        starts_with: the layers that are edited by default: the front one, the back one or all.
    """

    starts_with: ClassVar[Literal["front", "back", "all"]] = "front"

    def open_source(self, run: OpenRun, layers: Sequence[str], mask: PictureInput | None) -> EditSource:
        """Opens the run of a video with the layers to edit, front to back.

        Args:
            run: the open run.
            layers: names of the layers to edit, in any order; empty for `starts_with`.
            mask: a picture of the shape of the layer's canonical picture, bright where the edit may go.

        Raises:
            UserError: a run of a 3D scene, an unknown layer, or a mask for several layers (exit 3).
        """
        planar = require_planar(run, self.title)
        for layer in layers:
            planar.require_layer(layer)
        usual = {"front": planar.layers[:1], "back": planar.layers[-1:], "all": planar.layers}[self.starts_with]
        chosen = tuple(layer for layer in planar.layers if layer in layers) or usual
        if mask is not None and len(chosen) > 1:
            why = "a mask belongs to one picture"
            raise bad_input("one mask for several layers", why=why, fix=f"--layer {chosen[0]}")
        return EditSource(planar, chosen, mask)

"""The record of an edit, edit.json: what each kind of change consists of, and where the edit came from.

The record names the files that are beside it; `payloads.py` reads those. It is written once, by
`editors/core/stack.py`, and read through the strict loader: whatever is wrong in it is an error that names the folder
and the key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neural_fields.config.loader import load_json
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.edits.arrangement import Arrangement
from neural_fields.imaging.grade import Grade

EDIT_SCHEMA: Literal[1] = 1  # of edit.json; raised when an older program could not show an edit


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """Describes a file in the folder of an edit.

    Attributes:
        file: its name, without folders.
        sha256: SHA-256 of its bytes, in hexadecimal.
    """

    file: str
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or self.file in ("", ".."):
            raise ValueError(f"file is {self.file!r}, which is not the name of a file in the folder of the edit")


@dataclass(frozen=True, kw_only=True)
class SizedFile(StoredFile):
    """Describes a file of samples on a grid.

    Attributes:
        size: (width, height) in samples.
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.size) < 1:
            raise ValueError(f"size is {self.size[0]}x{self.size[1]}; both sides are 1 or more")


@dataclass(frozen=True, kw_only=True)
class OverlayRecord(SizedFile):
    """Describes an overlay, RGBA on a part of a layer's canonical plane: a PNG file.

    Attributes:
        box: the part of the canonical plane that it covers, in uv units.
        notes: sentences for the user about how it was made.
    """

    box: Box
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlacedRecord(SizedFile):
    """Describes a picture that lies on a layer's canonical plane by a map: a PNG file.

    Attributes:
        maps: a safetensors file: of each box the places in the picture at its knots ("0.places", "1.places", ...), and
            where colors are lighter or darker there ("0.light", ...).
        boxes: the parts of the canonical plane that show the picture, in uv units.
        notes: sentences for the user about how it was made.
    """

    maps: StoredFile
    boxes: tuple[Box, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.boxes:
            raise ValueError("boxes is empty: no part of the plane shows the picture")


@dataclass(frozen=True, kw_only=True)
class FramePaintRecord(SizedFile):
    """Describes the paint on one frame, which that frame shows as it is: a PNG file.

    Attributes:
        frame: number of the frame in the source.
        box: left, top, right and bottom of what it covers, as shares of the frame's width and height.
        is_whole: whether it is all that the frame shows of the edit; otherwise the frame shows under it what the edit
            looks like in other frames.
    """

    frame: int
    box: tuple[float, float, float, float]
    is_whole: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        left, top, right, bottom = self.box
        if not (left < right and top < bottom):
            raise ValueError(f"box is {list(self.box)}, which has no area")


@dataclass(frozen=True, kw_only=True)
class ShapeRecord(SizedFile):
    """Describes the deformation of a layer: a safetensors file with "displacement" in uv units.

    Attributes:
        box: the part of the canonical plane that is deformed, in uv units.
        span: the first and the last frame of the run that it is for, counted from 0; null: it is for all frames.
    """

    box: Box
    span: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class AnimatedOverlayRecord(SizedFile):
    """Describes an overlay for every frame of the run: an FFV1 file.

    Attributes:
        box: the part of the canonical plane that they cover, in uv units; null: they cover the frame.
        count: the number of overlays: one for each frame of the run, or a single one for all frames.
        notes: sentences for the user about how they were made.
    """

    box: Box | None
    count: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GradeRecord:
    """Describes a grade: a change of the colors of a layer in the frames.

    Attributes:
        grade: the change of the colors.
        mask: limits the change to its alpha; null: the change is not limited.
    """

    grade: Grade
    mask: OverlayRecord | None = None


@dataclass(frozen=True, kw_only=True)
class RemovalRecord:
    """Names layers that are removed, so that the layers behind them are visible; or parts of a 3D scene.

    Attributes:
        layers: names of the layers or parts.
        grow: pixels of the frame by which the removed area is widened; null: as far as it stands out from what is
            around it.
        grain: whether what is seen instead gets the grain of the frame.
    """

    layers: tuple[str, ...]
    grow: float | None = 0.0
    grain: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers is empty; a removal names one or more")
        if self.grow is not None and not self.grow >= 0:
            raise ValueError(f"grow is {self.grow!r}; it counts pixels from 0")


@dataclass(frozen=True, kw_only=True)
class WeightsRecord(StoredFile):
    """Describes tuned parameters of a 3D scene: a safetensors file.

    Attributes:
        parts: the parts of the scene that the parameters change.
    """

    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """Identifies a file that an edit was made from.

    Attributes:
        file: its name, without folders.
        sha256: SHA-256 of its bytes, in hexadecimal; null for a folder.
    """

    file: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class EditOrigin:
    """Describes the origin of an edit. Rendering does not depend on it.

    Attributes:
        editor: the name of the editor; "image", "frame", "document" or "unwrapped" for painted files.
        sources: the files that the edit was made from.
        frames: numbers in the source of the painted frames.
        settings: settings of the editor, by name.
        notes: sentences for the user.
        details: further values that the editor reports.
    """

    editor: str | None = None
    sources: tuple[SourceFile, ...] = ()
    frames: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """Holds the content of edit.json. The names of layers are keys of their changes.

    Attributes:
        schema: version of edit.json; a program refuses edits with another version.
        name: name of the edit, as `clean_name` makes it.
        arrangement: opacity, blend mode and times at the time when the edit was added.
        overlays: pictures on layers, which cover a box of the canonical plane.
        placed: pictures on layers, which lie on the canonical plane by maps.
        frames: paint on single frames, by layer.
        shapes: deformations of layers.
        carried_shapes: the same deformations on other charts, by their layer.
        animated: overlays that differ from frame to frame.
        grades: changes of the colors of layers.
        removal: layers, or parts of a 3D scene, that are removed.
        weights: tuned parameters of a 3D scene.
        lit: whether the paint is multiplied by the gain of its layer.
        origin: the origin of the edit.
    """

    schema: Literal[1]
    name: str
    arrangement: Arrangement = field(default_factory=Arrangement)
    overlays: Mapping[str, OverlayRecord] = field(default_factory=dict)
    placed: Mapping[str, PlacedRecord] = field(default_factory=dict)
    frames: Mapping[str, tuple[FramePaintRecord, ...]] = field(default_factory=dict)
    shapes: Mapping[str, ShapeRecord] = field(default_factory=dict)
    carried_shapes: Mapping[str, tuple[ShapeRecord, ...]] = field(default_factory=dict)
    animated: Mapping[str, AnimatedOverlayRecord] = field(default_factory=dict)
    grades: Mapping[str, GradeRecord] = field(default_factory=dict)
    removal: RemovalRecord | None = None
    weights: WeightsRecord | None = None
    lit: bool = True
    origin: EditOrigin = field(default_factory=EditOrigin)

    def __post_init__(self) -> None:
        if both := set(self.overlays) & set(self.placed):
            raise ValueError(f"overlays and placed both have the layer {min(both)}")
        if others := set(self.frames) - set(self.painted_layers):
            raise ValueError(f"frames has the layer {min(others)}, which overlays and placed have not")
        if not (self.layers or self.weights):
            raise ValueError("it changes no layer: overlays, placed, shapes, grades and all the others are empty")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the edit changes, or the parts of a 3D scene."""
        parts = self.weights.parts if self.weights else ()
        removed = self.removal.layers if self.removal else ()
        named = [*self.painted_layers, *self.deformed_layers, *self.animated, *self.grades, *parts, *removed]
        return tuple(dict.fromkeys(named))

    @property
    def painted_layers(self) -> tuple[str, ...]:
        """The layers that have paint on them: overlays or placed pictures."""
        return tuple(dict.fromkeys([*self.overlays, *self.placed]))

    @property
    def deformed_layers(self) -> tuple[str, ...]:
        """The layers that are deformed."""
        return tuple(dict.fromkeys([*self.shapes, *self.carried_shapes]))

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The files of the edit."""
        masks = [entry.mask for entry in self.grades.values() if entry.mask is not None]
        paint = [*self.overlays.values(), *self.placed.values(), *(entry.maps for entry in self.placed.values())]
        paint += [entry for entries in self.frames.values() for entry in entries]
        shapes = [*self.shapes.values(), *(entry for entries in self.carried_shapes.values() for entry in entries)]
        files = [*paint, *shapes, *self.animated.values(), *masks]
        return (*files, self.weights) if self.weights else tuple(files)


def clean_name(name: str) -> str:
    """Makes a name that a folder can have: letters and digits of any script, in lower case, and hyphens.

    Args:
        name: any text; "edit" if it has no letter and no digit.

    Returns:
        At most 40 characters and 120 bytes, so that every file system takes it.

    Example:
        >>> clean_name("Blue dots (2nd try)!"), clean_name("Überschrift"), clean_name("名前"), clean_name("?")
        ('blue-dots-2nd-try', 'überschrift', '名前', 'edit')
    """
    text = unicodedata.normalize("NFC", name.lower())
    # Marks belong to letters: without them words of India and Thailand would fall apart.
    kept = "".join(sign if unicodedata.category(sign)[0] in "LMN" else "-" for sign in text)
    short = re.sub("-+", "-", kept).strip("-")[:40].encode()[:120].decode(errors="ignore")
    return unicodedata.normalize("NFC", short).strip("-") or "edit"


def read_edit_record(folder: Path) -> EditRecord:
    """Reads edit.json in the folder of an edit.

    Raises:
        UserError: a missing or damaged file (exit 5); the message names the folder and the wrong key.
    """
    try:
        return load_json(EditRecord, folder / "edit.json", fix="")
    except UserError as problem:
        raise damaged_edit_error(folder, f"edit.json: {problem.why or problem.what}") from problem


def damaged_edit_error(path: Path, why: str) -> UserError:
    """Makes the error for an edit or a journal whose files were changed."""
    return UserError(
        ExitCode.DAMAGED_RUN,
        f"the edit {path.name} is damaged" if path.is_dir() else f"{path.name} is damaged",
        where=str(path),
        why=why,
        fix=f"move {path} out of the run, or put the original file back",
    )

"""The append-only stack of a run's edits: folders `edits/0001-name/` with `edit.json` and the files of the edit.

An edit is written once and never changed. `edits/journal.jsonl` (`neural_fields/edits/journal.py`) records what was
done with the edits: added, arranged, undone, redone. A new step after an undo ends the redo chain; undone edits stay
on disk, and their numbers are not used again.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.atlas.canonical import FramePaint, Overlay
from neural_fields.atlas.placed_picture import Paint, PlacedPicture
from neural_fields.config.loader import to_mapping
from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, disk_errors, make_folder, sha256_file, write_json
from neural_fields.data.video.io import write_video
from neural_fields.data.video.metadata import make_metadata
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.journal import JournalStep, append_step
from neural_fields.edits.read_stack import (
    Edit,
    choose_free_name,
    edit_number,
    list_edit_folders,
)
from neural_fields.edits.record import (
    EDIT_SCHEMA,
    AnimatedOverlayRecord,
    EditOrigin,
    EditRecord,
    FramePaintRecord,
    GradeRecord,
    OverlayRecord,
    PlacedRecord,
    RemovalRecord,
    ShapeRecord,
    StoredFile,
    WeightsRecord,
    read_edit_record,
)
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.grade import Grade
from neural_fields.imaging.image_io import encode_png
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class EditEffects:
    """Holds the effects of an edit on layers, other than overlays and deformations.

    Attributes:
        moving: animated overlays, which differ from frame to frame, by layer.
        grades: color grades, by layer.
        masks: where the grades apply, by layer, as the alpha of an overlay; without a mask a grade applies everywhere.
        carried_shapes: the deformations of the edit on other charts, by layer.
        hidden: names of the layers to hide.
        grow: pixels of the frame by which hidden layers are widened; None: as far as they stand out.
        grain: whether what is seen instead of hidden layers gets the grain of the frame.
        lit: whether the layer's lighting is applied to the paint.
    """

    moving: Mapping[str, AnimatedOverlay] = field(default_factory=dict)
    grades: Mapping[str, Grade] = field(default_factory=dict)
    masks: Mapping[str, Overlay] = field(default_factory=dict)
    carried_shapes: Mapping[str, tuple[Deformation, ...]] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    grow: float | None = 0.0
    grain: bool = False
    lit: bool = True


def add_edit(
    run: Run,
    name: str,
    overlays: Mapping[str, Paint],
    origin: EditOrigin | None = None,
    shapes: Mapping[str, Deformation] | None = None,
    effects: EditEffects | None = None,
    arrangement: Arrangement | None = None,
) -> Edit:
    """Puts an edit on top of the stack.

    Args:
        run: the run.
        name: any text; `choose_free_name` makes it a folder's name.
        overlays: painted overlays and placed pictures, by layer name.
        origin: where the edit comes from; stored in edit.json.
        shapes: deformations of layers, by layer name.
        effects: further effects. Overlays, shapes and effects must not all be empty.
        arrangement: when the edit is shown, and how it is blended.

    Returns:
        The edit on the stack.

    Raises:
        UserError: no space left on the disk (exit 4), or nothing to add (exit 3).
    """
    effects, shapes = effects or EditEffects(), shapes or {}
    if not overlays and not shapes and not (effects.moving or effects.grades or effects.hidden):
        raise bad_input("the edit changes no layer", where=str(run.edits))
    with _part_folder(run) as part:
        written, placed, frames = {}, {}, {}
        for number, (layer, overlay) in enumerate(overlays.items()):
            if isinstance(overlay, PlacedPicture):
                placed[layer] = _write_placed_picture(part, _file_stem(layer, number), overlay)
            else:
                written[layer] = _write_overlay(part, _file_stem(layer, number), overlay)
            if overlay.frames:
                frames[layer] = _write_frames(part, _file_stem(layer, number), overlay.frames)
        deformed = {
            layer: _write_shape(part, _file_stem(layer, number), shape)
            for number, (layer, shape) in enumerate(shapes.items())
        }
        carried = {}
        for number, (layer, others) in enumerate(effects.carried_shapes.items(), start=len(shapes)):
            stem = f"{_file_stem(layer, number)}-chart"
            carried[layer] = tuple(_write_shape(part, f"{stem}{n}", one) for n, one in enumerate(others))
        animated = {}
        for number, (layer, moving) in enumerate(effects.moving.items()):
            animated[layer] = _write_animated_overlay(part, f"{_file_stem(layer, number)}-moving", moving)
        masks = {}
        for number, (layer, mask) in enumerate(effects.masks.items()):
            masks[layer] = _write_overlay(part, f"{_file_stem(layer, number)}-mask", mask)
        record = EditRecord(
            schema=EDIT_SCHEMA,
            name=choose_free_name(run, name),
            arrangement=arrangement or Arrangement(),
            overlays=written,
            placed=placed,
            frames=frames,
            shapes=deformed,
            carried_shapes=carried,
            animated=animated,
            grades={layer: GradeRecord(grade=grade, mask=masks.get(layer)) for layer, grade in effects.grades.items()},
            removal=RemovalRecord(layers=effects.hidden, grow=effects.grow, grain=effects.grain)
            if effects.hidden
            else None,
            lit=effects.lit,
            origin=origin or EditOrigin(),
        )
        folder = _write_record(part, record)
    return _log_added(run, folder)


def add_scene_edit(
    run: Run,
    name: str,
    weights: Mapping[str, Shaped[np.ndarray, "..."]],
    origin: EditOrigin | None = None,
    parts: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> Edit:
    """Puts an edit of a 3D scene on top of the stack.

    Args:
        run: the run.
        name: any text; `choose_free_name` makes it a folder's name.
        weights: parameters, by their names in the scene's state dict; they replace the trained ones.
        origin: where the edit comes from; stored in edit.json.
        parts: the parts of the scene that change.
        hidden: the parts of the scene to hide.

    Returns:
        The edit on the stack.

    Raises:
        UserError: no space left on the disk (exit 4), or nothing to add (exit 3).
    """
    if not weights and not hidden:
        raise bad_input("the edit changes no part of the scene", where=str(run.edits))
    from safetensors.numpy import save

    with _part_folder(run) as part:
        tuned = None
        if weights:
            path = part / "weights.safetensors"
            with atomic_write(path) as temporary:
                temporary.write_bytes(save({key: np.ascontiguousarray(value) for key, value in weights.items()}))
            tuned = WeightsRecord(file=path.name, sha256=sha256_file(path), parts=tuple(parts))
        record = EditRecord(
            schema=EDIT_SCHEMA,
            name=choose_free_name(run, name),
            removal=RemovalRecord(layers=tuple(hidden)) if hidden else None,
            weights=tuned,
            origin=origin or EditOrigin(),
        )
        folder = _write_record(part, record)
    return _log_added(run, folder)


@contextmanager
def _part_folder(run: Run) -> Iterator[Path]:
    """Makes a temporary folder beside the edits, to be filled and moved into place; removes it if it still exists."""
    make_folder(run.edits)
    part = run.edits / f".part-{uuid.uuid4().hex[:12]}"
    part.mkdir()
    try:
        with disk_errors(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _log_added(run: Run, folder: Path) -> Edit:
    """Records in the journal that an edit was added, and returns the edit."""
    append_step(run, JournalStep("add", folder.name))
    record = read_edit_record(folder)
    return Edit(folder, edit_number(folder), record.name, True, False, record, record.arrangement)


def _write_overlay(part: Path, stem: str, overlay: Overlay) -> OverlayRecord:
    path = part / f"{stem}.png"
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_png(overlay.rgba, bits=16))
    return OverlayRecord(
        file=path.name, sha256=sha256_file(path), size=overlay.size, box=overlay.box, notes=tuple(overlay.notes)
    )


def _write_placed_picture(part: Path, stem: str, placed: PlacedPicture) -> PlacedRecord:
    """Writes a picture as it was given, and where it lies on the plane."""
    from safetensors.numpy import save

    path, maps = part / f"{stem}.png", part / f"{stem}-places.safetensors"
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_png(placed.rgba, bits=_count_bits(placed.rgba)))
    tables = {}
    for number, patch in enumerate(placed.patches):
        tables[f"{number}.places"] = np.ascontiguousarray(patch.places, np.float32)
        if patch.light is not None:
            tables[f"{number}.light"] = np.ascontiguousarray(patch.light, np.float32)
    with atomic_write(maps) as temporary:
        temporary.write_bytes(save(tables))
    return PlacedRecord(
        file=path.name,
        sha256=sha256_file(path),
        size=placed.size,
        maps=StoredFile(file=maps.name, sha256=sha256_file(maps)),
        boxes=tuple(patch.box for patch in placed.patches),
        notes=tuple(placed.notes),
    )


def _write_shape(part: Path, stem: str, shape: Deformation) -> ShapeRecord:
    """Writes a deformation."""
    from safetensors.numpy import save

    path, size = part / f"{stem}.safetensors", (shape.field.shape[2], shape.field.shape[1])
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"displacement": np.ascontiguousarray(shape.field, np.float32)}))
    return ShapeRecord(file=path.name, sha256=sha256_file(path), size=size, box=shape.box, span=shape.span)


def _write_frames(part: Path, stem: str, frames: Sequence[FramePaint]) -> tuple[FramePaintRecord, ...]:
    """Writes the paint on single frames."""
    entries = []
    for one in frames:
        path = part / f"{stem}-frame{one.frame}.png"
        with atomic_write(path) as temporary:
            temporary.write_bytes(encode_png(one.rgba, bits=_count_bits(one.rgba)))
        size = (one.rgba.shape[1], one.rgba.shape[0])
        entries.append(
            FramePaintRecord(
                file=path.name,
                sha256=sha256_file(path),
                size=size,
                frame=one.frame,
                box=one.box,
                is_whole=one.is_whole,
            )
        )
    return tuple(entries)


def _count_bits(rgba: Float[np.ndarray, "height width 4"]) -> int:
    """Returns how many bits a channel of a picture needs: 8 where it was made of bytes, else 16."""
    return 8 if np.abs(np.rint(255 * rgba) / 255 - rgba).max(initial=0) < 1e-5 else 16


def _write_animated_overlay(part: Path, stem: str, moving: AnimatedOverlay) -> AnimatedOverlayRecord:
    """Writes the overlays of all frames as one lossless video."""
    size: tuple[int, int] | None = None

    def iterate_frames() -> Any:
        nonlocal size
        for frame in moving.frames():
            size = (frame.shape[1], frame.shape[0])
            yield np.ascontiguousarray(frame)

    path = part / f"{stem}.mkv"
    # The frames are read by their order, so that their rate means nothing; their size is that of the first.
    write_video(path, iterate_frames(), make_metadata((16, 16), moving.count, Fraction(24)), codec="ffv1")
    assert size is not None, "write refuses a video without frames"
    return AnimatedOverlayRecord(
        file=path.name,
        sha256=sha256_file(path),
        size=size,
        box=moving.box,
        count=moving.count,
        notes=tuple(moving.notes),
    )


def _write_record(part: Path, record: EditRecord) -> Path:
    """Writes edit.json into a filled folder, and gives the folder its name, with the next free number."""
    write_json(part / "edit.json", to_mapping(record, without_defaults=True))
    number = 1 + max((edit_number(folder) for folder in list_edit_folders(part.parent)), default=0)
    while True:
        folder = part.parent / f"{number:04d}-{record.name}"
        try:
            # Renaming onto a folder that holds something fails, so two writers never share a number and a name.
            os.rename(part, folder)
        except OSError:
            if not folder.exists():
                raise
            number += 1
            continue
        return folder


def _file_stem(layer: str, number: int) -> str:
    return layer if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", layer) else f"layer{number}"

"""The append-only stack of edits of a run: `edits/0001-name/` with `edit.json` and what the edit puts on layers.

An edit is written once and never changed. `edits/journal.jsonl` (`neural_fields/edits/journal.py`) says what was done
with
the edits: added, arranged, undone, brought back. What is done after an undo ends the redo chain; undone edits stay on
disk, and their numbers are not used again.
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
from torch import Tensor

from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, disk_errors, make_folder, sha256_file, write_json
from neural_fields.data.video.io import write_video
from neural_fields.data.video.metadata import make_metadata
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.journal import MOVE_TARGETS, JournalStep, append_step
from neural_fields.edits.read_stack import (
    Edit,
    EditSchema,
    edit_number,
    find_edit,
    list_edit_folders,
    list_edits,
    read_history,
)
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.color_grading import Grade
from neural_fields.imaging.image_io import encode_png
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class EditEffects:
    """What an edit does to layers beyond overlays and shapes.

    Attributes:
        moving: animated overlays, which differ from frame to frame, by layer.
        grades: how colors change, by layer; masks: where, as the alpha of an overlay; without one everywhere.
        hidden: layers that are not shown any more; grow: by how many pixels of the frame that is widened.
        lit: whether the light of the layer falls on what is painted.
    """

    moving: Mapping[str, AnimatedOverlay] = field(default_factory=dict)
    grades: Mapping[str, Grade] = field(default_factory=dict)
    masks: Mapping[str, Overlay] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    grow: float = 0.0
    lit: bool = True

    @property
    def does_nothing(self) -> bool:
        """Whether there is nothing beyond overlays and shapes."""
        return not (self.moving or self.grades or self.hidden) and self.lit


def add_edit(
    run: Run,
    name: str,
    overlays: Mapping[str, Overlay],
    metadata: Mapping[str, Any],
    shapes: Mapping[str, Deformation] | None = None,
    effects: EditEffects | None = None,
    arrangement: Arrangement | None = None,
) -> Edit:
    """Puts an edit on top of the stack.

    Args:
        run: the run.
        name: any text; it is reduced to a-z, 0-9 and hyphens.
        overlays: what is painted, by layer name.
        metadata: metadata to keep in edit.json: "editor", "source" (file and sha256), ...
        shapes: how layers are deformed, by layer name.
        effects: what else it does. Overlays, shapes and effects together do something.
        arrangement: when it is shown, and how it is blended.

    Raises:
        UserError: no room on the disk (exit 4), or nothing to add (exit 3).
    """
    effects = effects or EditEffects()
    if not overlays and not shapes and not (effects.moving or effects.grades or effects.hidden):
        raise bad_input("the edit changes no layer", where=str(run.edits))
    arranged = (arrangement or Arrangement()).to_json()
    is_plain = effects.does_nothing and not set(arranged) - {"opacity"}
    schema = EditSchema.SHAPES if shapes else EditSchema.OVERLAYS
    schema = schema if is_plain else EditSchema.ARRANGED
    layers: dict[str, Any] = {}
    described: dict[str, Any] = {"opacity": 1.0, **metadata, **arranged, "schema": schema}
    described |= {"name": clean_name(name), "layers": layers}
    with _part_folder(run) as part:
        for number, (layer, overlay) in enumerate(overlays.items()):
            layers[layer] = _write_overlay(part, _file_stem(layer, number), overlay)
        if shapes:
            from safetensors.numpy import save

            written: dict[str, Any] = {}
            for number, (layer, shape) in enumerate(shapes.items()):
                path = part / f"{_file_stem(layer, number)}.safetensors"
                with atomic_write(path) as temporary:
                    temporary.write_bytes(save({"displacement": np.ascontiguousarray(shape.field, np.float32)}))
                size = (shape.field.shape[2], shape.field.shape[1])
                written[layer] = _describe_file(path, size, shape.box.as_tuple())
            described["shapes"] = written
        if effects.moving:
            described["moving"] = {
                layer: _write_moving(part, f"{_file_stem(layer, number)}-moving", moving)
                for number, (layer, moving) in enumerate(effects.moving.items())
            }
        if effects.grades:
            described["grades"] = {layer: grade.to_json() for layer, grade in effects.grades.items()}
            described["masks"] = {
                layer: _write_overlay(part, f"{_file_stem(layer, number)}-mask", mask)
                for number, (layer, mask) in enumerate(effects.masks.items())
            }
        if effects.hidden:
            described |= {"hidden": list(effects.hidden), "grow": effects.grow}
        if not effects.lit:
            described["lit"] = False
        write_json(part / "edit.json", described)
        folder = _move_into_place(part, clean_name(name))
    return _log_added(run, folder)


def add_scene_edit(
    run: Run,
    name: str,
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    parts: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> Edit:
    """Puts an edit of a 3D scene on top of the stack.

    Args:
        run: the run.
        name: any text; it is reduced to a-z, 0-9 and hyphens.
        weights: parameters by the names that the scene has for them; they take the trained ones' place.
        metadata: as for `add_edit`.
        parts: the parts of the scene that it changes.
        hidden: the parts that it takes away.

    Raises:
        UserError: no room on the disk (exit 4), or nothing to add (exit 3).
    """
    if not weights and not hidden:
        raise bad_input("the edit changes no part of the scene", where=str(run.edits))
    from safetensors.torch import save

    described = {"opacity": 1.0, **metadata, "parts": [*parts], "hidden": [*hidden], "schema": EditSchema.WEIGHTS}
    described |= {"name": clean_name(name), "layers": {}}
    with _part_folder(run) as part:
        if weights:
            path = part / "weights.safetensors"
            with atomic_write(path) as temporary:
                temporary.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in weights.items()}))
            described["weights"] = {"file": path.name, "sha256": sha256_file(path)}
        write_json(part / "edit.json", described)
        folder = _move_into_place(part, clean_name(name))
    return _log_added(run, folder)


@contextmanager
def _part_folder(run: Run) -> Iterator[Path]:
    """Makes a folder beside the edits to be filled and moved into place; what is left of it in the end is removed."""
    make_folder(run.edits)
    part = run.edits / f".part-{uuid.uuid4().hex[:12]}"
    part.mkdir()
    try:
        with disk_errors(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _log_added(run: Run, folder: Path) -> Edit:
    """Writes to the journal that an edit was added, and reads it."""
    append_step(run, JournalStep("add", folder.name))
    return _find_by_folder(run, folder.name)


@dataclass(frozen=True)
class StackChange:
    """A step taken back or again: the edit that it was about, and what it had done: "add" or "set"."""

    edit: Edit
    operation: str


def undo(run: Run) -> StackChange:
    """Takes back what was done last: an edit that was added, or a change of its arrangement. Everything stays on disk.

    Raises:
        UserError: nothing to undo (exit 3).
    """
    done = read_history(run).done
    if not done:
        fix = f"unwrap edit {run.path} IMAGE --layer NAME"
        raise bad_input("there is no edit to undo", where=str(run.edits), fix=fix)
    append_step(run, JournalStep("undo", done[-1].edit))
    return StackChange(_find_by_folder(run, done[-1].edit), done[-1].operation)


def redo(run: Run) -> StackChange:
    """Brings back what was undone last.

    Raises:
        UserError: nothing to redo (exit 3).
    """
    undone = read_history(run).undone
    if not undone:
        raise bad_input(
            "there is no edit to bring back",
            where=str(run.edits),
            why="nothing was undone since the last edit was added",
            fix=f"unwrap edits {run.path}",
        )
    append_step(run, JournalStep("redo", undone[-1].edit))
    return StackChange(_find_by_folder(run, undone[-1].edit), undone[-1].operation)


def arrange_edit(run: Run, name: str, values: Mapping[str, Any], move: tuple[str, str] | None = None) -> Edit:
    """Changes the arrangement of an active edit; `undo` takes the change back.

    Args:
        run: the run.
        name: of the edit, its number or its folder.
        values: new values of `Arrangement`, by name.
        move: to another place in the stack: ("above", name), ("below", name), ("top", "") or ("bottom", "").

    Raises:
        UserError: an unknown or undone edit, a value that cannot be, or nothing to change (exit 3).
    """
    edits = list_edits(run)
    found = find_edit(edits, name, run)
    if not found.active:
        raise bad_input(f"the edit {found.folder.name} is undone", where=str(run.edits), fix=f"unwrap redo {run.path}")
    changes: dict[str, Any] = dict(values)
    if move is not None:
        where, other = move
        if where not in MOVE_TARGETS:
            why = f"an edit moves to one of: {', '.join(MOVE_TARGETS)}"
            raise bad_input(f"the edit {found.folder.name} cannot move {where!r}", why=why, fix="('top', '')")
        target = find_edit(edits, other, run).folder.name if where in ("above", "below") else ""
        if target == found.folder.name:
            raise bad_input(f"the edit {found.folder.name} cannot be {where} itself", fix=f"--{where} with another")
        changes["move"] = [where, target]
    if not changes:
        raise bad_input(
            "nothing to change", where=str(found.folder), fix=f"unwrap arrange {run.path} {name} --opacity 0.5"
        )
    try:
        found.arrangement.replace_values(values)
    except ValueError as problem:
        raise bad_input(f"{found.folder.name} cannot be arranged so: {problem}", where=str(run.edits)) from None
    append_step(run, JournalStep("set", found.folder.name, changes))
    return _find_by_folder(run, found.folder.name)


def clean_name(name: str) -> str:
    """Reduces a name to a-z, 0-9 and hyphens, at most 40 characters; "edit" if nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "edit"


def _write_overlay(part: Path, stem: str, overlay: Overlay) -> dict[str, Any]:
    """Writes an overlay; returns what edit.json keeps of it."""
    path = part / f"{stem}.png"
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_png(overlay.rgba, bits=16))
    return {**_describe_file(path, overlay.size, overlay.box.as_tuple()), "notes": list(overlay.notes)}


def _write_moving(part: Path, stem: str, moving: AnimatedOverlay) -> dict[str, Any]:
    """Writes the overlays of all frames as one lossless video; returns what edit.json keeps of it."""
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
    box = None if moving.box is None else moving.box.as_tuple()
    return {**_describe_file(path, size, box), "count": moving.count, "notes": list(moving.notes)}


def _describe_file(path: Path, size: tuple[int, int], box: Sequence[float] | None) -> dict[str, Any]:
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "size": list(size),
        "box": None if box is None else list(box),
    }


def _file_stem(layer: str, number: int) -> str:
    return layer if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", layer) else f"layer{number}"


def _move_into_place(part: Path, name: str) -> Path:
    """Gives a filled folder its name, with the next free number."""
    number = 1 + max((edit_number(folder) for folder in list_edit_folders(part.parent)), default=0)
    while True:
        folder = part.parent / f"{number:04d}-{name}"
        try:
            # Renaming onto a folder that holds something fails, so two writers never share a number and a name.
            os.rename(part, folder)
        except OSError:
            if not folder.exists():
                raise
            number += 1
            continue
        return folder


def _find_by_folder(run: Run, name: str) -> Edit:
    return next(edit for edit in list_edits(run) if edit.folder.name == name)

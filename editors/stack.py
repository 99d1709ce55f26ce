"""The append-only stack of edits of a run: `edits/0001-name/` with `edit.json`, and of a layer an overlay or a shape.

An edit is written once and never changed. `edits/journal.jsonl` says what was done with the edits: one line for each
"add", "undo" and "redo". An edit that is added after an undo ends the redo chain; the undone edits stay on disk, and
their numbers are not used again. A folder that the journal does not mention (copied from another run, or written just
before a power cut) counts as added.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_fields.canonical import Overlay
from neural_fields.edits import (
    SCHEMA,
    WITH_SHAPES,
    WITH_WEIGHTS,
    Edit,
    journal_path,
    list_edits,
    number_of,
    numbered_folders,
    replay,
)
from neural_fields.errors import bad_input
from neural_fields.files import atomic_write, disk_errors, make_folder, sha256_file, write_json
from neural_fields.pictures import png_bytes
from neural_fields.reshaping import Shape
from neural_fields.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def add_edit(
    run: Run,
    name: str,
    overlays: Mapping[str, Overlay],
    facts: Mapping[str, Any],
    shapes: Mapping[str, Shape] | None = None,
) -> Edit:
    """Puts an edit on top of the stack.

    Args:
        run: the run.
        name: any text; it is reduced to a-z, 0-9 and hyphens.
        overlays: what is painted, by layer name.
        facts: what to keep in edit.json: "editor", "source" (file and sha256), "opacity" in [0, 1], ...
        shapes: how layers are deformed, by layer name. With the overlays there is at least one.

    Raises:
        UserError: no room on the disk (exit 4), or nothing to add (exit 3).
    """
    if not overlays and not shapes:
        raise bad_input("the edit changes no layer", where=str(run.edits))
    return _add(run, name, lambda part: _write_edit(part, clean_name(name), overlays, facts, shapes or {}))


def add_scene_edit(
    run: Run,
    name: str,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    parts: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> Edit:
    """Puts an edit of a scene in space on top of the stack.

    Args:
        weights: parameters by the names that the scene has for them; they take the fitted ones' place.
        facts: as for `add_edit`.
        parts: the parts of the scene that it changes.
        hidden: the parts that it takes away.

    Raises:
        UserError: no room on the disk (exit 4), or nothing to add (exit 3).
    """
    if not weights and not hidden:
        raise bad_input("the edit changes no part of the scene", where=str(run.edits))
    kept = {**facts, "parts": [*parts], "hidden": [*hidden]}
    return _add(run, name, lambda part: _write_scene_edit(part, clean_name(name), weights, kept))


def _add(run: Run, name: str, write: Callable[[Path], None]) -> Edit:
    """An edit whose folder `write` fills."""
    make_folder(run.edits)
    part = run.edits / f".part-{uuid.uuid4().hex[:12]}"
    part.mkdir()
    try:
        with disk_errors(part):
            write(part)
            folder = _move_into_place(part, clean_name(name))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _append(run, "add", folder.name)
    return next(edit for edit in list_edits(run) if edit.folder == folder)


def undo(run: Run) -> Edit:
    """Takes the newest active edit off. It stays on disk.

    Raises:
        UserError: nothing to undo (exit 3).
    """
    active, _ = replay(run)
    if not active:
        fix = f"unwrap edit {run.path} IMAGE --layer NAME"
        raise bad_input("there is no edit to undo", where=str(run.edits), fix=fix)
    _append(run, "undo", active[-1])
    return _by_folder(run, active[-1])


def redo(run: Run) -> Edit:
    """Brings the edit back that was undone last.

    Raises:
        UserError: nothing to redo (exit 3).
    """
    _, undone = replay(run)
    if not undone:
        raise bad_input(
            "there is no edit to bring back",
            where=str(run.edits),
            why="nothing was undone since the last edit was added",
            fix=f"unwrap edits {run.path}",
        )
    _append(run, "redo", undone[-1])
    return _by_folder(run, undone[-1])


def clean_name(name: str) -> str:
    """The name reduced to a-z, 0-9 and hyphens, at most 40 characters; "edit" if nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "edit"


def _write_edit(
    part: Path, name: str, overlays: Mapping[str, Overlay], facts: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> None:
    layers = {}
    for number, (layer, overlay) in enumerate(overlays.items()):
        file = f"{_file_stem(layer, number)}.png"
        with atomic_write(part / file) as temporary:
            temporary.write_bytes(png_bytes(overlay.rgba, bits=16))
        layers[layer] = {
            "file": file,
            "sha256": sha256_file(part / file),
            "size": list(overlay.size),
            "box": list(overlay.box.as_tuple()),
            "notes": list(overlay.notes),
        }
    described: dict[str, Any] = {"schema": SCHEMA, "opacity": 1.0, **facts, "name": name, "layers": layers}
    if shapes:
        written = {layer: _write_shape(part, _file_stem(layer, n), shapes[layer]) for n, layer in enumerate(shapes)}
        described |= {"schema": WITH_SHAPES, "shapes": written}
    write_json(part / "edit.json", described)


def _write_scene_edit(part: Path, name: str, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    from safetensors.torch import save

    described = {"opacity": 1.0, **facts, "schema": WITH_WEIGHTS, "name": name, "layers": {}}
    if weights:
        path = part / "weights.safetensors"
        with atomic_write(path) as temporary:
            temporary.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in weights.items()}))
        described["weights"] = {"file": path.name, "sha256": sha256_file(path)}
    write_json(part / "edit.json", described)


def _write_shape(part: Path, stem: str, shape: Shape) -> dict[str, Any]:
    """Writes the displacement of one layer, and says what is kept of it in edit.json."""
    from safetensors.numpy import save

    path = part / f"{stem}.safetensors"
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"displacement": np.ascontiguousarray(shape.field, np.float32)}))
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "size": [shape.field.shape[2], shape.field.shape[1]],
        "box": list(shape.box.as_tuple()),
    }


def _file_stem(layer: str, number: int) -> str:
    return layer if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", layer) else f"layer{number}"


def _move_into_place(part: Path, name: str) -> Path:
    number = 1 + max((number_of(folder) for folder in numbered_folders(part.parent)), default=0)
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


def _append(run: Run, operation: str, folder: str) -> None:
    """Adds a line to the journal. What is there is never rewritten, but for a last line that a power cut left torn."""
    path = journal_path(run)
    with disk_errors(path):
        kept = path.read_bytes() if path.exists() else b""
        line = json.dumps({"op": operation, "edit": folder}).encode() + b"\n"
        if kept and not kept.endswith(b"\n"):
            with atomic_write(path) as part:
                part.write_bytes(kept[: kept.rfind(b"\n") + 1] + line)
            return
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _by_folder(run: Run, name: str) -> Edit:
    return next(edit for edit in list_edits(run) if edit.folder.name == name)

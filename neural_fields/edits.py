"""Reading the stack of edits of a run: which edits there are, which are active, and what they put on a layer.

The folders and the journal are those that `editors/stack.py` writes: `edits/0001-name/` with `edit.json`, and for a
layer one RGBA overlay, one shape or both; for a scene in space, tuned weights and the parts that are not shown any
more. The renderer needs no more than this of an edit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from neural_fields.canonical import Overlay, are_numbers, fit
from neural_fields.coords import Box
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import read_json, sha256_file
from neural_fields.pictures import premultiplied, read_picture, straight
from neural_fields.reshaping import Shape
from neural_fields.run import Run

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
WITH_SHAPES = 2  # the schema of an edit that an older program must not show without its shapes
WITH_WEIGHTS = 3  # of a scene in space
_FOLDER = re.compile(r"(\d{4,})-([a-z0-9-]+)")
_OPERATIONS = ("add", "undo", "redo")


@dataclass(frozen=True)
class Edit:
    """One edit on disk.

    Attributes:
        folder: where it lies; its name is the number and the name, as in "0001-logo".
        number, name: the two parts of the folder's name.
        layers: the layers it changes.
        active: whether it is rendered; an undone edit is not.
        redoable: whether `redo` can bring it back.
        facts: the whole of edit.json.
    """

    folder: Path
    number: int
    name: str
    layers: tuple[str, ...]
    active: bool
    redoable: bool
    facts: Mapping[str, Any]

    @property
    def opacity(self) -> float:
        return float(self.facts.get("opacity", 1.0))


def list_edits(run: Run) -> list[Edit]:
    """Every edit of the run, oldest first, with its state.

    Raises:
        UserError: a damaged edit folder or journal (exit 5), named.
    """
    active, undone = replay(run)
    return [_read_edit(folder, folder.name in active, folder.name in undone) for folder in _folders(run)]


def active_edits(run: Run, names: Sequence[str] = ()) -> list[Edit]:
    """The edits to render, oldest first: the active ones, or those asked for by name, number or folder name.

    Raises:
        UserError: an unknown name (exit 3, lists the edits), a damaged edit (exit 5).
    """
    edits = list_edits(run)
    if not names:
        return [edit for edit in edits if edit.active]
    chosen = {_find(edits, name, run).folder for name in names}
    return [edit for edit in edits if edit.folder in chosen]


def read_overlay(edit: Edit, layer: str) -> Overlay:
    """The overlay of one layer, checked against its hash.

    Raises:
        UserError: a missing, damaged or changed overlay (exit 5).
    """
    entry = edit.facts["layers"][layer]
    path = edit.folder / entry["file"]
    try:
        changed = sha256_file(path) != entry["sha256"]
        picture = read_picture(path)
    except (OSError, UserError) as problem:
        raise _damaged(edit.folder, f"{entry['file']} cannot be read") from problem
    if changed or list(picture.size) != list(entry["size"]):
        raise _damaged(edit.folder, f"{entry['file']} is not the file that was added")
    return Overlay(picture.rgba, Box(*map(float, entry["box"])))


def read_shape(edit: Edit, layer: str) -> Shape:
    """The shape of one layer, checked against its hash.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    entry = edit.facts["shapes"][layer]
    path = edit.folder / entry["file"]
    try:
        changed = sha256_file(path) != entry["sha256"]
        field = None if changed else load_file(path)["displacement"]
    except (OSError, SafetensorError, KeyError) as problem:
        raise _damaged(edit.folder, f"{entry['file']} cannot be read") from problem
    if field is None or list(field.shape) != [2, *reversed(entry["size"])] or not np.isfinite(field).all():
        raise _damaged(edit.folder, f"{entry['file']} is not the file that was added")
    return Shape(field.astype(np.float32), Box(*map(float, entry["box"])))


def read_shapes(edits: Sequence[Edit]) -> dict[str, tuple[Shape, ...]]:
    """The shapes of some edits by layer, in their order.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    found: dict[str, tuple[Shape, ...]] = {}
    for edit in edits:
        for layer in edit.facts.get("shapes", {}):
            found[layer] = (*found.get(layer, ()), read_shape(edit, layer))
    return found


def read_weights(edit: Edit) -> dict[str, Tensor]:
    """The tuned parameters of a scene by name, checked against their hash; none where the edit has none.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    entry = edit.facts.get("weights")
    if entry is None:
        return {}
    path = edit.folder / entry["file"]
    try:
        if sha256_file(path) != entry["sha256"]:
            raise _damaged(edit.folder, f"{entry['file']} is not the file that was added")
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise _damaged(edit.folder, f"{entry['file']} cannot be read") from problem


def hidden_parts(edits: Sequence[Edit]) -> frozenset[str]:
    """The parts of a scene that some of the edits take away."""
    return frozenset(part for edit in edits for part in edit.facts.get("hidden", ()))


def flatten(
    edits: Sequence[Edit], layer: str, size: tuple[int, int] | None = None, box: Box | None = None
) -> Overlay | None:
    """The given edits of one layer in order, as one overlay with straight alpha; None where none touches the layer.

    Args:
        edits: oldest first; the later is on top.
        layer: the layer's name.
        size: (width, height) of the result; by default the largest overlay's.
        box: what the result covers; by default the newest overlay's box.
    """
    parts = [(read_overlay(edit, layer), edit.opacity) for edit in edits if layer in edit.facts["layers"]]
    if not parts:
        return None
    box = box or parts[-1][0].box
    size = size or max((overlay.size for overlay, _ in parts), key=lambda pair: pair[0] * pair[1])
    overlay, opacity = parts[0]
    if len(parts) == 1 and opacity == 1 and overlay.size == size and overlay.box == box:
        return Overlay(overlay.rgba, box)
    result: Float[np.ndarray, "height width 4"] = np.zeros((size[1], size[0], 4), np.float32)
    for overlay, opacity in parts:
        top = premultiplied(fit(overlay, size, box)) * np.float32(opacity)
        result = top + result * (1 - top[..., 3:])
    return Overlay(straight(result), box)


def numbered_folders(edits: Path) -> list[Path]:
    """The edit folders, in no order."""
    paths = edits.iterdir() if edits.is_dir() else ()
    return [path for path in paths if path.is_dir() and _FOLDER.fullmatch(path.name)]


def number_of(folder: Path) -> int:
    """The number in the name of an edit folder."""
    return int(folder.name.partition("-")[0])


def replay(run: Run) -> tuple[list[str], list[str]]:
    """Folder names: the active edits in order, and those that `redo` can bring back, the last undone last."""
    present = [folder.name for folder in _folders(run)]
    journal = _read_journal(run)
    mentioned = {name for _, name in journal}
    active: list[str] = []
    undone: list[str] = []
    for operation, name in [*journal, *(("add", name) for name in present if name not in mentioned)]:
        if operation == "add":
            active.append(name)
            undone.clear()
        elif operation == "undo" and name in active:
            active.remove(name)
            undone.append(name)
        elif operation == "redo" and name in undone:
            undone.remove(name)
            active.append(name)
    # A folder that the user took away is no longer part of the story.
    return [name for name in active if name in present], [name for name in undone if name in present]


def journal_path(run: Run) -> Path:
    """Where the journal of the stack lies."""
    return run.edits / "journal.jsonl"


def _folders(run: Run) -> list[Path]:
    return sorted(numbered_folders(run.edits), key=lambda folder: (number_of(folder), folder.name))


def _read_journal(run: Run) -> list[tuple[str, str]]:
    path = journal_path(run)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    steps = []
    for number, line in enumerate(lines, start=1):
        try:
            step = json.loads(line)
            operation, name = step["op"], step["edit"]
        except (ValueError, KeyError, TypeError) as problem:
            if number == len(lines):
                break  # a last line without its end was cut by a power cut, or is the empty rest after the last end
            raise _damaged(path, f"line {number} cannot be read") from problem
        if operation not in _OPERATIONS or not isinstance(name, str):
            raise _damaged(path, f"line {number} says {operation!r}")
        steps.append((operation, name))
    return steps


def _read_edit(folder: Path, active: bool, redoable: bool) -> Edit:
    match = _FOLDER.fullmatch(folder.name)
    assert match, "only numbered folders are listed"
    try:
        facts = read_json(folder / "edit.json")
    except (OSError, UserError) as problem:
        raise _damaged(folder, "edit.json is missing or cannot be read") from problem
    if not isinstance(facts, dict) or not _is_complete(facts):
        raise _damaged(folder, "edit.json is incomplete")
    shapes = facts.get("shapes", {})
    entries = [*facts["layers"].values(), *shapes.values(), *([facts["weights"]] if "weights" in facts else [])]
    missing = [entry["file"] for entry in entries if not (folder / entry["file"]).is_file()]
    if missing:
        raise _damaged(folder, f"{missing[0]} is missing")
    parts = facts.get("parts", ())
    layers = tuple(dict.fromkeys([*facts["layers"], *shapes, *parts]))
    return Edit(folder, int(match[1]), match[2], layers, active, redoable, facts)


def _is_complete(facts: Mapping[str, Any]) -> bool:
    layers, shapes = facts.get("layers"), facts.get("shapes", {})
    opacity = facts.get("opacity", 1.0)
    known = facts.get("schema") in (SCHEMA, WITH_SHAPES, WITH_WEIGHTS)
    if not known or not isinstance(layers, dict) or not isinstance(shapes, dict):
        return False
    if not layers and not shapes:
        return _is_of_a_scene(facts)
    if not isinstance(opacity, int | float) or not 0 <= opacity <= 1:
        return False
    return all(_is_layer(entry) for entry in (*layers.values(), *shapes.values()))


def _is_of_a_scene(facts: Mapping[str, Any]) -> bool:
    """Whether an edit without layers has what an edit of a scene in space needs."""
    weights, names = facts.get("weights"), [facts.get("parts", []), facts.get("hidden", [])]
    if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in names):
        return False
    if weights is None:
        return bool(names[1])
    return isinstance(weights, dict) and _is_file(weights)


def _is_file(entry: Mapping[str, Any]) -> bool:
    """A file name, and never a way out of the folder."""
    named = all(isinstance(entry.get(key), str) for key in ("file", "sha256"))
    return named and Path(entry["file"]).name == entry["file"]


def _is_layer(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _is_file(entry):
        return False
    return are_numbers(entry.get("box"), 4) and are_numbers(entry.get("size"), 2)


def _find(edits: Sequence[Edit], wanted: str, run: Run) -> Edit:
    for edit in reversed(edits):
        if wanted in (edit.name, edit.folder.name, str(edit.number), f"{edit.number:04d}"):
            return edit
    names = ", ".join(edit.folder.name for edit in edits)
    raise bad_input(
        f"there is no edit {wanted!r}",
        where=str(run.edits),
        why=f"the edits are: {names}" if names else "the run has no edit yet",
        fix=f"unwrap edits {run.path}",
    )


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        ExitCode.DAMAGED_RUN,
        f"the edit {path.name} is damaged" if path.is_dir() else f"{path.name} is damaged",
        where=str(path),
        why=why,
        fix=f"move {path} out of the run, or put the original file back",
    )

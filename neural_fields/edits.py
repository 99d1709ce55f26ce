"""Reading the stack of edits of a run: which edits there are, which are active, and how they lie.

The folders and the journal are those that `editors/stack.py` writes: `edits/0001-name/` with `edit.json`, whose keys
say by layer what there is beside it:

    layers    an RGBA overlay: a PNG file, its box and size
    shapes    a deformation: a safetensors file
    moving    an overlay for every frame: an FFV1 file; without a box it covers the frame instead of the plane
    grades    how colours change, as numbers; with "masks" only there, a PNG file whose alpha says where
    hidden    layers that are not shown any more, and what is behind them is; "grow" widens them by pixels
    lit       false: the light of the layer does not fall on what is painted
    weights   of a scene in space: tuned parameters; "parts", "hidden": the parts that it changes and takes away

`edit_files.py` reads those files. The renderer needs no more than this of an edit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_fields.arrangement import Arrangement
from neural_fields.canonical import are_numbers
from neural_fields.errors import UserError, bad_input
from neural_fields.files import read_json
from neural_fields.grading import Grade
from neural_fields.journal import History, damaged_edit, history
from neural_fields.run import Run

SCHEMA = 1
WITH_SHAPES = 2  # the schema of an edit that an older program must not show without its shapes
WITH_WEIGHTS = 3  # of a scene in space
WITH_MORE = 4  # with a place in time or in the mixture, or one of: moving, grades, hidden
_FOLDER = re.compile(r"(\d{4,})-([a-z0-9-]+)")
_FILES = ("layers", "shapes", "moving", "masks")  # entries that name a file for each layer


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
        arrangement: how it lies in time and in the mixture: as it was added, and as changed since.
    """

    folder: Path
    number: int
    name: str
    layers: tuple[str, ...]
    active: bool
    redoable: bool
    facts: Mapping[str, Any]
    arrangement: Arrangement

    @property
    def paint(self) -> Arrangement:
        """How its overlays lie: those behind a hidden layer are there fully while it is, and seen as far as it is."""
        lies = self.arrangement
        return Arrangement(start=lies.start, end=lies.end) if self.facts.get("hidden") else lies


def list_edits(run: Run) -> list[Edit]:
    """Every edit of the run with its state: active ones from the lowest to the highest, undone ones where they were.

    Raises:
        UserError: a damaged edit folder or journal (exit 5), named.
    """
    found = edit_history(run)
    order = iter(found.active)
    active = set(found.active)
    folders = {folder.name: folder for folder in _folders(run)}
    names = [next(order) if name in active else name for name in folders]
    redoable = {step.edit for step in found.undone if step.operation == "add"}
    return [_read_edit(folders[name], name in active, name in redoable, found.values(name)) for name in names]


def edit_history(run: Run) -> History:
    """What was done with the edits of a run.

    Raises:
        UserError: a damaged journal (exit 5).
    """
    return history(run, [folder.name for folder in _folders(run)])


def active_edits(run: Run, names: Sequence[str] = ()) -> list[Edit]:
    """The edits to render, the lowest first: the active ones, or those asked for by name, number or folder name.

    Raises:
        UserError: an unknown name (exit 3, lists the edits), a damaged edit (exit 5).
    """
    edits = list_edits(run)
    if not names:
        return [edit for edit in edits if edit.active]
    chosen = {find_edit(edits, name, run).folder for name in names}
    return [edit for edit in edits if edit.folder in chosen]


def hidden_parts(edits: Sequence[Edit]) -> frozenset[str]:
    """The parts of a scene that some of the edits take away."""
    return frozenset(part for edit in edits for part in edit.facts.get("hidden", ()))


def numbered_folders(edits: Path) -> list[Path]:
    """The edit folders, in no order."""
    paths = edits.iterdir() if edits.is_dir() else ()
    return [path for path in paths if path.is_dir() and _FOLDER.fullmatch(path.name)]


def number_of(folder: Path) -> int:
    """The number in the name of an edit folder."""
    return int(folder.name.partition("-")[0])


def _folders(run: Run) -> list[Path]:
    return sorted(numbered_folders(run.edits), key=lambda folder: (number_of(folder), folder.name))


def _read_edit(folder: Path, active: bool, redoable: bool, changes: Mapping[str, Any]) -> Edit:
    match = _FOLDER.fullmatch(folder.name)
    assert match, "only numbered folders are listed"
    try:
        facts = read_json(folder / "edit.json")
    except (OSError, UserError) as problem:
        raise damaged_edit(folder, "edit.json is missing or cannot be read") from problem
    if not isinstance(facts, dict) or not _is_complete(facts):
        raise damaged_edit(folder, "edit.json is incomplete")
    missing = [entry["file"] for entry in _entries(facts) if not (folder / entry["file"]).is_file()]
    if missing:
        raise damaged_edit(folder, f"{missing[0]} is missing")
    try:
        arrangement = Arrangement().changed(facts).changed(changes)
    except ValueError as problem:
        raise damaged_edit(folder, str(problem)) from problem
    named = [name for kind in (*_FILES, "grades") for name in facts.get(kind, {})]
    layers = tuple(dict.fromkeys([*named, *facts.get("parts", ()), *facts.get("hidden", ())]))
    return Edit(folder, int(match[1]), match[2], layers, active, redoable, facts, arrangement)


def _entries(facts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All parts of an edit.json that name a file."""
    for kind in _FILES:
        yield from facts.get(kind, {}).values()
    if "weights" in facts:
        yield facts["weights"]


def _is_complete(facts: Mapping[str, Any]) -> bool:
    parts = [facts.get(kind, {}) for kind in (*_FILES, "grades")]
    known = facts.get("schema") in (SCHEMA, WITH_SHAPES, WITH_WEIGHTS, WITH_MORE)
    if not known or "layers" not in facts or not all(isinstance(part, dict) for part in parts):
        return False
    if not any(parts):
        return _is_of_a_scene_or_hides(facts)
    try:
        for value in facts.get("grades", {}).values():
            Grade.from_json(value)
    except ValueError:
        return False
    if not _are_names(facts.get("hidden", [])) or not isinstance(facts.get("lit", True), bool):
        return False
    return all(_is_layer(entry, kind == "moving") for kind in _FILES for entry in facts.get(kind, {}).values())


def _is_of_a_scene_or_hides(facts: Mapping[str, Any]) -> bool:
    """Whether an edit without layers has what an edit of a scene in space, or one that only hides layers, needs."""
    weights, hidden, grow = facts.get("weights"), facts.get("hidden", []), facts.get("grow", 0)
    if not _are_names(facts.get("parts", [])) or not _are_names(hidden) or not isinstance(grow, int | float):
        return False
    if weights is None:
        return bool(hidden)
    return isinstance(weights, dict) and _is_file(weights)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_file(entry: Mapping[str, Any]) -> bool:
    """A file name, and never a way out of the folder."""
    named = all(isinstance(entry.get(key), str) for key in ("file", "sha256"))
    return named and Path(entry["file"]).name == entry["file"]


def _is_layer(entry: Any, may_be_free: bool) -> bool:
    """Whether an entry names a file with its box and size; one that covers the frame has no box."""
    if not isinstance(entry, dict) or not _is_file(entry):
        return False
    free = may_be_free and entry.get("box") is None
    return (free or are_numbers(entry.get("box"), 4)) and are_numbers(entry.get("size"), 2)


def find_edit(edits: Sequence[Edit], wanted: str, run: Run) -> Edit:
    """The edit of a name, number or folder name; the newest of several.

    Raises:
        UserError: there is none (exit 3, lists the edits).
    """
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

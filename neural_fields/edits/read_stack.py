"""Reads the stack of edits of a run: which edits there are, which are active, and their arrangement.

The folders and the journal are those that `editors/core/stack.py` writes: `edits/0001-name/` with `edit.json`, whose
keys name by layer what is stored beside it:

    layers    an RGBA overlay: a PNG file, its box and size
    shapes    a deformation: a safetensors file
    moving    an animated overlay: an FFV1 file; without a box it covers the frame instead of the plane
    grades    changes of colors, as numbers; with "masks" they are limited to the alpha of a PNG file
    hidden    layers that are removed, so that what is behind them is visible; "grow" widens them by pixels
    lit       false: the layer's gain is not applied to the paint
    weights   of a 3D scene: tuned parameters; "parts", "hidden": the parts that it changes and removes

`edit_files.py` reads those files. The renderer needs no more than this of an edit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from neural_fields.atlas.canonical import is_number_list
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.files import read_json
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.journal import EditHistory, damaged_edit_error, replay_journal
from neural_fields.imaging.color_grading import Grade
from neural_fields.runs.run import Run


class EditSchema(IntEnum):
    """The schema of an edit.json: an older program refuses an edit whose contents it cannot show."""

    OVERLAYS = 1
    SHAPES = 2
    WEIGHTS = 3  # of a 3D scene
    ARRANGED = 4  # with times, an opacity or a blend mode, or one of: moving, grades, hidden


_FOLDER = re.compile(r"(\d{4,})-([a-z0-9-]+)")
_FILES = ("layers", "shapes", "moving", "masks")  # entries that name a file for each layer


@dataclass(frozen=True)
class Edit:
    """One edit on disk.

    Attributes:
        folder: its name is the number and the name, as in "0001-logo".
        number, name: the two parts of the folder's name.
        layers: the layers it changes.
        active: whether it is rendered; an undone edit is not.
        redoable: whether `redo` can restore it.
        spec: the whole of edit.json.
        arrangement: opacity, blend mode and times: as it was added, and as changed since.
    """

    folder: Path
    number: int
    name: str
    layers: tuple[str, ...]
    active: bool
    redoable: bool
    spec: Mapping[str, Any]
    arrangement: Arrangement

    @property
    def overlay_arrangement(self) -> Arrangement:
        """The arrangement of its overlays: those behind a hidden layer are opaque while it is hidden."""
        arrangement = self.arrangement
        if self.spec.get("hidden"):
            return Arrangement(start=arrangement.start, end=arrangement.end)
        return arrangement


def list_edits(run: Run) -> list[Edit]:
    """Lists every edit of the run: active ones from the lowest to the highest, undone ones at their former places.

    Raises:
        UserError: a damaged edit folder or journal (exit 5), named.
    """
    found = read_history(run)
    order = iter(found.active_names)
    active = set(found.active_names)
    folders = {folder.name: folder for folder in _sorted_folders(run)}
    names = [next(order) if name in active else name for name in folders]
    redoable = {step.edit for step in found.undone if step.operation == "add"}
    edits = []
    for name in names:
        folder, changes = folders[name], found.values_of(name)  # the values that the journal sets
        match = _FOLDER.fullmatch(name)
        assert match, "only numbered folders are listed"
        try:
            facts = read_json(folder / "edit.json")
        except (OSError, UserError) as problem:
            raise damaged_edit_error(folder, "edit.json is missing or cannot be read") from problem
        if not isinstance(facts, dict) or not _is_complete(facts):
            raise damaged_edit_error(folder, "edit.json is incomplete")
        entries = [entry for kind in _FILES for entry in facts.get(kind, {}).values()]
        for entry in (*entries, facts["weights"]) if "weights" in facts else entries:
            if not (folder / entry["file"]).is_file():
                raise damaged_edit_error(folder, f"{entry['file']} is missing")
        try:
            arrangement = Arrangement().replace_values(facts).replace_values(changes)
        except ValueError as problem:
            raise damaged_edit_error(folder, str(problem)) from problem
        named = [layer for kind in (*_FILES, "grades") for layer in facts.get(kind, {})]
        layers = tuple(dict.fromkeys([*named, *facts.get("parts", ()), *facts.get("hidden", ())]))
        edits.append(
            Edit(folder, int(match[1]), match[2], layers, name in active, name in redoable, facts, arrangement)
        )
    return edits


def read_history(run: Run) -> EditHistory:
    """Reads what was done with the edits of a run.

    Raises:
        UserError: a damaged journal (exit 5).
    """
    return replay_journal(run, [folder.name for folder in _sorted_folders(run)])


def active_edits(run: Run, names: Sequence[str] = ()) -> list[Edit]:
    """Lists the edits to render, the lowest first: the active ones, or those given by name, number or folder name.

    Raises:
        UserError: an unknown name (exit 3, lists the edits), a damaged edit (exit 5).
    """
    edits = list_edits(run)
    if not names:
        return [edit for edit in edits if edit.active]
    chosen = {find_edit(edits, name, run).folder for name in names}
    return [edit for edit in edits if edit.folder in chosen]


def hidden_parts(edits: Sequence[Edit]) -> frozenset[str]:
    """Returns the parts of a 3D scene that some of the edits remove."""
    return frozenset(part for edit in edits for part in edit.spec.get("hidden", ()))


def list_edit_folders(edits: Path) -> list[Path]:
    """Lists the edit folders, in no order."""
    paths = edits.iterdir() if edits.is_dir() else ()
    return [path for path in paths if path.is_dir() and _FOLDER.fullmatch(path.name)]


def edit_number(folder: Path) -> int:
    """Returns the number in the name of an edit folder."""
    return int(folder.name.partition("-")[0])


def _sorted_folders(run: Run) -> list[Path]:
    return sorted(list_edit_folders(run.edits), key=lambda folder: (edit_number(folder), folder.name))


def _is_complete(facts: Mapping[str, Any]) -> bool:
    """Returns whether an edit.json has all that its kind of edit needs."""
    parts = [facts.get(kind, {}) for kind in (*_FILES, "grades")]
    known = facts.get("schema") in tuple(EditSchema)
    if not known or "layers" not in facts or not all(isinstance(part, dict) for part in parts):
        return False
    if not any(parts):
        # An edit of a 3D scene, or one that only hides layers.
        weights, hidden, grow = facts.get("weights"), facts.get("hidden", []), facts.get("grow", 0)
        if not _are_names(facts.get("parts", [])) or not _are_names(hidden) or not isinstance(grow, int | float):
            return False
        if weights is None:
            return bool(hidden)
        return isinstance(weights, dict) and _is_file_entry(weights)
    try:
        for value in facts.get("grades", {}).values():
            Grade.from_json(value)
    except ValueError:
        return False
    if not _are_names(facts.get("hidden", [])) or not isinstance(facts.get("lit", True), bool):
        return False
    for kind in _FILES:
        for entry in facts.get(kind, {}).values():
            if not isinstance(entry, dict) or not _is_file_entry(entry):
                return False
            covers_frame = kind == "moving" and entry.get("box") is None  # the only kind that needs no box
            if not (covers_frame or is_number_list(entry.get("box"), 4)) or not is_number_list(entry.get("size"), 2):
                return False
    return True


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_file_entry(entry: Mapping[str, Any]) -> bool:
    """Returns whether an entry has a hash and a file name that does not lead out of the folder."""
    named = all(isinstance(entry.get(key), str) for key in ("file", "sha256"))
    return named and Path(entry["file"]).name == entry["file"]


def find_edit(edits: Sequence[Edit], wanted: str, run: Run) -> Edit:
    """Finds an edit by its name, number or folder name; the newest of several.

    Args:
        edits: where to look.
        wanted: the name or number.
        run: is named in the error.

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

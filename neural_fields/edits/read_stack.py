"""Reads the stack of edits of a run: which edits there are, which are active, and their arrangement.

The folders and the journal are those that `editors/core/stack.py` writes: `edits/0001-name/` with `edit.json`
(`record.py`) and the files that it names (`payloads.py`). The renderer needs no more than this of an edit.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from neural_fields.config.loader import from_mapping
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.suggestions import nearest_word
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.journal import EditHistory, replay_journal
from neural_fields.edits.record import EditRecord, clean_name, damaged_edit_error, read_edit_record
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class Edit:
    """Gives access to an edit on disk.

    Attributes:
        folder: its folder, named by number and name, as in "0001-logo".
        number: number of the edit.
        name: name of the edit.
        active: whether the edit is rendered; an undone edit is not.
        redoable: whether `redo` can restore the edit.
        record: the content of edit.json.
        arrangement: the current opacity, blend mode and times.
    """

    folder: Path
    number: int
    name: str
    active: bool
    redoable: bool
    record: EditRecord
    arrangement: Arrangement

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the edit changes, or the parts of a 3D scene."""
        return self.record.layers

    def _repr_html_(self) -> str:
        """Shows the overlays of the edit in a notebook, layer by layer."""
        from neural_fields.imaging.image_io import read_picture
        from neural_fields.imaging.notebook_pictures import make_gallery

        entries = {**self.record.overlays, **self.record.placed}
        painted = {layer: read_picture(self.folder / entry.file).rgba for layer, entry in entries.items()}
        return make_gallery(painted, f"{self.folder.name}: {', '.join(self.layers)}")

    @property
    def overlay_arrangement(self) -> Arrangement:
        """The arrangement of the overlays; overlays behind a removed layer are opaque while it is removed."""
        arrangement = self.arrangement
        if self.record.removal:
            return Arrangement(start=arrangement.start, end=arrangement.end)
        return arrangement


def list_edits(run: Run) -> list[Edit]:
    """Lists all edits of a run: active ones from the lowest to the highest, undone ones at their former places.

    Raises:
        UserError: a damaged edit folder or journal (exit 5); the message names it.
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
        number, short = parse_folder_name(name) or (0, name)
        record = read_edit_record(folder)
        for entry in record.files:
            if not os.path.isfile(folder / entry.file):  # unlike `Path.is_file`, says no to names that cannot be
                raise damaged_edit_error(folder, f"{entry.file} is missing")
        try:
            arrangement = from_mapping(Arrangement, changes, base=record.arrangement)
        except UserError as problem:
            raise damaged_edit_error(folder, f"its arrangement in the journal: {problem.what}") from problem
        edits.append(Edit(folder, number, short, name in active, name in redoable, record, arrangement))
    return edits


def read_history(run: Run) -> EditHistory:
    """Reads the history of the edits of a run.

    Raises:
        UserError: a damaged journal (exit 5).
    """
    return replay_journal(run, [folder.name for folder in _sorted_folders(run)])


def hidden_parts(edits: Sequence[Edit]) -> frozenset[str]:
    """Returns the parts of a 3D scene that some of the edits remove."""
    return frozenset(part for edit in edits if edit.record.removal for part in edit.record.removal.layers)


def list_edit_folders(edits: Path) -> list[Path]:
    """Lists the edit folders, in no order."""
    paths = edits.iterdir() if edits.is_dir() else ()
    return [path for path in paths if path.is_dir() and parse_folder_name(path.name)]


def parse_folder_name(name: str) -> tuple[int, str] | None:
    """Returns the number and the name of an edit, of "0001-logo"; None for folders that are no edits."""
    match = re.fullmatch(r"([0-9]{4,})-(.+)", unicodedata.normalize("NFC", name))
    return (int(match[1]), match[2]) if match and clean_name(match[2]) == match[2] else None


def edit_number(folder: Path) -> int:
    """Returns the number in the name of an edit folder."""
    return int(folder.name.partition("-")[0])


def _sorted_folders(run: Run) -> list[Path]:
    return sorted(list_edit_folders(run.edits), key=lambda folder: (edit_number(folder), folder.name))


def find_edit(edits: Sequence[Edit], wanted: str, run: Run) -> Edit:
    """Finds an edit by its name, number or folder name. Of several of one name, an active one comes before undone ones.

    Args:
        edits: the edits to search.
        wanted: the name, number or folder name.
        run: the run, for the message.

    Raises:
        UserError: there is no such edit, or there are several (exit 3, lists them).
    """
    as_cleaned = clean_name(wanted) if any(map(str.isalnum, wanted)) else wanted  # as it was given with --name
    named = [edit for edit in edits if wanted in (edit.name, f"{edit.number}", f"{edit.number:04d}")]
    found = [edit for edit in edits if edit.folder.name == wanted] or named
    found = found or [edit for edit in edits if edit.name == as_cleaned]
    found = [edit for edit in found if edit.active] or found
    if len(found) == 1:
        return found[0]
    if found:
        folders = [edit.folder.name for edit in found]
        raise bad_input(
            f"{wanted!r} means {len(found)} edits",
            where=str(run.edits),
            why=f"it fits {' and '.join(folders)}",
            fix=f"{folders[-1]} instead of {wanted}",
        )
    names = ", ".join(edit.folder.name for edit in edits)
    guess = nearest_word(wanted, [edit.name for edit in edits])
    why = f"the edits are: {names}" if names else "the run has no edit yet"
    raise bad_input(
        f"there is no edit {wanted!r}",
        where=str(run.edits),
        why=f"did you mean {guess}? {why[0].upper()}{why[1:]}" if guess else why,
        fix=f"unwrap edits {run.path}",
    )


def choose_free_name(run: Run, name: str) -> str:
    """Chooses the name of a new edit: as asked for, or with a number behind it while an active edit has that name.

    Args:
        run: the run.
        name: any text; `clean_name` makes it a folder's name.

    Raises:
        UserError: a damaged journal (exit 5).
    """
    known = [parse_folder_name(folder) for folder in read_history(run).active_names]
    taken = {found[1] for found in known if found}
    base = clean_name(name)
    numbered = (f"{base[:36].rstrip('-')}-{number}" for number in count(2))
    return base if base not in taken else next(free for free in numbered if free not in taken)

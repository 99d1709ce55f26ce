"""Steps through the stack of edits: undo, redo, and changes of an edit's arrangement.

Each is a line of `edits/journal.jsonl`; no file of an edit is read but its record, so this needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from neural_fields.config.loader import from_mapping
from neural_fields.core.errors import UserError, bad_input
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.journal import MOVE_TARGETS, JournalStep, append_step
from neural_fields.edits.read_stack import Edit, find_edit, list_edits, read_history
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class StackChange:
    """Describes a step that was undone or redone: its edit, and its operation, "add" or "set"."""

    edit: Edit
    operation: str


def undo(run: Run) -> StackChange:
    """Undoes the last step: an edit that was added, or a change of an edit's arrangement. Everything stays on disk.

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
    """Redoes the step that was undone last.

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
        name: name, number or folder of the edit.
        values: new values of `Arrangement`, by field name.
        move: a new place in the stack: ("above", name), ("below", name), ("top", "") or ("bottom", "").

    Returns:
        The edit with its new arrangement.

    Raises:
        UserError: an unknown or undone edit, an invalid value, or nothing to change (exit 3).
    """
    edits = list_edits(run)
    found = find_edit(edits, name, run)
    if not found.active:
        raise bad_input(f"the edit {found.folder.name} is undone", where=str(run.edits), fix=f"unwrap redo {run.path}")
    step = JournalStep("set", found.folder.name, dict(values))
    if move is not None:
        where, other = move
        if where not in MOVE_TARGETS:
            why = f"an edit moves to one of: {', '.join(MOVE_TARGETS)}"
            raise bad_input(f"the edit {found.folder.name} cannot move {where!r}", why=why, fix="('top', '')")
        target = find_edit(edits, other, run).folder.name if where in ("above", "below") else ""
        if target == found.folder.name:
            raise bad_input(f"the edit {found.folder.name} cannot be {where} itself", fix=f"--{where} with another")
        step = replace(step, move=(where, target))
    if not step.values and step.move is None:
        raise bad_input(
            "nothing to change", where=str(found.folder), fix=f"unwrap arrange {run.path} {name} --opacity 0.5"
        )
    try:
        from_mapping(Arrangement, values, base=found.arrangement)
    except UserError as problem:
        what = f"{found.folder.name} cannot be arranged so: {problem.what}"
        raise bad_input(what, where=str(run.edits), why=problem.why) from None
    append_step(run, step)
    return _find_by_folder(run, found.folder.name)


def _find_by_folder(run: Run, name: str) -> Edit:
    return next(edit for edit in list_edits(run) if edit.folder.name == name)

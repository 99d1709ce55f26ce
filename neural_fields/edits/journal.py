"""The journal of a run's edits: one line for each "add", "set", "undo" and "redo", and the state that they result in.

"set" changes the arrangement of an edit (`arrangement.py`), or moves it above or below another edit. Steps are undone
one by one, the last first; a new step discards those that could be redone. An edit folder that the journal does not
mention counts as added: it was copied from another run, or written just before a power cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from neural_fields.config.loader import from_mapping, to_mapping
from neural_fields.core.errors import UserError
from neural_fields.core.files import atomic_write, disk_errors
from neural_fields.edits.record import damaged_edit_error
from neural_fields.runs.run import Run

MoveTarget = Literal["above", "below", "top", "bottom"]  # where an edit can be moved to
MOVE_TARGETS: tuple[MoveTarget, ...] = get_args(MoveTarget)


@dataclass(frozen=True)
class JournalStep:
    """Holds a line of the journal.

    Attributes:
        operation: what was done.
        edit: the name of the edit's folder.
        values: for "set": new values of its `Arrangement`, by name.
        move: for "set": the new place in the stack, and the folder of the other edit ("" for top and bottom).
    """

    operation: Literal["add", "set", "undo", "redo"]
    edit: str
    values: Mapping[str, Any] = field(default_factory=dict)
    move: tuple[MoveTarget, str] | None = None


@dataclass(frozen=True)
class EditHistory:
    """Holds the state of the edits after all lines of a journal.

    Attributes:
        done: steps "add" and "set" that are in force, oldest first.
        undone: steps that `redo` can restore, the last undone last.
    """

    done: Sequence[JournalStep]
    undone: Sequence[JournalStep]

    @property
    def active_names(self) -> list[str]:
        """Folder names of the edits that are shown, the lowest first."""
        names: list[str] = []
        for step in self.done:
            if step.operation == "add":
                names.append(step.edit)
            elif step.move is not None and step.edit in names:
                where, other = step.move
                names.remove(step.edit)
                if where == "bottom":
                    names.insert(0, step.edit)
                elif where == "top" or other not in names:
                    names.append(step.edit)
                else:
                    names.insert(names.index(other) + (where == "above"), step.edit)
        return names

    def values_of(self, edit: str) -> dict[str, Any]:
        """Returns the values that steps "set" gave an edit, the newest of each."""
        found: dict[str, Any] = {}
        for step in self.done:
            if step.operation == "set" and step.edit == edit:
                found |= step.values
        return found


def replay_journal(run: Run, present: Sequence[str]) -> EditHistory:
    """Replays the journal of a run.

    Args:
        run: the run.
        present: names of its edit folders, in the order of their numbers.

    Returns:
        The steps in force, and the undone steps that can be redone.

    Raises:
        UserError: a damaged journal (exit 5).
    """
    path = journal_path(run)
    steps: list[JournalStep] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            steps.append(from_mapping(JournalStep, json.loads(line)))
        except (ValueError, RecursionError, UserError) as problem:
            if number == len(lines):
                break  # a last line without its end was cut by a power cut, or is the empty rest after the last line
            why = problem.what if isinstance(problem, UserError) else "not JSON"
            raise damaged_edit_error(path, f"line {number}: {why}") from problem

    mentioned = {step.edit for step in steps}
    done: list[JournalStep] = []
    undone: list[JournalStep] = []
    for step in [*steps, *(JournalStep("add", name) for name in present if name not in mentioned)]:
        if step.operation in ("add", "set"):
            done.append(step)
            undone.clear()
            continue
        taken, given = (done, undone) if step.operation == "undo" else (undone, done)
        last = next((index for index in reversed(range(len(taken))) if taken[index].edit == step.edit), None)
        if last is not None:
            given.append(taken.pop(last))
    # Steps of a folder that the user removed no longer count.
    return EditHistory([s for s in done if s.edit in present], [s for s in undone if s.edit in present])


def journal_path(run: Run) -> Path:
    """Returns the path of the journal."""
    return run.edits / "journal.jsonl"


def append_step(run: Run, step: JournalStep) -> None:
    """Appends a line. Earlier lines are never rewritten, except a last one that a power cut left incomplete."""
    path = journal_path(run)
    line = json.dumps(to_mapping(step, without_defaults=True)).encode() + b"\n"
    with disk_errors(path):
        kept = path.read_bytes() if path.exists() else b""
        if kept and not kept.endswith(b"\n"):
            with atomic_write(path) as part:
                part.write_bytes(kept[: kept.rfind(b"\n") + 1] + line)
            return
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

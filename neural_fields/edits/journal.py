"""The journal of a run's edits: one line for each "add", "set", "undo" and "redo", and the state that they result in.

"set" changes the arrangement of an edit (`arrangement.py`), or moves it above or below another. Steps are undone one by
one, the last first; a new step discards those that could be redone. An edit folder that the journal does not mention
counts as added: it was copied from another run, or written just before a power cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import atomic_write, disk_errors
from neural_fields.runs.run import Run

OPERATIONS = ("add", "set", "undo", "redo")
MOVE_TARGETS = ("above", "below", "top", "bottom")  # where an edit can be moved to


@dataclass(frozen=True)
class JournalStep:
    """One line: the operation and the name of the edit folder; of "set" also the new values."""

    operation: str
    edit: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EditHistory:
    """The state that a journal results in.

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
            elif "move" in step.values and step.edit in names:
                where, other = step.values["move"]
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

    Raises:
        UserError: a damaged journal (exit 5).
    """
    path = journal_path(run)
    steps: list[JournalStep] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
            step = JournalStep(found["op"], found["edit"], found.get("set", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            if number == len(lines):
                break  # a last line without its end was cut by a power cut, or is the empty rest after the last line
            raise damaged_edit_error(path, f"line {number} cannot be read") from problem
        if step.operation not in OPERATIONS or not isinstance(step.edit, str) or not _are_values(step.values):
            raise damaged_edit_error(path, f"line {number} says {step.operation!r}")
        steps.append(step)

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
    described = {"op": step.operation, "edit": step.edit, **({"set": dict(step.values)} if step.values else {})}
    with disk_errors(path):
        kept = path.read_bytes() if path.exists() else b""
        line = json.dumps(described).encode() + b"\n"
        if kept and not kept.endswith(b"\n"):
            with atomic_write(path) as part:
                part.write_bytes(kept[: kept.rfind(b"\n") + 1] + line)
            return
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _are_values(values: Any) -> bool:
    """Returns whether a value of "set" is a mapping whose move, if there is one, is valid."""
    if not isinstance(values, dict):
        return False
    move = values.get("move", ["top", ""])
    return isinstance(move, list) and len(move) == 2 and move[0] in MOVE_TARGETS and isinstance(move[1], str)


def damaged_edit_error(path: Path, why: str) -> UserError:
    """Returns the error for an edit, or a journal, whose files are not what was written."""
    return UserError(
        ExitCode.DAMAGED_RUN,
        f"the edit {path.name} is damaged" if path.is_dir() else f"{path.name} is damaged",
        where=str(path),
        why=why,
        fix=f"move {path} out of the run, or put the original file back",
    )

"""The base of open runs of videos and of 3D scenes: the paths, and the stack of edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from neural_fields.edits.read_stack import Edit, find_edit, list_edits
from neural_fields.runs.run import Run


class OpenRun:
    """Gives access to a run. Each part of it is read when it is first used, and at most once.

    `open_run` makes an open run; pass it on instead of opening the folder again. Only the stack of edits changes while
    a run is open: code that writes an edit calls `refresh_edits`.

    Attributes:
        files: the paths of the run on disk.
    """

    def __init__(self, files: Run, values: Mapping[str, Any]) -> None:
        """Stores the paths of a run and the content of its run.yaml."""
        self.files = files
        self._values = values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self.files.path

    @cached_property
    def edits(self) -> list[Edit]:
        """All edits of the run in the order of `list_edits`: the active ones from the lowest to the highest.

        Raises:
            UserError: a damaged edit or journal (exit 5).
        """
        return list_edits(self.files)

    def refresh_edits(self) -> None:
        """Forgets the stack of edits, so that the next access reads it again. Call this after writing an edit."""
        self.__dict__.pop("edits", None)

    def active_edits(self, names: Sequence[str] = ()) -> list[Edit]:
        """Lists the edits to render, the lowest first.

        Args:
            names: names, numbers or folder names of edits; by default all active edits.

        Returns:
            The edits from the lowest to the highest.

        Raises:
            UserError: an unknown name (exit 3, lists the edits), or a damaged edit (exit 5).
        """
        if not names:
            return [edit for edit in self.edits if edit.active]
        chosen = {self.edit(name).folder for name in names}
        return [edit for edit in self.edits if edit.folder in chosen]

    def edit(self, name: str) -> Edit:
        """Finds an edit by its name, number or folder name.

        Raises:
            UserError: there is no such edit, or there are several (exit 3, lists them).
        """
        return find_edit(self.edits, name, self.files)

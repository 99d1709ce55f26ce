"""What every editor is given and what it returns.

An editor is a frozen dataclass of its settings that can be called: it reads the canonical pictures of a run, its frames
and its baked maps, and returns an overlay for each layer that it changes. It writes nothing: `editors/api.py` carries
the overlays over cuts and puts them on the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from editors.core.source import EditSource
from editors.core.stack import EditEffects
from neural_fields.atlas.canonical import Overlay
from neural_fields.edits.shape import Deformation

Report = Callable[[str, int, int], None]  # what is going on, steps done, steps in all


@dataclass(frozen=True)
class EditorResult:
    """What an editor made.

    Attributes:
        overlays: what it painted, by layer.
        notes: what the user should know, one sentence each.
        metadata: metadata that is kept in edit.json beside the editor's settings.
        shapes: how it deformed layers, with what is painted on them.
        effects: what else it does to layers.
    """

    overlays: Mapping[str, Overlay]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
    shapes: Mapping[str, Deformation] = field(default_factory=dict)
    effects: EditEffects = field(default_factory=EditEffects)


@runtime_checkable
class Editor(Protocol):
    """A dataclass of settings that makes an edit.

    One that does not work on the front layer unless told so says with `starts_with` what it works on: "back" or "all".
    """

    name: ClassVar[str]

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Makes the edit; changes nothing on disk."""
        ...


def report_nothing(stage: str, done: int, total: int) -> None:
    """Reports nothing: a `Report` for those who do not want to know."""

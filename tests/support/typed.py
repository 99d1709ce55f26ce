"""Parts of a model as what a test knows them to be: checked, so that the tests are read with types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Part = TypeVar("Part")


def as_all(kind: type[Part], parts: Iterable[object]) -> list[Part]:
    """Returns the parts, all of which must be of one class."""
    found = []
    for part in parts:
        assert isinstance(part, kind), f"{type(part).__name__} instead of {kind.__name__}"
        found.append(part)
    return found


def as_one(kind: type[Part], part: object) -> Part:
    """Returns a part that must be of this class (or a value that must not be None)."""
    return as_all(kind, [part])[0]

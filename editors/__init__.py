"""Editors: ways to change a canonical picture. Nothing in `neural_fields` imports this package.

    from editors import edit, redo, undo

Each name is loaded when it is first used, so that importing the package stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editors.api import edit, redo, undo

__all__ = ["edit", "redo", "undo"]

_HOMES = {"edit": "api", "redo": "api", "undo": "api"}


def __getattr__(name: str) -> object:
    """Imports a public name of the package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "torch" not in sys.modules:  # a program that has torch already chose its threads itself
        from neural_fields.core.threads import prepare_threads

        prepare_threads()
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

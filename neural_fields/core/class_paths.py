"""Classes by module and name, joined by a dot: imported, or only their docstrings read."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def import_class(path: str) -> type[Any]:
    """Imports a class by module and name, joined by a dot.

    Example:
        >>> import_class("neural_fields.core.box.Box").__name__
        'Box'
    """
    module, _, kind = path.rpartition(".")
    return getattr(import_module(module), kind)


def read_docstring(path: str) -> str:
    """Reads the docstring of a class from its file, without importing it.

    Example:
        >>> read_docstring("neural_fields.core.box.Box")
        'Describes the rectangle of the canonical plane that an image covers, in uv units.'
    """
    module, _, kind = path.rpartition(".")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} is a file of this program"
    text = Path(spec.origin).read_text(encoding="utf-8")
    found = re.search(rf'^class {kind}\b[^\n]*:\n    """(.*?)"""', text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{kind} has a docstring"
    return inspect.cleandoc(found[1])

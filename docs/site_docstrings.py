"""An extension of griffe, which reads docstrings for the API reference: examples become code, comments descriptions."""

import re
import textwrap
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from griffe import Class, Docstring, Extension, Object

from neural_fields.config.json_schema import describe_fields

EXAMPLE = re.compile(r"^(Examples?:\n)((?: +.*\n?|\n)+)", re.MULTILINE)


def fence(match: re.Match[str]) -> str:
    """Puts an example between fences, unless it has its own."""
    code = textwrap.dedent(match[2]).strip("\n")
    if "```" in code:
        return match[0]
    language = "pycon" if code.startswith(">>>") else "python"
    return match[1] + textwrap.indent(f"```{language}\n{code}\n```\n", "    ")


class ExampleCode(Extension):
    """Shows the section "Example" of a docstring as code, and comments behind the fields of dataclasses as text."""

    def on_instance(self, *, obj: Object, **rest: Any) -> None:
        """Changes the docstring of an object that was just read."""
        if obj.docstring and "Example" in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(fence, obj.docstring.value + "\n").rstrip()

    def on_class_members(self, *, cls: Class, **rest: Any) -> None:
        """Gives fields without a docstring the comment behind them, as in the JSON schemas."""
        if "dataclass" not in str([decorator.value for decorator in cls.decorators]):
            return
        kind: Any = getattr(import_module(cls.module.path), cls.name, None)
        listed = cls.docstring.value if cls.docstring else ""
        if isinstance(kind, type) and is_dataclass(kind) and "Attributes:" not in listed:
            for name, text in describe_fields(kind).items():
                member = cls.members.get(name)
                if member is not None and member.is_attribute and not member.docstring:
                    member.docstring = Docstring(text[:1].upper() + text[1:] + ".", parent=member)

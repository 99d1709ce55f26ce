"""JSON schemas of the dataclasses that the strict loader reads: text editors complete keys and show their descriptions.

A schema has the same rules for keys and types as the loader, but not the checks of `__post_init__`.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from neural_fields.config.loader import default_of, kind_of, to_plain, type_hints

_SCALARS: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    NoneType: {"type": "null"},
    Path: {"type": "string"},
    Fraction: {"type": ["string", "integer"], "pattern": r"^-?\d+(/[1-9]\d*)?$"},
    range: {"type": "string", "pattern": r"^\d+:\d+:[1-9]\d*$"},
}


def build_json_schema(cls: type, title: str, constants: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Builds the JSON schema (draft 7, which editors know) of a file that holds a dataclass.

    Args:
        cls: a dataclass that `from_mapping` can read.
        title: title of the schema.
        constants: keys at the top of the file that the dataclass does not have, with the value that they must have.

    Returns:
        A schema as plain values. Classes in it are `definitions`, by name.
    """
    definitions: dict[str, Any] = {}
    _describe_dataclass(cls, definitions)
    top = definitions.pop(cls.__name__)
    for key, value in (constants or {}).items():
        top["properties"] = {key: {"const": value}} | top["properties"]
        top["required"] = [key, *top.get("required", ())]
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": title}
    return head | top | {"definitions": dict(sorted(definitions.items()))}


def describe_fields(cls: type) -> dict[str, str]:
    """Finds the descriptions of the fields of a dataclass in its source code.

    A description is a comment behind the field or before it, a docstring below it, or an entry of the section
    "Attributes" in the docstring of the class. Fields of base classes are included.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^    ([\w, ]+): (.+(?:\n {8}.+)*)", section, re.MULTILINE):
            for name in names.split(", "):
                found[name] = " ".join(text.split())
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        for node, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign):
                continue
            name = ast.unparse(node.target)
            last = node.end_lineno or node.lineno
            above = node.lineno - 1
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                found[name] = " ".join(str(following.value.value).split())
            elif last in comments:
                found[name] = comments[last]
            elif above in comments and lines[above - 1].lstrip().startswith("#"):
                found[name] = comments[above]
    return {field.name: found[field.name] for field in fields(cls) if field.name in found}


def _describe_dataclass(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Adds the schema of a dataclass to the definitions, and returns a reference to it."""
    reference = {"$ref": f"#/definitions/{cls.__name__}"}
    if cls.__name__ in definitions:
        return reference
    definitions[cls.__name__] = {}
    hints, said, kind = type_hints(cls), describe_fields(cls), kind_of(cls)
    own = [field for field in fields(cls) if field.init and not (field.name == "kind" and kind is not None)]
    if getattr(cls, "as_list", False):
        items = [_describe_type(hints[field.name], definitions) for field in own]
        definitions[cls.__name__] = {"type": "array", "items": items, "minItems": len(own), "maxItems": len(own)}
        return reference
    properties: dict[str, Any] = {} if kind is None else {"kind": {"const": kind}}
    for field in own:
        default = default_of(field)
        described = _describe_type(hints[field.name], definitions, default)
        if default is not MISSING and not is_dataclass(default):
            described["default"] = to_plain(default)
        if field.name in said:
            described["description"] = said[field.name]
        properties[field.name] = described
    summary = " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())
    required = [field.name for field in own if default_of(field) is MISSING]
    definitions[cls.__name__] = {
        "type": "object",
        "description": summary,
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }
    return reference


def _describe_type(expected: Any, definitions: dict[str, Any], default: object = MISSING) -> dict[str, Any]:
    """Returns the schema of an annotated type.

    Args:
        expected: the type.
        definitions: schemas of dataclasses by name, which grow.
        default: default of the field. A mapping without the key `kind` is of the kind that the default has.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return {}
    if expected in _SCALARS:
        return dict(_SCALARS[expected])
    if isinstance(expected, type) and is_dataclass(expected):
        return {"allOf": [_describe_dataclass(expected, definitions)]}  # other keys beside $ref would not count
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        if all(member in _SCALARS for member in arguments):
            return {"type": [_SCALARS[member]["type"] for member in arguments]}
        kinds = sum(is_dataclass(member) for member in arguments)  # which the key `kind` tells apart
        choices = []
        for member in arguments:
            choice = _describe_type(member, definitions)
            if kinds > 1 and is_dataclass(member) and type(default) is not member:
                choice["required"] = ["kind"]
            choices.append(choice)
        return {"anyOf": choices}
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": _describe_type(arguments[0], definitions)}
        items = [_describe_type(item, definitions) for item in arguments]
        return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
    return {"type": "object", "additionalProperties": _describe_type(arguments[1], definitions)}

"""Strict reading of plain values (from YAML or JSON) into nested frozen dataclasses, and back, for config and record.

Rules: an unknown key is an error that names the nearest field; values are only converted where nothing is lost (3 for a
float, 1e4 for an integer, a list for a tuple, text for a path, a fraction or a range); the key `kind` selects a member
of a union of dataclasses, each of which has it as a class variable or as a field with a default. Missing keys keep the
default of the field, or the value of `base`. A class refuses a contradiction, or a number out of range, by raising
`ValueError` in `__post_init__`; the loader adds the dotted path. A field `schema` is checked before all others, since
another schema has other keys. A dataclass with the class variable `as_list` is written as the list of its values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import read_json
from neural_fields.core.suggestions import nearest_word

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: object, path: str = "", *, base: T | None = None, where: str = "") -> T:
    """Makes an instance of the dataclass `cls` that holds the values of `mapping`.

    Args:
        cls: the dataclass.
        mapping: plain values by field name, as YAML gives them.
        path: dotted name of the mapping in messages ("atlas.mapping").
        base: values for the keys that `mapping` leaves out (default: the defaults of the fields).
        where: the file the mapping came from, for messages.

    Returns:
        The instance, with every value checked against the type of its field.

    Raises:
        UserError: an unknown key, a wrong type, a missing value, an unknown `kind`, or a contradiction.

    Example:
        >>> from neural_fields.core.box import Box
        >>> from_mapping(Box, {"u0": 0, "v0": 0, "u1": 1, "v2": 1})
        Traceback (most recent call last):
        ...
        neural_fields.core.errors.UserError: error: v2: unknown key
          why   known keys here: u0, v0, u1, v1
    """
    try:
        return _build_dataclass(cls, mapping, path, base)
    except UserError as error:
        error.where = error.where or where
        raise
    except RecursionError as error:
        raise bad_input("values are nested too deeply", where=where) from error


def to_mapping(instance: object, *, without_defaults: bool = False) -> dict[str, Any]:
    """Converts an instance to plain values, from which `from_mapping` makes an equal one; `kind` comes first.

    Args:
        instance: an instance of a dataclass.
        without_defaults: whether fields with their default value are left out.

    Returns:
        Values of the types of YAML and JSON, by field name.

    Raises:
        TypeError: not an instance of a dataclass.
    """
    if not is_dataclass(instance) or isinstance(instance, type):
        raise TypeError(f"expected a dataclass instance, got {instance!r}")
    kind = kind_of(type(instance))
    mapping: dict[str, Any] = {} if kind is None else {"kind": kind}
    for field in fields(instance):
        value = getattr(instance, field.name)
        if field.init and not (without_defaults and value == default_of(field)):
            mapping[field.name] = to_plain(value, without_defaults)
    return mapping


def load_json(cls: type[T], path: Path, fix: str) -> T:
    """Reads a JSON file of a run, which holds the values of the dataclass `cls`.

    Args:
        cls: a dataclass.
        path: the file.
        fix: what the user can do about a damaged file, for the message.

    Raises:
        UserError: DAMAGED_RUN with the dotted path of the wrong key if the file is missing or was changed;
            BAD_INPUT if it may not be read.
    """
    try:
        return from_mapping(cls, read_json(path), where=str(path))
    except UserError as error:
        if error.code == ExitCode.DAMAGED_RUN:  # not JSON at all
            error.fix = fix
            raise
        if isinstance(error.__cause__, PermissionError):
            raise
        what, why = f"{path.name} is damaged", error.what + (f" ({error.why})" if error.why else "")
        raise UserError(ExitCode.DAMAGED_RUN, what, where=str(path), why=why, fix=fix) from error


def nest_keys(dotted: Mapping[str, object]) -> dict[str, Any]:
    """Turns dotted keys into nested mappings.

    Raises:
        UserError: a key is both a value and a group ("training" and "training.steps").

    Example:
        >>> nest_keys({"training.steps": 5, "region": True})
        {'training': {'steps': 5}, 'region': True}
    """
    tree: dict[str, Any] = {}
    groups: set[str] = set()
    for key, value in dotted.items():
        *parents, leaf = key.split(".")
        node = tree
        for depth, parent in enumerate(parents, start=1):
            group = ".".join(parents[:depth])
            if parent in node and group not in groups:
                raise bad_input(f"{key}: '{group}' is given a value as well", fix=f"leave out one of {group}, {key}")
            groups.add(group)
            node = node.setdefault(parent, {})
        if key in groups:
            raise bad_input(f"{key}: given a value although keys under it are given too", fix=f"leave out {key}")
        node[leaf] = value
    return tree


# --- values ---------------------------------------------------------------------------------------------------------


def _build_dataclass(cls: type[T], mapping: object, path: str, base: T | None) -> T:
    """Makes an instance of one dataclass; see `from_mapping`."""
    kind = kind_of(cls)
    known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
    if kind is not None:
        known = [name for name in known if name != "kind"]
    if getattr(cls, "as_list", False) and isinstance(mapping, list | tuple):
        if len(mapping) != len(known):
            raise bad_input(f"{_path_prefix(path)}expected {len(known)} items, got {len(mapping)}")
        mapping = dict(zip(known, mapping, strict=True))
    if not isinstance(mapping, Mapping):
        raise bad_input(f"{_path_prefix(path)}expected {_describe_type(cls)}, got {describe_value(mapping)}")
    given, hints = dict(mapping), type_hints(cls)  # type: ignore[arg-type]
    if "schema" in known and "schema" in given:
        _convert_value(hints["schema"], given["schema"], _join_path(path, "schema"))
    if kind is not None and given.pop("kind", kind) != kind:
        raise bad_input(f"{_join_path(path, 'kind')}: expected '{kind}', got {describe_value(mapping['kind'])}")
    for key in given:
        if key not in known:
            what = f"{_join_path(path, str(key))}: unknown key{_suggest_nearest(str(key), known)}"
            raise bad_input(what, why=f"known keys here: {', '.join(known) or 'none'}")
    values = {}
    for field in fields(cls):  # type: ignore[arg-type]
        before = default_of(field) if base is None else getattr(base, field.name)
        if field.name in given:
            here = _join_path(path, field.name)
            values[field.name] = _convert_value(hints[field.name], given[field.name], here, before)
        elif field.init and before is not MISSING:
            values[field.name] = before
        elif field.init:
            raise bad_input(f"{_join_path(path, field.name)}: missing; expected {_describe_type(hints[field.name])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise bad_input(f"{_path_prefix(path)}{error}") from error


def _convert_value(expected: Any, value: object, path: str, before: object = MISSING) -> Any:
    """Converts `value` to the annotated type `expected`; `before` is the value that it replaces."""
    if expected is Any:
        return value
    if expected in _SCALARS:
        accepts, convert, name = _SCALARS[expected]
        if accepts(value):
            return convert(value)
        raise bad_input(f"{_path_prefix(path)}expected {name}, got {describe_value(value)}")
    if is_dataclass(expected):
        base = before if type(before) is expected else None
        return _build_dataclass(expected, value, path, base)  # type: ignore[arg-type]
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return _convert_union(arguments, value, path, before)
    if origin is Literal:
        for choice in arguments:
            if type(choice) is type(value) and choice == value:  # types count, so that true is not 1
                return choice
        words = [choice for choice in arguments if isinstance(choice, str)]
        wanted = f"{_path_prefix(path)}expected {_describe_type(expected)}"
        raise bad_input(f"{wanted}, got {describe_value(value)}{_suggest_nearest(str(value), words)}")
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:  # tuple[X, ...] takes a list of any length
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise bad_input(f"{_path_prefix(path)}expected {len(arguments)} items, got {len(value)}")
        items = []
        for index, (item_type, item) in enumerate(zip(arguments, value, strict=True)):
            items.append(_convert_value(item_type, item, f"{path}[{index}]"))
        return tuple(items)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        key_type, item_type = arguments
        converted = {}
        for key, item in value.items():
            new_key = _convert_value(key_type, key, path)
            converted[new_key] = _convert_value(item_type, item, _join_path(path, str(key)))
        return converted
    if origin not in (tuple, dict, Mapping):
        raise TypeError(f"{path}: config fields of type {expected!r} are not supported")
    raise bad_input(f"{_path_prefix(path)}expected {_describe_type(expected)}, got {describe_value(value)}")


def _convert_union(members: tuple[Any, ...], value: object, path: str, before: object) -> Any:
    """Converts to the member that `kind` names in a mapping, otherwise to the first that takes the value.

    The member that is the value's own type is tried first.
    """
    variants: dict[str, type] = {}
    for member in members:
        if isinstance(member, type) and is_dataclass(member):
            variants[kind_of(member) or member.__name__] = member
    if variants and isinstance(value, Mapping):
        if len(variants) == 1:
            return _convert_value(next(iter(variants.values())), value, path, before)
        current = kind_of(type(before)) if type(before) in variants.values() else None
        kind = value.get("kind", current)
        if kind is None:
            raise bad_input(f"{_path_prefix(path)}needs 'kind', one of {_list_words(variants)}")
        if not isinstance(kind, str) or kind not in variants:
            expected = f"{_join_path(path, 'kind')}: expected one of {_list_words(variants)}"
            suggestion = _suggest_nearest(str(kind), variants)
            raise bad_input(f"{expected}, got {describe_value(kind)}{suggestion}")
        return _convert_value(variants[kind], value, path, before)
    # None stands for itself only, and 5 given to `float | int` stays an integer.
    for member in sorted(members, key=lambda member: member is not type(value)):
        try:
            return _convert_value(member, value, path, before)
        except UserError:
            continue
    expected = " or ".join(map(_describe_type, members))
    raise bad_input(f"{_path_prefix(path)}expected {expected}, got {describe_value(value)}")


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_whole_number(value: Any) -> bool:
    # Above 2^53 a float no longer tells neighboring integers apart.
    return _is_number(value) and (isinstance(value, int) or (value.is_integer() and abs(value) < 1 << 53))


_FRACTION = re.compile(r"-?\d{1,40}(/[1-9]\d{0,39})?", re.ASCII)
_RANGE = re.compile(r"\d{1,9}:\d{1,9}:[1-9]\d{0,8}", re.ASCII)
# Of each type: whether a value is accepted, its conversion, and the type in words.
_SCALARS: dict[Any, tuple[Callable[[Any], bool], Callable[[Any], Any], str]] = {
    bool: (lambda value: isinstance(value, bool), bool, "true or false"),
    int: (_is_whole_number, int, "a whole number"),
    float: (_is_number, float, "a finite number"),
    str: (lambda value: isinstance(value, str), str, "text"),
    NoneType: (lambda value: value is None, lambda value: None, "null"),
    Path: (lambda value: isinstance(value, str | Path), Path, "a path"),
    Fraction: (
        lambda value: _is_whole_number(value) or (isinstance(value, str) and bool(_FRACTION.fullmatch(value))),
        Fraction,
        "a fraction such as 30000/1001",
    ),
    range: (
        lambda value: isinstance(value, str) and bool(_RANGE.fullmatch(value)),
        lambda value: range(*map(int, value.split(":"))),
        "a range such as 0:50:1",
    ),
}
_WRITTEN_AS_TEXT: dict[type, Callable[[Any], str]] = {
    PurePath: str,
    Fraction: str,
    range: lambda value: f"{value.start}:{value.stop}:{value.step}",
}


def to_plain(value: object, without_defaults: bool = False) -> Any:
    """Converts a value of a field to the types of YAML and JSON."""
    if is_dataclass(value):
        mapping = to_mapping(value, without_defaults=without_defaults and not getattr(value, "as_list", False))
        return list(mapping.values()) if getattr(value, "as_list", False) else mapping
    if isinstance(value, list | tuple):
        return [to_plain(item, without_defaults) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item, without_defaults) for key, item in value.items()}
    write = next((write for kind, write in _WRITTEN_AS_TEXT.items() if isinstance(value, kind)), None)
    return value if write is None else write(value)


def default_of(field: Field) -> Any:
    """Returns the default value of a field; MISSING where it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


@cache
def type_hints(cls: Any) -> dict[str, Any]:
    """Returns the annotated type of each field of a dataclass."""
    return get_type_hints(cls)


def kind_of(cls: Any) -> str | None:
    """Returns the tag of a dataclass: its class variable `kind`, or the default of its field `kind`."""
    declared = [field.default for field in fields(cls) if field.name == "kind"]
    kind = declared[0] if declared else getattr(cls, "kind", None)
    return kind if isinstance(kind, str) else None


# --- words for messages ---------------------------------------------------------------------------------------------


def _describe_type(expected: Any) -> str:
    """Returns a type in words."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected in _SCALARS:
        return _SCALARS[expected][2]
    if origin in (Union, UnionType):
        return " or ".join(map(_describe_type, arguments))
    if origin is Literal:
        return "one of " + _list_words(arguments)
    if origin is tuple:
        many = len(arguments) == 2 and arguments[1] is Ellipsis
        return "a list" if many else f"a list of {len(arguments)} items"
    if getattr(expected, "as_list", False):
        return f"a list of {len(fields(expected))} items"
    return "a group of keys" if origin in (dict, Mapping) or is_dataclass(expected) else str(expected)


def describe_value(value: object) -> str:
    """Returns the text of a value that was received, short enough for one line."""
    if isinstance(value, Mapping):
        return "a group of keys"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest_nearest(word: str, known: Iterable[str]) -> str:
    hint = nearest_word(word, known)
    return f"; did you mean '{hint}'?" if hint else ""


def _list_words(words: Iterable[Any]) -> str:
    return "[" + ", ".join(describe_value(word) if not isinstance(word, str) else word for word in words) + "]"


def _join_path(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _path_prefix(path: str) -> str:
    return f"{path}: " if path else ""

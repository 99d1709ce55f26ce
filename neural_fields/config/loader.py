"""Strict reading of plain YAML into nested frozen dataclasses, and back. Knows no particular config.

Rules: a key that no field has is an error that names the nearest one; values are never converted except where
nothing is lost (3 for a float, 1e4 for an integer, a list for a tuple); a union of dataclasses is told apart by the
key `kind`, which each of them carries as a class variable or as a field with a default. What a mapping leaves out
keeps the value it had: the default of the field, or that of `base`. A class rejects a contradiction by raising
`ValueError` in `__post_init__`; the dotted path is added here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from neural_fields.core.errors import ExitCode, UserError, bad_input
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

    Raises:
        UserError: an unknown key, a wrong type, a missing value, an unknown `kind`, or a contradiction.
    """
    try:
        return _build_dataclass(cls, mapping, path, base)
    except UserError as error:
        error.where = error.where or where
        raise


def to_mapping(instance: object) -> dict[str, Any]:
    """Converts an instance to the plain mapping that `from_mapping` reads back to an equal one; `kind` comes first."""
    if not is_dataclass(instance) or isinstance(instance, type):
        raise TypeError(f"expected a dataclass instance, got {instance!r}")
    kind = _kind_of(type(instance))
    head = {} if kind is None else {"kind": kind}
    return head | {field.name: _to_plain(getattr(instance, field.name)) for field in fields(instance) if field.init}


def nest_keys(dotted: Mapping[str, object]) -> dict[str, Any]:
    """Turns dotted keys into nested mappings: {"training.steps": 5} becomes {"training": {"steps": 5}}.

    Raises:
        UserError: one key is both a value and a group ("training" and "training.steps").
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


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads the mapping in a plain YAML file: no tags, no aliases, no repeated keys, at most 1 MiB, UTF-8.

    Scalars follow YAML 1.2: `1e-3` is a number, `0:50` is text, only true and false are truth values.

    Raises:
        UserError: the file cannot be read (exit 3) or asks to build an object (exit 7).
    """
    where = str(path)
    max_bytes = 1 << 20  # no config is near this size, and parsing a larger file would cost minutes
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise bad_input(f"cannot read {path.name}: {error.strerror or error}", where=where) from error
    if len(content) > max_bytes:
        raise bad_input(f"{path.name} is larger than 1 MiB", where=where, why="a config is a page of plain YAML")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise bad_input(f"{path.name} is not text in UTF-8", where=where, why="a config is plain YAML") from error
    value = parse_yaml(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_input(
            f"{path.name} holds {_describe_value(value)}", where=where, why="expected lines of the form key: value"
        )
    return value


def parse_yaml(text: str, where: str = "") -> Any:
    """Returns the value of a YAML text under the rules of `load_yaml`; "5" gives 5, as dotted flags need it."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except _TagRefused as error:
        why = "a config holds plain values only; a tag asks to build an object"
        raise UserError(
            ExitCode.UNSAFE_FILE, str(error.problem), where=where + _error_position(error), why=why
        ) from error
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise bad_input(f"not valid YAML: {problem}", where=where + _error_position(error)) from error
    except RecursionError as error:
        raise bad_input("values are nested too deeply", where=where) from error


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """Returns YAML text that `load_yaml`, and a YAML 1.1 parser alike, reads back to an equal mapping."""
    return yaml.dump(dict(mapping), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


# --- values ---------------------------------------------------------------------------------------------------------


def _build_dataclass(cls: type[T], mapping: object, path: str, base: T | None) -> T:
    """Makes an instance of one dataclass; see `from_mapping`."""
    if not isinstance(mapping, Mapping):
        raise bad_input(f"{_path_prefix(path)}expected {_describe_type(cls)}, got {_describe_value(mapping)}")
    kind, given = _kind_of(cls), dict(mapping)
    known = [field.name for field in fields(cls) if field.init and field.name != "kind"]  # type: ignore[arg-type]
    if kind is not None and given.pop("kind", kind) != kind:
        raise bad_input(f"{_join_path(path, 'kind')}: expected '{kind}', got {_describe_value(mapping['kind'])}")
    for key in given:
        if key not in known:
            what = f"{_join_path(path, str(key))}: unknown key{_suggest_nearest(str(key), known)}"
            raise bad_input(what, why=f"known keys here: {', '.join(known) or 'none'}")
    values, hints = {}, get_type_hints(cls)
    for field in fields(cls):  # type: ignore[arg-type]
        if base is not None:
            before = getattr(base, field.name)
        else:
            before = field.default_factory() if field.default_factory is not MISSING else field.default
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
    if isinstance(expected, type) and is_dataclass(expected):
        return _build_dataclass(expected, value, path, before if type(before) is expected else None)
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return _convert_union(arguments, value, path, before)
    if origin is Literal:
        for choice in arguments:
            if type(choice) is type(value) and choice == value:  # types count, so that true is not 1
                return choice
        words = [choice for choice in arguments if isinstance(choice, str)]
        wanted = f"{_path_prefix(path)}expected {_describe_type(expected)}"
        raise bad_input(f"{wanted}, got {_describe_value(value)}{_suggest_nearest(str(value), words)}")
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:  # tuple[X, ...] takes a list of any length
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise bad_input(f"{_path_prefix(path)}expected {len(arguments)} items, got {len(value)}")
        items = []
        for index, (item_type, item) in enumerate(zip(arguments, value, strict=True)):
            items.append(_convert_value(item_type, item, f"{path}[{index}]"))
        return tuple(items)
    if origin is dict and isinstance(value, Mapping):
        key_type, item_type = arguments
        converted = {}
        for key, item in value.items():
            new_key = _convert_value(key_type, key, path)
            converted[new_key] = _convert_value(item_type, item, _join_path(path, str(key)))
        return converted
    if expected in _SCALARS:
        accepts, convert, _ = _SCALARS[expected]
        if accepts(value):
            return convert(value)
    elif origin not in (tuple, dict):
        raise TypeError(f"{path}: config fields of type {expected!r} are not supported")
    raise bad_input(f"{_path_prefix(path)}expected {_describe_type(expected)}, got {_describe_value(value)}")


def _convert_union(members: tuple[Any, ...], value: object, path: str, before: object) -> Any:
    """Converts to the member that `kind` names in a mapping, otherwise to the first that takes the value.

    The member that is the value's own type goes first.
    """
    variants: dict[str, type] = {}
    for member in members:
        if isinstance(member, type) and is_dataclass(member):
            variants[_kind_of(member) or member.__name__] = member
    if variants and isinstance(value, Mapping):
        if len(variants) == 1:
            return _convert_value(next(iter(variants.values())), value, path, before)
        current = _kind_of(type(before)) if type(before) in variants.values() else None
        kind = value.get("kind", current)
        if kind is None:
            raise bad_input(f"{_path_prefix(path)}needs 'kind', one of {_list_words(variants)}")
        if not isinstance(kind, str) or kind not in variants:
            expected = f"{_join_path(path, 'kind')}: expected one of {_list_words(variants)}"
            suggestion = _suggest_nearest(str(kind), variants)
            raise bad_input(f"{expected}, got {_describe_value(kind)}{suggestion}")
        return _convert_value(variants[kind], value, path, before)
    # None stands for itself only, and 5 given to `float | int` stays an integer.
    for member in sorted(members, key=lambda member: member is not type(value)):
        try:
            return _convert_value(member, value, path, before)
        except UserError:
            continue
    expected = " or ".join(map(_describe_type, members))
    raise bad_input(f"{_path_prefix(path)}expected {expected}, got {_describe_value(value)}")


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_whole_number(value: Any) -> bool:
    # Above 2^53 a float no longer tells neighboring integers apart.
    return _is_number(value) and (isinstance(value, int) or (value.is_integer() and abs(value) < 1 << 53))


# Of each type: whether a value is accepted, its conversion, and the type in words.
_SCALARS: dict[Any, tuple[Callable[[Any], bool], Callable[[Any], Any], str]] = {
    bool: (lambda value: isinstance(value, bool), bool, "true or false"),
    int: (_is_whole_number, int, "a whole number"),
    float: (_is_number, float, "a finite number"),
    str: (lambda value: isinstance(value, str), str, "text"),
    NoneType: (lambda value: value is None, lambda value: None, "null"),
}


def _to_plain(value: object) -> Any:
    """Converts a config value to the types of YAML."""
    if is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, PurePath) else value


def _kind_of(cls: Any) -> str | None:
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
    return "a group of keys" if origin is dict or is_dataclass(expected) else str(expected)


def _describe_value(value: object) -> str:
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
    return "[" + ", ".join(_describe_value(word) if not isinstance(word, str) else word for word in words) + "]"


def _join_path(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _path_prefix(path: str) -> str:
    return f"{path}: " if path else ""


def _error_position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"


# --- YAML -----------------------------------------------------------------------------------------------------------


class _TagRefused(yaml.MarkedYAMLError):
    """The file carries an explicit tag such as !!python/object."""


class _PlainLoader(yaml.SafeLoader):
    """`SafeLoader` with the scalars of YAML 1.2, without tags and aliases (a few lines can expand to gigabytes)."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _TagRefused(None, None, f"tag {event.tag} is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in seen:
                problem = f"key '{key}' is given twice" if isinstance(key, str) else f"key {key!r} is not text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _PlainDumper(yaml.SafeDumper):
    """`SafeDumper` that quotes what either version of YAML would take for something else than text."""

    yaml_implicit_resolvers: ClassVar[dict] = {k: [*v] for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        style = None if data.isprintable() else '"'  # only double quotes keep line separators such as U+0085
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_SCALAR_FORMS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]{1,4000}", list("-+0123456789")),  # 010 is ten; YAML 1.1 reads eight
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _tag, (_form, _first) in _SCALAR_FORMS.items():
    for _user in (_PlainLoader, _PlainDumper):
        _user.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_form})$"), _first)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
_PlainDumper.add_representer(str, _PlainDumper.represent_str)

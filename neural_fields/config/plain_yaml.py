"""Plain YAML: reading and writing with the scalars of YAML 1.2, without tags, aliases and repeated keys.

Apart from `loader.py`, which turns plain values into dataclasses, because most commands read no YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import yaml

from neural_fields.config.loader import describe_value
from neural_fields.core.errors import ExitCode, UserError, bad_input


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
            f"{path.name} holds {describe_value(value)}", where=where, why="expected lines of the form key: value"
        )
    return value


def parse_yaml(text: str, where: str = "") -> Any:
    """Parses a YAML text under the rules of `load_yaml`; single values are allowed, as dotted flags need them.

    Args:
        text: the YAML text.
        where: the file or flag that it came from, for messages.

    Returns:
        The plain value.

    Raises:
        UserError: not valid YAML (exit 3), or a tag that asks to build an object (exit 7).

    Example:
        >>> parse_yaml("[1e-3, 0:50, yes, true]")
        [0.001, '0:50', 'yes', True]
    """
    try:
        # Texts without tabs and signs of tags and aliases are parsed in C, where it is there: eight times as fast.
        if _QuickLoader is not None and not set("&*!%\t") & set(text) and text.count("[") + text.count("{") < 1000:
            with suppress(yaml.YAMLError):  # what is wrong is said below
                return yaml.load(text, Loader=_QuickLoader)
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
    """Converts a mapping to YAML text that parsers of YAML 1.1 and 1.2 read back to an equal mapping.

    Example:
        >>> print(dump_yaml({"steps": 5, "name": "1e-3"}), end="")
        steps: 5
        name: '1e-3'
    """
    return yaml.dump(dict(mapping), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


def _error_position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"


class _TagRefused(yaml.MarkedYAMLError):
    """The file carries an explicit tag such as !!python/object."""


class _UniqueKeys:
    """Refuses mappings with a key that is given twice, or that is no text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[attr-defined]
            if not isinstance(key, str) or key in seen:
                problem = f"key '{key}' is given twice" if isinstance(key, str) else f"key {key!r} is not text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _PlainLoader(_UniqueKeys, yaml.SafeLoader):
    """`SafeLoader` with the scalars of YAML 1.2, without tags and aliases (a few lines can expand to gigabytes)."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _TagRefused(None, None, f"tag {event.tag} is not allowed", event.start_mark)
        return super().compose_node(parent, index)


_QuickLoader: Any = None
if yaml.__with_libyaml__:

    class _LibyamlLoader(_UniqueKeys, yaml.CSafeLoader):
        """The same in C, for texts without tags and aliases."""

        yaml_implicit_resolvers: ClassVar[dict] = {}

    _QuickLoader = _LibyamlLoader


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
    for _user in (_PlainLoader, _PlainDumper, *([_QuickLoader] if _QuickLoader else [])):
        _user.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_form})$"), _first)
for _user in (_PlainLoader, *([_QuickLoader] if _QuickLoader else [])):
    _user.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
_PlainDumper.add_representer(str, _PlainDumper.represent_str)

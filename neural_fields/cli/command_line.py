"""From the words of a command line to a command: one rule for all dataclasses of options, editors and exports.

A value that cannot be read is a `UserError` like every other: the option, what it takes, and a value that would work.
`--help` shows what a value is (RUN, IMAGE, SECONDS) instead of the type in Python, and each default once.
"""

from __future__ import annotations

import inspect
import io
import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from neural_fields.cli.commands import list_flags, unknown_option_error
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word

# What a value is, by the name of its field; numbers and other fields are called by their type. A field can have a word
# of its own: Annotated[Path | None, arg(metavar="FILE")].
METAVARS = {
    "RUN": ["run", "runs"],
    "VIDEO": ["video", "clip"],
    "VIDEO|RUN": ["path"],
    "IMAGE": ["images", "image", "picture", "mask", "stroke", "style", "edited", "edited_mask"],
    "[LAYER=]IMAGE": ["pictures"],
    "[NAME=]PATH": ["masks"],
    "EDIT": ["edit", "edits", "above", "below"],
    "LAYER": ["layer"],
    "FOLDER": ["out"],
    "FRAME": ["start", "end"],
    "FRAMES": ["fade_in", "fade_out"],
    "FRAME:SECONDS": ["freeze"],
    "SECONDS": ["seconds"],
    "PRESET|FILE": ["config"],
    "SIZE": ["size"],
    "NAME": ["name", "object", "order", "editor"],
    "N": ["frame"],
    "A:B": ["frames"],
    "X,Y,W,H": ["box"],
    "X,Y": ["point", "negative"],
    "MODEL": ["model", "text_model", "main_model", "matte_model", "region_model", "clip_model", "pickscore_model"],
    "WHAT": ["what"],
}
METAVARS_OF_TYPES = {int: "N", float: "NUMBER", str: "TEXT", Path: "FILE"}
KINDS_OF_NUMBERS = {int: "a whole number", float: "a number"}
SECONDS_OF_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}


def parse_options(kind: type, words: Sequence[str], line: str, notes: str = "") -> tuple[Any, list[str]]:
    """Parses the words of a command.

    Args:
        kind: the class of the command; its attribute `examples` has command lines for the help.
        words: the words after the name of the command.
        line: how the command begins, such as "unwrap train"; for messages and the help.
        notes: lines for the end of the help's description.

    Returns:
        The command, and the words that are no options of it.

    Raises:
        UserError: an argument is missing or of the wrong type (exit 2).
        SystemExit: the help was requested (0).
    """
    said = io.StringIO()
    words = ["--help"] if {"-h", "--help"} & set(words) else list(words)  # of all arguments, not of those that are left
    try:
        with redirect_stderr(said), make_registry(line):
            return tyro.cli(
                kind,
                prog=line.partition(" RUN")[0],
                description="\n\n".join(filter(None, [format_description(kind), notes])),
                args=words,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    text = " ".join(re.sub(r"[^\x20-\x7e]", " ", said.getvalue()).split())  # what tyro says, without its frame
    raise explain_refusal(text, kind, words, line)


def explain_refusal(text: str, kind: type, words: Sequence[str], line: str) -> UserError:
    """Makes an error of what tyro says about a line that it cannot parse.

    Args:
        text: what it says, on one line.
        kind: the class of the command.
        words: the words after the name of the command.
        line: how the command begins.
    """
    known = list_flags(kind)
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and "." not in flag and flag.replace("_", "-") not in known:
            return unknown_option_error(flag, kind)
    if found := re.search(r"Missing value for argument '(?:\(')?(--[\w-]+)'", text):
        return UserError(
            ExitCode.USAGE, f"{found[1]} has no value", where=line, why="it takes one", fix=f"{line} --help"
        )
    needed = list_required(kind)
    missing = [name for name in needed if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
    example = getattr(kind, "examples", (f"{line} --help",))[0]
    if missing:
        what = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        return UserError(ExitCode.USAGE, what, where=line, why=f"it needs {', '.join(needed)}", fix=example)
    return UserError(ExitCode.USAGE, text or "the command line cannot be read", where=line, fix=f"{line} --help")


def list_required(kind: type) -> list[str]:
    """Lists what a command needs: names of positional arguments, then options."""
    positional, options = [], []
    hints = get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        if entry.default is not MISSING or entry.default_factory is not MISSING:
            continue
        spec = describe_field(StructFieldSpec(entry.name, hints[entry.name], None), "unwrap")
        base, *marks = get_args(spec.type) if get_origin(spec.type) is Annotated else (spec.type,)
        if is_dataclass(base):
            inner = list_required(base if isinstance(base, type) else type(base))
            options += [name for name in inner if name.startswith("--")]
            continue
        names = [mark.name for mark in marks if getattr(mark, "name", None)]
        if Positional in marks:
            positional.append(next(mark.metavar for mark in marks if getattr(mark, "metavar", None)))
        else:
            options.append("--" + (names[0] if names else entry.name).replace("_", "-"))
    return positional + options


def format_description(kind: type) -> str:
    """Formats what stands above the options in the help: the docstring of the command, and examples."""
    text = re.split(r"\n(?:Args|Attributes|Raises|Returns|Example)s?:\n", inspect.getdoc(kind) or "")[0].strip()
    width = min(shutil.get_terminal_size().columns, 120)
    paragraphs = [
        part if part.startswith("    ") else textwrap.fill(" ".join(part.split()), width) for part in text.split("\n\n")
    ]
    examples = getattr(kind, "examples", ())
    shown = "\n".join(f"  {line}" for line in examples)
    return "\n\n".join([*paragraphs, f"examples:\n{shown}"] if examples else paragraphs)


def make_registry(line: str) -> ConstructorRegistry:
    """Makes the rules by which tyro reads the words of a command.

    Args:
        line: how the command begins, such as "unwrap train"; for messages.

    Returns:
        The rules, to be given to `tyro.cli`.
    """
    registry = ConstructorRegistry()
    in_work: list[object] = []

    @registry.struct_rule
    def describe_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type) or info.type in in_work:
            return None
        in_work.append(info.type)  # the rules of tyro itself come first; ours add to what they find
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            in_work.pop()
        if not isinstance(found, StructConstructorSpec):
            return None
        return replace(found, fields=tuple(describe_field(entry, line) for entry in found.fields))

    return registry


def describe_field(entry: StructFieldSpec, line: str) -> StructFieldSpec:
    """Adds to a field what its value is called, how it is read, and how its default is shown.

    Args:
        entry: the field as tyro finds it.
        line: how the command begins, for messages.
    """
    kind, *marks = get_args(entry.type) if get_origin(entry.type) is Annotated else (entry.type,)
    if is_dataclass(kind) or get_origin(kind) is dict:
        return entry
    own = [mark for mark in marks if getattr(mark, "metavar", None)]
    is_repeated = get_origin(kind) is tuple and get_args(kind)[1:] == (...,)
    item = get_args(kind)[0] if is_repeated else kind
    named = [mark.name for mark in marks if getattr(mark, "name", None)]
    is_positional = Positional in marks
    values = [part for part in get_args(item) if part is not NoneType] if is_union(item) else [item]
    choices = get_args(values[0]) if get_origin(values[0]) is Literal else ()
    by_name = [word for word, names in METAVARS.items() if entry.name in names and values[0] is not int]
    if own:
        metavar = own[0].metavar
    elif choices:
        metavar = "{" + ",".join(map(str, choices)) + "}"
    else:
        metavar = by_name[0] if by_name else METAVARS_OF_TYPES.get(values[0], "TEXT")
    metavar = entry.name.upper() if is_positional and choices and not own else metavar
    flag = metavar if is_positional else "--" + (named[0] if named else entry.name).replace("_", "-")
    if is_positional and is_repeated:
        metavar = f"{metavar} ..."

    shown = None if item is bool else metavar
    hint = partial(describe_default, entry, is_repeated, is_positional)
    marks = [tyro.conf.arg(metavar=shown, help_behavior_hint=hint), *marks]
    if len(values) == 1 and (choices or values[0] in (int, float, str, Path)):
        spec = make_value_spec(values[0], metavar, flag, line, entry.default)
        if is_repeated:
            kind = tuple[Annotated[item, spec], ...]  # type: ignore[valid-type]
        else:
            marks.append(spec)
    return replace(entry, type=Annotated[(kind, *marks)])  # type: ignore[arg-type]


def describe_default(entry: StructFieldSpec, is_repeated: bool, is_positional: bool, label: str) -> str:
    """Describes the default of a field as the help shows it.

    Args:
        entry: the field as tyro finds it.
        is_repeated: whether it takes several values.
        is_positional: whether it is an argument without a flag.
        label: the default in the words of tyro.
    """
    help_text = (entry.helptext() if callable(entry.helptext) else entry.helptext) or ""
    default = entry.default
    if is_repeated:
        return "" if re.search("epeat|once|ach|several", help_text) or is_positional else "(repeatable)"
    if "default" in help_text or default is None or default == "" or isinstance(default, bool):
        return ""
    return f"(default: {default:g})" if isinstance(default, float) else f"(default: {label})"


def is_union(kind: object) -> bool:
    """Says whether a type is a union, such as `int | None`."""
    return get_origin(kind) in (Union, UnionType)


def make_value_spec(kind: Any, metavar: str, flag: str, line: str, default: Any) -> PrimitiveConstructorSpec[Any]:
    """Makes the rule that reads one value.

    Args:
        kind: int, float, str, Path, or a Literal of texts.
        metavar: what the value is called.
        flag: the option, or the name of the argument.
        line: how the command begins, for messages.
        default: a value that would work, for messages.
    """
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read_value(kind, words[0], flag, line, default),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def read_value(kind: Any, word: str, flag: str, line: str, default: Any = None) -> Any:
    """Reads a value from the command line.

    Args:
        kind: int, float, str, Path, or a Literal of texts.
        word: the value as it was typed.
        flag: the option, or the name of the argument; for the message.
        line: how the command begins, for the message.
        default: a value that would work, for the message.

    Raises:
        UserError: the word is not such a value (exit 2).
    """
    if get_origin(kind) is Literal:
        if word in get_args(kind):
            return word
        guess = nearest_word(word, get_args(kind))
        why = f"{flag} is one of: {', '.join(get_args(kind))}"
        why = f"did you mean {guess}? {why}" if guess else why
        fix = f"{flag} {guess or (default if default in get_args(kind) else get_args(kind)[0])}"
        raise UserError(ExitCode.USAGE, f"{flag} {word}", where=line, why=why, fix=fix)
    if kind is Path and not word.strip():
        why = "a path was expected; an empty one often is a variable of the shell that is not set"
        raise UserError(ExitCode.USAGE, f"{flag} is empty", where=line, why=why, fix=f"{line} --help")
    if kind not in KINDS_OF_NUMBERS:
        return kind(word)
    try:
        value = kind(word) if word.isascii() and "_" not in word else None
    except ValueError:
        value = None
    if value is not None and math.isfinite(value):
        return value
    fix = f"{line} --help"
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", word)
    if re.fullmatch(r"[+-]?\d+,\d+", word) and kind is float:
        fix = f"{flag} {word.replace(',', '.')}"
    elif amount and flag == "--seconds" and amount[2] in SECONDS_OF_UNITS:
        fix = f"{flag} {float(amount[1]) * SECONDS_OF_UNITS[amount[2]]:g}"
    elif kind is int and re.fullmatch(r"\d+\.0*", word):
        fix = f"{flag} {word.partition('.')[0]}"
    raise UserError(ExitCode.USAGE, f"{flag} {word}", where=line, why=f"{flag} takes {KINDS_OF_NUMBERS[kind]}", fix=fix)

"""Text, JSON and TOML that users wrote: read within limits, with every value checked before it is used.

Readers of one format raise `FormatError` with a sentence; `part_of` makes of it a `UserError` that names file and part.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.core.errors import bad_input
from neural_fields.core.files import DamagedFileError, describe_read_error, read_limited

MAX_MAGNITUDE = 1e15  # of a number: squares and products of such numbers are still finite
MAX_FILE_BYTES = 64 << 20  # bytes of a file; bones of 26 joints over 5000 frames take about half of it


class FormatError(ValueError):
    """Reports a part of a file that breaks its format; the text says what is wrong, in words that follow a colon."""


@contextmanager
def locate_format_errors(path: Path, part: str = "", fix: str = "") -> Iterator[None]:
    """Turns `FormatError` into a `UserError` that names the file and the part of it that was being read.

    Args:
        path: the file that is read.
        part: the part of it, such as "bone 3"; empty for the file as a whole.
        fix: a command or an action that would work.

    Raises:
        UserError: a `FormatError` was raised in the block (exit 3).
    """
    try:
        yield
    except FormatError as problem:
        what = f"{path.name}, {part}" if part else path.name
        raise bad_input(f"{what}: {problem}", where=str(path), fix=fix) from None


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Reads a file of at most `limit` bytes.

    Raises:
        UserError: no such file, or a larger one (exit 3).
    """
    try:
        return read_limited(path, limit)
    except (DamagedFileError, OSError, ValueError) as error:
        why = describe_read_error(error)
        raise bad_input(f"{path.name} cannot be read", where=str(path), why=why, fix="check the path") from None


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str:
    """Reads the text of a file in UTF-8, at most `limit` bytes.

    Raises:
        UserError: no such file, a larger one, or one that is not text (exit 3).
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise bad_input(f"{path.name} is not text", where=str(path), why=str(error)) from None


def read_json_object(path: Path, schema: int | None = None) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
        path: the file.
        schema: the number that the key "schema" must have; None for formats without one.

    Returns:
        The object as a dictionary.

    Raises:
        UserError: no such file, too large, not JSON, too deeply nested, NaN or infinity, or another schema.
    """
    text = read_text(path)
    try:
        found = json.loads(text, parse_constant=_refuse_non_finite)
    except RecursionError:
        raise bad_input(f"{path.name} is nested too deeply", where=str(path)) from None
    except ValueError as error:
        raise bad_input(f"{path.name} is not JSON", where=str(path), why=str(error)) from None
    with locate_format_errors(path):
        if not isinstance(found, dict):
            raise FormatError("an object with names was expected at the top")
        if schema is not None and (type(found.get("schema")) is not int or found["schema"] != schema):
            raise FormatError(f'"schema" is {describe_value(found.get("schema"))}; this version reads {schema}')
    return found


def _refuse_non_finite(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


def describe_value(value: object) -> str:
    """Returns the text of a value for a message, at most 60 characters.

    Example:
        >>> len(describe_value([0] * 1000))
        60
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_numbers(value: object, *shape: int) -> Float[np.ndarray, "..."]:
    """Converts nested lists of finite numbers to an array.

    Args:
        value: lists of numbers, as JSON has them.
        shape: the length of the list at each level.

    Returns:
        A float64 array of that shape.

    Raises:
        FormatError: another shape, or something that is not a finite number.

    Example:
        >>> parse_numbers([[1, 2], [3, 4.5]], 2, 2).tolist()
        [[1.0, 2.0], [3.0, 4.5]]
    """
    flat: list[float] = []
    _gather_numbers(value, shape, flat)
    return np.array(flat, np.float64).reshape(shape)


def _gather_numbers(value: object, shape: Sequence[int], flat: list[float]) -> None:
    if not shape:
        flat.append(parse_number(value))
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        got = f"a list of {len(value)}" if isinstance(value, list) else describe_value(value)
        raise FormatError(f"{' x '.join(map(str, shape))} numbers were expected, not {got}")
    for item in value:
        _gather_numbers(item, shape[1:], flat)


def parse_number(value: object) -> float:
    """Returns `value` as a finite number of at most `MAX_MAGNITUDE`.

    Raises:
        FormatError: not a number, not finite, or too large.

    Example:
        >>> parse_number("12")
        Traceback (most recent call last):
        ...
        neural_fields.core.validated_input.FormatError: '12' is not a number
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise FormatError(f"{describe_value(value)} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not abs(found) <= MAX_MAGNITUDE:
        raise FormatError(f"{describe_value(value)} is not a finite number of a scene's size")
    return found


def parse_whole_number(value: object, name: str) -> int:
    """Returns `value` as a whole number; 8.0 is one too.

    Args:
        value: a number, as JSON has it.
        name: name of the number, for the message.

    Raises:
        FormatError: not a whole number.
    """
    found = parse_number(value)
    if found != int(found):
        raise FormatError(f"{name} is {describe_value(value)}, which is not a whole number")
    return int(found)


def parse_number_words(words: Sequence[str], name: str) -> Float[np.ndarray, " count"]:
    """Converts words of a text file to finite numbers.

    Args:
        words: the words.
        name: what they stand for, for the message.

    Raises:
        FormatError: a word that is not a finite number.

    Example:
        >>> parse_number_words(["1", "-2.5"], "line 3").tolist()
        [1.0, -2.5]
    """
    try:
        found = np.array([float(word) for word in words], np.float64)
    except ValueError as error:
        raise FormatError(f"{name}: {error}") from None
    check_finite(found, name)
    return found


def check_finite(values: Shaped[np.ndarray, "..."], name: str) -> None:
    """Raises `FormatError` with the first number that is not finite, or beyond `MAX_MAGNITUDE`."""
    wrong = ~(np.abs(values) <= MAX_MAGNITUDE)
    if wrong.any():
        raise FormatError(f"{name}: {values[wrong][0]:g} is not a finite number of a scene's size")


def resolve_inside(folder: Path, name: object) -> Path:
    """Returns the path of a file that another file names, which must be below `folder`.

    A scene from an unknown author could otherwise name any file of this machine.

    Args:
        folder: the folder that must hold the file.
        name: a relative path, with slashes or backslashes between its parts.

    Raises:
        FormatError: not a relative path, or one that leaves the folder.

    Example:
        >>> resolve_inside(Path("scene"), "images/./0001.png").as_posix()
        'scene/images/0001.png'
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise FormatError(f"{describe_value(name)} is not the name of a file")
    plain = name.replace("\\", "/")
    steps: list[str] = []
    for step in plain.split("/"):
        if step == "..":
            if not steps:
                raise FormatError(f"{describe_value(name)} leads out of the folder; put the file below {folder}")
            steps.pop()
        elif step not in ("", "."):
            steps.append(step)
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or not steps:
        raise FormatError(f"{describe_value(name)} is not a path inside the folder; put the file below {folder}")
    return folder.joinpath(*steps)


def natural_sort_key(name: str) -> tuple[tuple[bool, int | str], ...]:
    """Returns a sort key that orders names by the numbers in them: r_2 comes before r_10.

    Example:
        >>> sorted(["r_10", "r_2"], key=natural_sort_key)
        ['r_2', 'r_10']
    """
    parts = re.split(r"([0-9]+)", name)
    return tuple((part.isdigit(), int(part[:1000]) if part.isdigit() else part) for part in parts)

"""Reads the points that a user names: as words, as a table, or as a grid."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.validated_input import describe_value, read_text

NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
_UNIT = re.compile(r"\s*[\[(]\s*(px|pixels?)\s*[\])]$")  # "x [px]" is x; positions in other units are refused
EXAMPLE = '--point "120,80"'

Points = Float[np.ndarray, "points 2"]


@dataclass(frozen=True)
class PointLimits:
    """Limits the points of an export."""

    points: int = 10_000
    line_length: int = 1000  # characters, and columns, of a table


DEFAULTS = PointLimits()


def parse_points(words: Sequence[str]) -> Points:
    """Parses points from texts such as "120.5,80".

    Args:
        words: x and y in pixels, separated by a comma.

    Returns:
        The points, one a row.

    Raises:
        UserError: a text that is not a point (exit 3).

    Example:
        >>> parse_points(["120.5,80", "3,4"]).tolist()
        [[120.5, 80.0], [3.0, 4.0]]
    """
    rows = []
    for word in words:
        row = [_parse_number(cell) for cell in word.split(",")]
        if len(row) != 2 or None in row:
            raise bad_input(
                f"--point {describe_value(word)} is not a point", why="two numbers are expected: x,y", fix=EXAMPLE
            )
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 2)


def read_points(path: Path, frame: int, limits: PointLimits = DEFAULTS) -> tuple[Points, int]:
    """Reads points from a table: CSV with commas, semicolons, tabs or spaces between its columns.

    Without a heading, each row is x,y. With a heading, the columns x and y are read; a column "frame" selects the rows
    of that frame, and a column "visible" the rows with 1. `tracks.csv` can therefore be read again, changed or not.
    Numbers may have decimal commas where a heading says that they do not separate columns.

    Args:
        path: the file.
        frame: number of the frame in the source whose points are read.
        limits: of the table.

    Returns:
        The points, and the number of rows of that frame that were skipped as not visible.

    Raises:
        UserError: a file that cannot be read, too many points, or something else than numbers (exit 3).
    """
    rows = _split_table(path, limits)
    number, cells = rows[0]
    columns = {"x": 0, "y": 1}
    # The first row is a heading where it holds something else than numbers.
    has_heading = any(not NUMBER.fullmatch(cell) and parse_local_number(cell, ",") is None for cell in cells)
    if has_heading:
        names = [_UNIT.sub("", cell.lower()) for cell in cells]
        if names.count("x") != 1 or names.count("y") != 1:
            shown = describe_value(",".join(cells))
            raise _bad_row(path, number, f"{shown} is neither two numbers nor a heading with x and y in pixels")
        columns = {name: names.index(name) for name in ("x", "y", "frame", "visible") if name in names}
    width, body = len(cells) if has_heading else 2, rows[1:] if has_heading else rows

    # One decimal mark in the whole table.
    marks = {"." if cell.rfind(".") > cell.rfind(",") else "," for _, cells in body for cell in cells if "," in cell}
    if marks and not has_heading:
        why = "with a comma in a number, a heading must tell columns from decimals"
        raise _bad_row(path, number, f"{describe_value(cells[0])} may be one number or two: {why}", "x;y")
    mark = "," if "," in marks else "."

    found: list[tuple[float, float]] = []
    hidden, frames = 0, set()
    for number, cells in body:
        if len(cells) != width:
            commas = ": do its numbers have decimal commas?" if len(cells) > width else ""
            raise _bad_row(path, number, f"{len(cells)} values in a row of {width}{commas}", "x;y")
        values = {}
        for name, column in columns.items():
            value = parse_local_number(cells[column], mark)
            if value is None:
                raise _bad_row(path, number, f"{describe_value(cells[column])} is not a number")
            values[name] = value
        frames.add(values.get("frame", frame))
        if values.get("frame", frame) != frame:
            continue
        if not values.get("visible", 1.0):
            hidden += 1
            continue
        found.append((values["x"], values["y"]))
        if len(found) > limits.points:
            raise too_many_points_error(len(found), str(path), limits)
    if not found:
        why = f"its frames are {min(frames):g} to {max(frames):g}" if frames else "there is a heading and nothing else"
        if hidden:
            why = f"all {hidden} points of that frame are hidden there: a point is tracked from a frame that shows it"
        raise bad_input(
            f"{path.name} has no point of frame {frame}", where=str(path), why=why, fix="--frame with another"
        )
    points = np.array(found, np.float64)
    if len(points) > 1 and (np.abs(points) <= 1).all():
        why = "points are given in pixels of the source; these look like parts of the frame, from 0 to 1"
        fix = "multiply x by the width and y by the height of the frame"
        raise bad_input(f"all points of {path.name} lie in the first pixel", where=str(path), why=why, fix=fix)
    return points, hidden


def parse_local_number(text: str, mark: str) -> float | None:
    """Parses a finite number as spreadsheets write it.

    Args:
        text: the number; thousands may be parted by spaces, apostrophes, or the mark that is not the decimal one.
        mark: the decimal mark, "." or ",".

    Returns:
        The number; None where the text is none.

    Example:
        >>> parse_local_number("1.234,5", ","), parse_local_number("1,234.5", "."), parse_local_number("20.5", ",")
        (1234.5, 1234.5, None)
    """
    other = "," if mark == "." else "."
    grouped = re.fullmatch(rf"[+-]?[0-9]{{1,3}}(?:[{other}' \u00a0\u202f\u2019][0-9]{{3}})+(?:[{mark}][0-9]*)?", text)
    if grouped is not None:
        text = re.sub(rf"[{other}' \u00a0\u202f\u2019]", "", text)
    elif other in text:
        return None
    return _parse_number(text.replace(mark, "."))


def _split_table(path: Path, limits: PointLimits) -> list[tuple[int, list[str]]]:
    """Splits a table into rows that are not empty, each with its number in the file, and cells."""
    text = read_text(path)
    if "\0" in text:
        raise bad_input(f"{path.name} is not a table of points", where=str(path), why="it holds binary data")
    lines = [(number, line.strip("\r\n")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise bad_input(f"{path.name} holds no points", where=str(path), fix="write a row x,y for each point")
    for number, line in lines:
        if len(line) > limits.line_length:
            raise _bad_row(path, number, f"{len(line)} characters")
    # Commas separate columns only where nothing else does: otherwise they are decimal commas.
    separator = next((mark for mark in (";", "\t", ",") if any(mark in line for _, line in lines)), None)
    rows = []
    for number, line in lines:
        cells = line.split() if separator is None else next(csv.reader([line], delimiter=separator))
        cells = [cell.strip().strip('"').strip() for cell in cells]
        while len(cells) > 2 and not cells[-1]:  # programs end rows with separators
            cells.pop()
        rows.append((number, cells))
    return rows


def grid_points(count: int, size: tuple[int, int], limits: PointLimits = DEFAULTS) -> Points:
    """Lays points at equal steps over a frame.

    Args:
        count: of the points along the longer side.
        size: (width, height) of the frame.
        limits: of the points.

    Raises:
        UserError: less than one, or too many (exit 3).
    """
    if count < 1:
        raise bad_input(f"--grid {count} is no grid", why="it says how many points lie along the longer side")
    step = max(size) / count
    across, down = (max(1, round(side / step)) for side in size)
    if across * down > limits.points:
        raise too_many_points_error(across * down, "--grid", limits)
    x, y = np.meshgrid((np.arange(across) + 0.5) * size[0] / across, (np.arange(down) + 0.5) * size[1] / down)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def check_points(
    points: Shaped[np.ndarray, "points 2"], size: tuple[int, int], limits: PointLimits = DEFAULTS
) -> Points:
    """Returns the points, if there are some and all lie in the frame.

    Args:
        points: in pixels of the frame.
        size: (width, height) of the frame.
        limits: of the points.

    Raises:
        UserError: none, too many, or one that is outside (exit 3).
    """
    if not len(points):
        raise bad_input("no points are given", why="give --point, --points or --grid", fix=EXAMPLE)
    if len(points) > limits.points:
        raise too_many_points_error(len(points), "", limits)
    given = np.asarray(points, np.float64)
    outside = ~((given >= 0) & (given < np.array(size))).all(axis=1)  # a nan is nowhere
    if outside.any():
        number = int(outside.argmax())
        x, y = given[number]
        more = f", and {outside.sum() - 1} more" if outside.sum() > 1 else ""
        raise bad_input(
            f"point {number + 1} is not in the frame: {x:g},{y:g}{more}",
            why=f"pixels of the source: x from 0 to {size[0]}, y from 0 to {size[1]}, from the upper left corner",
            fix=f'--point "{size[0] // 2},{size[1] // 2}"',
        )
    return given


def too_many_points_error(count: int, where: str, limits: PointLimits = DEFAULTS) -> UserError:
    """Makes the error for too many points.

    Args:
        count: number of points that were found so far.
        where: the file or flag.
        limits: of the points.
    """
    return bad_input(f"{count} points or more", where=where, why=f"at most {limits.points} are tracked at a time")


def _bad_row(path: Path, number: int, problem: str, heading: str = "x,y") -> UserError:
    """Makes the error for a row of a table."""
    why = "expected x,y in each row, or the columns of a tracks.csv"
    fix = f"write a heading {heading} and a row for each point"
    return bad_input(f"{path.name}, line {number}: {problem}", where=str(path), why=why, fix=fix)


def _parse_number(text: str) -> float | None:
    """Parses a finite number; None where the text is none."""
    found = float(text) if NUMBER.fullmatch(text.strip()) else np.inf
    return found if np.isfinite(found) else None

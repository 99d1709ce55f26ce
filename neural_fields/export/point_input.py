"""Points that a user names: as words, as a table, or as a grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.data.user_files import read_text, shown
from neural_fields.errors import UserError, bad_input

MOST = 10_000  # points at a time
LONGEST_LINE = 1000
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
EXAMPLE = '--point "120,80"'

Points = Float[np.ndarray, "points 2"]


def parse_points(words: Sequence[str]) -> Points:
    """Points from texts such as "120.5,80".

    Raises:
        UserError: a text that is not a point (exit 3).
    """
    rows = []
    for word in words:
        row = [_number(cell) for cell in word.split(",")]
        if len(row) != 2 or None in row:
            raise bad_input(f"--point {shown(word)} is not a point", why="two numbers are expected: x,y", fix=EXAMPLE)
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 2)


def read_points(path: Path, frame: int) -> tuple[Points, int]:
    """Points from a CSV file.

    Without a heading each row is x,y. With one, its columns x and y are read; where there is a column "frame" those
    rows that have `frame`, and where there is a column "visible" those that have 1 in it. So `tracks.csv` can be read
    back, changed or not.

    Returns:
        The points, and how many rows of that frame were left out because they are not visible.

    Raises:
        UserError: a file that cannot be read, too many points, or something else than numbers (exit 3).
    """
    lines = _lines(path)
    columns, most = {"x": 0, "y": 1}, 2
    if any(_number(cell) is None for cell in lines[0][1]):
        columns, most = _heading(path, *lines[0]), LONGEST_LINE
        lines = lines[1:]
    least = max(columns.values()) + 1
    rows: list[tuple[float, float]] = []
    hidden, frames = 0, set()
    for number, cells in lines:
        if not least <= len(cells) <= most:
            raise _bad_row(path, number, f"{len(cells)} values in a row")
        values = {}
        for name, column in columns.items():
            value = _number(cells[column])
            if value is None:
                raise _bad_row(path, number, f"{shown(cells[column])} is not a number")
            values[name] = value
        frames.add(values.get("frame", frame))
        if values.get("frame", frame) != frame:
            continue
        if not values.get("visible", 1.0):
            hidden += 1
            continue
        rows.append((values["x"], values["y"]))
        if len(rows) > MOST:
            raise too_many(len(rows), str(path))
    if not rows:
        raise _none_in(path, frame, hidden, frames)
    return np.array(rows, np.float64), hidden


def grid_points(count: int, size: tuple[int, int]) -> Points:
    """Points at equal steps over a frame, `count` of them along its longer side.

    Raises:
        UserError: less than one, or too many (exit 3).
    """
    if count < 1:
        raise bad_input(f"--grid {count} is no grid", why="it says how many points lie along the longer side")
    step = max(size) / count
    across, down = (max(1, round(side / step)) for side in size)
    if across * down > MOST:
        raise too_many(across * down, "--grid")
    x, y = np.meshgrid((np.arange(across) + 0.5) * size[0] / across, (np.arange(down) + 0.5) * size[1] / down)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def check_points(points: Shaped[np.ndarray, "points 2"], size: tuple[int, int]) -> Points:
    """The points, if there are some and all lie in a frame of that size.

    Raises:
        UserError: none, too many, or one that is outside (exit 3).
    """
    if not len(points):
        raise bad_input("no points are given", why="give --point, --points or --grid", fix=EXAMPLE)
    if len(points) > MOST:
        raise too_many(len(points), "")
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


def too_many(count: int, where: str) -> UserError:
    """The refusal of more points than are followed at a time."""
    return bad_input(f"{count} points or more", where=where, why=f"at most {MOST} are followed at a time")


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of each row that has some, with its number in the file."""
    text = read_text(path)
    if "\0" in text:
        raise bad_input(f"{path.name} is not a table of points", where=str(path), why="it holds binary data")
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > LONGEST_LINE:
            raise _bad_row(path, number, f"{len(line)} characters")
        if line.strip():
            found.append((number, [cell.strip().strip('"') for cell in line.replace(";", ",").split(",")]))
    if not found:
        raise bad_input(f"{path.name} holds no points", where=str(path), fix="write a row x,y for each point")
    return found


def _heading(path: Path, number: int, cells: list[str]) -> dict[str, int]:
    names = [cell.lower() for cell in cells]
    if "x" not in names or "y" not in names:
        raise _bad_row(path, number, f"{shown(','.join(cells))} is neither two numbers nor a heading with x and y")
    return {name: names.index(name) for name in ("x", "y", "frame", "visible") if name in names}


def _none_in(path: Path, frame: int, hidden: int, frames: set[float]) -> UserError:
    if hidden:
        why = f"all {hidden} points of that frame are hidden there: a point is followed from a frame that shows it"
    else:
        why = f"its frames are {min(frames):g} to {max(frames):g}" if frames else "there is a heading and nothing else"
    return bad_input(f"{path.name} has no point of frame {frame}", where=str(path), why=why, fix="--frame with another")


def _bad_row(path: Path, number: int, problem: str) -> UserError:
    why = "expected x,y in each row, or the columns of a tracks.csv"
    return bad_input(f"{path.name}, line {number}: {problem}", where=str(path), why=why)


def _number(text: str) -> float | None:
    """The number that a text is; None where it is none, or not a finite one."""
    found = float(text) if NUMBER.fullmatch(text.strip()) else np.inf
    return found if np.isfinite(found) else None

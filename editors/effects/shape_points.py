"""Reads points of an object and their targets from text, a table or a flow file, and checks that they suffice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.core.errors import UserError, bad_input
from neural_fields.data.flow.flow_files import FLOW_SUFFIXES, read_user_flow


@dataclass(frozen=True)
class PointPairSettings:
    """Settings of point pairs that define a deformation."""

    min_spread_ratio: float = 0.03  # least ratio of the spread across to that along; below it points are collinear
    max_flow_points: int = 300  # approximate largest number of points from a flow file
    min_move_px: float = 0.05  # a point that moves less holds the object in place


DEFAULTS = PointPairSettings()

Points = Float[np.ndarray, "n 2"]


def parse_point_pairs(words: Sequence[str], flag: str = "--pairs") -> Float[np.ndarray, "n 4"]:
    """Parses pairs of points such as "12,30>15,30".

    Args:
        words: one text per pair: a point and its target.
        flag: the command line flag for messages.

    Returns:
        x, y of each point and x, y of its target, in pixels.

    Raises:
        UserError: a text that is not a pair of points (exit 3).

    Example:
        >>> parse_point_pairs(["12,30>15,30", "40,8>40,8"]).tolist()
        [[12.0, 30.0, 15.0, 30.0], [40.0, 8.0, 40.0, 8.0]]
    """
    rows = [_parse_numbers(word, 2) for word in words]
    for word, row in zip(words, rows, strict=True):
        if not row:
            raise bad_input(f"{flag} {word!r} is not a pair of points", fix=f'{flag} "120,80>140,80"')
    return np.array(rows, np.float64).reshape(-1, 4)


def parse_points(words: Sequence[str], flag: str) -> Points:
    """Parses points such as "12,30".

    Args:
        words: one text per point.
        flag: the command line flag for messages.

    Returns:
        x, y of each point, in pixels.

    Raises:
        UserError: a text that is not a point (exit 3).

    Example:
        >>> parse_points(["12,30", "40,8.5"], "--hold").tolist()
        [[12.0, 30.0], [40.0, 8.5]]
    """
    rows = [_parse_numbers(word, 1) for word in words]
    for word, row in zip(words, rows, strict=True):
        if not row:
            raise bad_input(f"{flag} {word!r} is not a point", fix=f'{flag} "120,80"')
    return np.array(rows, np.float64).reshape(-1, 2)


def _parse_numbers(word: str, count: int) -> list[float]:
    """Parses the numbers of a text of `count` points; returns an empty list for any other text."""
    points = [point.split(",") for point in word.split(">")]
    try:
        row = [float(number) for point in points for number in point]
    except ValueError:
        return []
    return row if [len(point) for point in points] == [2] * count and np.isfinite(row).all() else []


def read_point_pairs(path: Path) -> Float[np.ndarray, "n 4"]:
    """Reads pairs of points from a CSV file; a first line without numbers is a header.

    Args:
        path: a file with four numbers per line: x, y of a point, and x, y of its target.

    Returns:
        x, y of each point and x, y of its target, in pixels.

    Raises:
        UserError: a file that cannot be read, or a line that does not have four numbers (exit 3).
    """
    fix = "four numbers a line: 120,80,140,80"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise bad_input(f"{path.name} cannot be read: {problem}", where=str(path), fix=fix) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = [float(cell) for cell in line.replace(";", ",").split(",")]
        except ValueError:
            if number == 1:
                continue
            row = []
        if len(row) != 4 or not np.isfinite(row).all():
            raise bad_input(f"line {number} of {path.name} is not a pair of points", where=str(path), fix=fix)
        rows.append(row)
    if not rows:
        raise bad_input(f"{path.name} holds no pair of points", where=str(path), fix=fix)
    return np.array(rows, np.float64)


def read_flow_pairs(
    path: Path,
    size: tuple[int, int],
    weight: Bool[np.ndarray, "height width"],
    settings: PointPairSettings = DEFAULTS,
) -> Float[np.ndarray, "n 4"]:
    """Samples points of an object evenly, and reads their displacements from a flow file.

    Args:
        path: a .flo or .npy file of (dx, dy) in pixels of the file, with the aspect ratio of the frame.
        size: (width, height) of the frame in pixels.
        weight: pixels of the frame that show the object, at that size.
        settings: the number of points.

    Returns:
        x, y of each point and x, y of its target, in pixels of the frame.

    Raises:
        UserError: a file that cannot be read, has the wrong shape, or has no displacement on the object (exit 3).
    """
    fix = "a .flo file, or an .npy file of height x width x 2 numbers, as large as the frame"
    if not path.is_file() or path.suffix.lower() not in FLOW_SUFFIXES:
        raise bad_input(f"{path.name} is no flow file", where=str(path), fix=fix)
    try:
        vectors, known = read_user_flow(path, 0, size)
    except UserError as problem:
        raise bad_input(problem.what, where=problem.where, why=problem.why, fix=fix) from None
    height, width = known.shape
    scale = np.array(size) / (width, height)
    rows, columns = np.nonzero(known)
    places = (np.stack([columns, rows], axis=-1) + 0.5) * scale
    column, row = places.astype(int).T
    shown = weight[row.clip(0, size[1] - 1), column.clip(0, size[0] - 1)]
    if not shown.any():
        raise bad_input("the flow says nothing of the layer", where=str(path), fix="--layer with another, or --pairs")
    step = max(1, int(np.ceil(np.sqrt(shown.sum() / settings.max_flow_points))))
    kept = shown & (rows % step == 0) & (columns % step == 0)
    start = places[kept]
    return np.concatenate([start, start + vectors[rows[kept], columns[kept]] * scale], axis=1)


def check_spread(start: Points, end: Points, settings: PointPairSettings = DEFAULTS) -> None:
    """Refuses points that do not define a deformation.

    Args:
        start: points of the object, in pixels.
        end: their targets, in pixels.
        settings: least number, spread and displacement of the points.

    Raises:
        UserError: too few points, points on one line, none that moves, or two points at one position (exit 3).
    """
    if len(start) < 3:  # an affine map needs three
        raise bad_input(
            f"{len(start)} pair{'' if len(start) == 1 else 's'} of points",
            why="a deformation needs 3; give a point to hold in place with equal positions",
            fix='--pairs "120,80>140,80" --pairs "200,80>200,80" --pairs "160,140>160,140"',
        )
    if np.linalg.norm(end - start, axis=1).max() < settings.min_move_px:
        raise bad_input("no point is moved", fix='--pairs "120,80>140,80"')
    for points, what in ((start, "points"), (end, "targets of the points")):
        spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        if spread[1] < settings.min_spread_ratio * max(spread[0], 1e-9):
            raise bad_input(
                f"the {what} lie on one line", why="they do not say what happens beside it", fix="add one beside it"
            )
        if len(np.unique(np.round(points, 3), axis=0)) < len(points):
            raise bad_input(f"two of the {what} are the same", fix="leave one of them out")

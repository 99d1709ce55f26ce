"""Rotations and rigid transforms: checked as files give them, and found between points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.data.user_files import Malformed

EXACT = 1e-6  # what counts as a rotation without a touch
ROUNDED = 2e-3  # files with three digits are off by this much: mended; anything further off is refused
_FLAT = 1e-7  # how strongly a turn that the points leave open keeps to none, as a share of their spread


class NotRigid(Malformed):
    """One of several matrices is no rigid transform; `index` says which."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


def rigid(matrices: Float[np.ndarray, "count 4 4"]) -> Float[np.ndarray, "count 4 4"]:
    """The same rigid transforms, their rotations made exact where a file rounded them.

    Raises:
        NotRigid: a matrix mirrors, scales or skews, is not finite, or has another last row than 0 0 0 1.
    """
    finite = np.isfinite(matrices).all(axis=(1, 2))
    _refuse(~finite, "the matrix holds a number that is not finite")
    _refuse(
        np.abs(matrices[:, 3] - (0, 0, 0, 1)).max(axis=1, initial=0) > EXACT,
        "the matrix has another last row than 0 0 0 1",
    )
    turns = matrices[:, :3, :3]
    scales = np.linalg.norm(turns, axis=1)
    for index in np.flatnonzero((np.abs(scales - 1) > ROUNDED).any(axis=1))[:1]:
        by = ", ".join(f"{scale:.4g}" for scale in scales[index])
        raise NotRigid(int(index), f"the matrix scales: its axes have the lengths {by} instead of 1")
    off = np.abs(turns.transpose(0, 2, 1) @ turns - np.eye(3)).max(axis=(1, 2), initial=0)
    _refuse(off > 2 * ROUNDED, "the matrix skews: its axes are not at right angles")
    _refuse(np.linalg.det(turns) < 0, "the matrix mirrors: its axes are left-handed")
    if not np.any(off > EXACT):
        return matrices
    mended = matrices.copy()
    left, _, right = np.linalg.svd(turns[off > EXACT])
    mended[off > EXACT, :3, :3] = left @ right
    return mended


def _refuse(wrong: Shaped[np.ndarray, " count"], why: str) -> None:
    for index in np.flatnonzero(wrong)[:1]:
        raise NotRigid(int(index), why)


def turn_between(
    before: Shaped[np.ndarray, "times points 3"], after: Shaped[np.ndarray, "times points 3"]
) -> Float[np.ndarray, "times 3 3"]:
    """At each time the rotation that brings arrows `before` nearest to arrows `after`, longer ones counting more.

    Where the arrows leave a turn open, as one alone does around itself, there is none of it: of one arrow the rotation
    is the one with the smallest angle, of no arrow the identity. (Kabsch 1976, with a faint pull to the identity.)
    """
    spread = np.einsum("tpi,tpj->tij", after, before)
    size = np.maximum(np.linalg.norm(spread, axis=(1, 2), keepdims=True), 1e-30)
    left, _, right = np.linalg.svd(spread / size + _FLAT * np.eye(3))
    signs = np.ones((len(left), 3))
    signs[:, 2] = np.sign(np.linalg.det(left @ right))
    return (left * signs[:, None]) @ right


def about(axis: int, angles: Float[np.ndarray, " times"]) -> Float[np.ndarray, "times 3 3"]:
    """Right-handed rotations around x, y or z (axis 0, 1 or 2) by angles in radians."""
    turns = np.zeros((len(angles), 3, 3))
    one, two = (axis + 1) % 3, (axis + 2) % 3
    turns[:, axis, axis] = 1
    turns[:, one, one] = turns[:, two, two] = np.cos(angles)
    turns[:, two, one] = np.sin(angles)
    turns[:, one, two] = -turns[:, two, one]
    return turns


def from_axis_angle(vectors: Float[np.ndarray, "*dims 3"]) -> Float[np.ndarray, "*dims 3 3"]:
    """Rotations around the vectors by their lengths in radians (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    none = np.zeros_like(x)
    cross = np.stack([none, -z, y, z, none, -x, -y, x, none], axis=-1).reshape(*vectors.shape, 3)
    # sin(a) / a and (1 - cos(a)) / a^2 without dividing by zero
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def axes_matrix(axes: str) -> Float[np.ndarray, "3 3"]:
    """What takes a point of a file to the world: "zxy" is world (x, y, z) = file (z, x, y); "x-zy" makes y up z up.

    Raises:
        ValueError: not three of x, y and z with signs, or a mirror.
    """
    found = [(part[-1], -1.0 if part.startswith("-") else 1.0) for part in _letters(axes)]
    matrix = np.zeros((3, 3))
    for row, (letter, sign) in enumerate(found):
        matrix[row, "xyz".index(letter)] = sign
    if len(found) != 3 or np.linalg.det(matrix) < 0.5:
        raise ValueError(f'axes are three of x, y, z with signs that make no mirror, as "zxy"; not {axes!r}')
    return matrix


def _letters(axes: str) -> list[str]:
    """The signed letters of an axes text, or none if it has anything else in it."""
    parts: list[str] = []
    rest = axes
    while rest:
        size = 2 if rest[0] == "-" else 1
        part, rest = rest[:size], rest[size:]
        if part[-1] not in "xyz" or len(part) != size:
            return []
        parts.append(part)
    return parts

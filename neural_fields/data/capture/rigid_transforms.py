"""Rotations and rigid transforms: checks of matrices from files, axes, and least-squares fits to points.

What one rotation is in another notation, scipy's `Rotation` computes where it is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.core.validated_input import FormatError


@dataclass(frozen=True)
class RigidTolerances:
    """Settings of the check of rigid transforms: largest errors of a matrix's numbers."""

    max_exact_error: float = 1e-6  # a matrix with smaller errors is taken as it is
    # Up to this error, that of files with three digits, a matrix is repaired; beyond, it is refused.
    max_rounding_error: float = 2e-3


DEFAULTS = RigidTolerances()


class NotRigidError(FormatError):
    """Raised where one of several matrices is no rigid transform; `index` says which."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


def repair_rigid_transforms(
    matrices: Float[np.ndarray, "count 4 4"], settings: RigidTolerances = DEFAULTS
) -> Float[np.ndarray, "count 4 4"]:
    """Checks that matrices are rigid transforms, and makes their rotations exact where a file rounded them.

    Raises:
        NotRigidError: a matrix mirrors, scales or skews, is not finite, or has another last row than 0 0 0 1.
    """
    _refuse_any(~np.isfinite(matrices).all(axis=(1, 2)), "the matrix holds a number that is not finite")
    last_row_error = np.abs(matrices[:, 3] - (0, 0, 0, 1)).max(axis=1, initial=0)
    _refuse_any(last_row_error > settings.max_exact_error, "the matrix has another last row than 0 0 0 1")
    rotations = matrices[:, :3, :3]
    scales = np.linalg.norm(rotations, axis=1)
    for index in np.flatnonzero((np.abs(scales - 1) > settings.max_rounding_error).any(axis=1))[:1]:
        by = ", ".join(f"{scale:.4g}" for scale in scales[index])
        raise NotRigidError(int(index), f"the matrix scales: its axes have the lengths {by} instead of 1")
    error = np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max(axis=(1, 2), initial=0)
    _refuse_any(error > 2 * settings.max_rounding_error, "the matrix skews: its axes are not at right angles")
    _refuse_any(np.linalg.det(rotations) < 0, "the matrix mirrors: its axes are left-handed")
    rounded = error > settings.max_exact_error
    if not np.any(rounded):
        return matrices
    repaired = matrices.copy()
    left, _, right = np.linalg.svd(rotations[rounded])
    repaired[rounded, :3, :3] = left @ right
    return repaired


def _refuse_any(wrong: Shaped[np.ndarray, " count"], why: str) -> None:
    """Raises `NotRigidError` for the first matrix that is wrong, if one is."""
    for index in np.flatnonzero(wrong)[:1]:
        raise NotRigidError(int(index), why)


def fit_rotations(
    before: Shaped[np.ndarray, "times points 3"], after: Shaped[np.ndarray, "times points 3"]
) -> Float[np.ndarray, "times 3 3"]:
    """Fits at each time the rotation that brings vectors `before` nearest to vectors `after` (Kabsch 1976).

    Longer vectors count more. Where the vectors do not determine the rotation, it is the smallest one: one vector gives
    the rotation with the smallest angle, no vector the identity. (scipy's `Rotation.align_vectors` takes one time a
    call, and warns where the vectors leave a rotation open, as the single child of a joint always does.)
    """
    spread = np.einsum("tpi,tpj->tij", after, before)
    size = np.maximum(np.linalg.norm(spread, axis=(1, 2), keepdims=True), 1e-30)
    pull = 1e-7  # to the identity, as a share of the spread: decides only what the vectors leave open
    left, _, right = np.linalg.svd(spread / size + pull * np.eye(3))
    signs = np.ones((len(left), 3))
    signs[:, 2] = np.sign(np.linalg.det(left @ right))
    return (left * signs[:, None]) @ right


def parse_axes(axes: str) -> Float[np.ndarray, "3 3"]:
    """Parses how the axes of a file become those of the world, as the matrix that takes a point of the file there.

    "zxy" is world (x, y, z) = file (z, x, y); "x-zy" converts y up to z up.

    Raises:
        ValueError: not three of x, y and z with signs, or a mirror.
    """
    parts = re.findall("-?[xyz]", axes)
    matrix = np.zeros((3, 3))
    for row, part in enumerate(parts[:3]):
        matrix[row, "xyz".index(part[-1])] = -1.0 if part.startswith("-") else 1.0
    if len(parts) != 3 or "".join(parts) != axes or np.linalg.det(matrix) < 0.5:
        raise ValueError(f'axes are three of x, y, z with signs that make no mirror, as "zxy"; not {axes!r}')
    return matrix

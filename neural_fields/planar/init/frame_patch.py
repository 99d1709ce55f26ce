"""Rectangles of frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class FramePatch:
    """Describes a rectangle of a frame."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def is_empty(self) -> bool:
        """Whether the rectangle has no pixels."""
        return self.bottom <= self.top or self.right <= self.left

    @property
    def area(self) -> int:
        """Number of pixels; 0 where empty."""
        return 0 if self.is_empty else (self.bottom - self.top) * (self.right - self.left)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def intersect(self, other: FramePatch) -> FramePatch:
        """Returns the rectangle that both have in common; it may be empty."""
        return FramePatch(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    def crop(self, planes: Tensor, origin: FramePatch | None = None) -> Tensor:
        """Returns the rectangle of planes [..., rows, columns] that begin at `origin` (default: the frame's corner)."""
        top, left = (origin.top, origin.left) if origin else (0, 0)
        return planes[..., self.top - top : self.bottom - top, self.left - left : self.right - left]


def find_visible_rectangle(share: Float[np.ndarray, "height width"]) -> FramePatch:
    """Returns the rectangle in which a layer is visible; an empty one where it is not."""
    rows, columns = np.flatnonzero(share.any(1)), np.flatnonzero(share.any(0))
    if not len(rows):
        return FramePatch(0, 0, 0, 0)
    return FramePatch(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)

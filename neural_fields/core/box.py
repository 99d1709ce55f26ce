"""The rectangle of the canonical plane that an image covers. Records on disk have it, so it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Box:
    """Describes the rectangle of the canonical plane that an image covers, in uv units."""

    as_list: ClassVar[bool] = True  # in files: [u0, v0, u1, v1]

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def width(self) -> float:
        """The extent along u, in uv units."""
        return self.u1 - self.u0

    @property
    def height(self) -> float:
        """The extent along v, in uv units."""
        return self.v1 - self.v0

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Returns (u0, v0, u1, v1)."""
        return (self.u0, self.v0, self.u1, self.v1)

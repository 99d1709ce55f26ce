"""Parts of frames, as slices of rows and of columns: what is worked on at once, and how parts lie in each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

BAND = 64  # rows of a frame

Part = tuple[slice, slice]  # rows and columns of a frame


def overlap(one: Part, other: Part) -> bool:
    """Whether two parts share a pixel."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def hull(parts: Sequence[slice]) -> slice:
    """The smallest range that holds all of `parts`."""
    return slice(min(part.start for part in parts), max(part.stop for part in parts))


def inside(part: slice, whole: slice) -> slice:
    """Where `part` lies within `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)


def outside(part: slice, whole: slice) -> slice:
    """A part of `whole`, in terms of what `whole` is a part of."""
    return slice(part.start + whole.start, part.stop + whole.start)


def around(touched: UInt8[np.ndarray, "height width"], margin: int) -> Part | None:
    """The rows and columns of what is other than zero and its surroundings; None if everything is zero."""
    left, top, width, height = cv2.boundingRect(touched)
    if not width:
        return None
    rows, columns = touched.shape
    return (
        slice(max(0, top - margin), min(rows, top + height + margin)),
        slice(max(0, left - margin), min(columns, left + width + margin)),
    )


def bands(stored: int, wanted: int) -> Iterator[slice]:
    """Bands of rows of a frame, each made of whole rows of the fit.

    What is looked up and blended for one band stays in the processor's cache; whole frames do not.
    """
    height = max(1, round(BAND * stored / wanted))
    for start in range(0, stored, height):
        rows = slice(round(start * wanted / stored), round(min(stored, start + height) * wanted / stored))
        if rows.stop > rows.start:
            yield rows

"""Rectangular parts of frames, as slices of rows and of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

Part = tuple[slice, slice]  # rows and columns of a frame


def parts_overlap(one: Part, other: Part) -> bool:
    """Returns whether two parts share a pixel."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def enclosing_range(parts: Sequence[slice]) -> slice:
    """Returns the smallest range that contains all of `parts`."""
    return slice(min(part.start for part in parts), max(part.stop for part in parts))


def to_local_range(part: slice, whole: slice) -> slice:
    """Returns the range of `part` relative to the start of `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)


def to_global_range(part: slice, whole: slice) -> slice:
    """Returns the absolute range of `part`, which is relative to the start of `whole`."""
    return slice(part.start + whole.start, part.stop + whole.start)


def bounding_part(touched: UInt8[np.ndarray, "height width"], margin: int) -> Part | None:
    """Returns the part that contains all nonzero pixels and a margin in pixels; None if all are zero."""
    left, top, width, height = cv2.boundingRect(touched)
    if not width:
        return None
    rows, columns = touched.shape
    return (
        slice(max(0, top - margin), min(rows, top + height + margin)),
        slice(max(0, left - margin), min(columns, left + width + margin)),
    )


def row_bands(stored: int, wanted: int, rows: int) -> Iterator[slice]:
    """Yields bands of rows of a frame, each made of whole rows of the maps.

    The values of one band stay in the processor's cache; those of whole frames do not.

    Args:
        stored: rows of the maps.
        wanted: rows of the frame.
        rows: approximate number of rows of the frame in a band.
    """
    height = max(1, round(rows * stored / wanted))
    for start in range(0, stored, height):
        band = slice(round(start * wanted / stored), round(min(stored, start + height) * wanted / stored))
        if band.stop > band.start:
            yield band

"""Resampling: bilinear interpolation of stored maps at another size, for parts of a frame or single points.

A map that was stored with a rim of one sample around the frame needs no extrapolation at the frame's edges. OpenCV (5)
samples four channels exactly and fast, two in steps of 1/32 and slowly: so two or three are filled up to four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float

RIM = 1  # samples around the frame


def enlarge_map(
    values: np.ndarray, stored: tuple[int, int], size: tuple[int, int], part: tuple[slice, slice] | None = None
) -> np.ndarray:
    """Resamples a rimmed map bilinearly at the pixel centers of a frame.

    Args:
        values: the map with its rim, [rows, columns] or [rows, columns, channels].
        stored: (width, height) of the map without its rim.
        size: (width, height) of the frame.
        part: rows and columns of the frame to compute; by default all.

    Returns:
        The values of the part, [rows, columns] or [rows, columns, channels].
    """
    part = part or (slice(0, size[1]), slice(0, size[0]))
    rows, columns = find_source_window(stored, size, part)
    if stored == size:
        return np.ascontiguousarray(values[rows, columns])
    return warp_part(values[rows, columns], (rows.start, columns.start), stored, size, part)


def find_source_window(
    stored: tuple[int, int], size: tuple[int, int], part: tuple[slice, slice]
) -> tuple[slice, slice]:
    """Returns the rows and columns of a rimmed map that a part of a frame is interpolated from.

    Args:
        stored: (width, height) of the map without its rim.
        size: (width, height) of the frame.
        part: rows and columns of the frame.
    """
    found = []
    for wanted, kept, full in zip(part, stored[::-1], size[::-1], strict=True):
        if kept == full:
            found.append(slice(wanted.start + RIM, wanted.stop + RIM))
            continue
        first, last = (math.floor((pixel + 0.5) * kept / full - 0.5) + RIM for pixel in (wanted.start, wanted.stop - 1))
        # One sample more on each side: what OpenCV rounds must not fall over the edge.
        found.append(slice(max(0, first - 1), min(kept + 2 * RIM, last + 3)))
    return found[0], found[1]


def warp_part(
    values: np.ndarray,
    origin: tuple[int, int],
    stored: tuple[int, int],
    size: tuple[int, int],
    part: tuple[slice, slice],
) -> np.ndarray:
    """Resamples some values of a rimmed map in a part of a frame; the values at their edges are repeated.

    Args:
        values: a rectangle of the map.
        origin: (row, column) in the rimmed map of the first of these values.
        stored: (width, height) of the map without its rim.
        size: (width, height) of the frame.
        part: rows and columns of the frame.

    Returns:
        The values of the part, [rows, columns] or [rows, columns, channels].
    """
    scale_x, scale_y = stored[0] / size[0], stored[1] / size[1]
    rows, columns = part
    # Pixel j of the result has its center at stored sample (j + 0.5) * scale - 0.5 + RIM.
    matrix = np.array(
        [
            [scale_x, 0, (columns.start + 0.5) * scale_x - 0.5 + RIM - origin[1]],
            [0, scale_y, (rows.start + 0.5) * scale_y - 0.5 + RIM - origin[0]],
        ]
    )
    target = (columns.stop - columns.start, rows.stop - rows.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(_pad_channels(values), matrix, target, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return _unpad_channels(found, values.shape[2:])


def _pad_channels(values: np.ndarray) -> np.ndarray:
    """Fills an image of two or three channels up to four."""
    if values.shape[2:] == (2,):
        return cv2.merge([values, values])
    return cv2.cvtColor(values, cv2.COLOR_RGB2RGBA) if values.shape[2:] == (3,) else values


def _unpad_channels(found: np.ndarray, channels: tuple[int, ...]) -> np.ndarray:
    """Takes away the channels that `_pad_channels` added."""
    return found if found.shape[2:] == channels else copy_first_channels(found, channels[0])


def copy_first_channels(image: np.ndarray, count: int) -> np.ndarray:
    """Copies the first channels of an image; many times as fast as copying a slice."""
    kept = np.empty((*image.shape[:2], count), image.dtype)
    cv2.mixChannels([image], [kept], [i for number in range(count) for i in (number, number)])
    return kept


def sample_rimmed_maps(
    maps: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray, stored: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Samples rimmed maps bilinearly at scattered pixels of a frame.

    Args:
        maps: maps of one size, with their rim.
        x: columns of the pixels; 0 is the center of the first one.
        y: their rows.
        stored: (width, height) of the maps without their rim.
        size: (width, height) of the frame.

    Returns:
        [maps, n] or [maps, n, channels].
    """
    if not len(x):
        return np.stack([np.zeros((0, *values.shape[2:]), values.dtype) for values in maps])
    column = ((x + 0.5) * (stored[0] / size[0]) - 0.5 + RIM).astype(np.float32)
    row = ((y + 0.5) * (stored[1] / size[1]) - 0.5 + RIM).astype(np.float32)
    left, top = max(0, int(column.min()) - 1), max(0, int(row.min()) - 1)
    near = (slice(top, int(row.max()) + 3), slice(left, int(column.max()) + 3))
    column, row = column - left, row - top
    return np.stack([sample_bilinear(values[near], column, row) for values in maps])


def sample_bilinear(image: np.ndarray, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> np.ndarray:
    """Samples an image bilinearly; position 0 is the center of the first pixel, and the edge is repeated outside.

    Args:
        image: [rows, columns] or [rows, columns, channels].
        x: columns.
        y: rows.

    Returns:
        [n] or [n, channels].
    """
    side = 1 << 14  # OpenCV's remap takes images below 32768 on a side
    padded, mode = _pad_channels(image), cv2.BORDER_REPLICATE
    parts = [
        cv2.remap(padded, x[None, i : i + side], y[None, i : i + side], cv2.INTER_LINEAR, borderMode=mode)
        for i in range(0, len(x), side)
    ]
    channels = image.shape[2:]
    if not parts:
        return np.zeros((0, *channels), image.dtype)
    # As one row, which takes a third of the time of one column.
    return _unpad_channels(np.concatenate(parts, axis=1), channels).reshape(len(x), *channels)


def sample_area(image: np.ndarray, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], side: float) -> np.ndarray:
    """Samples an image as the mean of a square around each position; the edge is repeated outside.

    Args:
        image: [rows, columns] or [rows, columns, channels].
        x: columns; position 0 is the center of the first pixel.
        y: rows.
        side: of the square, in pixels of the image; up to 1 it is one bilinear sample.

    Returns:
        [n] or [n, channels].
    """
    count = max(1, math.ceil(side / 1.5))  # a bilinear sample is a mean of about so many pixels itself
    steps = ((np.arange(count) + 0.5) * (side / count) - side / 2).astype(np.float32)
    return np.mean([sample_bilinear(image, x + right, y + down) for right in steps for down in steps], axis=0)

"""Files of baked maps: a block of bytes for each frame, which is read alone.

    header      `_HEADER`: a mark, the number of frames, channels, rows and columns, rows and columns of knots, the step
    table       uint64, where the block of each frame begins, and where the last one ends
    blocks      one a frame

Maps without a step are bytes [channels, rows, columns], deflated. The others are smooth numbers. Where a file has
knots, a block begins with float32 values at the knots, which span the frame evenly, and at one more beyond each edge:
between them, maps are bilinear. What that misses follows only in frames where it is more than a step.

It, or the map itself in a file without knots, is rounded to whole steps: of each channel the first column, the first
row, and for all other samples the mixed difference q[i, j] - q[i - 1, j] - q[i, j - 1] + q[i - 1, j - 1], which is
nearly zero whatever the slope of a map. Sums over rectangles undo it exactly, and `cv2.integral` is ten times as fast
as sums along two axes. Differences are written in digits. The lowest one, from -8 to 7, takes four bits as it is: it is
mostly noise of the rounding, which hardly becomes smaller, and inflating it would take longer than all the rest. Digits
of base 256, from -128 to 127, follow as far as they are needed, deflated with the first columns and rows.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import Float, Num

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import atomic_write, describe_read_error
from neural_fields.imaging.resampling import RIM, warp_part

BAKE_AGAIN = "run unwrap train again with the same --out: it bakes them anew"
_HEADER = struct.Struct("<4s6Id")
_MARK = b"UWM1"
_MOST_DIGITS = 4
_MOST_STEPS = 1 << 28  # larger numbers are cut: four digits of base 256 hold their differences


class MapFile:
    """Reads the maps of a frame at a time, and remembers the last one.

    A frame is float32 [rows, columns, channels]; without a step it is uint8 [channels, rows, columns].

    Args:
        path: a file that `write_map_file` wrote.

    Raises:
        UserError: it is missing, cut short, or another file; later, the block of a frame is damaged (exit 5).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                mark, self.frame_count, *sizes, self.step = _HEADER.unpack(file.read(_HEADER.size))
                table = file.read(min(8 * (self.frame_count + 1), size))
                self.table = np.frombuffer(table, "<u8", len(table) // 8).astype(np.int64)
        except OSError as error:
            why = f"{path.name} cannot be read: {describe_read_error(error)}"
            raise damaged_maps_error(path.parent, why) from error
        except (struct.error, ValueError) as error:
            raise damaged_maps_error(path.parent, f"{path.name} is not a file of maps") from error
        self.planes: tuple[int, int, int] = tuple(sizes[:3])  # channels, rows, columns
        self.knots: tuple[int, int] = tuple(sizes[3:])  # rows, columns; 0 where the file has none
        self.kept_frames = 1  # that were read last, and are not read again
        self.last: tuple[tuple[int, np.ndarray], ...] = ()  # the newest first
        if mark != _MARK or len(self.table) != self.frame_count + 1:
            raise damaged_maps_error(path.parent, f"{path.name} is not a file of maps")
        if size != self.table[-1]:
            raise damaged_maps_error(path.parent, f"{path.name} has {size} bytes, not {self.table[-1]}")

    def __getitem__(self, t: int) -> np.ndarray:
        last = self.last  # threads may put another in its place meanwhile
        for number, values in last:
            if number == t:
                return values
        start, stop = (int(place) for place in self.table[t : t + 2])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                block = file.read(stop - start)
            if self.step:
                values = _decode_numbers(block, self.planes, self.knots, self.step)
            else:
                values = np.frombuffer(_inflate(block, math.prod(self.planes)), np.uint8).reshape(self.planes)
        except (OSError, ValueError, zlib.error) as error:
            raise damaged_maps_error(self.path.parent, f"frame {t} of {self.path.name}: {error}") from error
        self.last = ((t, values), *last[: self.kept_frames - 1])
        return values


class MapFileWriter:
    """Writes the frames of a file of maps, one after the other.

    Args:
        file: open for writing, empty.
        frame_count: number of frames that follow.
        planes: channels, rows and columns of a frame.
        step: the error that numbers may have, above 0; without one they are bytes, and kept as they are.
        knots: rows and columns of the knots, without those beyond the edges; 0 writes no knots.
    """

    def __init__(
        self, file: BinaryIO, frame_count: int, planes: tuple[int, int, int], step: float, knots: tuple[int, int]
    ) -> None:
        self.file, self.planes, self.step = file, planes, step
        self.places = [_HEADER.size + 8 * (frame_count + 1)]
        file.write(_HEADER.pack(_MARK, frame_count, *planes, *knots, step).ljust(self.places[0], b"\0"))

    def encode(self, values: np.ndarray, at_knots: np.ndarray | None = None) -> bytes:
        """Returns the block of a frame; threads can do it at the same time.

        Args:
            values: [rows, columns, channels], or without a step uint8 [channels, rows, columns].
            at_knots: float32 [knot rows + 2, knot columns + 2, channels], where the file has knots.
        """
        if not self.step:
            return zlib.compress(np.ascontiguousarray(values, np.uint8).tobytes(), 1)
        if at_knots is None:
            return _encode_steps(values, self.step)
        rest = values - _interpolate_knots(at_knots, self.planes)
        is_near = np.abs(rest).max() <= self.step
        return at_knots.astype("<f4").tobytes() + (b"" if is_near else _encode_steps(rest, self.step))

    def append(self, block: bytes) -> None:
        """Writes the block of the next frame."""
        self.places.append(self.places[-1] + self.file.write(block))

    def __call__(self, values: np.ndarray, at_knots: np.ndarray | None = None) -> None:
        """Writes the next frame; see `encode`."""
        self.append(self.encode(values, at_knots))


@contextmanager
def write_map_file(
    path: Path,
    frame_count: int,
    planes: tuple[int, int, int],
    step: float = 0.0,
    knots: tuple[int, int] = (0, 0),
) -> Iterator[MapFileWriter]:
    """Writes a file of maps under a temporary name, a frame at a time, so that no frame stays in memory.

    Args:
        path: the file.
        frame_count: see `MapFileWriter`, as the others.
        planes: of a frame.
        step: of numbers.
        knots: of a frame.

    Yields:
        What writes the frames.
    """
    with atomic_write(path) as part, part.open("wb") as file:
        writer = MapFileWriter(file, frame_count, planes, step, knots)
        yield writer
        if len(writer.places) != frame_count + 1:
            raise ValueError(f"{path.name} got {len(writer.places) - 1} frames of {frame_count}")
        file.seek(_HEADER.size)
        file.write(np.array(writer.places, "<u8").tobytes())


def _interpolate_knots(
    at_knots: Float[np.ndarray, "knot_rows knot_columns channels"], planes: tuple[int, int, int]
) -> Float[np.ndarray, "rows columns channels"]:
    """Returns rimmed maps that are bilinear between knots."""
    rows, columns = (side - 2 * RIM for side in planes[1:])
    size = at_knots.shape[1] - 2, at_knots.shape[0] - 2
    part = slice(-RIM, rows + RIM), slice(-RIM, columns + RIM)
    return warp_part(at_knots, (0, 0), size, (columns, rows), part)


def _decode_numbers(
    block: bytes, planes: tuple[int, int, int], knots: tuple[int, int], step: float
) -> Float[np.ndarray, "rows columns channels"]:
    """Returns the values of a block; `ValueError` where it is damaged."""
    if not any(knots):
        return _decode_steps(block, planes, step)
    shape = knots[0] + 2, knots[1] + 2, planes[0]
    at_knots = np.frombuffer(block, "<f4", math.prod(shape)).reshape(shape)
    values = _interpolate_knots(at_knots, planes)
    if len(block) > at_knots.nbytes:
        values += _decode_steps(block[at_knots.nbytes :], planes, step)
    return values


def _encode_steps(values: Num[np.ndarray, "rows columns channels"], step: float) -> bytes:
    """Rounds values to whole steps, and returns the block of a frame."""
    numbers = np.moveaxis(values, -1, 0) / np.float64(step)
    np.rint(np.nan_to_num(numbers, copy=False), out=numbers)
    steps = np.clip(numbers, -_MOST_STEPS, _MOST_STEPS, out=numbers).astype("<i4")
    rest = np.diff(np.diff(steps, axis=1), axis=2)
    rest += 8
    lowest = (rest & 15).astype(np.uint8).reshape(-1)
    rest >>= 4
    # A byte holds a digit of the first half and one of the second half.
    half = (lowest.size + 1) // 2
    packed = lowest[:half].copy()
    packed[: lowest.size - half] |= lowest[half:] << 4
    parts = [steps[:, :, 0], steps[:, 0]]
    while rest.any():
        rest += 128
        parts.append((rest & 255).astype(np.uint8))
        rest >>= 8
    return packed.tobytes() + zlib.compress(b"".join(part.tobytes() for part in parts), 1)


def _decode_steps(
    block: bytes, planes: tuple[int, int, int], step: float
) -> Float[np.ndarray, "rows columns channels"]:
    """Returns the values of what `_encode_steps` returned; `ValueError` where it is something else."""
    channels, rows, columns = planes
    inner = channels, rows - 1, columns - 1
    half = (math.prod(inner) + 1) // 2
    packed = np.frombuffer(block, np.uint8, half)
    lowest = np.empty(2 * half, np.uint8)
    np.bitwise_and(packed, 15, out=lowest[:half])
    np.right_shift(packed, 4, out=lowest[half:])
    lowest = lowest[: math.prod(inner)].reshape(inner)

    content = _inflate(block[half:], 4 * channels * (rows + columns) + _MOST_DIGITS * math.prod(inner))
    edges = np.frombuffer(content, "<i4", channels * (rows + columns))
    first_columns, first_rows = (part.reshape(channels, -1) for part in np.split(edges, [channels * rows]))
    digits = np.frombuffer(content[edges.nbytes :], np.uint8).reshape(-1, *inner)

    # What the sums have too much, because digits are stored from 0 on. Beyond 32 bits numbers wrap around, and back.
    added = np.array(8 + sum(128 << (4 + 8 * power) for power in range(len(digits)))).astype(np.int32)
    excess = np.arange(rows, dtype=np.int32)[:, None] * (np.arange(columns, dtype=np.int32) * added)
    found = []
    for channel in range(channels):
        total = cv2.integral(lowest[channel], sdepth=cv2.CV_32S)
        for power, digit in enumerate(digits):
            total += cv2.integral(digit[channel], sdepth=cv2.CV_32S) << (4 + 8 * power)
        total -= excess
        total += first_rows[channel]
        total += (first_columns[channel] - first_columns[channel, 0])[:, None]
        found.append(total.astype(np.float32))
    values = cv2.merge(found)
    values *= np.float32(step)
    return values


def _inflate(data: bytes, most: int) -> bytes:
    """Inflates data; `ValueError` or `zlib.error` where it is damaged, or holds more than `most` bytes."""
    inflater = zlib.decompressobj()
    content = inflater.decompress(data, most + 1)
    if len(content) > most or not inflater.eof:
        raise ValueError("it is cut short, or too long")
    return content


def damaged_maps_error(folder: Path, why: str) -> UserError:
    """Returns the error of maps that cannot be read.

    Args:
        folder: the folder `maps` of a run.
        why: which file, and what is wrong with it.
    """
    return UserError(ExitCode.DAMAGED_RUN, "the baked maps cannot be read", where=str(folder), why=why, fix=BAKE_AGAIN)

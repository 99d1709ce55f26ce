"""Arrays in files, without their filling memory: what was read of a mapped file stays resident until it is let go."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator

import numpy as np

LET_GO_EVERY = 32  # frames: often enough to stay flat with the length of a clip, seldom enough to cost nothing
LARGE = 32 << 20  # bytes from which an array that grows with the clip is better kept in a file


def let_go(array: np.ndarray) -> None:
    """Gives back the memory of an array that is mapped from a file; what is read again comes from the file."""
    shared = isinstance(array, np.memmap) and array.mode in ("r", "r+", "w+")  # others may have changes of their own
    mapped = getattr(array, "_mmap", None) if shared else None
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if mapped is not None and advice is not None:
        mapped.madvise(advice)


def one_by_one(frames: np.ndarray) -> Iterator[np.ndarray]:
    """The entries of an array in turn, letting go of those that were read."""
    for index in range(len(frames)):
        yield frames[index]
        if index % LET_GO_EVERY == LET_GO_EVERY - 1:
            let_go(frames)
    let_go(frames)


def zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of zeros; a large one lies in a file that is gone when the array is."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)

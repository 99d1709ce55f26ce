"""Arrays mapped from files that do not fill memory: pages that were read stay resident until they are released."""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

RELEASE_INTERVAL = 32  # frames: often enough to stay flat with the length of a clip, seldom enough to cost nothing
FILE_BACKED_FROM_BYTES = 32 << 20  # bytes from which an array that grows with the clip is better kept in a file


def release_memory(array: np.ndarray) -> None:
    """Releases the memory of an array that is mapped from a file; what is read again comes from the file."""
    shared = isinstance(array, np.memmap) and array.mode in ("r", "r+", "w+")  # others may have changes of their own
    mapped = getattr(array, "_mmap", None) if shared else None
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if mapped is not None and advice is not None:
        mapped.madvise(advice)


def iterate_releasing(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the entries of an array in turn and releases the memory of those that were read."""
    for index in range(len(frames)):
        yield frames[index]
        if index % RELEASE_INTERVAL == RELEASE_INTERVAL - 1:
            release_memory(frames)
    release_memory(frames)


def allocate_zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Makes an array of zeros; a large one is mapped from a file that is removed with the array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < FILE_BACKED_FROM_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system, after much work on arrays in several threads.

    The allocator of Linux keeps it in pieces between what is still in use: some 300 MB after the geometry of a clip.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU library
        if trim is not None:
            trim(0)

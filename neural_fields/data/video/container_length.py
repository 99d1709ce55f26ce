"""The declared length of a video file, read from its outermost structure without decoding anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def count_missing_bytes(path: Path) -> int:
    """Computes the number of bytes that a truncated file lacks; 0 for formats that do not declare a length.

    MP4 boxes, the Matroska segment and the RIFF header of AVI each declare their length, so any cut shows.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            return max(0, int.from_bytes(head[4:8], "little") + 8 - size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return max(0, _find_matroska_end(file, size) - size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return max(0, _find_boxes_end(file, size) - size)
    return 0


def _find_boxes_end(file: BinaryIO, size: int) -> int:
    """Finds where the last top-level MP4 box says it ends."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # "up to the end of the file"
            return size
        if length < 8:  # padding or rubbish after the last box: the demuxer judges it
            return size
        at += length
    return at


def _find_matroska_end(file: BinaryIO, size: int) -> int:
    """Finds where the Matroska segment says it ends; `size` when it was written live with an unknown length."""
    file.seek(4)
    header = _read_matroska_length(file)
    if header is None:
        return size
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return size
    segment = _read_matroska_length(file)
    return size if segment is None else file.tell() + segment


def _read_matroska_length(file: BinaryIO) -> int | None:
    """Reads the variable-length integer at the file position; None for "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    count = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> count)]) + file.read(count), "big")
    return None if value == (1 << (7 * (count + 1))) - 1 else value

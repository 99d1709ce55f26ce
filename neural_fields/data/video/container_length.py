"""The declared lengths of a video file, read from its outermost structure without decoding anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO


def count_missing_bytes(path: Path) -> int | None:
    """Computes the number of bytes that a truncated file lacks; None where the file does not say its length.

    MP4 boxes, the Matroska segment and the RIFF header of AVI each declare their length, so any cut shows. Recordings
    that were not closed, or were written to a pipe, leave it open. An FLV file ends with the length of its last tag.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            length = int.from_bytes(head[4:8], "little")
            return None if length in (0, 0xFFFFFFFF) else max(0, length + 8 - size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            end = _find_matroska_end(file, size)
            return None if end is None else max(0, end - size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return max(0, _find_boxes_end(file, size) - size)
        if head[:3] == b"FLV" and size > 30:
            file.seek(size - 4)
            length = int.from_bytes(file.read(4), "big")
            file.seek(max(0, size - 4 - length))
            tag = file.read(4)
            return 0 if tag[0] in (8, 9, 18) and int.from_bytes(tag[1:], "big") + 11 == length else None
    return None


def read_edit_end(path: Path, track: int) -> Fraction | None:
    """Reads when a track of an MP4 or MOV file ends by its list of edits.

    Samples say in the order of decoding how long they last, so that only the list knows how long the frame stays that
    is shown last and decoded earlier.

    Args:
        path: the file.
        track: number of the track in the file.

    Returns:
        Seconds; None where the track has no such list.
    """
    with path.open("rb") as file:
        moov = next((at for kind, at in _iterate_boxes(file, 0, path.stat().st_size) if kind == b"moov"), None)
        if moov is None:
            return None
        scale, found = 0, None
        for kind, (start, end) in _iterate_boxes(file, *moov):
            if kind == b"mvhd":
                file.seek(start)
                head = file.read(24)
                scale = int.from_bytes(head[20:24] if head[0] else head[12:16], "big")
            if kind != b"trak":
                continue
            inner = dict(_iterate_boxes(file, start, end))
            file.seek(inner[b"tkhd"][0])
            head = file.read(24)
            number = int.from_bytes(head[20:24] if head[0] else head[12:16], "big")
            edits = dict(_iterate_boxes(file, *inner[b"edts"])).get(b"elst") if b"edts" in inner else None
            if number == track and edits is not None:
                file.seek(edits[0])
                table = file.read(edits[1] - edits[0])
                width, size = (8, 20) if table[0] else (4, 12)
                count = int.from_bytes(table[4:8], "big")
                found = sum(int.from_bytes(table[8 + size * k :][:width], "big") for k in range(count))
        return Fraction(found, scale) if found and scale else None


def _iterate_boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yields the kind of each box between two places of a file, and where its content starts and ends."""
    at = start
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        length, kind, skipped = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, skipped = int.from_bytes(head[8:16], "big"), 16
        length = length or end - at
        if length < skipped:
            return
        yield kind, (at + skipped, min(at + length, end))
        at += length


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


def _find_matroska_end(file: BinaryIO, size: int) -> int | None:
    """Finds where the Matroska segment says it ends; None when it was written live with an unknown length."""
    file.seek(4)
    header = _read_matroska_length(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    segment = _read_matroska_length(file)
    return None if segment is None else file.tell() + segment


def _read_matroska_length(file: BinaryIO) -> int | None:
    """Reads the variable-length integer at the file position; None for "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    count = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> count)]) + file.read(count), "big")
    return None if value == (1 << (7 * (count + 1))) - 1 else value

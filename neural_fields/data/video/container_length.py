"""How a video file ends, and what it declares, read from its outermost structure without decoding anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
# What a segment and a cluster hold: seek head, info, tracks, cues, chapters, tags, attachments, another file's header;
# times, blocks, groups of blocks, places, sizes, silent tracks, encrypted blocks; empty space and checksums.
_MATROSKA_ELEMENTS = {
    *(_SEGMENT, _CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469),
    *(0x1A45DFA3, 0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF, 0xEC, 0xBF),
}


@dataclass(frozen=True)
class FileEnd:
    """How a file ends by its own structure.

    Attributes:
        missing_bytes: what it lacks by the lengths that it declares; 0 where it is whole.
        has_length: whether it is known how long it should be. Otherwise it was recorded live, and the missing bytes are
            those of its last packet: the file was cut short, or the recording was interrupted. The packet is not read.
    """

    missing_bytes: int
    has_length: bool


def read_file_end(path: Path) -> FileEnd | None:
    """Reads how a video file ends; None where its structure does not say it.

    MP4 boxes, the Matroska segment and the RIFF headers of AVI each declare their length, so any cut shows. Files that
    were recorded live, or written to a pipe, leave it open: of these, each packet says its length, as in FLV files,
    whose last packet is read even where it is not complete.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            return find_riff_end(file, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return find_matroska_end(file, size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return find_boxes_end(file, size)
        if head[:3] == b"FLV":
            return find_flv_end(file, size)
        for length, at in ((188, 0), (192, 4)):  # MPEG streams, of which Blu-rays have times before each packet
            file.seek(at)
            if size > 2 * length and all(sync == 0x47 for sync in file.read(2 * length)[::length]):
                return FileEnd(-size % length, False)
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


def find_boxes_end(file: BinaryIO, size: int) -> FileEnd | None:
    """Finds where the last top-level MP4 box says it ends."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # "up to the end of the file"
            return None
        if length < 8:  # padding or rubbish after the last box: the demuxer judges it
            break
        at += length
    return FileEnd(max(0, at - size), True)


def find_riff_end(file: BinaryIO, size: int) -> FileEnd | None:
    """Finds where the last chunk of an AVI file says it ends.

    Long files have a RIFF for each gigabyte or so. In one that was not closed, RIFF and the list of the frames have no
    length, and each frame has one.
    """
    at = end = 0
    has_length = True
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        if not re.fullmatch(rb"[\w ]{4}", head[:4]):
            return FileEnd(0, True) if has_length else None  # something behind the last RIFF
        length = int.from_bytes(head[4:], "little")
        if head[:4] in (b"RIFF", b"LIST") and length in (0, 0xFFFFFFFF):
            has_length, end = False, at + 12
        else:
            end = at + 8 + length
        at = end + end % 2
    return FileEnd(max(0, end - size), has_length)


def find_flv_end(file: BinaryIO, size: int) -> FileEnd | None:
    """Finds where the last tag of an FLV file says it ends; the length of a tag stands behind it once more."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big")
    while at + 4 < size:
        file.seek(at)
        head = file.read(8)
        if len(head) == 8 and head[4] & 0x1F not in (8, 9, 18):
            return None
        at += 15 + int.from_bytes(head[5:8], "big")
    return FileEnd(max(0, at - size), True)  # a writer that was stopped may leave out the last length


def find_matroska_end(file: BinaryIO, size: int) -> FileEnd | None:
    """Finds where the segment says it ends, or, where its length is unknown, its last element."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        # An element is an identity and a length, each of as many bytes as its first one has zeros in front, and one.
        count = 9 - head[0].bit_length()
        if count > 4:
            return None
        width = 9 - head[count].bit_length() if len(head) > count else 1
        if len(head) < count + width:
            return FileEnd(count + width - len(head), False)
        name, most = int.from_bytes(head[:count], "big"), (1 << 7 * width) - 1
        length = int.from_bytes(head[count : count + width], "big") & most
        if name not in _MATROSKA_ELEMENTS:
            return None
        at += count + width
        if length != most:
            at += length
            if name == _SEGMENT:
                return FileEnd(max(0, at - size), True)
        elif name not in (_SEGMENT, _CLUSTER):
            return None
    return FileEnd(max(0, at - size), False)

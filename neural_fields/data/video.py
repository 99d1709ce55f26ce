"""Video in and out, for files and folders of numbered pictures: the front of `decode`, `images` and `encode`.

`read` decodes the chosen frames once into a memory-mapped file; `source_frames` streams them at the source's size;
`write` (in `encode`) makes a video that mirrors the source's times, colours and sound.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from neural_fields.data.decode import check_regular, file_frames, probe_file, rgba_frames
from neural_fields.data.encode import CODECS, write
from neural_fields.data.facts import SoundTrack, Video, VideoFacts, parse_frames, parse_size
from neural_fields.data.images import image_frames, is_image, probe_images
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import atomic_write, sha256_file, write_json

__all__ = [
    "CODECS",
    "SoundTrack",
    "Video",
    "VideoFacts",
    "parse_frames",
    "parse_size",
    "probe",
    "read",
    "rgba_frames",
    "source_frames",
    "write",
]

# The first line of https://bford.info/cachedir/: programs that make backups skip folders with this file.
CACHE_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Decoded frames and flow of unwrap; may be deleted at any time.\n"
)


def probe(path: str | Path, *, rate: Fraction | None = None) -> VideoFacts:
    """The facts of a video file, a folder of numbered pictures or a single picture.

    `rate` (frames a second) is for pictures, which carry none; without it 24 is assumed and said in the notes.
    Raises `UserError` (exit 3) for everything that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        return probe_images(path, rate)
    check_regular(path)
    if is_image(path):
        return probe_images(path, rate)
    return probe_file(path, sha256_file(path))


def source_frames(facts: VideoFacts, frames: range) -> Iterator[np.ndarray]:
    """Stream the chosen frames of the source: upright RGB uint8 [H, W, 3] at its own size, one in memory at a time."""
    if facts.kind == "images":
        return image_frames(facts, frames)
    size = check_regular(Path(facts.path)).st_size
    if size != facts.bytes:
        raise bad_input(
            "the source video changed",
            where=facts.path,
            why=f"it has {size} bytes now and had {facts.bytes}",
            fix="put the original back, or train again with --out NEW",
        )
    return file_frames(facts, frames)


def read(
    path: str | Path, cache: Path, size: str = "source", frames: str | None = None, *, rate: Fraction | None = None
) -> Video:
    """Decode the chosen frames once into `cache` and map them into memory.

    Args:
        path: a video file or a folder of numbered pictures.
        cache: a folder for the decoded frames; found again by content, size and range; may be deleted at any time.
        size: a `--size` text (`parse_size`); smaller sizes are averages over pixel areas.
        frames: a `--frames` text (`parse_frames`); None is all.
        rate: frames a second of a folder of pictures.

    Raises:
        UserError: bad input (3) or not enough space for the frames (4).
    """
    facts = probe(path, rate=rate)
    chosen = parse_frames(frames, facts.frame_count) if frames else range(facts.frame_count)
    width, height = parse_size(size, facts.width, facts.height)
    name = f"frames-{facts.sha256[:24]}-{width}x{height}-{chosen.start}-{chosen.stop}-{chosen.step}.npy"
    file, shape = Path(cache) / name, (len(chosen), height, width, 3)
    array = _open_cached(file, shape)
    if array is None:
        _make_cache(file.parent, int(np.prod(shape)))
        _decode_to(file, shape, (_resized(f, width, height) for f in source_frames(facts, chosen)))
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    times = tuple(facts.timestamps[i] for i in chosen)
    return Video(array, times, facts, (chosen.start, chosen.stop, chosen.step))


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture at the size of the fit: averages of areas when it shrinks, linear when it grows."""
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = width * height < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _make_cache(folder: Path, need: int) -> None:
    """The cache folder with its tag, after a look at the free space."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "CACHEDIR.TAG").exists():
            with atomic_write(folder / "CACHEDIR.TAG") as part:
                part.write_text(CACHE_TAG)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise bad_input(
            "the cache folder cannot be made", where=str(folder), why=str(error), fix="use another --out"
        ) from error
    if free < need + (16 << 20):
        raise UserError(
            ExitCode.NO_ROOM,
            "not enough space for the decoded frames",
            where=str(folder),
            why=f"{need / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free",
            fix="use a smaller --size or fewer --frames, or free some space",
        )


def _decode_to(file: Path, shape: tuple[int, ...], pictures: Iterator[np.ndarray]) -> None:
    """Write the frames one after another (no mapped page stays dirty), then their checksum beside them."""
    checksum = 0
    try:
        with atomic_write(file) as part, part.open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            count = 0
            for picture in pictures:
                data = np.ascontiguousarray(picture).data
                checksum = zlib.crc32(data, checksum)
                out.write(data)
                count += 1
            if count != shape[0]:
                raise AssertionError(f"{count} frames decoded instead of {shape[0]}")
        write_json(_checksum_file(file), {"crc32": checksum, "bytes": file.stat().st_size})
    except OSError as error:
        raise UserError(
            ExitCode.NO_ROOM,
            "the decoded frames cannot be stored",
            where=str(file.parent),
            why=str(error),
            fix="free some space",
        ) from error


def _checksum_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _open_cached(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached frames, mapped; None when they are not there, short or not what was written."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_checksum_file(file).read_text())
        if os.path.getsize(file) != known["bytes"]:
            return None
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.uint8:
            return None
        return array if _crc32(file, array.size) == known["crc32"] else None
    return None


def _crc32(file: Path, size: int) -> int:
    """The checksum of the last `size` bytes, read in pieces: a mapped file would count as memory in use."""
    checksum = 0
    with file.open("rb") as source:
        source.seek(-size, os.SEEK_END)
        while piece := source.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum

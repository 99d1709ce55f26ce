"""Video input and output, for files and folders of numbered pictures: `decode`, `image_sequence` and `encode` in one.

`read_video` decodes the chosen frames once into a memory-mapped file; `source_frames` streams them at the source's
size; `write_video` writes a video that mirrors the source's times, colors and sound.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import atomic_write, write_json
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.video.decode import check_regular_file, file_frames, rgba_frames
from neural_fields.data.video.encode import CODECS, write_video
from neural_fields.data.video.image_sequence import image_frames
from neural_fields.data.video.metadata import SoundTrack, Video, VideoMetadata, parse_frames, parse_size
from neural_fields.data.video.probe import probe_video

__all__ = [
    "CODECS",
    "SoundTrack",
    "Video",
    "VideoMetadata",
    "parse_frames",
    "parse_size",
    "probe_video",
    "read_video",
    "resized_frames",
    "rgba_frames",
    "source_frames",
    "write_video",
]


def source_frames(metadata: VideoMetadata, frames: range) -> Iterator[np.ndarray]:
    """Streams frames of the source, one in memory at a time.

    Args:
        metadata: metadata of the source.
        frames: numbers of the frames (`VideoMetadata.numbers`).

    Yields:
        Upright frames, RGB uint8 [height, width, 3], at the source's size.

    Raises:
        UserError: the source is missing, damaged, or has changed since it was probed (exit 3).
    """
    first = metadata.first_number
    indices = range(frames.start - first, frames.stop - first, frames.step)
    if metadata.kind == "images":
        return image_frames(metadata, indices)
    size = check_regular_file(Path(metadata.path)).st_size
    if size != metadata.bytes:
        raise bad_input(
            "the source video changed",
            where=metadata.path,
            why=f"it has {size} bytes now and had {metadata.bytes}",
            fix="put the original back, or train again with --out NEW",
        )
    return file_frames(metadata, indices)


def resized_frames(metadata: VideoMetadata, frames: range, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Streams frames of the source at another size.

    Args:
        metadata: metadata of the source.
        frames: numbers of the frames.
        size: (width, height) of the result.

    Yields:
        As `source_frames`, at that size.

    Raises:
        UserError: as `source_frames`.
    """
    for frame in source_frames(metadata, frames):
        if (frame.shape[1], frame.shape[0]) == size:
            yield frame
        else:
            yield cv2.resize(frame, size, interpolation=cv2.INTER_AREA if size[0] < frame.shape[1] else cv2.INTER_CUBIC)


def read_video(
    video: str | Path | VideoMetadata,
    cache: Path,
    size: str = "source",
    frames: str | None = None,
    report: ProgressReporter = report_nothing,
) -> Video:
    """Decodes the chosen frames once into `cache` and maps them into memory.

    Args:
        video: a video file or a folder of numbered pictures, or its metadata, if it was probed already.
        cache: a folder for the decoded frames, which are reused for the same content, size and range; it may be
            deleted at any time.
        size: a `--size` text (`parse_size`); smaller sizes are averages over pixel areas.
        frames: a `--frames` text (`parse_frames`); None takes all frames.
        report: called after each frame that is decoded, as the stage "reading".

    Returns:
        The frames with their times and the metadata of the whole source.

    Raises:
        UserError: input that cannot be used (exit 3), or not enough space for the frames (exit 4).
    """
    metadata = video if isinstance(video, VideoMetadata) else probe_video(video)
    chosen = parse_frames(frames, metadata.numbers) if frames else metadata.numbers
    width, height = parse_size(size, metadata.width, metadata.height)
    name = f"frames-{metadata.sha256[:24]}-{width}x{height}-{chosen.start}-{chosen.stop}-{chosen.step}.npy"
    file, shape = Path(cache) / name, (len(chosen), height, width, 3)
    array = _open_cached(file, shape)
    if array is None:
        # The folder with its tag, and enough free space.
        folder, need = file.parent, int(np.prod(shape))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "CACHEDIR.TAG").exists():
                with atomic_write(folder / "CACHEDIR.TAG") as part:
                    # The first line of https://bford.info/cachedir/: programs that make backups skip such folders.
                    part.write_text(
                        "Signature: 8a477f597d28d172789f06886806bc55\n"
                        "# Decoded frames and flow of unwrap; may be deleted at any time.\n"
                    )
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

        _decode_to(file, shape, source_frames(metadata, chosen), report)
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    return Video(array, metadata.find_times(chosen), metadata, (chosen.start, chosen.stop, chosen.step))


def _decode_to(
    file: Path, shape: tuple[int, int, int, int], pictures: Iterator[np.ndarray], report: ProgressReporter
) -> None:
    """Writes the frames one after another (no mapped page stays dirty), then their checksum beside them.

    Frames are resized to `shape` [frames, height, width, 3]: by averages of areas when they shrink, else linearly.
    """
    checksum, count = 0, 0
    frame_count, height, width, _ = shape
    try:
        with atomic_write(file) as part, part.open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            for picture in pictures:
                if picture.shape[:2] != (height, width):
                    shrinks = width * height < picture.shape[0] * picture.shape[1]
                    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
                    picture = cv2.resize(picture, (width, height), interpolation=mode)
                data = np.ascontiguousarray(picture).data
                checksum = zlib.crc32(data, checksum)
                out.write(data)
                count += 1
                report(Progress("reading", min(count, frame_count), frame_count))
            if count != frame_count:
                raise AssertionError(f"{count} frames decoded instead of {frame_count}")
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
    """Maps the cached frames; None when they are not there, short or not what was written."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_checksum_file(file).read_text())
        if os.path.getsize(file) != known["bytes"]:
            return None
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.uint8:
            return None
        # The checksum is read in pieces: a mapped file would count as memory in use.
        checksum = 0
        with file.open("rb") as source:
            source.seek(-array.size, os.SEEK_END)
            while piece := source.read(1 << 20):
                checksum = zlib.crc32(piece, checksum)
        return array if checksum == known["crc32"] else None
    return None

"""Reads video files with PyAV: their metadata, and their frames upright as 8-bit RGB.

A foreign file meets FFmpeg only here (and its sound in `encode.py`), behind three fences: an allow-list of demuxers
and of the one protocol "file" (a script of other files, renamed to .mp4, is refused), the declared lengths checked
before anything is decoded (FFmpeg reads a cut Matroska file as a shorter film without a word), and one border that
turns every exception of the parser into a `UserError`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.data.video.color_tags import SPACES, TRANSFERS, convert_to_rgb, read_color_tags
from neural_fields.data.video.container_length import count_missing_bytes
from neural_fields.data.video.metadata import (
    DEFAULT_RATE,
    SoundTrack,
    VideoMetadata,
    check_size,
    even_timestamps,
    find_frame_rate,
)


@contextmanager
def convert_parser_errors(path: str | Path, doing: str) -> Iterator[None]:
    """Converts any error of FFmpeg into a `UserError` that names the file.

    Args:
        path: the file that FFmpeg reads.
        doing: what is done with it, such as "decoding": part of the message.

    Raises:
        UserError: FFmpeg fails, memory runs out, or a disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            ExitCode.NO_ROOM, f"not enough memory while {doing}", where=str(path), fix="use a smaller video or --size"
        ) from error
    # The border around a foreign parser: mutated files make PyAV raise ten unrelated types, ValueError among them.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                ExitCode.NO_ROOM, f"no space left while {doing}", where=str(path), why=str(error), fix="free some space"
            ) from error
        reason = getattr(error, "strerror", None) or str(error) or "no reason given"
        raise bad_input(
            f"failed while {doing}",
            where=str(path),
            why=f"{type(error).__name__}: {reason}",
            fix="check that a video player plays it to the end, or convert it again from its origin",
        ) from error


def check_regular_file(path: Path) -> os.stat_result:
    """Checks that a path is a regular file that can be read and is not empty.

    Returns:
        The status of the file.

    Raises:
        UserError: it is missing, empty, a pipe, a folder, or may not be read.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise bad_input(
            "cannot find the video", where=str(path), why=why, fix="check the name and the folder"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise bad_input("the video is not a regular file", where=str(path), fix="save it to a file first")
    if found.st_size == 0:
        raise bad_input("the video is empty (0 bytes)", where=str(path), fix="copy or download it again")
    if not os.access(path, os.R_OK):
        raise bad_input("no permission to read the video", where=str(path), fix="change its permissions")
    return found


def open_container(path: str | Path) -> Any:
    """Opens a local video file with PyAV. The caller closes it.

    Raises:
        UserError: FFmpeg cannot read it, or its format is not among the allowed ones.
    """
    demuxers = (
        "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,apng,mxf,nut,ivf,yuv4mpegpipe,h264,hevc,m4v,mpegvideo,dv"
    )
    # The explicit "file:" keeps names such as "http:x.mp4" or "-i" from meaning anything.
    with convert_parser_errors(path, "opening it as a video"):
        return av.open(
            "file:" + os.path.abspath(path),
            container_options={"format_whitelist": demuxers, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )


def rgba_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Streams every frame of a film as stored: uint8 [H, W, 4], with straight alpha.

    Raises:
        UserError: the file holds no film, or a frame cannot be decoded.
    """
    with open_container(path) as container:
        stream = _find_film(container, path)
        with convert_parser_errors(path, "decoding"):
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgba")


def _is_film(stream: Any) -> bool:
    """Whether a video stream is a film, not the cover art of a song."""
    return not bool(stream.disposition & av.stream.Disposition.attached_pic)


def _find_film(container: Any, path: str | Path) -> Any:
    """Finds the first video stream that is a film."""
    for stream in container.streams.video:
        if _is_film(stream) and stream.codec_context is not None:
            # Slices, not frames: the same frames come out with less delay, and faster at these sizes.
            stream.thread_type = "SLICE"
            # A damaged frame is an error to report, not something to paint over.
            stream.codec_context.options = {"err_detect": "explode"}
            return stream
    if len(container.streams) == 0:
        why = "the file has no index of its streams: its end is missing or the recording was not closed"
    else:
        why = "it holds " + ", ".join(f"{s.type} stream {s.index}" for s in container.streams)
    raise bad_input("no video in the file", where=str(path), why=why, fix="copy or record the file again")


@dataclass(frozen=True)
class _PacketScan:
    """What the packets of a file say without decoding it."""

    pts: tuple[int, ...] | None  # sorted, in ticks; None when only decoding can tell the frames
    end: Fraction  # seconds: the latest end of any stream
    sound: tuple[SoundTrack, ...]


def _scan_packets(container: Any, film: Any) -> _PacketScan:
    """Reads every packet once."""
    pts: list[int | None] = []
    certain = film.codec_context.name != "vp8"  # VP8 stores hidden frames as packets of their own
    ends: dict[int, Fraction] = {}
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            ends[packet.stream_index] = max(ends.get(packet.stream_index, end), end)
        if packet.stream_index == film.index:
            pts.append(packet.pts)
            certain = certain and packet.pts is not None and not packet.is_discard
    known = sorted(p for p in pts if p is not None)
    if not certain or len(set(known)) != len(pts):
        known = []
    sound = []
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            codec = stream.codec_context.codec.canonical_name
            sound.append(SoundTrack(stream.index, codec, float(ends.get(stream.index, 0))))
    return _PacketScan(tuple(known) or None, max(ends.values(), default=Fraction(0)), tuple(sound))


def truncation_error(path: str | Path, why: str) -> UserError:
    """Returns the error for a truncated file."""
    return bad_input("the video is cut short", where=str(path), why=why, fix="copy or download the whole file again")


def rotate_upright(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turns a picture [H, W, C] by a display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y, y down.

    It supports only the eight rotations and mirrorings that do not resample pixels.
    """
    a, b, c, d = matrix
    if a == 0 and d == 0:
        picture = picture.swapaxes(0, 1)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def read_display_matrix(frame: Any, path: str | Path) -> tuple[int, int, int, int]:
    """Reads the display matrix (a, b, c, d) of a frame, each entry -1, 0 or 1.

    Raises:
        UserError: the matrix rotates by an angle that is not a multiple of 90 degrees.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            values = np.frombuffer(bytes(data), np.int32)
            a, b, c, d = (int(v) for v in np.rint(values[[0, 1, 3, 4]] / 65536))
            if sorted((abs(a * d), abs(b * c))) != [0, 1] or max(map(abs, (a, b, c, d))) > 1:
                raise bad_input(
                    "the video is rotated by an angle that is not a multiple of 90 degrees",
                    where=str(path),
                    why=f"its display matrix is {values.tolist()}",
                    fix="rotate it in a video editor first",
                )
            return a, b, c, d
    return 1, 0, 0, 1


def _decode_frames(decoder: Iterator[Any], path: str | Path, count: int = 0) -> Iterator[Any]:
    """Decodes frames in display order, of which the first is number `count`; the last leave the flushed decoder."""
    while True:
        with convert_parser_errors(path, f"decoding frame {count}"):
            frame = next(decoder, None)
        if frame is None:
            return
        if frame.is_corrupt:
            raise bad_input(
                f"frame {count} of the video is damaged",
                where=str(path),
                why="the decoder cannot rebuild it",
                fix=f"use the frames before it: --frames 0:{count}" if count else "copy the file again",
            )
        yield frame
        count += 1


def time_origin(container: Any) -> Fraction:
    """Returns the time in seconds that counts as zero."""
    # These formats count time from wherever the broadcast was; everyone else means zero as zero.
    if container.format.name in ("mpegts", "mpeg") and container.start_time:
        return Fraction(container.start_time, 1_000_000)
    return Fraction(0)


def probe_file(path: Path, sha256: str) -> VideoMetadata:
    """Reads the metadata of a video file. Frames are decoded only where the packets do not give their times.

    Args:
        path: the file.
        sha256: SHA-256 of its bytes, in hexadecimal; it is stored with the metadata.

    Raises:
        UserError: the file is damaged or cut short, has no frames, or has frames of a size that is not supported.
    """
    stat = check_regular_file(path)
    with open_container(path) as container:
        film = _find_film(container, path)
        if lacking := count_missing_bytes(path):
            raise truncation_error(path, f"by its own header {lacking} bytes are missing")
        check_size(film.codec_context.width, film.codec_context.height, where=str(path))
        with convert_parser_errors(path, "reading the video"):
            scan = _scan_packets(container, film)
    with open_container(path) as container:
        film = _find_film(container, path)
        frames = _decode_frames(container.decode(film), path)
        first = next(frames, None)
        if first is None:
            raise bad_input(
                "the video has no frames", where=str(path), why="at least one is needed", fix="record it again"
            )

        # The time of each frame in seconds, and the rate.
        trusted = scan.pts is not None and first.pts == scan.pts[0] and not first.interlaced_frame
        pts = (scan.pts if trusted else (first.pts, *(frame.pts for frame in frames))) or ()
        zero, tick = time_origin(container), Fraction(film.time_base)
        declared = Fraction(film.average_rate or film.guessed_rate or 0) or None
        timestamps = tuple(p * tick - zero for p in pts if p is not None)
        time_notes = []
        if len(timestamps) != len(pts) or any(a >= b for a, b in pairwise(timestamps)):
            even = declared or DEFAULT_RATE
            timestamps = even_timestamps(len(pts), even)
            time_notes = [
                f"the file does not give every frame its own time: frames are spaced evenly at {even} frames a second"
            ]
        rate, variable = find_frame_rate(timestamps, tick, declared)

        # The second fence, for files without lengths: packets that end well before the header says.
        with_duration = ("mov", "matroska", "avi", "flv", "asf")
        if container.duration is not None and container.format.name.split(",")[0] in with_duration:
            end = Fraction(container.start_time or 0, 1_000_000) + Fraction(container.duration, 1_000_000)
            # Two frames and a tenth: sound frames and rounding to milliseconds make honest files differ by less.
            if end - scan.end > 2 / rate + Fraction(1, 10):
                raise truncation_error(path, f"it declares {float(end):.2f} s and holds {float(scan.end):.2f} s")

        # The rotation of a mirrored picture is the one that follows a left-right mirroring.
        a, b, c, d = matrix = read_display_matrix(first, path)
        column = (-a, -b) if a * d - b * c < 0 else (a, b)
        rotation = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[column]
        width, height = (first.width, first.height) if a else (first.height, first.width)
        check_size(width, height, where=str(path))
        aspect = Fraction(film.sample_aspect_ratio or 1)
        if aspect <= 0:
            aspect = Fraction(1)
        return VideoMetadata(
            path=os.path.abspath(path),
            kind="file",
            sha256=sha256,
            bytes=stat.st_size,
            width=width,
            height=height,
            frame_count=len(timestamps),
            rate=rate,
            time_base=tick,
            timestamps=timestamps,
            variable_rate=variable,
            rotation=rotation,
            codec=film.codec_context.name,
            pixel_format=first.format.name,
            **read_color_tags(first),
            sound=scan.sound,
            notes=(*_list_losses(container, film, first, matrix), *time_notes),
            pixel_aspect=aspect if a else 1 / aspect,
            first_number=0,
        )


def _list_losses(container: Any, film: Any, first: Any, matrix: tuple[int, int, int, int]) -> tuple[str, ...]:
    """Says what 8 bit RGB frames of the first film lose against the file, one sentence each."""
    notes = []
    depth = max(component.bits for component in first.format.components)
    if depth > 8:
        notes.append(f"{depth} bit color is read as 8 bit")
    has_alpha = any(component.is_alpha for component in first.format.components)
    if has_alpha or film.metadata.get("alpha_mode") == "1":
        notes.append("transparency is left out: the colors under it are read")
    transfer = TRANSFERS.get(int(first.color_trc))
    if transfer in ("smpte2084", "arib-std-b67"):
        notes.append(f"high dynamic range ({transfer}) is read as coded, without tone mapping")
    if SPACES.get(int(first.colorspace)) in ("ycgco", "bt2020c"):
        notes.append("its color matrix is rare and is read as the nearest common one")
    if first.interlaced_frame:
        notes.append("it is interlaced: both fields are read as one frame")
    if matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0:
        notes.append("it is stored mirrored: frames are read as players show them")
    if (film.sample_aspect_ratio or 1) not in (0, 1):
        notes.append(f"its pixels are not square ({film.sample_aspect_ratio}): frames are read pixel for pixel")
    films = sum(_is_film(s) for s in container.streams.video)
    if films > 1:
        notes.append(f"it holds {films} films: the first is read")
    others = [s.type for s in container.streams if s.type not in ("video", "audio")]
    if others:
        notes.append(f"tracks of other kinds are left out: {', '.join(sorted(set(others)))}")
    return tuple(notes)


def file_frames(metadata: VideoMetadata, frames: range) -> Iterator[np.ndarray]:
    """Streams the chosen frames, upright uint8 [H, W, 3] at the source's size.

    Args:
        metadata: metadata of the video file.
        frames: frame numbers, rising.

    Raises:
        UserError: a frame cannot be decoded, or its size differs from that of the first one.
    """
    wanted = iter(frames)
    target = next(wanted, None)
    reformatter = VideoReformatter()
    for index, frame in _decode_from(metadata, frames.start):
        if target is None:
            return
        if index < target:
            continue
        picture = rotate_upright(convert_to_rgb(frame, reformatter), read_display_matrix(frame, metadata.path))
        if picture.shape[:2] != (metadata.height, metadata.width):
            raise bad_input(
                f"the picture size changes at frame {index}",
                where=metadata.path,
                why=f"{picture.shape[1]}x{picture.shape[0]} after {metadata.width}x{metadata.height}",
                fix=f"use the frames before it: --frames 0:{index}",
            )
        yield picture
        target = next(wanted, None)
        if target is None:
            return
    if target is not None:
        raise truncation_error(metadata.path, f"frame {target} of {metadata.frame_count} cannot be decoded")


def _decode_from(metadata: VideoMetadata, start: int) -> Iterator[tuple[int, Any]]:
    """Decodes frames with their index from `start` or before: it seeks the key frame before it, where that is exact."""
    with open_container(metadata.path) as container:
        film = _find_film(container, metadata.path)
        # Nearer starts are decoded through faster than looked for, and other formats have no list of key frames.
        if start > 32 and container.format.name.split(",")[0] in ("mov", "matroska"):
            zero, tick = time_origin(container), Fraction(film.time_base)
            with convert_parser_errors(metadata.path, f"looking for frame {start}"):
                container.seek(int((metadata.timestamps[start] + zero) / tick), stream=film, backward=True)
                decoder = container.decode(film)
                first = next(decoder, None)
            time = first.pts * tick - zero if first is not None and first.pts is not None else None
            if time in metadata.timestamps[: start + 1]:
                at = metadata.timestamps.index(time)
                yield from enumerate(_decode_frames(chain([first], decoder), metadata.path, at), at)
                return
    with open_container(metadata.path) as container:
        yield from enumerate(_decode_frames(container.decode(_find_film(container, metadata.path)), metadata.path))

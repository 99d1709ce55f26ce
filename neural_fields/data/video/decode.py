"""Reads video files with PyAV: their metadata, and their frames upright as 8-bit RGB.

A foreign file meets FFmpeg only here (and its sound in `encode.py`), behind three fences: an allow-list of demuxers
and of the one protocol "file" (a script of other files, renamed to .mp4, is refused), the declared lengths checked
before anything is decoded (FFmpeg reads a cut Matroska file as a shorter film without a word), and one border that
turns every exception of the parser into a `UserError`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.data.video.color_tags import SPACES, TRANSFERS, convert_to_rgb, read_color_tags
from neural_fields.data.video.container_length import read_edit_end, read_file_end
from neural_fields.data.video.file_tags import name_frame_marks, name_other_tracks, read_chapters, read_timecode
from neural_fields.data.video.frame_times import FrameStamp, tabulate_frame_times
from neural_fields.data.video.metadata import SoundTrack, VideoMetadata, check_size, find_frame_rate
from neural_fields.data.video.sound import CONTAINERS, try_sound_tracks


@contextmanager
def convert_parser_errors(
    path: str | Path,
    doing: str,
    fix: str = "check that a video player plays it to the end, or convert it again from its origin",
) -> Iterator[None]:
    """Converts any error of FFmpeg into a `UserError` that names the file.

    Args:
        path: the file that FFmpeg reads.
        doing: what is done with it, such as "decoding": part of the message.
        fix: what the user can do about a damaged file.

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
            fix=fix,
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
        fix, where = "check the name and the folder", str(path)
        if re.match(r"\w+:/", where):
            why, fix, where = (
                "addresses are not read",
                "download it first, and name the file",
                where.replace(":/", "://", 1),
            )
        elif re.search(r"%\d*d|[*?#]", path.name):
            why, fix = "patterns of names are not read", f"name the folder of the numbered pictures: {path.parent}"
        raise bad_input("cannot find the video", where=where, why=why, fix=fix) from error
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
        stream = find_film(container, path)
        with convert_parser_errors(path, "decoding"):
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgba")


def _is_film(stream: Any) -> bool:
    """Whether a video stream is a film, not the cover art of a song."""
    return not bool(stream.disposition & av.stream.Disposition.attached_pic)


def find_film(container: Any, path: str | Path) -> Any:
    """Finds the first video stream that is a film.

    Raises:
        UserError: there is none.
    """
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

    stamps: tuple[FrameStamp, ...] | None  # of each frame as shown; None when only decoding can tell the frames
    start: Fraction  # seconds: when the first stream starts
    film_end: Fraction  # seconds: the latest end of a packet of the film
    other_end: Fraction  # and of any other stream
    sound: tuple[SoundTrack, ...]


def _scan_packets(container: Any, film: Any) -> _PacketScan:
    """Reads every packet once."""
    stamps: list[FrameStamp] = []
    certain = film.codec_context.name != "vp8"  # VP8 stores hidden frames as packets of their own
    decoded_at: int | None = None  # time of the last packet in the order of decoding, which only a new recording breaks
    starts: dict[int, Fraction] = {}
    ends: dict[int, Fraction] = {}
    lengths: dict[int, Fraction] = {}
    for packet in container.demux():
        if packet.size == 0:
            continue
        index, tick = packet.stream_index, Fraction(packet.time_base)
        duration, time = (packet.duration or 0) * tick, None if packet.pts is None else packet.pts * tick
        if time is not None:
            starts.setdefault(index, time)
            ends[index] = max(ends.get(index, time), time + duration)
            heard = Fraction(0) if packet.is_discard else max(Fraction(0), time + duration - max(time, Fraction(0)))
            lengths[index] = lengths.get(index, Fraction(0)) + heard
        if index == film.index:
            stamps.append(FrameStamp(time, duration))
            is_back = decoded_at is not None and packet.dts is not None and packet.dts < decoded_at
            certain = certain and time is not None and not packet.is_discard and not is_back
            decoded_at = packet.dts
    certain = certain and len({stamp.time for stamp in stamps}) == len(stamps)
    sound = []
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            codec, at = stream.codec_context.codec.canonical_name, stream.index
            span = ends.get(at, Fraction(0)) - starts.get(at, Fraction(0))
            sound.append(SoundTrack(at, codec, float(lengths.get(at) or span)))
    ordered = tuple(sorted(stamps, key=lambda stamp: stamp.time or 0)) if certain and stamps else None
    seen = [time for index, time in starts.items() if index == film.index or index in {t.index for t in sound}]
    film_end, other_end = ends.pop(film.index, Fraction(0)), max(ends.values(), default=Fraction(0))
    return _PacketScan(ordered, min(seen, default=Fraction(0)), film_end, other_end, tuple(sound))


def _read_film_end(path: Path, container: Any, film: Any, scan: _PacketScan) -> Fraction | None:
    """Reads when the file says that its film ends, in seconds of its own count; None where it does not say."""
    name, start = container.format.name.split(",")[0], Fraction(container.start_time or 0, 1_000_000)
    if name == "mov":
        end = None if film.duration is None else ((film.start_time or 0) + film.duration) * Fraction(film.time_base)
        edited = read_edit_end(path, film.id)
        # The list counts in units that round: thousandths as a rule.
        return edited if edited is not None and (end is None or edited > end + Fraction(1, 100)) else end
    if name == "avi":  # empty packets, which are no frames, may follow the last one
        return None if not film.duration else film.duration * Fraction(film.time_base)
    if name not in ("matroska", "flv"):
        return None
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", film.metadata.get("DURATION", ""))
    if found is not None:  # FFmpeg writes the end here, and mkvmerge the length
        end = 3600 * int(found[1]) + 60 * int(found[2]) + Fraction(found[3])
        return end + start if abs(end + start - scan.film_end) < abs(end - scan.film_end) else end
    # What is declared beyond all other streams is the film's.
    whole = None if container.duration is None else Fraction(container.duration, 1_000_000)
    return whole if whole is not None and not scan.film_end <= whole <= scan.other_end else None


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
        fix = f"use the frames before it: --frames 0:{count}" if count else "copy the file again"
        with convert_parser_errors(path, f"decoding frame {count}", fix):
            frame = next(decoder, None)
        if frame is None:
            return
        if frame.is_corrupt:
            raise bad_input(
                f"frame {count} of the video is damaged",
                where=str(path),
                why="the decoder cannot rebuild it",
                fix=fix,
            )
        yield frame
        count += 1


def _check_file_end(
    path: Path, container: Any, scan: _PacketScan, rate: Fraction, film_end: Fraction | None
) -> tuple[str, ...]:
    """The second fence, for files without lengths: refuses packets that end well before the header says.

    A header alone proves nothing: where no byte of the last packet is missing, the last frame stays that long.

    Returns:
        Notes for the user.

    Raises:
        UserError: the file is cut short.
    """
    name, file_end = container.format.name.split(",")[0], read_file_end(path)
    if file_end is not None and not file_end.missing_bytes:
        return ()
    declared = Fraction(container.duration or 0, 1_000_000)
    if declared and name in ("mov", "avi", "asf"):  # the others declare the end and not the length
        declared += Fraction(container.start_time or 0, 1_000_000)
    declared = max(declared, film_end or declared)
    # Two frames and a tenth: sound frames and rounding to milliseconds make honest files differ by less.
    held = max(scan.film_end, scan.other_end)
    if name in ("mov", "avi", "asf", "matroska", "flv") and declared - held > 2 / rate + Fraction(1, 10):
        raise truncation_error(path, f"it declares {float(declared):.2f} s and holds {float(held):.2f} s")
    if file_end is None:
        return ()
    note = "its last packet is not complete: the recording was interrupted, or the file is cut short, "
    return (note + "and its last frames may be missing or damaged",)


def _read_stamp(frame: Any, tick: Fraction) -> FrameStamp:
    return FrameStamp(None if frame.pts is None else frame.pts * tick, (frame.duration or 0) * tick)


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
        film = find_film(container, path)
        file_end = read_file_end(path)
        if file_end is not None and file_end.has_length and file_end.missing_bytes:
            raise truncation_error(path, f"by its own header {file_end.missing_bytes} bytes are missing")
        check_size(film.codec_context.width, film.codec_context.height, where=str(path))
        with convert_parser_errors(path, "reading the video"):
            scan = _scan_packets(container, film)
    with open_container(path) as container:
        film = find_film(container, path)
        frames = _decode_frames(container.decode(film), path)
        first = next(frames, None)
        if first is None:
            raise bad_input("the video has no frames", where=str(path), why="one is needed", fix="record it again")

        # The time of each frame in seconds, and the rate.
        tick, declared = Fraction(film.time_base), Fraction(film.average_rate or film.guessed_rate or 0) or None
        stamps = [_read_stamp(first, tick)]
        if scan.stamps is not None and stamps[0].time == scan.stamps[0].time and not first.interlaced_frame:
            stamps = list(scan.stamps)
        else:
            stamps += [_read_stamp(frame, tick) for frame in frames]
        is_stream, film_end = container.format.name in ("mpegts", "mpeg"), _read_film_end(path, container, film, scan)
        table = tabulate_frame_times(stamps, tick, declared, declared_end=film_end, is_stream=is_stream)
        # MPEG streams count time from wherever the broadcast was; everyone else means zero as zero.
        zero = scan.start if is_stream else min(Fraction(0), table.starts[0])
        timestamps = tuple(start - zero for start in table.starts)
        rate, variable = find_frame_rate(timestamps, tick, declared)
        even_end, end = timestamps[-1] + 1 / rate, table.end - zero
        end = even_end if not variable and abs(end - even_end) <= tick else end

        end_notes = _check_file_end(path, container, scan, rate, film_end)

        # The rotation of a mirrored picture is the one that follows a left-right mirroring.
        a, b, c, d = matrix = read_display_matrix(first, path)
        column = (-a, -b) if a * d - b * c < 0 else (a, b)
        rotation = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[column]
        width, height = (first.width, first.height) if a else (first.height, first.width)
        check_size(width, height, where=str(path))
        aspect = Fraction(film.sample_aspect_ratio or 1)
        aspect = aspect if aspect > 0 else Fraction(1)
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
            end=end,
            variable_rate=variable,
            rotation=rotation,
            codec=film.codec_context.name,
            pixel_format=first.format.name,
            **read_color_tags(first),
            sound=scan.sound,
            notes=(*_list_losses(container, film, first, matrix), *table.notes, *end_notes),
            pixel_aspect=aspect if a else 1 / aspect,
            recordings=tuple(replace(part, shift=part.shift - zero) for part in table.recordings),
            has_own_times=table.has_own_times,
            chapters=read_chapters(container, zero),
            timecode=read_timecode(container, film),
            first_number=0,
        )


def _list_losses(container: Any, film: Any, first: Any, matrix: tuple[int, int, int, int]) -> tuple[str, ...]:
    """Says what 8 bit RGB frames of the first film, and renders of them, lose against the file, one sentence each."""
    notes = []
    depth = max(component.bits for component in first.format.components)
    if depth > 8:
        notes.append(f"{depth} bit color is read as 8 bit")
    has_alpha = any(component.is_alpha for component in first.format.components)
    if has_alpha and container.format.name in ("gif", "apng"):  # their decoders give alpha to every picture
        has_alpha = bool(first.to_ndarray(format="rgba")[..., 3].min() < 255)
    if has_alpha or film.metadata.get("alpha_mode") == "1":
        notes.append("transparency is left out: the colors under it are read")
    transfer = TRANSFERS.get(int(first.color_trc))
    if transfer in ("smpte2084", "arib-std-b67"):
        notes.append(f"high dynamic range ({transfer}) is read as coded, without tone mapping")
    if SPACES.get(int(first.colorspace)) in ("ycgco", "bt2020c"):
        notes.append("its color matrix is rare and is read as the nearest common one")
    if first.format.name.startswith(("yuv444", "yuvj444", "yuv422", "yuvj422")):
        notes.append("renders in H.264 have half of its color resolution in each direction: --codec ffv1 keeps it")
    if first.interlaced_frame:
        notes.append(
            "it is interlaced: both fields are read as one frame, and renders are marked as progressive; "
            "deinterlace it before you train: ffmpeg -i IN -vf bwdif -c:a copy OUT.mov"
        )
    if matrix[0] == 0 or matrix[0] + matrix[3] == -2:
        size = f"{first.width}x{first.height}" if matrix[0] else f"{first.height}x{first.width}"
        notes.append(
            f"it is stored turned and read upright ({size}), as players show it: "
            "masks and cameras must be of upright frames"
        )
    if matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0:
        notes.append("it is stored mirrored: frames are read as players show them")
    if (film.sample_aspect_ratio or 1) not in (0, 1):
        notes.append(f"its pixels are not square ({film.sample_aspect_ratio}): frames are read pixel for pixel")
    for name in name_frame_marks(first):
        hint = ": add it with exiftool or the like" if name.startswith("mark") else ""
        notes.append(f"renders do not have its {name}{hint}")
    films = sum(_is_film(s) for s in container.streams.video)
    if films > 1:
        notes.append(f"it holds {films} films: the first is read")
    if others := name_other_tracks(container):
        notes.append(f"these tracks are not in renders: {', '.join(others)}")
    codecs = {s.codec_context.codec.canonical_name for s in container.streams.audio if s.codec_context is not None}
    if any(codec.startswith("pcm_") for codec in codecs):
        notes.append("its sound is not compressed: renders are .mov files by default, .mp4 cannot hold it well")
    trials = {suffix: try_sound_tracks(container, form, None) for suffix, form in CONTAINERS.items()}
    for track in container.streams.audio:
        name = track.codec_context.codec.canonical_name if track.codec_context is not None else "unknown"
        if trials[".mp4"][track.index].reason and not name.startswith("pcm_"):
            fitting = [suffix for suffix, found in trials.items() if not found[track.index].reason]
            choice = f"render with --out NAME{fitting[0]}" if fitting else "render says how to add it again"
            notes.append(f"renders in .mp4 cannot hold its {name} sound: {choice}")
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
        film = find_film(container, metadata.path)
        # Nearer starts are decoded through faster than looked for, and other formats have no list of key frames.
        seekable = metadata.has_own_times and container.format.name.split(",")[0] in ("mov", "matroska")
        if start > 32 and seekable:
            zero, tick = -metadata.recordings[0].shift, Fraction(film.time_base)
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
        yield from enumerate(_decode_frames(container.decode(find_film(container, metadata.path)), metadata.path))

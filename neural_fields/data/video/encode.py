"""Video out: H.264, FFV1 and ProRes 4444 through PyAV, or a folder of PNG files, mirroring the source.

Times are kept in the ticks of the source, colors are converted by the very matrix that is written in the tags, and
sound is copied packet by packet. The file gets its name only when it is complete.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import atomic_write
from neural_fields.data.video import color_tags, decode
from neural_fields.data.video.file_tags import (
    copy_track_tags,
    cut_chapters,
    list_lost_tags,
    name_frame_marks,
    name_other_tracks,
    read_file_tags,
    read_track_tags,
    write_chapters,
)
from neural_fields.data.video.image_sequence import write_images
from neural_fields.data.video.matroska_tracks import reserve_name, write_codec_delay, write_pixel_aspect
from neural_fields.data.video.metadata import VideoMetadata, check_size
from neural_fields.data.video.sound import CONTAINERS, SoundCopier, SoundPart, place_packets, try_sound_tracks
from neural_fields.data.video.timecode import shift_timecode

log = logging.getLogger(__name__)

# FFmpeg's numbers (libavutil/pixfmt.h).
_BT709 = 1
_TV, _PC = 1, 2


@dataclass(frozen=True)
class Codec:
    """Describes a kind of output."""

    encoder: str  # FFmpeg's name; empty for PNG files
    suffixes: tuple[str, ...]  # file name endings, the usual one first; empty for a folder
    pixels: str  # pixel format for RGB frames
    alpha_pixels: str | None  # pixel format for RGBA frames; None if transparency cannot be stored
    is_rgb: bool  # whether colors are stored without a color matrix
    options: tuple[tuple[str, str], ...] = ()


CODECS = {
    "h264": Codec("libx264", (".mp4", ".mov", ".m4v", ".mkv"), "yuv420p", None, False),
    "ffv1": Codec("ffv1", (".mkv",), "bgr0", "bgra", True, (("level", "3"), ("slicecrc", "1"), ("slices", "4"))),
    "prores4444": Codec("prores_ks", (".mov",), "yuv444p10le", "yuva444p10le", False, (("profile", "4444"),)),
    "png": Codec("", (), "rgb24", "rgba", True),
}
_VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".png"}


@dataclass(frozen=True)
class ColorTags:
    """Holds FFmpeg's numbers for the tags of the output, and swscale's number of their matrix."""

    matrix: int
    space: int
    primaries: int
    transfer: int
    range: int  # the number as written; 0 is unspecified and means limited


def choose_output_tags(source: VideoMetadata, is_rgb: bool) -> ColorTags:
    """Chooses the tags that mirror the source.

    Pictures and RGB videos have no matrix: they become BT.709, with tags, which every player shows correctly. An
    untagged video stays untagged and is converted with the matrix that it was read with, so that its values are kept.
    """
    primaries = _find_number(color_tags.PRIMARIES, source.primaries)
    transfer = _find_number(color_tags.TRANSFERS, source.transfer)
    color_range = {None: 0, "tv": _TV, "pc": _PC}.get(source.range, 0)
    if is_rgb:
        return ColorTags(_BT709, 0, primaries, transfer, _PC)
    if source.kind == "images" or source.color_space in ("gbr", "ycgco"):
        known = source.kind != "images"
        return ColorTags(_BT709, _BT709, primaries if known else _BT709, transfer if known else _BT709, _TV)
    space = "bt2020nc" if source.color_space == "bt2020c" else source.color_space
    matrix = color_tags.MATRICES.get(space or "", color_tags.UNTAGGED_MATRIX)
    return ColorTags(matrix, _find_number(color_tags.SPACES, space), primaries, transfer, color_range)


def _find_number(names: dict[int, str], name: str | None) -> int:
    """Finds FFmpeg's number of a tag; 2, "unspecified", for other names."""
    return next((number for number, known in names.items() if known == name), 2)


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    source: VideoMetadata,
    *,
    codec: str = "h264",
    timestamps: Sequence[Fraction] | None = None,
    sound: bool = True,
    overwrite: bool = False,
    crf: int = 16,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Writes a video that mirrors the source: its rate, times, color tags and sound.

    Args:
        path: the file, with a suffix for the codec; a folder for "png".
        frames: uint8 [height, width, 3] RGB, or [height, width, 4] with straight alpha; one for each timestamp, all of
            the same size.
        source: the metadata of the source.
        codec: a key of `CODECS`. "ffv1" is lossless; "ffv1", "prores4444" and "png" have alpha.
        timestamps: time of each frame in the source, in seconds; None uses those of the source. For a part of the
            source, the output starts at the start time of the source, and the sound is cut to the part.
        sound: whether to copy the sound tracks that the container supports; the log names the others.
        overwrite: whether an existing output may be replaced (never the source).
        crf: quality of H.264 (0 is lossless, 16 is visually lossless, 23 is x264's default).
        texts: metadata of the file by name, such as "comment"; MP4 and MOV keep that and a few other names, Matroska
            and PNG keep all of them.

    Returns:
        The path.

    Raises:
        UserError: a wrong suffix or codec, or an existing output (exit 3), or no room (exit 4; the unfinished file is
            removed).
        ValueError: another number of frames than of timestamps, or frames of different sizes.
    """
    if codec not in CODECS:
        raise UserError(
            ExitCode.USAGE,
            f"unknown codec {codec!r}",
            where="--codec",
            why=f"expected one of {', '.join(CODECS)}",
            fix="--codec h264",
        )
    path, kind = Path(path), CODECS[codec]
    _check_output(path, codec, kind, source, overwrite)
    times = tuple(source.timestamps if timestamps is None else timestamps)
    if not times or any(b <= a for a, b in pairwise(times)):
        raise ValueError("timestamps must rise, and there must be at least one")
    pictures = _check_frames(frames, codec, kind, len(times))
    first = next(pictures)
    check_size(first.shape[1], first.shape[0], where=str(path))
    if codec == "png":
        # Frames of the source have their numbers, and frames between them count on from the first.
        indices = [bisect_right(source.timestamps, time) - 1 for time in times]
        if len(set(indices)) < len(times):
            indices = list(range(indices[0], indices[0] + len(times)))
        write_images(path, chain([first], pictures), texts, [source.first_number + index for index in indices])
        if source.sound and sound:
            log.warning("%s holds pictures: the sound is left out", path)
        return path
    job = _EncodingJob(path, kind, source, times, sound, crf, texts or {})
    with atomic_write(path) as part:
        _write_file(part, job, _Pictures(job, first, pictures))
    return path


def join_videos(
    path: Path,
    parts: Sequence[Path],
    source: VideoMetadata,
    *,
    codec: str = "h264",
    timestamps: Sequence[Fraction] | None = None,
    overwrite: bool = False,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Joins films of consecutive frames to one, as `write_video` would write it, without encoding them again.

    Args:
        path: the file, with a suffix for the codec.
        parts: films that `write_video` wrote with the same codec, in order.
        source: the metadata of the source.
        codec: a key of `CODECS` other than "png".
        timestamps: as for `write_video`, of the frames of all parts.
        overwrite: as for `write_video`.
        texts: as for `write_video`.

    Returns:
        The path.

    Raises:
        UserError: an existing output (exit 3), or no room (exit 4; the unfinished file is removed).
        ValueError: another number of frames than of timestamps, or parts that were encoded differently.
    """
    _check_output(path, codec, CODECS[codec], source, overwrite)
    times = tuple(source.timestamps if timestamps is None else timestamps)
    job = _EncodingJob(path, CODECS[codec], source, times, True, 0, texts or {})
    with atomic_write(path) as part:
        _write_file(part, job, _JoinedFilms(job, parts))
    return path


def choose_suffix(codec: str, source: VideoMetadata) -> str:
    """Returns the ending of an output's name that suits the codec and the sound; empty for a folder of pictures.

    Uncompressed sound is at home in .mov: in .mp4, players take it for noise or ignore it.
    """
    suffixes = CODECS[codec].suffixes
    if ".mov" in suffixes and any(track.codec.startswith("pcm_") for track in source.sound):
        return ".mov"
    return suffixes[0] if suffixes else ""


def _check_output(path: Path, name: str, codec: Codec, source: VideoMetadata, overwrite: bool) -> None:
    """Refuses endings that cannot carry the codec, existing files, and the source itself."""
    if codec.suffixes and path.suffix.lower() not in codec.suffixes:
        raise bad_input(
            f"{name} cannot be stored in {path.name!r}",
            where=str(path),
            why=f"it needs a name that ends in {' or '.join(codec.suffixes)}",
            fix=f"--out {path.with_suffix(codec.suffixes[0])}",
        )
    if not codec.suffixes and path.suffix.lower() in _VIDEO_SUFFIXES:
        raise bad_input(
            f"{name} writes a folder of pictures, and {path.name!r} names a file",
            where=str(path),
            why="it needs the name of a folder",
            fix=f"--out {path.with_suffix('')}",
        )
    if not path.exists() and not path.is_symlink():
        return
    if path.exists() and os.path.exists(source.path) and os.path.samefile(path, source.path):
        raise bad_input("the output is the source video itself", where=str(path), fix="use another --out")
    if not overwrite:
        raise bad_input("the output exists already", where=str(path), fix="add -y to replace it, or use another --out")
    if path.is_dir() != (not codec.suffixes):
        raise bad_input("the output exists and is of another kind", where=str(path), fix="use another --out")


def _check_frames(frames: Iterable[np.ndarray], name: str, codec: Codec, count: int) -> Iterator[np.ndarray]:
    """Passes the frames on after checking their number, type and size."""
    shape, count_seen = None, 0
    for frame in frames:
        shape = shape or frame.shape
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.shape != shape:
            raise ValueError(
                f"frame {count_seen} is {frame.dtype} {frame.shape}, expected uint8 [H, W, 3 or 4] like {shape}"
            )
        if frame.shape[2] == 4 and codec.alpha_pixels is None:
            raise UserError(
                ExitCode.USAGE,
                f"{name} cannot store transparency",
                where="--codec",
                fix="--codec prores4444 (or ffv1, or png)",
            )
        count_seen += 1
        if count_seen > count:
            raise ValueError(f"more than {count} frames, and {count} timestamps")
        yield np.ascontiguousarray(frame)
    if count_seen != count:
        raise ValueError(f"{count_seen} frames, and {count} timestamps")


@dataclass(frozen=True)
class _EncodingJob:
    """What `write_video` was asked for."""

    path: Path
    codec: Codec
    source: VideoMetadata
    times: tuple[Fraction, ...]
    sound: bool
    crf: int
    texts: Mapping[str, str] = field(default_factory=dict)  # by name, such as "comment"

    @property
    def form(self) -> str:
        """FFmpeg's name of the container."""
        return CONTAINERS[self.path.suffix.lower()]

    @property
    def shift(self) -> Fraction:
        """Seconds to subtract from every time, so that a part of the source starts where the source starts."""
        return self.times[0] - self.source.timestamps[0]

    @property
    def start(self) -> Fraction | None:
        """Seconds in the source where the part starts; None when it starts with the source's first frame."""
        return self.times[0] if self.shift else None

    @property
    def end(self) -> Fraction:
        """Seconds in the source where the last frame ends."""
        after = bisect_right(self.source.timestamps, self.times[-1])
        return self.source.timestamps[after] if after < len(self.source.timestamps) else self.source.end

    @property
    def reaches_the_end(self) -> bool:
        """Whether the last frame is that of the source: the sound is not cut."""
        return self.times[-1] >= self.source.timestamps[-1]

    def output_times(self) -> tuple[Fraction, ...]:
        """Returns when each frame starts in the output, and when the last one ends, in seconds.

        Times that a container rounded to thousandths become exact again where the rate is constant.
        """
        times = [*self.times, self.end]
        if not self.source.variable_rate:
            grid = [times[0] + round((t - times[0]) * self.source.rate) / self.source.rate for t in times]
            if all(abs(a - b) <= Fraction(1, 1000) for a, b in zip(grid[:-1], times[:-1], strict=True)):
                times[:-1] = grid[:-1]
                times[-1] = grid[-1] if abs(grid[-1] - times[-1]) <= Fraction(1, 1000) else times[-1]
        return tuple(time - self.shift for time in times)

    def find_timecode(self) -> str | None:
        """Returns the timecode of the first frame; None where there is none, or frames are left out between."""
        stamps, timecode = self.source.timestamps, self.source.timecode
        first = bisect_right(stamps, self.times[0]) - 1
        if timecode is None or tuple(stamps[first : first + len(self.times)]) != self.times:
            return None
        return shift_timecode(timecode, first, self.source.rate)


class _FilmSource(ABC):
    """The film that is written: its track, and the packets of it."""

    size: tuple[int, int]  # (width, height) in pixels

    @abstractmethod
    def add_stream(self, out: Any, tick: Fraction, may_reorder: bool) -> Any:
        """Adds the track of the film to the output.

        Args:
            out: the output.
            tick: unit of times, in seconds.
            may_reorder: whether frames may be stored in another order than they are shown in.
        """

    @abstractmethod
    def make_packets(self, times: Sequence[Fraction], tick: Fraction) -> Iterator[tuple[list[Any], Fraction | None]]:
        """Yields packets, and the time up to which the sound belongs before the next ones; None: all of it."""


class _Pictures(_FilmSource):
    """A film that is encoded from pictures."""

    def __init__(self, job: _EncodingJob, first: np.ndarray, pictures: Iterator[np.ndarray]) -> None:
        self.job, self.first, self.pictures = job, first, pictures
        self.size = (first.shape[1], first.shape[0])

    def add_stream(self, out: Any, tick: Fraction, may_reorder: bool) -> Any:
        """See `_FilmSource`."""
        self.stream, self.colors = _add_film(out, self.job, self.first, tick)
        if not may_reorder:
            self.stream.codec_context.max_b_frames = 0
        return self.stream

    def make_packets(self, times: Sequence[Fraction], tick: Fraction) -> Iterator[tuple[list[Any], Fraction | None]]:
        """See `_FilmSource`."""
        reformatter, pixels = VideoReformatter(), self.stream.codec_context.pix_fmt
        for picture, time in zip(chain([self.first], self.pictures), times[:-1], strict=True):
            with decode.convert_parser_errors(self.job.path, "encoding"):
                frame = _make_frame(picture, pixels, self.colors, reformatter)
                frame.time_base, frame.pts = tick, round(time / tick)
                packets = self.stream.encode(frame)
            yield packets, time
        with decode.convert_parser_errors(self.job.path, "encoding"):
            packets = self.stream.encode(None)
        yield packets, None


class _JoinedFilms(_FilmSource):
    """A film that consists of others, one after the other."""

    def __init__(self, job: _EncodingJob, films: Sequence[Path]) -> None:
        self.films = films
        self.ranks: list[int] = []  # of each packet, in the order in which it is decoded: the number of its frame
        headers = set()
        for film in films:
            with decode.open_container(str(film)) as opened:
                stream = opened.streams.video[0]
                stamps = [packet.pts for packet in opened.demux(stream) if packet.size]
                self.size = (stream.codec_context.width, stream.codec_context.height)
                headers.add(bytes(stream.codec_context.extradata or b""))
            place = {stamp: rank for rank, stamp in enumerate(sorted(stamps), start=len(self.ranks))}
            self.ranks += [place[stamp] for stamp in stamps]
        if len(headers) > 1 or len(self.ranks) != len(job.times):
            raise ValueError(
                f"{len(films)} films of {len(self.ranks)} frames in all do not make {len(job.times)} frames"
            )

    def add_stream(self, out: Any, tick: Fraction, may_reorder: bool) -> Any:
        """See `_FilmSource`; the films have their order already."""
        with decode.open_container(str(self.films[0])) as opened:
            self.stream = out.add_stream_from_template(opened.streams.video[0])
        self.stream.time_base = tick
        return self.stream

    def make_packets(self, times: Sequence[Fraction], tick: Fraction) -> Iterator[tuple[list[Any], Fraction | None]]:
        """See `_FilmSource`."""
        stamps = [round(time / tick) for time in times]
        # A frame is decoded so many frames before it is shown that none is shown before it is decoded.
        delay = max(number - rank for number, rank in enumerate(self.ranks))
        early = [stamps[0] - (stamps[1] - stamps[0]) * back for back in range(delay, 0, -1)]
        decoded, number = [*early, *stamps], 0
        for film in self.films:
            with decode.open_container(str(film)) as opened:
                for packet in opened.demux(opened.streams.video[0]):
                    if not packet.size:
                        continue
                    packet.stream, packet.time_base = self.stream, tick
                    packet.pts, packet.dts = stamps[self.ranks[number]], decoded[number]
                    number += 1
                    yield [packet], times[number - 1]
        yield [], None


def _write_file(part: Path, job: _EncodingJob, film: _FilmSource) -> None:
    """Writes the unfinished file `part`: every packet, each preceded by the sound that belongs before it."""
    times = job.output_times()
    # The source's ticks, or finer ones where these cannot say every time exactly.
    tick = job.source.time_base
    if any((t / tick).denominator != 1 for t in times):
        fine = Fraction(1, math.lcm(*(t.denominator for t in times)))
        tick = fine if fine.denominator < 2**31 else Fraction(1, 1_000_000)
    durations = {round(a / tick): round(b / tick) - round(a / tick) for a, b in pairwise(times)}
    options = {"write_crc32": "0"}  # `write_pixel_aspect` changes some bytes
    if job.form != "matroska":
        # A first frame later than zero is stored in units of the whole film: by default thousandths, which would round.
        options = {"movflags": "faststart", "movie_timescale": str(max(1000, tick.denominator))}
    with decode.convert_parser_errors(job.path, "opening the output"):
        out = av.open("file:" + os.path.abspath(part), "w", format=job.form, options=options)
    try:
        with ExitStack() as stack:
            with decode.convert_parser_errors(job.path, "starting the encoder"):
                # MP4 ends with the frame that is decoded last.
                stream = film.add_stream(out, tick, may_reorder=len(set(list(durations.values())[-4:])) == 1)
                sound = _mirror_source(stack, out, stream, job)  # all tracks must be there before the first packet
            for packets, time in film.make_packets(times, tick):
                with decode.convert_parser_errors(job.path, "encoding"):
                    for packet in packets:
                        at = round(packet.pts * packet.time_base / tick)
                        packet.duration = round(durations[at] * tick / packet.time_base)
                        out.mux(packet)
                    if sound:
                        sound.copy_packets(out, time)
    except BaseException:
        # The first error counts; closing a broken output raises a second one.
        with suppress(OSError, ValueError, av.error.FFmpegError):
            out.close()
        raise
    with decode.convert_parser_errors(job.path, "finishing the video"):
        out.close()
        _finish_file(part, job, film.size, sound)


def _add_film(out: Any, job: _EncodingJob, first: np.ndarray, tick: Fraction) -> tuple[Any, ColorTags]:
    """Adds the video stream to the output and sets it up."""
    height, width, channels = first.shape
    codec, source = job.codec, job.source
    options = dict(codec.options)
    if codec.encoder == "libx264":
        options = {"crf": str(job.crf), "preset": "veryfast"}
    stream = out.add_stream(codec.encoder, rate=source.rate, options=options)
    context = stream.codec_context
    context.thread_type = "FRAME" if codec.encoder == "libx264" else "AUTO"  # x264 is slower with threads by slices
    context.width, context.height = width, height
    context.pix_fmt = codec.alpha_pixels if channels == 4 else codec.pixels
    if context.pix_fmt == "yuv420p" and (width % 2 or height % 2):
        context.pix_fmt = "yuv444p"  # halved color planes need even sizes, and the size must stay
        log.warning("%s has an odd size: written as 4:4:4, which some players cannot show", job.path)
    context.time_base = stream.time_base = tick
    if source.pixel_aspect != 1:
        context.sample_aspect_ratio = source.pixel_aspect
    colors = choose_output_tags(source, codec.is_rgb)
    context.colorspace, context.color_primaries = colors.space, colors.primaries
    context.color_trc, context.color_range = colors.transfer, colors.range
    return stream, colors


def _make_frame(picture: np.ndarray, pixels: str, colors: ColorTags, reformatter: VideoReformatter) -> Any:
    """Converts a picture to the encoder's pixel format by the matrix and range of the tags."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
    if colors.space == 0:
        frame = reformatter.reformat(frame, format=pixels)
    else:
        frame = reformatter.reformat(
            frame,
            format=pixels,
            dst_colorspace=colors.matrix,
            src_color_range=_PC,
            dst_color_range=colors.range or _TV,
            interpolation=color_tags.FROM_RGB,
        )
    frame.colorspace, frame.color_range = colors.space, colors.range
    frame.color_primaries, frame.color_trc = colors.primaries, colors.transfer
    return frame


def _mirror_source(stack: ExitStack, out: Any, film: Any, job: _EncodingJob) -> SoundCopier | None:
    """Gives the output the sound tracks, tags and chapters of the source, as far as it can hold them.

    Returns:
        What copies the sound; None when there is none.
    """
    out.metadata.update(job.texts)
    if job.source.kind != "file":
        return None
    source = stack.enter_context(decode.open_container(job.source.path))
    out.metadata.update({**read_file_tags(source), **job.texts})
    copy_track_tags(decode.find_film(source, job.source.path), film, is_default=True)
    if (timecode := job.find_timecode()) is not None:
        film.metadata["timecode"] = timecode
    if chapters := cut_chapters(job.source.chapters, job.start, job.end, job.shift):
        write_chapters(out, chapters)
    if job.form == "matroska" and job.source.pixel_aspect != 1:
        film.metadata["title"] = reserve_name(film.metadata.get("title", ""), "aspect", 0)
    if not (job.sound and job.source.sound):
        return None

    # Every sound track is tried as a whole; for those that do not fit, other outputs are.
    part = SoundPart(job.source.recordings, job.start, None if job.reaches_the_end else job.end, job.shift)
    with decode.open_container(job.source.path) as again:
        trials = try_sound_tracks(again, job.form, part)
    lost = {index: trial.reason for index, trial in trials.items() if trial.reason}
    advice = _find_output_for(list(lost), job, part) if lost else ""
    for index, reason in lost.items():
        codec = next(track.codec for track in job.source.sound if track.index == index)
        log.warning("the %s sound track is left out of %s, %s; %s", codec, job.path.name, reason, advice)
    flags = {stream.index: int(stream.disposition) for stream in source.streams.audio}
    chosen = None if any(flags.values()) else min(trials.keys() - lost.keys(), default=None)
    tracks, delays = {}, {}
    for index, trial in trials.items():
        if index not in lost and trial.start is not None:  # a part of a film may have no sound
            track = tracks[index] = out.add_stream_from_template(source.streams[index])
            copy_track_tags(source.streams[index], track, is_default=index == chosen)
            # Where FFmpeg knows the delay of a decoder, from Matroska or the head of Opus, its muxer says it by itself.
            codec = source.streams[index].codec_context.codec.canonical_name
            is_said = source.format.name.startswith("matroska") or codec == "opus"
            if job.form == "matroska" and not is_said and -4 < trial.start < 0:
                delays[index] = -trial.start
                track.metadata["title"] = reserve_name(track.metadata.get("title", ""), "delay", track.index)
    return SoundCopier(place_packets(source, list(tracks), part), tracks, delays) if tracks else None


def _find_output_for(lost: Sequence[int], job: _EncodingJob, part: SoundPart) -> str:
    """Finds an output that holds the sound tracks that this one cannot hold, in words."""
    name = next(name for name, codec in CODECS.items() if codec == job.codec)
    choices = [(name, suffix) for suffix in job.codec.suffixes] + [("h264", ".mov"), ("h264", ".mkv")]
    for codec, suffix in choices:
        with decode.open_container(job.source.path) as again:
            trials = try_sound_tracks(again, CONTAINERS[suffix], part)
        if not any(trials[index].reason for index in lost):
            flags = "" if codec == name else f"--codec {codec} "
            return f"{flags}--out {shlex.quote(job.path.with_suffix(suffix).name)} keeps it"
    cut = f"-ss {float(job.times[0]):.6g} -t {float(job.end - job.times[0]):.6g} " if part.start or part.end else ""
    codec, made = ("flac", "with-sound.mkv") if job.form == "matroska" else ("aac", f"with-sound{job.path.suffix}")
    return (
        f"add it, encoded again: ffmpeg -i {shlex.quote(job.path.name)} {cut}-i {shlex.quote(job.source.path)} "
        f"-map 0 -map 1:a -c copy -c:a {codec} {made}"
    )


def _finish_file(part: Path, job: _EncodingJob, size: tuple[int, int], sound: SoundCopier | None) -> None:
    """Writes what FFmpeg's Matroska muxer cannot, and names what the finished file does not hold."""
    if job.source.kind != "file":
        return
    with decode.open_container(job.source.path) as source:
        wanted, film = read_file_tags(source), decode.find_film(source, job.source.path)
        name = read_track_tags(film).get("title", "")
        if job.form == "matroska" and job.source.pixel_aspect != 1:
            write_pixel_aspect(part, name, size, job.source.pixel_aspect)
        tracks = sound.tracks if sound else {}
        for index, delay in sound.delays.items() if sound else ():
            title = read_track_tags(source.streams[index]).get("title", "")
            write_codec_delay(part, title, tracks[index].index, delay)
        others = [*name_other_tracks(source), *name_frame_marks(next(source.decode(film)))]
    with decode.open_container(part) as written:
        chapters = cut_chapters(job.source.chapters, job.start, job.end, job.shift)
        lost = [*list_lost_tags(written, wanted, chapters, job.source.timecode), *others]
        if len(written.streams.audio) < len(tracks):
            lost.append("a sound track, which is damaged")
    if lost:
        log.warning("%s does not hold these of the source: %s", job.path.name, ", ".join(lost))

"""Video out: H.264, FFV1 and ProRes 4444 through PyAV, or a folder of PNG files, mirroring the source.

Times are kept in the ticks of the source, colours are converted by the very matrix that is written in the tags, and
sound is copied packet by packet. The file appears under its name only when it is whole.
"""

from __future__ import annotations

import logging
import math
import os
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

from neural_fields.data import decode, tags
from neural_fields.data.facts import VideoFacts, check_size
from neural_fields.data.images import write_images
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import atomic_write

log = logging.getLogger(__name__)

UNSPECIFIED = 2
BT709 = 1
TV, PC = 1, 2


@dataclass(frozen=True)
class Codec:
    """One kind of output."""

    encoder: str  # FFmpeg's name; empty for PNG files
    suffixes: tuple[str, ...]  # file name endings that can carry it, the usual one first; empty for a folder
    pixels: str  # pixel format of RGB frames
    alpha_pixels: str | None  # pixel format of RGBA frames; None when transparency cannot be stored
    is_rgb: bool  # stored without a colour matrix
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
    """FFmpeg's numbers for the tags of the output, and swscale's number of the matrix behind them."""

    matrix: int
    space: int
    primaries: int
    transfer: int
    range: int  # as written; 0 is unspecified and means limited


def output_tags(facts: VideoFacts, is_rgb: bool) -> ColorTags:
    """The tags that mirror the source.

    Pictures and RGB films have no matrix of their own: they become BT.709, tagged, which every player reads right. An
    untagged film stays untagged and goes back through the matrix it was read by, so that its stored values return.
    """
    primaries = _number(tags.PRIMARIES, facts.primaries)
    transfer = _number(tags.TRANSFERS, facts.transfer)
    wide = {None: 0, "tv": TV, "pc": PC}.get(facts.range, 0)
    if is_rgb:
        return ColorTags(BT709, 0, primaries, transfer, PC)
    if facts.kind == "images" or facts.color_space in ("gbr", "ycgco"):
        known = facts.kind != "images"
        return ColorTags(BT709, BT709, primaries if known else BT709, transfer if known else BT709, TV)
    space = "bt2020nc" if facts.color_space == "bt2020c" else facts.color_space
    matrix = tags.MATRICES.get(space or "", tags.UNTAGGED_MATRIX)
    return ColorTags(matrix, _number(tags.SPACES, space), primaries, transfer, wide)


def _number(names: dict[int, str], name: str | None) -> int:
    return next((number for number, known in names.items() if known == name), UNSPECIFIED)


def write(
    path: str | Path,
    frames: Iterable[np.ndarray],
    facts: VideoFacts,
    *,
    codec: str = "h264",
    timestamps: Sequence[Fraction] | None = None,
    sound: bool = True,
    overwrite: bool = False,
    crf: int = 16,
    preset: str = "veryfast",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a video that mirrors the source: its rate, times, colour tags and sound.

    Args:
        path: the file, whose ending must suit the codec; a folder for "png".
        frames: uint8 [H, W, 3] RGB, or [H, W, 4] with straight alpha, one per timestamp, all of one size.
        facts: of the source.
        codec: a key of `CODECS`. "ffv1" is lossless, "ffv1", "prores4444" and "png" carry alpha.
        timestamps: seconds in the source of each frame; None is all of the source. When they are a part of it the
            output starts where the source starts and the sound is cut to the part.
        sound: whether to copy the sound tracks that the container can hold; what it cannot is said in the log.
        overwrite: whether an existing output may be replaced (never the source itself).
        crf: quality of H.264 (0 is lossless, 16 looks lossless, 23 is x264's default).
        preset: speed of H.264 by x264's names.
        metadata: texts by name that go into the file, such as "comment"; MP4 and MOV keep that and a few other names,
            Matroska and PNG keep all.

    Returns:
        The path.

    Raises:
        UserError: bad name or codec, output exists, no space (4; the unfinished file is removed).
        ValueError: frames and timestamps do not belong together.
    """
    path, kind = Path(path), _codec(codec)
    _check_output(path, codec, kind, facts, overwrite)
    times = tuple(facts.timestamps if timestamps is None else timestamps)
    if not times or any(b <= a for a, b in pairwise(times)):
        raise ValueError("timestamps must rise, and there must be at least one")
    pictures = _checked(frames, codec, kind, len(times))
    first = next(pictures)
    check_size(first.shape[1], first.shape[0], where=str(path))
    if codec == "png":
        write_images(path, chain([first], pictures), metadata)
        if facts.sound and sound:
            log.warning("%s holds pictures: the sound is left out", path)
        return path
    job = _Job(path, kind, facts, times, sound, crf, preset, metadata or {})
    with atomic_write(path) as part:
        _write_file(part, job, first, pictures)
    return path


def _codec(name: str) -> Codec:
    if name not in CODECS:
        raise UserError(
            ExitCode.USAGE,
            f"unknown codec {name!r}",
            where="--codec",
            why=f"expected one of {', '.join(CODECS)}",
            fix="--codec h264",
        )
    return CODECS[name]


def _check_output(path: Path, name: str, codec: Codec, facts: VideoFacts, overwrite: bool) -> None:
    """Refuse endings that cannot carry the codec, existing files, and the source itself."""
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
    if path.exists() and os.path.exists(facts.path) and os.path.samefile(path, facts.path):
        raise bad_input("the output is the source video itself", where=str(path), fix="use another --out")
    if not overwrite:
        raise bad_input("the output exists already", where=str(path), fix="add -y to replace it, or use another --out")
    if path.is_dir() != (not codec.suffixes):
        raise bad_input("the output exists and is of another kind", where=str(path), fix="use another --out")


def _checked(frames: Iterable[np.ndarray], name: str, codec: Codec, count: int) -> Iterator[np.ndarray]:
    """The frames, after looking at their number, type and size."""
    shape, seen = None, 0
    for frame in frames:
        shape = shape or frame.shape
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.shape != shape:
            raise ValueError(f"frame {seen} is {frame.dtype} {frame.shape}, expected uint8 [H, W, 3 or 4] like {shape}")
        if frame.shape[2] == 4 and codec.alpha_pixels is None:
            raise UserError(
                ExitCode.USAGE,
                f"{name} cannot store transparency",
                where="--codec",
                fix="--codec prores4444 (or ffv1, or png)",
            )
        seen += 1
        if seen > count:
            raise ValueError(f"more than {count} frames, and {count} timestamps")
        yield np.ascontiguousarray(frame)
    if seen != count:
        raise ValueError(f"{seen} frames, and {count} timestamps")


@dataclass(frozen=True)
class _Job:
    """What `write` was asked for."""

    path: Path
    codec: Codec
    facts: VideoFacts
    times: tuple[Fraction, ...]
    sound: bool
    crf: int
    preset: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def shift(self) -> Fraction:
        """Seconds to take off every time, so that a part of the source starts where the source starts."""
        return self.times[0] - self.facts.timestamps[0]

    @property
    def end(self) -> Fraction | None:
        """Seconds in the source where the sound is cut; None when the part reaches the end of the source."""
        after = [t for t in self.facts.timestamps if t > self.times[-1]]
        return after[0] if after else None

    def durations(self) -> list[Fraction]:
        """Seconds that each frame is shown."""
        gaps = [b - a for a, b in pairwise(self.times)]
        return [*gaps, self.end - self.times[-1] if self.end else 1 / self.facts.rate]


def _write_file(part: Path, job: _Job, first: np.ndarray, pictures: Iterator[np.ndarray]) -> None:
    """Encode into the unfinished file `part`."""
    form = {".mkv": "matroska", ".mov": "mov"}.get(job.path.suffix.lower(), "mp4")
    options = {}
    if form != "matroska":
        # A first frame later than zero is stored in units of the whole film: by default thousandths, which would round.
        options = {"movflags": "faststart", "movie_timescale": str(max(1000, time_base(job).denominator))}
    with decode.parser_border(job.path, "opening the output"):
        out = av.open("file:" + os.path.abspath(part), "w", format=form, options=options)
    try:
        with ExitStack() as stack:
            with decode.parser_border(job.path, "starting the encoder"):
                stream, colors = _add_film(out, job, first)
                out.metadata.update(job.metadata)
                sound = _open_sound(stack, out, job)  # all tracks must be there before the first packet
            _encode(out, stream, colors, job, chain([first], pictures), sound)
    except BaseException:
        # The first error counts; closing a broken output raises a second one.
        with suppress(OSError, ValueError, av.error.FFmpegError):
            out.close()
        raise
    with decode.parser_border(job.path, "finishing the video"):
        out.close()


def _add_film(out: Any, job: _Job, first: np.ndarray) -> tuple[Any, ColorTags]:
    """The video stream of the output, set up."""
    height, width, channels = first.shape
    codec, facts = job.codec, job.facts
    options = dict(codec.options)
    if codec.encoder == "libx264":
        options = {"crf": str(job.crf), "preset": job.preset}
    stream = out.add_stream(codec.encoder, rate=facts.rate, options=options)
    context = stream.codec_context
    context.thread_type = "FRAME" if codec.encoder == "libx264" else "AUTO"  # x264 is slower with threads by slices
    context.width, context.height = width, height
    context.pix_fmt = codec.alpha_pixels if channels == 4 else codec.pixels
    if context.pix_fmt == "yuv420p" and (width % 2 or height % 2):
        context.pix_fmt = "yuv444p"  # halved colour planes need even sizes, and the size must stay
        log.warning("%s has an odd size: written as 4:4:4, which some players cannot show", job.path)
    context.time_base = stream.time_base = time_base(job)
    if facts.pixel_aspect != 1:
        context.sample_aspect_ratio = stream.sample_aspect_ratio = facts.pixel_aspect
    colors = output_tags(facts, codec.is_rgb)
    context.colorspace, context.color_primaries = colors.space, colors.primaries
    context.color_trc, context.color_range = colors.transfer, colors.range
    return stream, colors


def time_base(job: _Job) -> Fraction:
    """Seconds of one tick: the source's, or a finer one where its ticks cannot say every time exactly."""
    base = job.facts.time_base
    if all((t / base).denominator == 1 for t in (*job.times, job.shift)):
        return base
    fine = Fraction(1, math.lcm(*(t.denominator for t in (*job.times, job.shift))))
    return fine if fine.denominator < 2**31 else Fraction(1, 1_000_000)


def _encode(
    out: Any, stream: Any, colors: ColorTags, job: _Job, pictures: Iterator[np.ndarray], sound: _Sound | None
) -> None:
    """Encode every picture, each preceded by the sound that belongs before it."""
    tick, reformatter = time_base(job), VideoReformatter()
    for picture, time, duration in zip(pictures, job.times, job.durations(), strict=True):
        with decode.parser_border(job.path, "encoding"):
            frame = _to_frame(picture, stream.codec_context.pix_fmt, colors, reformatter)
            frame.time_base, frame.pts = tick, round((time - job.shift) / tick)
            frame.duration = round(duration / tick)
            out.mux(stream.encode(frame))
        if sound:
            sound.copy(out, time + duration)
    with decode.parser_border(job.path, "encoding"):
        out.mux(stream.encode(None))
    if sound:
        sound.copy(out, None)


def _to_frame(picture: np.ndarray, pixels: str, colors: ColorTags, reformatter: VideoReformatter) -> Any:
    """A picture as a frame in the encoder's pixel format, converted by the matrix and range of the tags."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
    if colors.space == 0:
        frame = reformatter.reformat(frame, format=pixels)
    else:
        frame = reformatter.reformat(
            frame,
            format=pixels,
            dst_colorspace=colors.matrix,
            src_color_range=PC,
            dst_color_range=colors.range or TV,
            interpolation=tags.FROM_RGB,
        )
    frame.colorspace, frame.color_range = colors.space, colors.range
    frame.color_primaries, frame.color_trc = colors.primaries, colors.transfer
    return frame


@dataclass
class _Sound:
    """Copies the sound packets of the source, in step with the film."""

    packets: Iterator[Any]
    tracks: dict[int, Any]  # stream index in the source: stream of the output
    origin: Fraction  # seconds in the source that count as zero
    job: _Job
    waiting: Any = None

    def copy(self, out: Any, until: Fraction | None) -> None:
        """Copy what starts before `until` (seconds in the source), or all that is left."""
        job = self.job
        with decode.parser_border(job.facts.path, "copying the sound"):
            while True:
                packet = self.waiting or next(self.packets, None)
                self.waiting = None
                if packet is None:
                    return
                if packet.size == 0 or packet.pts is None:
                    continue
                time = packet.pts * packet.time_base - self.origin
                if until is not None and time >= until:
                    self.waiting = packet
                    return
                if (job.shift and time < job.times[0]) or (job.end is not None and time >= job.end):
                    continue
                self._mux(out, packet)

    def _mux(self, out: Any, packet: Any) -> None:
        late = round((self.job.shift + self.origin) / packet.time_base)
        track = self.tracks[packet.stream_index]
        packet.pts -= late
        packet.dts = packet.pts if packet.dts is None else packet.dts - late
        packet.stream = track
        out.mux(packet)


def _open_sound(stack: ExitStack, out: Any, job: _Job) -> _Sound | None:
    """The sound tracks of the source that the output can hold, added to it; None when there are none."""
    if not (job.sound and job.facts.sound):
        return None
    source = stack.enter_context(decode.open_container(job.facts.path))
    tracks = {}
    for stream in source.streams.audio:
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
        if codec in out.supported_codecs:
            tracks[stream.index] = out.add_stream_from_template(stream)
        else:
            log.warning("%s cannot hold the %s sound track: it is left out; --codec ffv1 keeps it", job.path, codec)
    if not tracks:
        return None
    packets = source.demux([s for s in source.streams.audio if s.index in tracks])
    return _Sound(packets, tracks, decode.origin(source), job)

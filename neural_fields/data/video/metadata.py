"""Metadata of a video, which every other part of the tool reads, and the texts `--size` and `--frames`.

Sizes are always of the upright picture in pixels, times are exact fractions of a second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from neural_fields.core.errors import bad_input

DEFAULT_RATE = Fraction(24)
FrameNumbers = range  # inside `VideoMetadata`, the name `range` is that of the range of colors


@dataclass(frozen=True)
class FrameSizeLimits:
    """Sizes of pictures and videos that are read."""

    min_side_px: int = 16  # shortest side that is read
    max_side_px: int = 16384  # longest side that is read
    max_pixels: int = 64 * 1024 * 1024  # an 8K frame has 33 million; a decompression bomb starts at about 100 million


DEFAULTS = FrameSizeLimits()


@dataclass(frozen=True)
class SoundTrack:
    """Describes a sound track of the source: its stream index in the file, its codec and its length in seconds."""

    index: int
    codec: str
    seconds: float


@dataclass(frozen=True)
class Recording:
    """Describes one of the recordings that a file puts together: where it lies in the file's count, and in ours."""

    start: Fraction  # seconds by the file's own stamps: its first frame
    end: Fraction
    shift: Fraction  # seconds to add to a stamp of the file


@dataclass(frozen=True)
class Chapter:
    """Describes a chapter of the source."""

    title: str
    start: Fraction  # seconds, in the time of the frames
    end: Fraction


@dataclass(frozen=True)
class VideoMetadata:
    """Describes the source: everything that the output must mirror."""

    path: str
    kind: str  # "file" or "images"
    sha256: str  # hash of the content; for a folder, of names and contents
    bytes: int
    width: int  # width of the upright picture, after rotation
    height: int
    frame_count: int
    rate: Fraction  # frames a second; the mean if the rate varies
    time_base: Fraction  # duration of a tick in seconds
    timestamps: tuple[Fraction, ...]  # seconds, one for each frame, rising
    end: Fraction  # seconds: when the last frame, which has its own duration, ends
    variable_rate: bool
    rotation: int  # degrees clockwise by which the stored picture was rotated to stand upright: 0, 90, 180, 270
    codec: str
    pixel_format: str
    color_space: str | None
    primaries: str | None
    transfer: str | None
    range: str | None  # "tv" or "pc"
    sound: tuple[SoundTrack, ...]
    notes: tuple[str, ...]  # what is lost by converting the frames to 8-bit RGB, one sentence each
    pixel_aspect: Fraction = Fraction(1)  # width of a pixel divided by its height
    first_number: int = 0  # number of the first frame: that of the first picture of a sequence, 0 of a film
    recordings: tuple[Recording, ...] = ()  # what sound is placed by: the file's own stamps and ours; () without sound
    has_own_times: bool = True  # whether each time is the file's own stamp less one number; False where some are mended
    chapters: tuple[Chapter, ...] = ()
    timecode: str | None = None  # of the first frame, such as "01:00:00:00", or with ";" for drop frame

    @property
    def numbers(self) -> FrameNumbers:
        """The numbers of all frames, which are used everywhere outside of this folder: 1001... of such a sequence."""
        return FrameNumbers(self.first_number, self.first_number + self.frame_count)

    def find_times(self, numbers: FrameNumbers) -> tuple[Fraction, ...]:
        """Returns the times in seconds of frames, by their numbers."""
        return tuple(self.timestamps[number - self.first_number] for number in numbers)


@dataclass(frozen=True)
class Video:
    """Holds decoded frames on disk with their times, for training."""

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB, memory-mapped, read-only
    timestamps: tuple[Fraction, ...]  # seconds, one for each frame of `frames`
    metadata: VideoMetadata  # metadata of the whole source, at its own size
    frame_range: tuple[int, int, int]  # start, stop, step of their numbers in the source


def parse_size(text: str, width: int, height: int, *, keeps_even: bool = False) -> tuple[int, int]:
    """Computes the size that a `--size` text asks for.

    Args:
        text: "source" keeps the size; "240p" makes the shorter side 240 pixels, keeps the aspect and never enlarges;
            "640x360" is exactly that size.
        width: width of the source in pixels.
        height: height of the source in pixels.
        keeps_even: whether the side that follows from "240p" is rounded to an even number: H.264 with halved colors,
            which every player shows, has no odd sizes.

    Returns:
        (width, height) in pixels.

    Raises:
        UserError: another text, or a side out of range (exit 3).

    Example:
        >>> parse_size("480p", 1920, 1080)
        (853, 480)
        >>> parse_size("480p", 320, 240), parse_size("240p", 854, 480, keeps_even=True)
        ((320, 240), (426, 240))
    """
    if text == "source":
        size = (width, height)
    elif match := re.fullmatch(r"(\d{1,6})p", text):
        scale = min(Fraction(1), Fraction(int(match[1]), min(width, height)))
        size = (_round_half_up(width * scale), _round_half_up(height * scale))
        if keeps_even and scale < 1:
            longer = 2 * ceil(max(width, height) * scale / 2 - Fraction(1, 2))
            size = (longer, size[1]) if width >= height else (size[0], longer)
    elif match := re.fullmatch(r"(\d{1,6})x(\d{1,6})", text):
        size = (int(match[1]), int(match[2]))
    else:
        raise bad_input(
            f"unknown size {text!r}", where="--size", why="expected 240p, 480p, Np, WxH or source", fix="--size 480p"
        )
    check_size(*size, where="--size")
    return size


def _round_half_up(value: Fraction) -> int:
    """Returns the nearest whole number; halves go up (Python's `round` would take 240.5 down)."""
    return int(value + Fraction(1, 2))


def check_size(width: int, height: int, *, where: str, limits: FrameSizeLimits = DEFAULTS) -> None:
    """Refuses pictures that are too small or too large.

    Args:
        width: width of the picture in pixels.
        height: height of the picture in pixels.
        where: the file or flag that has the size, for the message.
        limits: the sizes that are accepted.

    Raises:
        UserError: a side or the number of pixels is out of range (exit 3).
    """
    if min(width, height) < limits.min_side_px:
        raise bad_input(
            f"the picture is {width}x{height} pixels",
            where=where,
            why=f"each side must have at least {limits.min_side_px} pixels",
            fix="use a larger picture",
        )
    if max(width, height) > limits.max_side_px or width * height > limits.max_pixels:
        most = limits.max_pixels // 2**20
        raise bad_input(
            f"the picture is {width}x{height} pixels",
            where=where,
            why=f"at most {limits.max_side_px} pixels a side and {most} million in all are read",
            fix="scale it down first",
        )


def parse_frames(text: str, numbers: range) -> range:
    """Parses a `--frames` text.

    Args:
        text: "A:B" or "A:B:STEP"; A is included, B is not, and both may be left out.
        numbers: numbers of the frames of the video (`VideoMetadata.numbers`), from 0 for a film.

    Returns:
        The numbers of the chosen frames.

    Raises:
        UserError: a malformed text, or a range that is empty or reaches beyond the last frame (exit 3).

    Example:
        >>> parse_frames("10:", range(48))
        range(10, 48)
        >>> list(parse_frames("1001:1009:3", range(1001, 1049)))
        [1001, 1004, 1007]
    """
    match = re.fullmatch(r"(\d{0,18}):(\d{0,18})(?::(\d{1,18}))?", text)
    if match is None:
        raise bad_input(
            f"unknown frame range {text!r}",
            where="--frames",
            why=f"expected A:B or A:B:STEP, counted from {numbers.start}, A in and B out",
            fix=f"--frames {numbers.start}:{numbers.stop}",
        )
    start, stop, step = int(match[1] or numbers.start), int(match[2] or numbers.stop), int(match[3] or 1)
    if step < 1 or start >= stop or start < numbers.start or stop > numbers.stop:
        raise bad_input(
            f"the frame range {text!r} does not fit",
            where="--frames",
            why=f"the video has the frames {numbers.start} to {numbers[-1]}; A must be below B and STEP at least 1",
            fix=f"--frames {numbers.start}:{numbers.stop}",
        )
    return range(start, stop, step)


def even_timestamps(count: int, rate: Fraction) -> tuple[Fraction, ...]:
    """Returns the times in seconds of `count` frames at a constant rate, from zero.

    Example:
        >>> [str(time) for time in even_timestamps(3, Fraction(24))]
        ['0', '1/24', '1/12']
    """
    return tuple(i / rate for i in range(count))


def find_frame_rate(timestamps: Sequence[Fraction], tick: Fraction, declared: Fraction | None) -> tuple[Fraction, bool]:
    """Finds the frame rate, and whether it varies.

    A rate is constant when every time is within one tick of the even grid: Matroska rounds 1/30 s to 33, 33 and 34
    thousandths. A common rate that fits is preferred, and among several the declared one: some files declare only an
    estimate.

    Args:
        timestamps: times of the frames in seconds, rising.
        tick: seconds of one tick of the file.
        declared: frames a second in the file's header; None where it has none.

    Returns:
        Frames a second (the mean when the rate varies), and whether it varies.

    Example:
        >>> times = [Fraction(ms, 1000) for ms in (0, 33, 67, 100)]
        >>> find_frame_rate(times, Fraction(1, 1000), None)
        (Fraction(30, 1), False)
    """
    if len(timestamps) < 2:
        return declared or DEFAULT_RATE, False
    span = timestamps[-1] - timestamps[0]
    mean = ((len(timestamps) - 1) / span).limit_denominator(100_000)
    common = [Fraction(n, 1001) for n in (24000, 30000, 60000)] + [Fraction(n) for n in (24, 25, 30, 50, 60)]
    usual = sorted(common, key=lambda rate: (rate != declared, abs(rate - mean)))[:3]
    for rate in (*usual, declared, mean):
        if rate and all(abs(t - timestamps[0] - i / rate) <= tick for i, t in enumerate(timestamps)):
            return rate, False
    return mean, True


def make_metadata(size: tuple[int, int], count: int, rate: Fraction) -> VideoMetadata:
    """Makes the metadata of a silent synthetic video that is not in a file yet.

    Args:
        size: (width, height) of the frames, in pixels.
        count: number of frames.
        rate: frames a second.

    Example:
        >>> make_metadata((64, 36), 48, Fraction(24)).timestamps[-1]
        Fraction(47, 24)
    """
    return VideoMetadata(
        path="",
        kind="images",
        sha256="",
        bytes=0,
        width=size[0],
        height=size[1],
        frame_count=count,
        rate=rate,
        time_base=1 / rate,
        timestamps=even_timestamps(count, rate),
        end=count / rate,
        variable_rate=False,
        rotation=0,
        codec="",
        pixel_format="rgb24",
        color_space=None,
        primaries=None,
        transfer=None,
        range=None,
        sound=(),
        notes=(),
    )

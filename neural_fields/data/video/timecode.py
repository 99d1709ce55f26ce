"""Parses moments and lengths of a video: frame numbers, or seconds, as frames of the source."""

from __future__ import annotations

import re
from bisect import bisect_right
from fractions import Fraction

from neural_fields.core.errors import bad_input
from neural_fields.data.video.metadata import VideoMetadata


def parse_frame(text: str, metadata: VideoMetadata, flag: str) -> int:
    """Finds the frame that is shown at a moment.

    Args:
        text: "24" is frame 24, "1.5s" is the frame shown after 1.5 seconds.
        metadata: metadata of the source.
        flag: the flag that the text was given for, for the message.

    Returns:
        The number of the frame (`VideoMetadata.numbers`).

    Raises:
        UserError: a text that is not a moment, or a moment outside of the video (exit 3).

    Example:
        >>> from neural_fields.data.video.metadata import make_metadata
        >>> clip = make_metadata((64, 36), 48, Fraction(24))
        >>> parse_frame("12", clip, "--frame"), parse_frame("1.5s", clip, "--frame")
        (12, 36)
    """
    value, in_seconds = _parse_moment(text, flag)
    first = metadata.timestamps[0]
    numbers = metadata.numbers
    frame = numbers[bisect_right(metadata.timestamps, first + value) - 1] if in_seconds else int(value)
    length = metadata.end - first
    if frame not in numbers or (in_seconds and value >= length):
        raise bad_input(
            f"{flag} {text} is {'before the start' if frame < numbers[0] else 'after the end'} of the video",
            where=metadata.path,
            why=f"its frames are {numbers[0]} to {numbers[-1]}, {float(length):.6g} seconds",
            fix=f"{flag} {min(max(frame, numbers[0]), numbers[-1])}",
        )
    return frame


def parse_frame_count(text: str, metadata: VideoMetadata, flag: str) -> int:
    """Parses a length of time.

    Args:
        text: "12" is 12 frames, "0.5s" is half a second.
        metadata: metadata of the source.
        flag: the flag that the text was given for, for the message.

    Returns:
        The length in frames.

    Raises:
        UserError: a text that is not a length (exit 3).

    Example:
        >>> from neural_fields.data.video.metadata import make_metadata
        >>> parse_frame_count("0.5s", make_metadata((64, 36), 48, Fraction(24)), "--fade")
        12
    """
    value, in_seconds = _parse_moment(text, flag)
    return round(value * metadata.rate) if in_seconds else int(value)


def _parse_moment(text: str, flag: str) -> tuple[Fraction, bool]:
    """Reads a number, and whether it is in seconds."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s?)", text.strip())
    if found is None or (not found[2] and "." in found[1]):
        fix = f"{flag} 24 for a frame, or {flag} 1.5s for seconds"
        raise bad_input(f"{flag} {text!r} is no moment", why="it is a frame number, or seconds with an s", fix=fix)
    return Fraction(found[1]), bool(found[2])


def shift_timecode(timecode: str, frames: int, rate: Fraction) -> str:
    """Computes the timecode of a later frame.

    Args:
        timecode: of the first frame: "01:00:00:00", or "01:00:00;00" for drop frame.
        frames: number of frames after it.
        rate: frames a second.

    Returns:
        The timecode in the same form.

    Example:
        >>> shift_timecode("01:00:59;29", 1, Fraction(30000, 1001)), shift_timecode("09:59:59:24", 2, Fraction(25))
        ('01:01:00;02', '10:00:00:01')
    """
    hours, minutes, seconds, number = (int(part) for part in re.split(r"[:;.]", timecode))
    base, mark = round(rate), timecode[8]
    # Drop frame leaves out the first numbers of each minute but every tenth: two at 30 frames a second, four at 60.
    dropped = base // 15 if mark != ":" else 0
    total = ((hours * 60 + minutes) * 60 + seconds) * base + number + frames
    minute_count = hours * 60 + minutes
    total -= dropped * (minute_count - minute_count // 10)
    if dropped:
        tens, rest = divmod(total, 600 * base - 9 * dropped)
        total += 9 * dropped * tens + (dropped * ((rest - dropped) // (60 * base - dropped)) if rest >= dropped else 0)
    total, number = divmod(total, base)
    minutes_in_all, seconds = divmod(total, 60)
    return f"{minutes_in_all // 60 % 24:02d}:{minutes_in_all % 60:02d}:{seconds:02d}{mark}{number:02d}"

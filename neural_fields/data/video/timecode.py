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
    length = metadata.timestamps[-1] - first + 1 / metadata.rate
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

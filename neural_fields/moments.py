"""Moments of a video as people write them: a frame number, or seconds, as frames of the source."""

from __future__ import annotations

import re
from bisect import bisect_right
from fractions import Fraction

from neural_fields.data.facts import VideoFacts
from neural_fields.errors import bad_input

_TEXT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(s?)")


def frame_at(text: str, facts: VideoFacts, flag: str) -> int:
    """The number of the frame that is shown at a moment: "24" is frame 24, "1.5s" the one shown after 1.5 seconds.

    Raises:
        UserError: text that is no moment, or one outside of the video (exit 3).
    """
    value, in_seconds = _parsed(text, flag)
    first = facts.timestamps[0]
    frame = bisect_right(facts.timestamps, first + value) - 1 if in_seconds else int(value)
    length = facts.timestamps[-1] - first + 1 / facts.rate
    if frame >= facts.frame_count or (in_seconds and value >= length):
        raise bad_input(
            f"{flag} {text} is after the end of the video",
            where=facts.path,
            why=f"it has {facts.frame_count} frames, {float(length):.6g} seconds",
            fix=f"{flag} {facts.frame_count - 1}",
        )
    return frame


def frame_count(text: str, facts: VideoFacts, flag: str) -> int:
    """A length in frames: "12" are 12 frames, "0.5s" as many as half a second has.

    Raises:
        UserError: text that is no length (exit 3).
    """
    value, in_seconds = _parsed(text, flag)
    return round(value * facts.rate) if in_seconds else int(value)


def _parsed(text: str, flag: str) -> tuple[Fraction, bool]:
    found = _TEXT.fullmatch(text.strip())
    if found is None or (not found[2] and "." in found[1]):
        fix = f"{flag} 24 for a frame, or {flag} 1.5s for seconds"
        raise bad_input(f"{flag} {text!r} is no moment", why="it is a frame number, or seconds with an s", fix=fix)
    return Fraction(found[1]), bool(found[2])

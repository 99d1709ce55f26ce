"""Retiming: slow motion, other frame rates and frozen frames, as a list of positions among the source's frames.

Position 3 is frame 3, position 3 1/2 is half way to frame 4. All times are exact fractions of a second, so that
nothing drifts in a long video.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from neural_fields.core.errors import bad_input
from neural_fields.data.video.metadata import VideoMetadata


@dataclass(frozen=True)
class RetimingSettings:
    """Limits of retiming, and its tolerance."""

    max_speed: int = 100  # largest speed relative to the source
    max_rate: int = 1000  # most frames a second
    max_freeze_s: int = 3600  # longest freeze, in seconds
    max_frames: int = 100_000  # most frames of a rendering
    # Times nearer to a frame than this share of the way between frames show it: ticks round times.
    snap: Fraction = Fraction(1, 50)


DEFAULTS = RetimingSettings()


@dataclass(frozen=True)
class Timing:
    """Says how the frames of a rendering are timed.

    Attributes:
        speed: speed relative to the source; 1/2 is half as fast.
        rate: frames a second; None keeps the source's rate.
        freeze: pairs of a frame's number in the source and the seconds for which it is frozen, in addition to its
            normal duration.
    """

    speed: Fraction = Fraction(1)
    rate: Fraction | None = None
    freeze: tuple[tuple[int, Fraction], ...] = ()

    @property
    def changes_something(self) -> bool:
        """Whether the output's frames differ from the source's in time."""
        return self != Timing()

    @property
    def keeps_sound(self) -> bool:
        """Whether the picture stays in step with the source's sound."""
        return self.speed == 1 and not self.freeze


@dataclass(frozen=True)
class FrameSchedule:
    """Lists the frames of a rendering.

    Attributes:
        timestamps: time of each frame in seconds, rising; the first is that of the run's first frame.
        positions: position of each frame among the run's frames, never falling; 0 is the first frame, and fractions
            lie between frames.
        metadata: the metadata of the source, adapted to these frames, for the encoder.
        notes: sentences for the user.
    """

    timestamps: tuple[Fraction, ...]
    positions: tuple[Fraction, ...]
    metadata: VideoMetadata
    notes: tuple[str, ...] = ()


def parse_timing(
    speed: str = "1", rate: str = "", freeze: Sequence[str] = (), settings: RetimingSettings = DEFAULTS
) -> Timing:
    """Parses the texts of `--speed`, `--rate` and `--freeze`; numbers may be fractions such as 30000/1001.

    Args:
        speed: speed relative to the source, above 0 and at most 100.
        rate: frames a second, above 0 and at most 1000; empty keeps the source's rate.
        freeze: "frame:seconds", one for each frozen frame.
        settings: the limits.

    Returns:
        The timing, in exact fractions.

    Raises:
        UserError: a text that is not a number, or a number out of range (exit 3).

    Example:
        >>> parse_timing(speed="1/2", freeze=["20:2"])
        Timing(speed=Fraction(1, 2), rate=None, freeze=((20, Fraction(2, 1)),))
        >>> parse_timing().changes_something
        False
    """
    speed_number, rate_number = _parse_number(speed), _parse_number(rate) if rate else None
    if speed_number is None or not 0 < speed_number <= settings.max_speed:
        why = f"expected a number above 0, at most {settings.max_speed}"
        raise bad_input(f"--speed {speed!r}", why=why, fix="--speed 0.5")
    if rate and (rate_number is None or not 0 < rate_number <= settings.max_rate):
        why = f"expected frames a second, above 0 and at most {settings.max_rate}"
        raise bad_input(f"--rate {rate!r}", why=why, fix="--rate 60")
    pauses = []
    for word in freeze:
        number, _, text = word.partition(":")
        seconds = _parse_number(text)
        if not re.fullmatch(r"\d{1,9}", number) or seconds is None or not 0 < seconds <= settings.max_freeze_s:
            why = f"expected the number of a frame and seconds above 0, at most {settings.max_freeze_s}"
            raise bad_input(f"--freeze {word!r}", why=why, fix="--freeze 20:2")
        pauses.append((int(number), seconds))
    return Timing(speed_number, rate_number, tuple(pauses))


def schedule_frames(
    metadata: VideoMetadata, chosen: range, timing: Timing, settings: RetimingSettings = DEFAULTS
) -> FrameSchedule:
    """Plans the frames of a rendering.

    Args:
        metadata: metadata of the source.
        chosen: numbers in the source of the frames that are rendered.
        timing: the timing of the rendering.
        settings: the limit of frames, and the tolerance of positions.

    Returns:
        The frames in order.

    Raises:
        UserError: a frozen frame that is not rendered, a frame that is frozen twice, or too many frames (exit 3).

    Example:
        >>> from neural_fields.data.video.metadata import make_metadata
        >>> clip = make_metadata((64, 36), 3, Fraction(24))
        >>> [str(position) for position in schedule_frames(clip, range(3), Timing(Fraction(1, 2))).positions]
        ['0', '1/2', '1', '3/2', '2', '2']
    """
    pauses = dict.fromkeys(chosen, Fraction(0))
    for number, seconds in timing.freeze:
        if number not in pauses:
            why = f"the run has the frames {chosen[0]} to {chosen[-1]}"
            nearest = min(chosen, key=lambda k: abs(k - number))
            raise bad_input(f"frame {number} is not part of this run", why=why, fix=f"--freeze {nearest}:{seconds}")
        if pauses[number]:
            raise bad_input(f"frame {number} is frozen twice", fix=f"--freeze {number}:{pauses[number] + seconds}")
        pauses[number] = seconds

    # The ticks of a container round the times of a steady video; slowed down, they would look like another rate.
    first = metadata.timestamps[0]
    numbers = metadata.numbers
    source = list(metadata.find_times(chosen))
    if not metadata.variable_rate:
        source = [first + numbers.index(k) / metadata.rate for k in chosen]
    following = numbers.index(chosen[-1]) + chosen.step
    if following >= len(numbers):
        source.append(metadata.end)
    else:
        source.append(metadata.timestamps[following] if metadata.variable_rate else first + following / metadata.rate)
    starts, late = [], Fraction(0)
    for time, pause in zip(source, (*pauses.values(), Fraction(0)), strict=True):
        starts.append((time - source[0]) / timing.speed + late)
        late += pause
    timeline = _Timeline(tuple(starts), tuple(pauses.values()))

    rate = timing.rate or metadata.rate / chosen.step
    count = starts[-1] * rate
    if count > settings.max_frames:
        raise bad_input(
            f"that makes {int(count)} frames",
            why=f"at most {settings.max_frames} are rendered at once",
            fix="a higher --speed, a lower --rate, or a shorter --freeze",
        )
    times = list(timeline.constant_rate_times(rate) if timing.rate else timeline.source_times(timing.speed, rate))
    stamps = tuple(source[0] + time for time in times)
    positions = tuple(timeline.position_at(time, settings.snap) for time in times)
    notes: tuple[str, ...] = ()
    if not timing.keeps_sound:
        parts = {"sound": metadata.sound, "chapters": metadata.chapters, "timecode": metadata.timecode}
        lost = [name for name, value in parts.items() if value]
        if lost:
            verb, word = ("are", "they") if len(lost) > 1 or lost == ["chapters"] else ("is", "it")
            notes = (f"the {' and the '.join(lost)} {verb} left out: {word} would not be in step with what is seen",)
        alone = replace(metadata, sound=(), chapters=(), timecode=None, end=source[0] + starts[-1])
        return FrameSchedule(
            stamps, positions, replace(alone, timestamps=stamps, frame_count=len(stamps), rate=rate), notes
        )
    if metadata.timecode and rate != metadata.rate:
        metadata = replace(metadata, timecode=None)
        notes = (f"the timecode is left out: it counts frames at another rate than {rate}",)
    # Around the new frames those of the source, by which the sound is cut.
    after = tuple(time for time in metadata.timestamps[numbers.index(chosen[-1]) + 1 :] if time > stamps[-1])
    whole = (*metadata.timestamps[: numbers.index(chosen[0])], *stamps, *after)
    around = replace(metadata, timestamps=whole, frame_count=len(whole), rate=rate)
    return FrameSchedule(stamps, positions, around, notes)


@dataclass(frozen=True)
class _Timeline:
    """When the output shows which frame. Output times are seconds from the first frame.

    Attributes:
        starts: when each frame is reached in the output, and the end.
        pauses: how long each then is frozen.
    """

    starts: tuple[Fraction, ...]
    pauses: tuple[Fraction, ...]

    def position_at(self, time: Fraction, snap: Fraction) -> Fraction:
        """Returns the position among the frames at an output time, rounded to a frame that is closer than `snap`."""
        last = len(self.pauses) - 1
        frame = min(max(0, bisect_right(self.starts, time) - 1), last)
        moving = time - self.starts[frame] - self.pauses[frame]
        if moving <= 0 or frame == last:
            return Fraction(frame)
        share = moving / (self.starts[frame + 1] - self.starts[frame] - self.pauses[frame])
        nearest = round(share)
        return Fraction(frame) + (nearest if abs(share - nearest) < snap else share)

    def constant_rate_times(self, rate: Fraction) -> Iterator[Fraction]:
        """Yields output times at a constant rate."""
        number = 0
        while (time := number / rate) < self.starts[-1]:
            yield time
            number += 1

    def source_times(self, speed: Fraction, rate: Fraction) -> Iterator[Fraction]:
        """Yields output times in the rhythm of the source: from each to the next, `speed` frames of the source pass.

        A frozen frame is repeated at the given rate.
        """
        count, place = Fraction(len(self.pauses)), Fraction(0)
        while place < count:
            following = min(place + speed, count)
            time, end = self._time_of(place), self._time_of(following)
            yield time
            if any(self.pauses[ceil(place) : ceil(following)]):
                extra = 1
                while (between := time + extra / rate) < end - Fraction(1, 2) / rate:
                    yield between
                    extra += 1
            place += speed

    def _time_of(self, place: Fraction) -> Fraction:
        """Returns when a position is first reached."""
        frame = int(place)
        if frame == len(self.pauses):
            return self.starts[-1]
        share = place - frame
        moving = self.starts[frame + 1] - self.starts[frame] - self.pauses[frame]
        return self.starts[frame] + (self.pauses[frame] + share * moving if share else 0)


def _parse_number(text: str) -> Fraction | None:
    """Parses a decimal number or a fraction; None where the text is neither."""
    pattern = r"\d{1,6}(?:\.\d{1,6})?|\.\d{1,6}|\d{1,6}/\d{1,6}"
    if not re.fullmatch(pattern, text.strip(), flags=re.ASCII):
        return None
    try:
        return Fraction(text.strip())
    except ZeroDivisionError:
        return None

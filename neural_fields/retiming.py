"""Time in a rendering: slow motion, other frame rates and frames that stand still, as a list of moments of the source.

A moment is a position among the frames of a run: 3 is frame 3 as it is, 3 1/2 lies half way to the next. All times are
exact fractions of a second, so nothing drifts however long a film is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from neural_fields.data.facts import VideoFacts
from neural_fields.errors import bad_input

FASTEST = 100
HIGHEST_RATE = 1000
LONGEST_FREEZE = 3600  # seconds
MOST_FRAMES = 100_000
WHOLE = Fraction(1, 50)  # of the way to the next frame: nearer than that a moment is the frame (ticks round times)

_NUMBER = r"\d{1,6}(?:\.\d{1,6})?|\.\d{1,6}|\d{1,6}/\d{1,6}"


@dataclass(frozen=True)
class Timing:
    """What is asked of the time of a rendering.

    Attributes:
        speed: 1/2 is half as fast as the source.
        rate: frames a second; None: as many as the source has.
        freeze: (number of a frame in the source, seconds that it stands still, on top of its own time).
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
        """Whether what is seen stays in step with the source's sound."""
        return self.speed == 1 and not self.freeze


@dataclass(frozen=True)
class Plan:
    """The frames of a rendering.

    Attributes:
        timestamps: seconds, one a frame, rising; the first is that of the run's first frame.
        positions: among the run's frames (0 is the first, fractions lie between), one a frame, never falling.
        facts: of the source as if it had these frames: what the output mirrors.
        notes: what the user should know.
    """

    timestamps: tuple[Fraction, ...]
    positions: tuple[Fraction, ...]
    facts: VideoFacts
    notes: tuple[str, ...] = ()


def parse_timing(speed: str = "1", rate: str = "", freeze: Sequence[str] = ()) -> Timing:
    """What the texts of `--speed`, `--rate` and `--freeze` ask for; numbers may be fractions such as 30000/1001.

    Raises:
        UserError: something else than numbers, or numbers out of range (exit 3).
    """
    speed_number, rate_number = _number(speed), _number(rate) if rate else None
    if speed_number is None or not 0 < speed_number <= FASTEST:
        raise bad_input(f"--speed {speed!r}", why=f"expected a number above 0, at most {FASTEST}", fix="--speed 0.5")
    if rate and (rate_number is None or not 0 < rate_number <= HIGHEST_RATE):
        why = f"expected frames a second, above 0 and at most {HIGHEST_RATE}"
        raise bad_input(f"--rate {rate!r}", why=why, fix="--rate 60")
    pauses = []
    for word in freeze:
        number, _, seconds = word.partition(":")
        length = _number(seconds)
        if not re.fullmatch(r"\d{1,9}", number) or length is None or not 0 < length <= LONGEST_FREEZE:
            why = f"expected the number of a frame and seconds above 0, at most {LONGEST_FREEZE}"
            raise bad_input(f"--freeze {word!r}", why=why, fix="--freeze 20:2")
        pauses.append((int(number), length))
    return Timing(speed_number, rate_number, tuple(pauses))


def plan(facts: VideoFacts, chosen: range, timing: Timing) -> Plan:
    """The frames of a rendering.

    Args:
        facts: of the source.
        chosen: the frames of it that are rendered.
        timing: what is asked for.

    Raises:
        UserError: a frame that is not rendered stands still, or twice; more frames than are sensible (exit 3).
    """
    course = _course(facts, chosen, timing)
    rate = timing.rate or facts.rate / chosen.step
    count = course.starts[-1] * rate
    if count > MOST_FRAMES:
        raise bad_input(
            f"that makes {int(count)} frames",
            why=f"at most {MOST_FRAMES} are rendered at once",
            fix="a higher --speed, a lower --rate, or a shorter --freeze",
        )
    times = list(course.evenly(rate) if timing.rate else course.frame_by_frame(timing.speed, rate))
    stamps = tuple(course.source[0] + time for time in times)
    silent = bool(facts.sound) and not timing.keeps_sound
    notes = ("the sound is left out: it would not be in step with what is seen",) if silent else ()
    return Plan(
        stamps, tuple(course.position(time) for time in times), _mirrored(facts, chosen, timing, rate, stamps), notes
    )


@dataclass(frozen=True)
class _Course:
    """How time goes by. Output times are seconds from the first frame.

    Attributes:
        source: timestamps of the frames, and the end of the last one.
        starts: when each frame is reached in the output, and the end.
        pauses: how long each then stands still.
    """

    source: tuple[Fraction, ...]
    starts: tuple[Fraction, ...]
    pauses: tuple[Fraction, ...]

    def position(self, time: Fraction) -> Fraction:
        """The position among the frames at an output time."""
        last = len(self.pauses) - 1
        frame = min(max(0, bisect_right(self.starts, time) - 1), last)
        moving = time - self.starts[frame] - self.pauses[frame]
        if moving <= 0 or frame == last:
            return Fraction(frame)
        share = moving / (self.starts[frame + 1] - self.starts[frame] - self.pauses[frame])
        nearest = round(share)
        return Fraction(frame) + (nearest if abs(share - nearest) < WHOLE else share)

    def evenly(self, rate: Fraction) -> Iterator[Fraction]:
        """Output times at a constant rate."""
        number = 0
        while (time := number / rate) < self.starts[-1]:
            yield time
            number += 1

    def frame_by_frame(self, speed: Fraction, rate: Fraction) -> Iterator[Fraction]:
        """Output times in the rhythm of the source: from each to the next, `speed` frames of the source go by.

        What stands still is filled up at a rate.
        """
        count, place = Fraction(len(self.pauses)), Fraction(0)
        while place < count:
            following = min(place + speed, count)
            time, end = self._reached(place), self._reached(following)
            yield time
            if any(self.pauses[ceil(place) : ceil(following)]):
                extra = 1
                while (between := time + extra / rate) < end - Fraction(1, 2) / rate:
                    yield between
                    extra += 1
            place += speed

    def _reached(self, place: Fraction) -> Fraction:
        """When a position is reached first."""
        frame = int(place)
        if frame == len(self.pauses):
            return self.starts[-1]
        share = place - frame
        moving = self.starts[frame + 1] - self.starts[frame] - self.pauses[frame]
        return self.starts[frame] + (self.pauses[frame] + share * moving if share else 0)


def _course(facts: VideoFacts, chosen: range, timing: Timing) -> _Course:
    pauses = dict.fromkeys(chosen, Fraction(0))
    for number, seconds in timing.freeze:
        if number not in pauses:
            why = f"the run has the frames {chosen[0]} to {chosen[-1]}"
            nearest = min(chosen, key=lambda k: abs(k - number))
            raise bad_input(f"frame {number} is not part of this run", why=why, fix=f"--freeze {nearest}:{seconds}")
        if pauses[number]:
            raise bad_input(f"frame {number} stands still twice", fix=f"--freeze {number}:{pauses[number] + seconds}")
        pauses[number] = seconds
    # The ticks of a container round the times of a steady film; drawn out, they would be seen as another rate.
    first = facts.timestamps[0]
    times = [facts.timestamps[k] if facts.variable_rate else first + k / facts.rate for k in chosen]
    source = (*times, times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1 / facts.rate))
    starts, late = [], Fraction(0)
    for time, pause in zip(source, (*pauses.values(), Fraction(0)), strict=True):
        starts.append((time - source[0]) / timing.speed + late)
        late += pause
    return _Course(source, tuple(starts), tuple(pauses.values()))


def _mirrored(
    facts: VideoFacts, chosen: range, timing: Timing, rate: Fraction, stamps: tuple[Fraction, ...]
) -> VideoFacts:
    """The facts of the source as if it had these frames; around them those it has, which the sound is cut by."""
    if not timing.keeps_sound:
        return replace(facts, timestamps=stamps, frame_count=len(stamps), rate=rate, sound=())
    after = tuple(time for time in facts.timestamps[chosen[-1] + 1 :] if time > stamps[-1])
    whole = (*facts.timestamps[: chosen[0]], *stamps, *after)
    return replace(facts, timestamps=whole, frame_count=len(whole), rate=rate)


def _number(text: str) -> Fraction | None:
    """The fraction that a text says; None where it says none."""
    if not re.fullmatch(_NUMBER, text.strip(), flags=re.ASCII):
        return None
    try:
        return Fraction(text.strip())
    except ZeroDivisionError:
        return None

"""When every frame of a film is shown: one table of times for each clip, made from the stamps in the file.

Every reader and writer takes times and lengths from this table. A stamp that is missing, doubled or out of order is
mended alone, and all other frames keep theirs. Where the stamps start again, the file puts several recordings
together (`cat a.ts b.ts`, parts of a live stream): they follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

from neural_fields.data.video.metadata import DEFAULT_RATE, Recording, even_timestamps


@dataclass(frozen=True)
class FrameStamp:
    """What the file says about one frame: when it is shown and how long, in seconds of the file's own count."""

    time: Fraction | None
    duration: Fraction  # 0 where the file does not say


@dataclass(frozen=True)
class FrameTimes:
    """When every frame is shown.

    Attributes:
        starts: seconds in the file's own count, one for each frame, rising; those of later recordings are moved.
        end: seconds: when the last frame ends.
        recordings: the recordings that the file puts together.
        has_own_times: whether every start is the stamp in the file.
        notes: sentences for the user about what was mended.
    """

    starts: tuple[Fraction, ...]
    end: Fraction
    recordings: tuple[Recording, ...]
    has_own_times: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FrameTimeSettings:
    """Limits of what counts as one recording."""

    longest_gap_s: int = 10  # MPEG streams with a longer gap between frames are two recordings; FFmpeg takes the same


DEFAULTS = FrameTimeSettings()


def tabulate_frame_times(
    stamps: Sequence[FrameStamp],
    tick: Fraction,
    declared_rate: Fraction | None,
    *,
    declared_end: Fraction | None = None,
    is_stream: bool = False,
    settings: FrameTimeSettings = DEFAULTS,
) -> FrameTimes:
    """Makes the table of times.

    Args:
        stamps: what the file says about each frame, in the order in which they are shown.
        tick: seconds of one tick of the file.
        declared_rate: frames a second in the file's header; None where it has none.
        declared_end: seconds in the file's own count: when the file says that the film ends.
        is_stream: whether the file is an MPEG stream, in which a long gap means that another recording starts.
        settings: the limits.

    Returns:
        The table. Frames of a file without any stamps are even.

    Example:
        >>> found = [FrameStamp(Fraction(ms, 1000), Fraction(0)) for ms in (0, 40, 80, 120, 120, 2000, 2040)]
        >>> table = tabulate_frame_times(found, Fraction(1, 1000), None)
        >>> [int(1000 * time) for time in table.starts], float(table.end)
        ([0, 40, 80, 120, 160, 2000, 2040], 2.08)
    """
    known = [stamp.time for stamp in stamps if stamp.time is not None]
    rate = declared_rate or DEFAULT_RATE
    if not known:
        note = f"the file does not give its frames a time: they are spaced evenly at {rate} frames a second"
        starts = even_timestamps(len(stamps), rate)
        whole = Recording(Fraction(0), len(stamps) / rate, Fraction(0))
        return FrameTimes(starts, whole.end, (whole,), False, (note,))
    gaps = [b - a for a, b in pairwise(known) if b > a]
    usual = max(tick, median_low(gaps)) if gaps else stamps[0].duration or 1 / rate

    # Each stamp stays, is mended, or starts another recording.
    times: list[Fraction | None] = []
    recordings: list[Recording] = []
    first, shift, jumps = known[0], Fraction(0), []
    for index, stamp in enumerate(stamps):
        time, before = stamp.time, [t for t in times[-2:] if t is not None]
        if time is None or not before:
            times.append(time if time is None else time + shift)
            continue
        last, following = before[-1], next((s.time for s in stamps[index + 1 :] if s.time is not None), None)
        is_back = time + shift < last
        if is_back and following is not None and following + shift > last:  # it alone is out of order
            times.append(None)
        elif is_back and len(before) > 1 and time + shift > before[0]:  # the one before it is
            times[-1] = None
            times.append(time + shift)
        elif is_back or (is_stream and time + shift - last > settings.longest_gap_s):
            end = last + (stamps[index - 1].duration or usual)
            recordings.append(Recording(first, end - shift, shift))
            jumps.append(index)
            first, shift = time, end - time
            times.append(end)
        else:
            times.append(None if time + shift == last else time + shift)
    missing = [index for index, time in enumerate(times) if time is None]
    starts = _fill_missing(times, usual, tick)

    # The last frame has its own duration, unless durations are guesses; or what the file says about the film's end.
    shown = [b - a for a, b in pairwise(starts)]
    wrong = sum(abs(stamp.duration - gap) > tick for stamp, gap in zip(stamps, shown, strict=False))
    guessed = wrong > len(stamps) // 4
    end = starts[-1] + (usual if guessed else stamps[-1].duration or usual)
    if declared_end is not None and declared_end + shift > starts[-1] and abs(declared_end + shift - end) > tick:
        end = declared_end + shift
    recordings.append(Recording(first, end - shift, shift))
    notes = tuple(_describe_mending(jumps, missing, starts, end, usual))
    return FrameTimes(starts, end, tuple(recordings), not (missing or jumps), notes)


def _describe_mending(
    jumps: Sequence[int], missing: Sequence[int], starts: Sequence[Fraction], end: Fraction, usual: Fraction
) -> Iterator[str]:
    """Says which times are not those of the file, and whether the last frame stays long."""
    if jumps:
        where = ", ".join(map(str, jumps[:5]))
        yield f"the file puts {len(jumps) + 1} recordings together (at frame {where}): they follow each other"
    if missing:
        count = f"{len(missing)} of {len(starts)} frames have" if len(missing) > 1 else "one frame has"
        yield (
            f"{count} no time of {'their' if len(missing) > 1 else 'its'} own (frame "
            f"{', '.join(map(str, missing[:5]))}): placed between the neighbors, and all others keep their times"
        )
    if len(starts) > 1 and end - starts[-1] > 2 * usual:
        yield f"the last frame stays {float(end - starts[-1]):.3g} seconds"


def _fill_missing(times: Sequence[Fraction | None], usual: Fraction, tick: Fraction) -> tuple[Fraction, ...]:
    """Puts frames without a time after the one before, at the usual distance or evenly where there is less room."""
    filled = list(times)
    known = [index for index, time in enumerate(times) if time is not None]
    for index in range(known[0] - 1, -1, -1):
        filled[index] = filled[index + 1] - usual  # type: ignore[operator]  # the one after it is known
    for at, following in zip(known, [*known[1:], len(times)], strict=True):
        start = times[at]
        assert start is not None, "these are known"
        step = usual
        if following < len(times):
            room = times[following]
            assert room is not None, "these are known"
            even = (room - start) / (following - at)
            on_ticks = even // tick * tick
            step = min(usual, on_ticks or even)
        for index in range(at + 1, following):
            filled[index] = start + step * (index - at)
    return tuple(time for time in filled if time is not None)

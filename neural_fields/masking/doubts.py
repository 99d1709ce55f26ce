"""Frames whose masks should be checked: where an object is not sure, and where it was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DoubtSettings:
    """Holds what counts as doubtful."""

    min_confidence: float = 0.58  # below it a frame should be checked
    max_gap_frames: int = 3  # spans with fewer sure frames between them are one span
    max_spans: int = 5  # of one object, that are listed


DEFAULTS = DoubtSettings()


@dataclass(frozen=True)
class Doubts:
    """Holds the doubtful frames of an object, by their numbers in the source.

    Attributes:
        check: spans to look at, the most doubtful first.
        lost: spans in which the object was not found, in order.
    """

    check: tuple[range, ...]
    lost: tuple[range, ...]


def find_doubts(confidence: Sequence[float], first: int, settings: DoubtSettings = DEFAULTS) -> Doubts:
    """Finds the doubtful frames of an object.

    Args:
        confidence: how sure it is in each frame, 0 to 1; 0 where it was not found.
        first: number in the source of the first of these frames.
        settings: what counts as doubtful.

    Example:
        >>> doubts = find_doubts([1.0, 1.0, 0.2, 0.1, 1.0, 1.0, 1.0, 0.0, 0.0], first=10)
        >>> doubts.check, doubts.lost
        ((range(12, 14),), (range(17, 19),))
    """
    sure = np.asarray(confidence, np.float64)
    lost = _find_spans(sure <= 0)
    doubtful: list[range] = []
    for span in _find_spans((sure > 0) & (sure < settings.min_confidence)):
        if doubtful and span.start - doubtful[-1].stop < settings.max_gap_frames:
            doubtful[-1] = range(doubtful[-1].start, span.stop)
        else:
            doubtful.append(span)
    worst = sorted(doubtful, key=lambda span: float(sure[span.start : span.stop].mean()))[: settings.max_spans]
    return Doubts(
        tuple(range(first + span.start, first + span.stop) for span in worst),
        tuple(range(first + span.start, first + span.stop) for span in lost[: settings.max_spans]),
    )


def _find_spans(chosen: np.ndarray) -> list[range]:
    """Finds the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
    return [range(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def describe_span(span: range) -> str:
    """Returns the frames of a span in words.

    Example:
        >>> describe_span(range(31, 39)), describe_span(range(4, 5))
        ('frames 31-38', 'frame 4')
    """
    return f"frame {span.start}" if len(span) == 1 else f"frames {span.start}-{span.stop - 1}"

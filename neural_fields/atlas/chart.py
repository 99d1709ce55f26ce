"""Charts: parts of a layer's canonical plane, each for a span of frames."""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.core.box import Box


@dataclass(frozen=True)
class LayerChart:
    """Describes a chart of a layer: the rectangle of its canonical plane that belongs to a span of frames."""

    first: int  # first frame
    last: int  # last frame, included
    box: Box


@dataclass(frozen=True)
class Chart:
    """Describes a chart or a layer that shows a span of frames; a series of charts shows the same object over time."""

    layer: str
    first: int  # first frame
    last: int  # last frame, included
    box: Box


def choose_handover_frames(start: Chart, end: Chart) -> tuple[int, int]:
    """Chooses the frames by which to go from a chart to the one beside it in time: one that both have, or neighbors."""
    if start.first < end.first:
        frames, shared = (start.last, end.first), end.first <= start.last
        middle = (end.first + start.last) // 2
    else:
        frames, shared = (start.first, end.last), start.first <= end.last
        middle = (start.first + end.last) // 2
    return (middle, middle) if shared else frames

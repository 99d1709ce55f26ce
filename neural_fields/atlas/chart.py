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

"""Charts: parts of a layer's canonical plane, each for a span of frames."""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.core.coords import Box


@dataclass(frozen=True)
class LayerChart:
    """A chart of one layer: the rectangle of its canonical plane that belongs to a span of frames."""

    first: int  # frame
    last: int  # frame, included
    box: Box

    @staticmethod
    def from_json(value: dict) -> LayerChart:
        """Reads what `dataclasses.asdict` gave."""
        return LayerChart(int(value["first"]), int(value["last"]), Box(**value["box"]))


@dataclass(frozen=True)
class Chart:
    """A chart, or a whole layer, that shows a span of frames; one series of charts shows the same thing over time."""

    layer: str
    first: int  # frame
    last: int  # frame, included
    box: Box

    @staticmethod
    def from_json(value: dict) -> Chart:
        """Reads what `dataclasses.asdict` gave."""
        return Chart(str(value["layer"]), int(value["first"]), int(value["last"]), Box(**value["box"]))

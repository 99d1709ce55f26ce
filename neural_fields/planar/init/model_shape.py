"""The sizes of a planar model, which are needed besides the config to build it."""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.atlas.chart import LayerChart
from neural_fields.core.box import Box


@dataclass(frozen=True)
class LayerShape:
    """Describes the canonical picture of a layer: its name, the box that it covers, and its size in texels."""

    name: str
    box: Box
    width: int
    height: int
    reference: int | None = None  # the frame whose own coordinates the canonical plane has, where it has to
    # Parts of the plane that belong to spans of frames; none: all of it to all frames.
    charts: tuple[LayerChart, ...] = ()


@dataclass(frozen=True)
class ModelShape:
    """Holds the sizes that are needed besides the config to build a planar model and to load a checkpoint."""

    width: int
    height: int
    frame_count: int
    layers: tuple[LayerShape, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return (self.width, self.height)

    @property
    def front_count(self) -> int:
        """The number of layers in front of the background."""
        return len(self.layers) - 1

"""The opacity of NaRCan: layers are charts of a clip, each with a span of frames, and fade into each other.

Chen et al., "NaRCan: Natural Refined Canonical Image with Integration of Diffusion Prior for Video Editing" (2024):
several canonical pictures, blended linearly where their spans overlap. Its code calls the charts segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.planar.appearance.opacity import Opacity, OpacityConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.mapping import PointFunction


@dataclass(frozen=True)
class WindowOpacityConfig(OpacityConfig, PointFunction):
    """Divides the clip into charts, which are layers: spans of frames that fade into each other (NaRCan)."""

    kind: ClassVar[str] = "window"
    segments: int = 3  # number of charts; fewer where the clip has less than two frames for each
    overlap: int = 10  # frames that two charts share; fewer where charts are shorter

    def __post_init__(self) -> None:
        require_valid(self.segments >= 1, "segments must be at least 1")
        require_valid(self.overlap >= 0, "overlap must not be negative")

    def build(self, shape: ModelShape) -> WindowOpacity:
        """See `OpacityConfig.build`."""
        return WindowOpacity(self._divide(shape))

    def divide_clip(self, shape: ModelShape) -> tuple[tuple[int, int], ...]:
        """See `OpacityConfig.divide_clip`."""
        return self._divide(shape).spans

    def _divide(self, shape: ModelShape) -> ChartSpans:
        """Divides the clip into the spans of frames that the layers show."""
        return ChartSpans(shape.frame_count, len(shape.layers), self.overlap)


@dataclass(frozen=True)
class ChartSpans:
    """Divides a clip into `count` spans of equal length; neighbors share `overlap` frames, as in the paper's code.

    Example:
        >>> ChartSpans(frame_count=12, count=3, overlap=2).spans
        ((0, 4), (3, 8), (7, 11))
    """

    frame_count: int
    count: int
    overlap: int

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first, last) frame of each chart; the last chart has the remaining frames. A frame is in at most two."""
        length = self.frame_count // self.count
        overlap = min(self.overlap, length)
        before, after = overlap // 2, overlap - overlap // 2
        last = self.count - 1
        spans = []
        for number in range(self.count):
            begin = length * number - before if number else 0
            end = length * (number + 1) + after - 1 if number < last else self.frame_count - 1
            spans.append((begin, end))
        return tuple(spans)

    def remaining_share(self, frame: Float[Tensor, " n"]) -> Float[Tensor, "n front"]:
        """Computes the share of each chart but the last: 1 until the next chart begins, then falling to 0.

        As opacities of layers, front to back, these shares give the linear blend.

        Args:
            frame: numbers of frames; fractions lie between frames.

        Returns:
            The shares, in [0, 1].
        """
        first = frame.new_tensor([span[0] for span in self.spans[1:]])
        last = frame.new_tensor([span[1] for span in self.spans[:-1]])
        return ((last + 1 - frame[:, None]) / (last - first + 2)).clamp(0, 1)


def plan_chart_spans(settings: WindowOpacityConfig, frame_count: int) -> ChartSpans:
    """Returns the charts of a clip: as many as asked for, but none shorter than two frames."""
    return ChartSpans(frame_count, max(1, min(settings.segments, frame_count // 2)), settings.overlap)


def make_chart_masks(settings: WindowOpacityConfig, frame_count: int, size: tuple[int, int]) -> LayerMasks:
    """Returns the charts but the last as mask layers "segment1", "segment2", ...; the last one is the background.

    A mask covers the frame where the chart has at least half of the weight. The arrays take no memory.

    Args:
        settings: number of charts and their overlap.
        frame_count: of the clip.
        size: (width, height) of the masks in pixels.
    """
    segments = plan_chart_spans(settings, frame_count)
    left = segments.remaining_share(torch.arange(frame_count).float())
    begun = torch.cat([torch.ones(frame_count, 1), 1 - left[:, :-1]], dim=1)[:, : left.shape[1]]
    whole = (left * begun >= 0.5).T.numpy()
    masks = np.broadcast_to(whole[:, :, None, None], (*whole.shape, size[1], size[0]))
    return LayerMasks(tuple(f"segment{number + 1}" for number in range(len(whole))), masks)


class WindowOpacity(Opacity):
    """Shows whole frames of one layer after the other; nothing is trained."""

    skips_hidden = True

    def __init__(self, segments: ChartSpans) -> None:
        super().__init__()
        self.chart_spans = segments

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """See `Opacity.spans`."""
        return self.chart_spans.spans

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the shares of all charts but the last at the times of points; see `ChartSpans.remaining_share`."""
        frame = torch.as_tensor(coords.denormalize_time(xyt[:, 2], self.chart_spans.frame_count))
        # Frame indices come back from normalized times with a rounding error that must not leave a sliver of a layer.
        nearest = frame.round()
        return self.chart_spans.remaining_share(torch.where((frame - nearest).abs() < 1e-3, nearest, frame))

    def param_groups(self) -> list[dict]:
        """Returns nothing: the spans are not trained."""
        return []

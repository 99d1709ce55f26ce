"""Charts of a clip as layers: each has its span of frames and fades into the next one.

Chen et al., "NaRCan: Natural Refined Canonical Image with Integration of Diffusion Prior for Video Editing" (2024):
several canonical images, blended linearly where their spans overlap. Its code calls the charts segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.config import planar
from neural_fields.core import coords
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.planar.appearance.opacity import Opacity


@dataclass(frozen=True)
class ChartSpans:
    """`count` spans of equal length, neighbors sharing `overlap` frames, as the paper's code cuts a clip."""

    frame_count: int
    count: int
    overlap: int

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first, last) frame of each chart. The last takes the remaining frames; three never share a frame."""
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
        """Returns the share of each chart but the last at a frame: 1 until the next one begins, then falling to 0.

        As opacities of layers in front of one another these give the linear blend.
        """
        first = frame.new_tensor([span[0] for span in self.spans[1:]])
        last = frame.new_tensor([span[1] for span in self.spans[:-1]])
        return ((last + 1 - frame[:, None]) / (last - first + 2)).clamp(0, 1)


def plan_chart_spans(settings: planar.WindowOpacityConfig, frame_count: int) -> ChartSpans:
    """Returns the charts of a clip: as many as asked for, but none shorter than two frames."""
    return ChartSpans(frame_count, max(1, min(settings.segments, frame_count // 2)), settings.overlap)


def make_chart_masks(settings: planar.WindowOpacityConfig, frame_count: int, size: tuple[int, int]) -> LayerMasks:
    """Returns the charts but the last as mask layers "segment1", "segment2", ...; the last one is the background.

    A mask is the whole frame where the chart fills at least half of the picture. The arrays take no memory.

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
    """Whole frames of one layer after the other; nothing is trained."""

    skips_hidden = True

    def __init__(self, segments: ChartSpans) -> None:
        super().__init__()
        self.chart_spans = segments

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the shares of all charts but the last at the times of points; see `ChartSpans.remaining_share`."""
        frame = torch.as_tensor(coords.denormalize_time(xyt[:, 2], self.chart_spans.frame_count))
        # Frame indices come back from normalized times with a rounding error that must not leave a sliver of a layer.
        nearest = frame.round()
        return self.chart_spans.remaining_share(torch.where((frame - nearest).abs() < 1e-3, nearest, frame))

    def param_groups(self) -> list[dict]:
        """Returns nothing: the spans are not trained."""
        return []

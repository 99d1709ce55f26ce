"""The opacity of CoDeF: the given masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.core import coords
from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.appearance.opacity import Opacity, OpacityConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.mapping import PointFunction


@dataclass(frozen=True)
class MaskOpacityConfig(OpacityConfig, PointFunction):
    """Uses the given masks unchanged, without soft edges (CoDeF)."""

    kind: ClassVar[str] = "mask"

    def build(self, shape: ModelShape) -> MaskOpacity:
        """See `OpacityConfig.build`."""
        return MaskOpacity(shape.front_count, shape.frame_count, shape.size)


class MaskOpacity(Opacity):
    """Looks the alphas up in the masks: 0 or 1, from the nearest pixel and the nearest frame (CoDeF)."""

    def __init__(self, front: int, frame_count: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("masks", torch.zeros(front, frame_count, size[1], size[0], dtype=torch.bool))
        self.masks: Tensor
        self.size = size

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the masks, 0 or 1, at the nearest pixels and frames."""
        count = self.masks.shape[1]
        pixel = coords.denormalize_pixels(xyt[:, :2], *self.size).floor().long()
        column, row = pixel[:, 0].clamp(0, self.size[0] - 1), pixel[:, 1].clamp(0, self.size[1] - 1)
        t = torch.as_tensor(coords.denormalize_time(xyt[:, 2], count)).round().long().clamp(0, count - 1)
        return self.masks[:, t, row, column].T.to(xyt.dtype)

    def initialize(self, clip: ClipDataset, report: ProgressReporter = report_nothing) -> None:
        """See `Opacity.initialize`; the masks themselves."""
        self.masks.copy_(torch.from_numpy(np.array(clip.masks.masks)))

    def param_groups(self) -> list[dict]:
        """Returns nothing: the masks are not trained."""
        return []

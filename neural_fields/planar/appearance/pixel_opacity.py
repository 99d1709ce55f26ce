"""The opacity of the default preset: a logit for each pixel, initialized from the masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.masks.layer_masks import is_soft, settle_front_to_back
from neural_fields.planar.appearance.opacity import Opacity, OpacityConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_grid import FrameTable

SNAP_MARGIN = 0.02  # sigmoids this near to 0 or 1 mean 0 or 1


@dataclass(frozen=True)
class OpacityStartSettings:
    """Settings of the start of opacities from masks.

    Soft masks are taken as they are.
    """

    min_opacity: float = 0.005  # and its complement the largest; what is certain takes steady evidence to change
    outline_sigma_px: float = 0.7  # Gaussian: how soft the outline of a hard mask is taken to be
    mask_margin: float = 0.06  # share of the longer side of the frame: so far beyond its mask a layer may be found


DEFAULTS = OpacityStartSettings()


@dataclass(frozen=True)
class PixelOpacityConfig(OpacityConfig):
    """Sets a logit for each pixel, frame and front layer, initialized from the masks."""

    kind: ClassVar[str] = "pixel"
    max_megapixels: float = 25.0  # of all frames and layers together; longer clips get a coarser grid
    learning_rate: float = 0.1  # of the logits, a step

    def __post_init__(self) -> None:
        require_valid(self.max_megapixels > 0, "max_megapixels must be above 0")

    def build(self, shape: ModelShape) -> PixelOpacity:
        """See `OpacityConfig.build`."""
        return PixelOpacity(self, shape.front_count, shape.frame_count, shape.size)


class PixelOpacity(Opacity):
    """Stores a logit for each pixel, frame and front layer; long clips get a coarser grid, which bounds the memory.

    Front layers are visible only inside `windows`: (top, bottom, left, right) of each frame, in pixels of the training
    size; at the start they cover the frame.
    """

    def __init__(self, settings: PixelOpacityConfig, front: int, frame_count: int, size: tuple[int, int]) -> None:
        super().__init__()
        texels = front * frame_count * size[0] * size[1]
        shrink = max(1.0, texels / (settings.max_megapixels * 1e6)) ** 0.5
        columns, rows = (max(2, round(side / shrink)) for side in size)
        self.size = size
        self.table = FrameTable(torch.zeros(frame_count, front, rows, columns), size, settings.learning_rate)
        self.register_buffer("windows", torch.tensor([0, size[1], 0, size[0]]).repeat(frame_count, 1))
        self.windows: Tensor

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the alphas at any points; 0 outside the window of the nearest frame."""
        count = len(self.windows)
        t = torch.as_tensor(coords.denormalize_time(xyt[:, 2], count)).round().long().clamp(0, count - 1)
        top, bottom, left, right = self.windows[t].T
        x, y = coords.denormalize_pixels(xyt[:, :2], *self.size).T
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        return snap_alphas(torch.sigmoid(self.table(xyt))) * inside[:, None]

    def sample_frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width front"]:
        """See `Opacity.sample_frames`; 0 outside the window of each frame.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.
        """
        alphas = snap_alphas(torch.sigmoid(self.table.sample_frames(frames, size).permute(0, 2, 3, 1)))
        x, y = ((torch.arange(side, device=frames.device) + 0.5) / side for side in size)
        top, bottom, left, right = self.windows[frames].T[..., None]
        down = (y * self.size[1] >= top) & (y * self.size[1] < bottom)
        across = (x * self.size[0] >= left) & (x * self.size[0] < right)
        return alphas * (down[:, :, None] & across[:, None, :])[..., None]

    def initialize(self, clip: ClipDataset, report: ProgressReporter = report_nothing) -> None:
        """See `Opacity.initialize`; certain but at outlines: there, hard masks know least, and soft ones say it."""
        settings = DEFAULTS
        count, front, rows, columns = self.table.values.shape
        with torch.no_grad():
            for t in range(count):
                # The window (top, bottom, left, right) of front layers: the masks and room around them.
                masks = np.asarray(clip.masks.masks[:, t].any(0))
                shares = None if clip.masks.shares is None else np.asarray(clip.masks.shares[:, t])
                if shares is not None:
                    masks |= (shares > 255 * SNAP_MARGIN).any(0)  # weaker traces are noise
                    visible, left = settle_front_to_back(shares)
                room = round(settings.mask_margin * max(masks.shape))
                window = []
                for axis in (1, 0):
                    used = np.flatnonzero(masks.any(axis))
                    if len(used):
                        window += [max(0, used[0] - room), min(masks.shape[1 - axis], used[-1] + 1 + room)]
                    else:
                        window += [0, 0]
                self.windows[t] = torch.tensor([int(side) for side in window])
                for layer in range(front):
                    if shares is not None and is_soft(shares[layer]):
                        # The part of the light that reaches the layer; the share itself where none does.
                        alpha = np.where(left[layer], visible[layer] / np.maximum(left[layer], 1), shares[layer] / 255)
                        alpha = cv2.resize(alpha.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
                        inside = SNAP_MARGIN + (1 - 2 * SNAP_MARGIN) * alpha  # what `snap_alphas` turns into it
                        share = np.where((alpha > 0) & (alpha < 1), inside, alpha)
                        self.table.values[t, layer] = torch.logit(torch.from_numpy(share), eps=settings.min_opacity)
                        continue
                    mask = clip.masks.masks[layer, t].astype(np.float32)
                    mask = cv2.GaussianBlur(mask, (0, 0), settings.outline_sigma_px)
                    share = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
                    self.table.values[t, layer] = torch.logit(torch.from_numpy(share), eps=settings.min_opacity)
                report(Progress("textures", t + 1, count))

    def param_groups(self) -> list[dict]:
        """Returns the logits with their learning rate."""
        return self.table.param_groups()


def snap_alphas(alpha: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Stretches alphas so that values near 0 or 1 become exactly 0 or 1, with the gradient of the line everywhere.

    A sigmoid never reaches 0 or 1: edits of the background would shimmer faintly through every object. And a clamp has
    no gradient where it clamps: a wrong mask could never be corrected.
    """
    stretched = (alpha - SNAP_MARGIN) / (1 - 2 * SNAP_MARGIN)
    return stretched + (stretched.clamp(0, 1) - stretched).detach()

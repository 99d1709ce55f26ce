"""Opacities: the alphas of the front layers at points of the video, each as if the layer stood alone."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config import planar
from neural_fields.core import coords
from neural_fields.nn.fourier import Fourier
from neural_fields.nn.mlp import MLP
from neural_fields.planar.mappings.frame_grid import FrameTable
from neural_fields.planar.mappings.frame_points import evaluate_in_parts, frame_points
from neural_fields.planar.mappings.mapping import PAPER_ADAM

SNAP_MARGIN = 0.02  # sigmoids this near to 0 or 1 mean 0 or 1


class Opacity(nn.Module):
    """Alphas in [0, 1] of the front layers, front to back, each as if it stood alone."""

    skips_hidden = False  # a weight of 0 stays 0 for good: the colors of the layer are not computed there

    @abstractmethod
    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the alphas at any points."""

    def sample_frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width front"]:
        """Returns the alphas at every pixel of whole frames.

        Args:
            frames: numbers of frames.
            frame_count: of the clip.
            size: (width, height) in pixels, that of the training or another one.
        """
        points = frame_points(frames, frame_count, size)
        return self(points).view(len(frames), size[1], size[0], -1)

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns what the optimizer changes, with learning rates."""


class PixelOpacity(Opacity):
    """A logit per pixel, frame and front layer; long clips get a coarser grid so that memory stays bounded.

    Front layers are visible only inside `windows`: (top, bottom, left, right) of each frame, in pixels of the training
    size; at the start the whole frame.
    """

    def __init__(
        self, settings: planar.PixelOpacityConfig, front: int, frame_count: int, size: tuple[int, int]
    ) -> None:
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
        """See `Opacity.sample_frames`; 0 outside the window of each frame."""
        alphas = snap_alphas(torch.sigmoid(self.table.sample_frames(frames, size).permute(0, 2, 3, 1)))
        x, y = ((torch.arange(side, device=frames.device) + 0.5) / side for side in size)
        top, bottom, left, right = self.windows[frames].T[..., None]
        down = (y * self.size[1] >= top) & (y * self.size[1] < bottom)
        across = (x * self.size[0] >= left) & (x * self.size[0] < right)
        return alphas * (down[:, :, None] & across[:, None, :])[..., None]

    def param_groups(self) -> list[dict]:
        """Returns the logits with their learning rate."""
        return self.table.param_groups()


def snap_alphas(alpha: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Stretches alphas so that what is nearly 0 or 1 is exactly that, with the gradient of the line everywhere.

    A sigmoid never reaches 0 or 1: edits of the background would shimmer faintly through every object. And a clamp has
    no gradient where it clamps: a wrong mask could never be corrected.
    """
    stretched = (alpha - SNAP_MARGIN) / (1 - 2 * SNAP_MARGIN)
    return stretched + (stretched.clamp(0, 1) - stretched).detach()


class MlpOpacity(Opacity):
    """A ReLU network over Fourier features of (x, y, t); alphas from 0.001 to 0.991.

    Kasten et al., "Layered Neural Atlases" (2021), section 3.1: alpha = 0.99 (tanh + 1) / 2 + 0.001, so that no layer
    ever stops getting a gradient.
    """

    def __init__(self, settings: planar.MlpOpacityConfig, front: int) -> None:
        super().__init__()
        self.learning_rate = settings.learning_rate
        self.network: nn.Module | None = None
        if front:
            fourier = Fourier(3, settings.octaves)
            network = MLP(fourier.out_dim, front, settings.width, settings.layers, output="tanh")
            self.network = nn.Sequential(fourier, network)

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n front"]:
        """Returns the alphas at any points, from 0.001 to 0.991."""
        if self.network is None:
            return xyt.new_ones(len(xyt), 0)
        return 0.99 * 0.5 * (evaluate_in_parts(self.network, xyt) + 1) + 0.001

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.learning_rate, **PAPER_ADAM}]


class MaskOpacity(Opacity):
    """The masks as they are, 0 or 1 for each pixel; between pixels and frames the nearest one counts (CoDeF)."""

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

    def param_groups(self) -> list[dict]:
        """Returns nothing: the masks are not trained."""
        return []


def compute_layer_weights(alphas: Float[Tensor, "*n front"]) -> Float[Tensor, "*n layers"]:
    """Returns weights that sum to one: of each layer its alpha times the light that the layers in front let pass."""
    left, weights = alphas.new_ones(alphas.shape[:-1]), []
    for alpha in alphas.unbind(-1):
        weights.append(alpha * left)
        left = left * (1 - alpha)
    return torch.stack([*weights, left]).movedim(0, -1)  # planes in memory, as everything that is multiplied with them

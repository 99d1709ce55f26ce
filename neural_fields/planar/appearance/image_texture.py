"""The texture of the default preset: an image for each layer, initialized in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.memmap import RELEASE_INTERVAL
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.imaging.alpha import erode_alpha
from neural_fields.imaging.texture_splatting import TextureMean
from neural_fields.nn.torch_threads import map_in_torch_threads
from neural_fields.planar.appearance.texture import DEFAULT_MEGATEXELS, Texture, TextureConfig, compute_image_size
from neural_fields.planar.init.frame_patch import find_visible_rectangle
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_grid import mean_squared_steps
from neural_fields.planar.mappings.mapping import Mapping


@dataclass(frozen=True)
class ImageTextureSettings:
    """Settings of the smaller pictures of an image texture, and of its closed-form start."""

    max_halvings: int = 4  # of each side
    slack: float = 0.6  # halvings: pixels may lie 2^0.6 = 1.5 texels apart before the next smaller picture is taken
    rim_px: int = 2  # of a layer, whose pixels hardly count in the start of its texture
    rim_weight: float = 0.01  # of these pixels; that of the others is one more
    share_power: int = 4  # pixels that the layer fills in part count by this power of their share: they are mixtures


DEFAULTS = ImageTextureSettings()


@dataclass(frozen=True)
class ImageTextureConfig(TextureConfig):
    """Sets an image for each layer, initialized in closed form as the weighted mean of the frames that show it."""

    kind: ClassVar[str] = "image"
    density: float = 1.25  # texels a pixel where the layer appears largest
    max_megatexels: float = DEFAULT_MEGATEXELS  # largest image in millions of texels; larger ones get coarser
    learning_rate: float = 0.012  # of the colors, in [0, 1], a step

    def __post_init__(self) -> None:
        require_valid(min(self.density, self.max_megatexels) > 0, "density and max_megatexels must be above 0")

    def build(self, shape: ModelShape) -> list[ImageTexture]:
        """See `TextureConfig.build`."""
        return [ImageTexture(layer.box, layer.width, layer.height, self.learning_rate) for layer in shape.layers]

    def plan_image(self, box: Box, finer: float, size: tuple[int, int]) -> tuple[Box, int, int]:
        """See `TextureConfig.plan_image`; the box grows until its sides can be halved evenly as often as needed.

        Args:
            box: the part of the canonical plane that is used, in uv units.
            finer: number of texels per pixel of the frame that are needed.
            size: (width, height) of the frames in pixels.
        """
        width, height = compute_image_size(box, finer, size, self.density, self.max_megatexels)
        cell = 2**DEFAULTS.max_halvings
        columns, rows = -(-width // cell) * cell, -(-height // cell) * cell
        u1, v1 = box.u0 + box.width * columns / width, box.v0 + box.height * rows / height
        return Box(box.u0, box.v0, u1, v1), columns, rows


class ImageTexture(Texture):
    """Stores a layer's colors as an image that covers a box; outside, the colors of its edge are repeated.

    Args:
        box: the part of the canonical plane that the image covers, in uv units.
        width: in texels, a multiple of 2^max_halvings.
        height: in texels, a multiple of 2^max_halvings.
        learning_rate: of the colors.
        settings: of the smaller copies and of the initialization.
    """

    def __init__(
        self, box: Box, width: int, height: int, learning_rate: float, settings: ImageTextureSettings = DEFAULTS
    ) -> None:
        super().__init__()
        self.box = box
        self.settings = settings
        self.learning_rate = learning_rate
        self.image = nn.Parameter(torch.full((3, height, width), 0.5))

    def forward(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB at any points, interpolated between the texels of the full picture."""
        return self._sample_picture(self.image, uv)

    def sample_filtered(self, uv: Float[Tensor, "*n 2"], step: Float[Tensor, "m 2"] | None) -> Float[Tensor, "*n 3"]:
        """Returns the RGB of pixels; where they lie more than a texel apart, from a picture with fewer texels.

        Otherwise a frame that shows the layer small would use single texels with gaps between them, and training would
        change the colors of just these: a pattern of dots in the picture that people paint on.
        """
        if step is None:
            return self(uv)
        levels = self.choose_levels(step)
        parts = levels.unique(dim=0)
        if len(parts) == 1:
            return self._sample_picture(self.downsample_image(*parts[0].tolist()), uv)
        color = uv.new_zeros(*uv.shape[:-1], 3)
        for part in parts:
            chosen = torch.nonzero((levels == part).all(1))[:, 0]
            found = self._sample_picture(self.downsample_image(*part.tolist()), uv[chosen])
            color = color.index_copy(0, chosen, found)
        return color

    def choose_levels(self, step: Float[Tensor, "m 2"]) -> Int[Tensor, "m 2"]:
        """Returns how often to halve the picture across and down for pixels that lie `step` apart along u and v."""
        height, width = self.image.shape[1:]
        texels = step * step.new_tensor([width / self.box.width, height / self.box.height])  # between two pixels
        return (texels.clamp_min(1.0).log2() - self.settings.slack).ceil().long().clamp(0, self.settings.max_halvings)

    def downsample_image(self, across: int, down: int) -> Float[Tensor, "3 height width"]:
        """Returns the picture with its width halved `across` times and its height `down` times."""
        if across == down == 0:
            return self.image
        # Even cells only: cells that share texels would give these more of the gradient, which shows as a pattern.
        return F.avg_pool2d(self.image, (2**down, 2**across))

    def _sample_picture(
        self, image: Float[Tensor, "3 height width"], uv: Float[Tensor, "*n 2"]
    ) -> Float[Tensor, "*n 3"]:
        """Reads a picture that covers the box at any points."""
        # One picture per frame of the batch: grid_sample works on them in parallel.
        batch = uv if uv.ndim == 4 else uv.reshape(1, 1, -1, 2)
        images = image.expand(len(batch), -1, -1, -1)
        return coords.sample_canonical(images, self.box, batch).permute(0, 2, 3, 1).reshape(*uv.shape[:-1], 3)

    def initialize(
        self, layer: int, clip: ClipDataset, mapping: Mapping, report: ProgressReporter = report_nothing
    ) -> None:
        """See `Texture.initialize`; the weighted mean of the frames that the layer is visible in.

        Args:
            layer: number of the layer, front to back.
            clip: frames and masks.
            mapping: of the same layer, already initialized.
            report: called after each frame.
        """
        settings = self.settings

        def place_frame(t: int) -> tuple[Tensor, Tensor, Tensor]:
            share = clip.compute_visible_share(layer, t)
            inner = cv2.pow(erode_alpha(share, settings.rim_px), settings.share_power)
            uv = mapping.map_frames(torch.tensor([t]), clip.frame_count, clip.size)[0]
            seen = find_visible_rectangle(share).slices
            rgb = torch.from_numpy(np.array(clip.frames[t][seen])).float() / 255
            return uv[seen], rgb, torch.from_numpy(inner + settings.rim_weight * share)[seen]

        mean = TextureMean(self.box, self.image.shape[2], self.image.shape[1])
        for t, placed in enumerate(map_in_torch_threads(place_frame, range(clip.frame_count))):
            if placed[1].numel():
                mean.add_frame(*placed)
            if t % RELEASE_INTERVAL == 0:
                clip.release_memory()
            report(Progress("textures", t + 1, clip.frame_count))
        with torch.no_grad():
            self.image.copy_(mean.compute_image())

    def compute_roughness(self) -> Float[Tensor, ""]:
        """Computes the mean squared difference between neighboring texels."""
        return mean_squared_steps(self.image[None])

    def param_groups(self) -> list[dict]:
        """Returns the texels with their learning rate."""
        return [{"params": [self.image], "lr": self.learning_rate}]

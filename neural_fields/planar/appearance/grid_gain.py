"""The gain of the default preset: a coarse grid over (x, y, t), initialized in closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.core.memmap import RELEASE_INTERVAL
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.dataset import ClipDataset
from neural_fields.imaging.alpha import erode_alpha
from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.nn.torch_threads import map_in_torch_threads
from neural_fields.planar.appearance.gain import Gain, GainConfig
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.texture import Texture
from neural_fields.planar.init.frame_patch import find_visible_rectangle
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_grid import FrameTable, make_zero_table, mean_squared_steps
from neural_fields.planar.mappings.grid import GridMapping
from neural_fields.planar.mappings.mapping import Mapping


@dataclass(frozen=True)
class LightingSettings:
    """Settings of the closed-form lighting gains. Colors are in [0, 1]."""

    dark_offset: float = 0.003  # added to squared colors: black says nothing about light
    rest_weight: float = 0.01  # of "no change" in every cell, so that a gain fades where its layer is not seen
    max_gain: float = 2.5  # gains beyond this factor, up or down, are no lighting
    rim_px: int = 1  # of a layer, whose pixels do not count
    measured_side_px: int = 480  # longer side of the frames, about, at which light is measured: cells are coarse
    blur_sigma_cells: float = 0.6  # Gaussian over 3 x 3 cells


DEFAULTS = LightingSettings()


@dataclass(frozen=True)
class GridGainConfig(GainConfig):
    """Sets a smooth multiplicative gain on a coarse grid over (x, y, t)."""

    kind: ClassVar[str] = "grid"
    cell: float = 16.0  # pixels between knots, at least 2
    learning_rate: float = 0.05  # of the logarithm of the gain, a step

    def __post_init__(self) -> None:
        require_valid(self.cell >= 2, "cell must be at least 2 pixels")

    def build(self, shape: ModelShape) -> list[GridGain]:
        """See `GainConfig.build`."""
        return [GridGain(self, shape.frame_count, shape.size) for _ in shape.layers]


class GridGain(Gain):
    """Computes the gain as exp of a coarse grid over (x, y, t); it starts at 1.

    Args:
        settings: cell size and learning rate.
        frame_count: number of frames of the clip.
        size: (width, height) of the frames in pixels.
    """

    def __init__(self, settings: GridGainConfig, frame_count: int, size: tuple[int, int]) -> None:
        super().__init__()
        table = make_zero_table(frame_count, 3, size, settings.cell)
        self.table = FrameTable(table, size, settings.learning_rate)

    def forward(self, xyt: Float[Tensor, "n 3"], uv: Float[Tensor, "n 2"] | None = None) -> Float[Tensor, "n 3"]:
        """Returns exp of the grid, interpolated at any points; `uv` is not read."""
        return torch.exp(self.table(xyt))

    def sample_frames(
        self,
        frames: Int[Tensor, " frames"],
        frame_count: int,
        size: tuple[int, int],
        uv: Float[Tensor, "frames height width 2"] | None = None,
    ) -> Float[Tensor, "frames height width 3"]:
        """See `Gain.sample_frames`; `uv` is not read.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.
            uv: is not read.
        """
        return torch.exp(self.table.sample_frames(frames, size).permute(0, 2, 3, 1))

    def initialize(
        self,
        layer: int,
        clip: ClipDataset,
        mapping: Mapping,
        texture: Texture,
        report: ProgressReporter = report_nothing,
    ) -> None:
        """See `Gain.initialize`; in closed form where mapping and texture are tables, otherwise 1.

        Args:
            layer: number of the layer, front to back.
            clip: frames and masks.
            mapping: of the same layer, already initialized.
            texture: of the same layer, already initialized.
            report: called after each frame.
        """
        if not (isinstance(mapping, GridMapping) and isinstance(texture, ImageTexture)):
            return
        downsample = functools.cache(texture.downsample_image)

        shrink = max(1, round(max(clip.size) / DEFAULTS.measured_side_px))  # by a whole number it is quick
        size = (clip.size[0] // shrink, clip.size[1] // shrink)

        def fit_frame(t: int) -> None:
            share = erode_alpha(clip.compute_visible_share(layer, t, size), DEFAULTS.rim_px)
            frame = clip.frames[t] if shrink == 1 else cv2.resize(clip.frames[t], size, interpolation=cv2.INTER_AREA)
            fit_gain(self, mapping, texture, t, np.float32(1 / 255) * frame, share, downsample=downsample)

        for t, _ in enumerate(map_in_torch_threads(fit_frame, range(clip.frame_count))):
            if t % RELEASE_INTERVAL == 0:
                clip.release_memory()
            report(Progress("textures", t + 1, clip.frame_count))

    def compute_size_and_steps(self, frames: Int[Tensor, " frames"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Computes the mean square of the logarithm of the gain, and of its differences between neighboring cells."""
        rows = self.table.frame_rows(frames)
        return rows.square().mean(), mean_squared_steps(rows)

    def param_groups(self) -> list[dict]:
        """Returns the grid with its learning rate."""
        return self.table.param_groups()


@torch.no_grad()
def fit_gain(
    gain: GridGain,
    mapping: GridMapping,
    texture: ImageTexture,
    t: int,
    rgb: Float[np.ndarray, "height width 3"],
    share: Float[np.ndarray, "height width"],
    settings: LightingSettings = DEFAULTS,
    downsample: Callable[[int, int], Tensor] | None = None,
) -> None:
    """Sets the gain of frame `t`.

    In every cell g minimizes the sum of (g texture - frame)^2 over the pixels, so g = sum(texture frame) /
    sum(texture^2).

    Args:
        gain: the table to set.
        mapping: of the same layer.
        texture: of the same layer.
        t: the frame.
        rgb: the frame, 0 to 1, at the size of the clip or a smaller one.
        share: the share of each pixel that the layer fills, 0 to 1.
        settings: regularization and limit of the gains.
        downsample: `texture.downsample_image`, where it is to keep its results from frame to frame.
    """
    rows, columns = gain.table.shape[2:]
    part = find_visible_rectangle(share)
    if part.is_empty:
        gain.table.values[t].zero_()
        return
    height, width = share.shape
    inside = part.slices
    uv = mapping.map_frames(torch.tensor([t]), len(gain.table.flat), (width, height))[0][inside]
    step = mapping.uv_per_pixel(torch.tensor([float(t)])) * (2 / max(width, height) / mapping.pixel)
    means = np.zeros((2, 3, rows, columns), np.float32)  # over each cell, of texture times frame and squared texture
    if can_compile_loops():
        from neural_fields.planar.appearance.light_loop import sum_light_products  # numba takes a second

        picture = (downsample or texture.downsample_image)(*texture.choose_levels(step)[0].tolist())
        box, (high, wide) = texture.box, picture.shape[1:]
        places = (
            wide / box.width,
            -wide / box.width * box.u0 - 0.5,
            high / box.height,
            -high / box.height * box.v0 - 0.5,
        )
        sum_light_products(
            *(np.ascontiguousarray(plane) for plane in (uv[..., 0], uv[..., 1], rgb[inside], share[inside])),
            picture.detach().numpy(),
            np.array(places, np.float32),
            _find_area_cells(width, columns, inside[1]),
            _find_area_cells(height, rows, inside[0]),
            np.float32(settings.dark_offset),
            means,
        )
        means *= rows * columns / (width * height)
    else:
        color = texture.sample_filtered(uv[None], step)[0].permute(2, 0, 1)
        for channel, (texel, shown) in enumerate(zip(color.numpy(), cv2.split(rgb[inside]), strict=True)):
            for number, products in enumerate((texel * shown, texel * texel)):
                whole = np.zeros((height, width), np.float32)
                np.multiply(products + settings.dark_offset, share[inside], out=whole[inside])
                means[number, channel] = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    for channel, (products, squares) in enumerate(means.transpose(1, 0, 2, 3)):
        above, below = (
            cv2.GaussianBlur(part, (3, 3), settings.blur_sigma_cells) + settings.rest_weight
            for part in (products, squares)
        )
        factor = (above / below).clip(1 / settings.max_gain, settings.max_gain)
        gain.table.values[t, channel] = torch.from_numpy(np.log(factor))


def _find_area_cells(
    pixels: int, cells: int, part: slice
) -> tuple[Int[np.ndarray, " pixels"], Float[np.ndarray, " pixels"]]:
    """Finds the first cell that each pixel of a side touches, and the share of the pixel in it; the next has the rest.

    Args:
        pixels: of the whole side.
        cells: of the whole side, at most as many.
        part: the pixels that are wanted.
    """
    size, position = pixels / cells, np.arange(pixels)
    first = np.minimum((position / size).astype(np.int64), cells - 1)
    share = np.where(first == cells - 1, 1, np.minimum(1, (first + 1) * size - position))
    return first[part], share[part].astype(np.float32)

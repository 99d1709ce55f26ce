"""A look at a frame: its layers are looked up, composited and compared with it, and equations are collected.

The residual of a frame is linear in the opacity of a pixel, in the colors of texels and, near the present values, in
shifts and logarithms of gains: squared residuals are minimized by solving linear equations (Gauss and Newton).
`TorchLooks` and `CompiledLooks` do the same; the second needs numba and a CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from neural_fields.core.box import Box
from neural_fields.planar.init.frame_patch import FramePatch


@dataclass(frozen=True)
class OpacitySettings:
    """Settings of how the opacities of pixels are solved."""

    mask_weight: float  # of the cross-entropy of masks and opacities, in squared residuals
    max_move: float = 0.15  # of an opacity at a look
    snap: float = 0.002  # opacities this near to 0 or 1 are 0 or 1
    halvings: int = 10  # of the interval that holds the opacity, where masks are soft


@dataclass(frozen=True)
class TexturePicture:
    """Says where the picture of a layer's texture, at one of its sizes, lies in the buffers of all pictures.

    Attributes:
        offset: of its first texel, in texels.
        height: in samples, at least 2.
        width: in samples, at least 2.
        scale: samples for one unit of u and of v.
        origin: position of (u, v) = (0, 0) in samples.
    """

    offset: int
    height: int
    width: int
    scale: tuple[float, float]
    origin: tuple[float, float]

    @staticmethod
    def place(offset: int, height: int, width: int, box: Box) -> TexturePicture:
        """Describes a picture that covers a box.

        Args:
            offset: of its first texel, in texels.
            height: in samples, at least 2.
            width: in samples, at least 2.
            box: in uv units.
        """
        scale = (width / box.width, height / box.height)
        return TexturePicture(offset, height, width, scale, (-box.u0 * scale[0] - 0.5, -box.v0 * scale[1] - 0.5))

    def read(self, buffer: Float[Tensor, "texels 4"]) -> Float[Tensor, "height width 4"]:
        """Returns its part of a buffer, as a view."""
        return buffer[self.offset : self.offset + self.height * self.width].view(self.height, self.width, 4)


@dataclass
class TexelBuffers:
    """Holds the pictures of all textures in rows of four lanes, and for each thread what frames say about them.

    Attributes:
        texels: red, green, blue, and a lane that is not used.
        sums: the gradient of the colors, and the weight of each texel; added to.
    """

    texels: Float[Tensor, "texels 4"]
    sums: Float[Tensor, "threads texels 4"]


@dataclass
class FrameTables:
    """Holds a frame, its layers from front to back, and what its masks say.

    Attributes:
        rgb: the frame.
        pictures: of the layers.
        homographies: of the layers, from xy units to uv units.
        shifts: of the layers, in uv units.
        gains: of the layers, logarithms.
        window: where front layers can be visible.
        alpha: their opacities in the pixels of the window.
        visible: the shares of these pixels that they fill by the masks, 0 to 255.
        reachable: where they may be seen at all.
    """

    rgb: UInt8[Tensor, "height width 3"]
    pictures: list[TexturePicture]
    homographies: Float[Tensor, "layers 3 3"]
    shifts: Float[Tensor, "layers 2 _ _"]
    gains: Float[Tensor, "layers 3 _ _"]
    window: FramePatch
    alpha: Float[Tensor, "front _ _"]
    visible: UInt8[Tensor, "front _ _"]
    reachable: Bool[Tensor, "front _ _"]


@dataclass(frozen=True)
class MapEquations:
    """Holds the normal equations of the tables of all layers for a frame: nine-point stencils and right-hand sides."""

    shift_matrix: Float[Tensor, "layers 5 3 rows columns"]  # xx, xy and yy, in pixels
    shift_right: Float[Tensor, "layers 2 rows columns"]
    gain_matrix: Float[Tensor, "layers 5 3 gain_rows gain_columns"]
    gain_right: Float[Tensor, "layers 3 gain_rows gain_columns"]


@dataclass(frozen=True)
class OpacityEquations:
    """Holds curvature and slope of the squared residuals by each opacity, where they are solved on a coarser grid."""

    curvature: Float[Tensor, "front height width"]
    slope: Float[Tensor, "front height width"]


@dataclass(frozen=True)
class LookResult:
    """Holds what a look at a frame gives.

    Attributes:
        squared_error: the sum over pixels and channels, after opacities are solved.
        maps: the equations of shifts and gains, if they were asked for.
        opacities: where the look does not solve them itself.
    """

    squared_error: float
    maps: MapEquations | None
    opacities: OpacityEquations | None


class FrameLooks(ABC):
    """Looks at frames of one size, whose tables have one size.

    Args:
        size: (width, height) of the frames.
        opacity: settings of the opacities; None where they have a coarser grid, and are not solved here.
    """

    def __init__(self, size: tuple[int, int], opacity: OpacitySettings | None) -> None:
        self.size = size
        self.opacity = opacity

    @abstractmethod
    def look(
        self, frame: FrameTables, buffers: TexelBuffers, thread: int, collects_maps: bool, collects_texels: bool
    ) -> LookResult:
        """Looks at a frame. Its opacities are solved, front to back, before anything is collected.

        Args:
            frame: `alpha` is changed where opacities are solved here.
            buffers: pictures of the textures; `sums[thread]` is added to where `collects_texels`.
            thread: which of the sums to add to.
            collects_maps: whether the equations of shifts and gains are wanted.
            collects_texels: whether the sums of the texels are.
        """


def solve_alpha(
    curvature: Float[Tensor, "*n"],
    slope: Float[Tensor, "*n"],
    inside: Float[Tensor, "*n"],
    outside: Float[Tensor, "*n"],
    settings: OpacitySettings,
) -> Float[Tensor, "*n"]:
    """Minimizes curvature a^2 - 2 slope a - mask_weight (inside log a + outside log(1 - a)) over a in [0, 1].

    Where a mask is hard, one of the logarithms is missing, and a quadratic equation is left.

    Args:
        curvature: of the squared residuals by a.
        slope: curvature times the best a without masks.
        inside: how much the masks draw to 1.
        outside: how much they draw to 0.
        settings: the weight of the masks.
    """
    weight, curvature = settings.mask_weight, curvature + 1e-7

    def solve_quadratic(linear: Tensor, share: Tensor) -> Tensor:
        root = (linear * linear + 2 * weight * share * curvature).sqrt_()
        return (linear + root).div_(2 * curvature).clamp_(0, 1)

    high = solve_quadratic(slope, inside)
    low = 1 - solve_quadratic(curvature - slope, outside)
    is_hard = (inside == 0) | (outside == 0)
    if is_hard.all():
        return torch.where(inside > 0, high, low)
    a, step = torch.full_like(curvature, 0.5), 0.25
    for _ in range(settings.halvings):  # the derivative rises from minus to plus infinity
        rises = curvature * a - slope - weight / 2 * (inside / a - outside / (1 - a)) > 0
        a = torch.where(rises, a - step, a + step)
        step /= 2
    return torch.where(is_hard, torch.where(inside > 0, high, low), a)

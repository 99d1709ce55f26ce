"""Looks at frames with torch: on any device, and the reference for the compiled looks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.planar.gauss_newton.frame_looks import (
    FrameLooks,
    FrameTables,
    LookResult,
    MapEquations,
    OpacityEquations,
    OpacitySettings,
    TexelBuffers,
    solve_alpha,
)
from neural_fields.planar.gauss_newton.grid_stencil import GridInterpolation
from neural_fields.planar.init.frame_patch import FramePatch


@dataclass(frozen=True)
class _LayerLook:
    """Holds a layer in a rectangle of a frame.

    Attributes:
        color: of the texture, without the gain.
        along_u: derivative of the color by u, in colors for one unit.
        along_v: the same by v.
        gain: factor on the color.
        x: position in the texture's picture, in samples; whole numbers are the centers of texels.
        y: the same, down.
    """

    color: Float[Tensor, "3 n"]
    along_u: Float[Tensor, "3 n"]
    along_v: Float[Tensor, "3 n"]
    gain: Float[Tensor, "3 n"]
    x: Float[Tensor, " n"]
    y: Float[Tensor, " n"]


class TorchLooks(FrameLooks):
    """Looks at whole frames with torch.

    Args:
        size: (width, height) of the frames.
        opacity: see `FrameLooks`.
        shift_grid: (rows, columns) of the tables of shifts.
        gain_grid: of the tables of gains.
        device: of everything.
    """

    def __init__(
        self,
        size: tuple[int, int],
        opacity: OpacitySettings | None,
        shift_grid: tuple[int, int],
        gain_grid: tuple[int, int],
        device: torch.device,
    ) -> None:
        super().__init__(size, opacity)
        self.shift_grid = GridInterpolation.between_sizes(shift_grid, size, device)
        self.gain_grid = GridInterpolation.between_sizes(gain_grid, size, device)

    def look(
        self, frame: FrameTables, buffers: TexelBuffers, thread: int, collects_maps: bool, collects_texels: bool
    ) -> LookResult:
        """See `FrameLooks.look`.

        Args:
            frame: with the opacities, which are changed.
            buffers: pictures of the textures, and sums.
            thread: which of the sums to add to.
            collects_maps: whether the equations of shifts and gains are wanted.
            collects_texels: whether the sums of the texels are.
        """
        width, height = self.size
        patches = [frame.window] * (len(frame.pictures) - 1) + [FramePatch(0, height, 0, width)]
        looks = [
            None if patch.is_empty else self._look_at_layer(frame, number, patch, buffers.texels)
            for number, patch in enumerate(patches)
        ]
        residual = frame.rgb.permute(2, 0, 1).float().div_(255)
        weights, opacities = self._composite(frame, looks, residual)
        squared = float(residual.double().square().sum())
        found = None
        if collects_maps:
            found = self._collect_maps(frame, looks, weights, residual, patches)
        if collects_texels:
            for picture, look, weight, patch in zip(frame.pictures, looks, weights, patches, strict=True):
                if look is not None and weight is not None:
                    light = look.gain * weight
                    values = torch.cat([light * patch.crop(residual).reshape(3, -1), light.square().mean(0)[None]])
                    values *= weight.square()  # mixtures count less, see `scatter_row`
                    _scatter_to_texels(look, values, patch, picture.read(buffers.sums[thread]))
        return LookResult(squared, found, opacities)

    def _look_at_layer(
        self, frame: FrameTables, number: int, patch: FramePatch, texels: Float[Tensor, "texels 4"]
    ) -> _LayerLook:
        """Looks a layer up in a rectangle of a frame."""
        picture, (width, height) = frame.pictures[number], self.size
        shift = self.shift_grid.crop(patch).interpolate(frame.shifts[number])
        log_gain = self.gain_grid.crop(patch).interpolate(frame.gains[number])
        h = frame.homographies[number].tolist()
        x = (2 * (torch.arange(patch.left, patch.right, device=shift.device) + 0.5) - width) / max(self.size)
        y = (2 * (torch.arange(patch.top, patch.bottom, device=shift.device) + 0.5) - height)[:, None] / max(self.size)
        u, v = ((row[1] * y + row[2]) + row[0] * x for row in h[:2])
        if h[2] != [0, 0, 1]:
            depth = (h[2][1] * y + h[2][2]) + h[2][0] * x
            u, v = u / depth, v / depth
        across = ((u + shift[0]) * picture.scale[0]).add_(picture.origin[0]).view(-1)
        down = ((v + shift[1]) * picture.scale[1]).add_(picture.origin[1]).view(-1)
        # Beyond the edge, colors are those of the edge, and do not change with the position.
        highest_x, highest_y = picture.width - 1.001, picture.height - 1.001
        slope_u = ((across > 0) & (across < highest_x)) * picture.scale[0]
        slope_v = ((down > 0) & (down < highest_y)) * picture.scale[1]
        across, down = across.clamp_(0, highest_x), down.clamp_(0, highest_y)
        column, row = across.floor(), down.floor()
        corner = row.long() * picture.width + column.long()
        right, below = across - column, down - row
        # The four texels around each pixel: bilinear colors, and their exact slopes.
        planes = picture.read(texels)[..., :3].permute(2, 0, 1).reshape(3, -1)
        upper = planes.index_select(1, corner)
        upper_step = planes.index_select(1, corner + 1).sub_(upper)
        lower = planes.index_select(1, corner + picture.width)
        lower_step = planes.index_select(1, corner + (picture.width + 1)).sub_(lower)
        upper.addcmul_(upper_step, right)
        fall = lower.addcmul_(lower_step, right).sub_(upper)
        color = upper.addcmul_(fall, below)
        along_u = upper_step.addcmul_(lower_step.sub_(upper_step), below).mul_(slope_u)
        return _LayerLook(color, along_u, fall * slope_v, log_gain.reshape(3, -1).exp(), across, down)

    def _composite(
        self, frame: FrameTables, looks: list[_LayerLook | None], residual: Float[Tensor, "3 height width"]
    ) -> tuple[list[Float[Tensor, " _"] | None], OpacityEquations | None]:
        """Composites the layers, solves for opacities from front to back, and makes the residual of the frame.

        Returns:
            How much of each layer reaches the eye; and the equations of opacities that are not solved here.
        """
        width, height = self.size
        *fronts, back = looks
        assert back is not None
        lit = (back.color * back.gain).view(3, height, width)
        residual -= lit
        passing = torch.ones(height, width, device=lit.device)  # the light that reaches the layer
        window, alpha = frame.window, frame.alpha.flatten(1)
        shown = [look.color * look.gain for look in fronts if look is not None]
        if not shown:
            return [*[None] * len(fronts), passing.view(-1)], None
        behind = [window.crop(lit).reshape(3, -1)]
        for number in reversed(range(1, len(shown))):
            behind.insert(0, torch.lerp(behind[0], shown[number], alpha[number]))
        rest = window.crop(residual).reshape(3, -1) + behind[-1] - torch.lerp(behind[0], shown[0], alpha[0])
        left = window.crop(passing).reshape(-1)
        weights: list[Tensor | None] = []
        curvatures, slopes = [], []
        for number, (own, below) in enumerate(zip(shown, behind, strict=True)):
            difference = (own - below).mul_(left)
            curvature = difference.square().sum(0)
            slope = (rest * difference).sum(0).addcmul_(curvature, alpha[number])
            if self.opacity is None:
                curvatures.append(curvature)
                slopes.append(slope)
            else:
                inside = frame.visible[number].flatten() / 255
                solved = solve_alpha(curvature, slope, inside, left * (1 - inside), self.opacity)
                moved = alpha[number] + (solved - alpha[number]).clamp_(-self.opacity.max_move, self.opacity.max_move)
                moved[moved < self.opacity.snap] = 0
                moved[moved > 1 - self.opacity.snap] = 1
                moved[~frame.reachable[number].flatten()] = 0
                rest.addcmul_(difference, alpha[number] - moved)
                alpha[number] = moved
            weights.append(left * alpha[number])
            left = left * (1 - alpha[number])
        shape = (window.bottom - window.top, window.right - window.left)
        window.crop(residual).copy_(rest.view(3, *shape))
        window.crop(passing).copy_(left.view(shape))
        opacities = None
        if self.opacity is None:
            opacities = OpacityEquations(torch.stack(curvatures).view(-1, *shape), torch.stack(slopes).view(-1, *shape))
        return [*weights, passing.view(-1)], opacities

    def _collect_maps(
        self,
        frame: FrameTables,
        looks: list[_LayerLook | None],
        weights: list[Float[Tensor, " _"] | None],
        residual: Float[Tensor, "3 height width"],
        patches: list[FramePatch],
    ) -> MapEquations:
        """Collects the normal equations of shifts and gains; those of layers that cannot be visible are zero."""
        device, pixel = residual.device, 2 / max(self.size)
        count, grid, gain_grid = len(looks), frame.shifts.shape[2:], frame.gains.shape[2:]
        found = MapEquations(
            torch.zeros(count, 5, 3, *grid, device=device),
            torch.zeros(count, 2, *grid, device=device),
            torch.zeros(count, 5, 3, *gain_grid, device=device),
            torch.zeros(count, 3, *gain_grid, device=device),
        )
        for number, (look, weight, patch) in enumerate(zip(looks, weights, patches, strict=True)):
            if look is None or weight is None:
                continue
            shape = (patch.bottom - patch.top, patch.right - patch.left)
            rest = patch.crop(residual).reshape(3, -1)
            light = look.gain * weight
            by_u, by_v = look.along_u * light * pixel, look.along_v * light * pixel
            squares = torch.stack([(by_u * by_u).sum(0), (by_u * by_v).sum(0), (by_v * by_v).sum(0)])
            right = torch.stack([(by_u * rest).sum(0), (by_v * rest).sum(0)])
            by_gain = light.mul_(look.color)
            shifts, gains = self.shift_grid.crop(patch), self.gain_grid.crop(patch)
            found.shift_matrix[number] = shifts.collect_matrix(squares.view(3, *shape))
            found.shift_right[number] = shifts.collect_vector(right.view(2, *shape))
            found.gain_matrix[number] = gains.collect_matrix((by_gain * by_gain).view(3, *shape))
            found.gain_right[number] = gains.collect_vector((by_gain * rest).view(3, *shape))
        return found


def _scatter_to_texels(
    look: _LayerLook,
    values: Float[Tensor, "4 n"],
    patch: FramePatch,
    sums: Float[Tensor, "height width 4"],
) -> None:
    """Adds values of pixels to the texels that show them: the transpose of the lookup."""
    left, top = int(look.x.min()), int(look.y.min())
    width, height = int(look.x.max()) + 2 - left, int(look.y.max()) + 2 - top
    grid = torch.stack([(look.x - left) * (2 / (width - 1)) - 1, (look.y - top) * (2 / (height - 1)) - 1], -1)
    shape = (patch.bottom - patch.top, patch.right - patch.left)
    gradient, empty = values.view(1, 4, *shape), values.new_empty(1, 4, height, width)
    added, _ = torch.ops.aten.grid_sampler_2d_backward(
        gradient, empty, grid.view(1, *shape, 2), 0, 1, True, [True, False]
    )
    sums[top : top + height, left : left + width] += added[0].permute(1, 2, 0)

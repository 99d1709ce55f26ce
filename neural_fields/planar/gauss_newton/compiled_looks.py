"""Looks at frames with compiled loops over their rows, on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from neural_fields.planar.gauss_newton.frame_looks import (
    FrameLooks,
    FrameTables,
    LookResult,
    MapEquations,
    OpacityEquations,
    OpacitySettings,
    TexelBuffers,
    TexturePicture,
)
from neural_fields.planar.gauss_newton.grid_stencil import solve_scalars
from neural_fields.planar.gauss_newton.kernels import look_at_frame
from neural_fields.planar.gauss_newton.texture_update import solve_texture_step
from neural_fields.planar.init.frame_patch import FramePatch


class CompiledLooks(FrameLooks):
    """Looks at frames with the functions of `kernels.py`.

    Args:
        size: (width, height) of the frames.
        opacity: see `FrameLooks`.
        shift_grid: (rows, columns) of the tables of shifts.
        gain_grid: of the tables of gains.
    """

    def __init__(
        self,
        size: tuple[int, int],
        opacity: OpacitySettings | None,
        shift_grid: tuple[int, int],
        gain_grid: tuple[int, int],
    ) -> None:
        super().__init__(size, opacity)
        self.axes = tuple(
            (*_find_knots(columns, size[0]), *_find_knots(rows, size[1])[:2])
            for rows, columns in (shift_grid, gain_grid)
        )
        limits = (opacity.mask_weight, opacity.max_move, opacity.snap, opacity.halvings) if opacity else (0, 0, 0, 0)
        self.limits = np.array(limits, np.float32)

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
        layers, window = len(frame.pictures), frame.window
        solves = self.opacity is not None
        open_shape = frame.alpha.shape if not solves else (len(frame.alpha), frame.alpha.shape[1], 0)
        curvature, slope = torch.zeros(open_shape), torch.zeros(open_shape)
        grid, gain_grid = frame.shifts.shape[2:], frame.gains.shape[2:]
        size, gain_size = (grid, gain_grid) if collects_maps else ((0, 0), (0, 0))
        maps = MapEquations(
            torch.zeros(layers, 5, 3, *size),
            torch.zeros(layers, 2, *size),
            torch.zeros(layers, 5, 3, *gain_size),
            torch.zeros(layers, 3, *gain_size),
        )
        pixel = 2 / max(self.size)
        boxes = [(p.scale[0], p.origin[0], p.scale[1], p.origin[1], pixel) for p in frame.pictures]
        places = [(4 * picture.offset, picture.height, picture.width) for picture in frame.pictures]
        squared = look_at_frame(
            frame.rgb.numpy(),
            (
                frame.visible.numpy(),
                frame.alpha.numpy(),
                frame.reachable.numpy(),
                np.array([window.top, window.bottom, window.left, window.right]),
            ),
            (
                np.array(places),
                frame.homographies.numpy(),
                np.array(boxes, np.float32),
                frame.shifts.numpy(),
                frame.gains.numpy(),
            ),
            self.axes,
            buffers.texels.view(-1).numpy(),
            (solves, self.limits, curvature.numpy(), slope.numpy()),
            (collects_maps, collects_texels),
            tuple(part.numpy() for part in (maps.shift_matrix, maps.shift_right, maps.gain_matrix, maps.gain_right)),
            buffers.sums[thread].view(-1).numpy(),
        )
        has_front = layers > 1 and not window.is_empty
        opacities = OpacityEquations(curvature, slope) if has_front and not solves else None
        return LookResult(squared, maps if collects_maps else None, opacities)


def _find_knots(
    knots: int, pixels: int
) -> tuple[Int[np.ndarray, " pixels"], Float[np.ndarray, " pixels"], Int[np.ndarray, " knots"]]:
    """Finds the knots around each pixel of an axis, as `F.interpolate` places them.

    Returns:
        The knot before each pixel, the weight of the next one, and the first pixel behind each knot.
    """
    position = np.maximum((np.arange(pixels) + 0.5) * knots / pixels - 0.5, 0)
    index = np.minimum(position.astype(np.int64), knots - 2)
    weight = np.minimum(position - index, 1).astype(np.float32)
    starts = np.searchsorted(index, np.arange(knots))
    starts[-1] = pixels
    return index, weight, starts


def compile_loops() -> None:
    """Has numba compile the loops of a pass, or load them from the disk, by work on a tiny frame."""
    tables = FrameTables(
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        [TexturePicture(0, 2, 2, (1.0, 1.0), (0.0, 0.0))],
        torch.eye(3)[None],
        torch.zeros(1, 2, 2, 2),
        torch.zeros(1, 3, 2, 2),
        FramePatch(0, 0, 0, 0),
        torch.zeros(0, 0, 0),
        torch.zeros(0, 0, 0, dtype=torch.uint8),
        torch.zeros(0, 0, 0, dtype=torch.bool),
    )
    looks = CompiledLooks((4, 4), OpacitySettings(mask_weight=0.0), (2, 2), (2, 2))
    buffers = TexelBuffers(torch.zeros(4, 4), torch.zeros(1, 4, 4))
    looks.look(tables, buffers, 0, collects_maps=True, collects_texels=True)
    solve_scalars(torch.ones(5, 1, 3, 2, 2), torch.ones(1, 3, 2, 2), iterations=1)
    solve_texture_step(torch.ones(4, 4, 4), torch.ones(3, 4, 4), smoothness=0.0, stiffness=0.0, iterations=1)


if __name__ == "__main__":  # the set-up of a checkout
    from neural_fields.data.segmentation.graph_cut import cut_graph
    from neural_fields.nn.hash_grid import HashGrid, HashGridConfig

    compile_loops()
    cut_graph(np.zeros((4, 4), np.float32), np.zeros((4, 4, 3), np.uint8), smoothness=1.0)
    grid = HashGrid(2, HashGridConfig(n_levels=2, log2_table=4))
    grid(torch.rand(2, 2, requires_grad=True)).sum().backward()

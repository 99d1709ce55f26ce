"""Mappings from points of the video to the canonical plane of a layer, (x, y, t) -> (u, v): the base of all kinds.

A kind is one file of this folder, with its settings and its module, and is listed in `kinds.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.planar.init.color_pretraining import ColorPretraining
from neural_fields.planar.init.geometry import LayerGeometry
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.mappings.frame_points import frame_points

PAPER_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}  # torch's defaults, which the papers' code leaves as they are

KNOT_CELL_PX = 8.0  # distance of the knots by which baked maps keep a mapping that has none of its own


class PointFunction:
    """Marks the settings of a part that can be evaluated at any point; other parts are tables, trained frame by frame.

    Training on random pixels needs parts of these kinds, and so do losses that compare neighboring pixels or follow the
    optical flow.
    """


@dataclass(frozen=True)
class MappingConfig(ABC):
    """Holds the settings of a kind of mapping. Pixels are those of the frames at the training size."""

    kind: ClassVar[str]

    @abstractmethod
    def build(self, shape: ModelShape, spans: Sequence[tuple[int, int]]) -> Sequence[Mapping]:
        """Builds the mappings of all layers, front to back.

        Args:
            shape: sizes of the model.
            spans: first and last frame of each layer.

        Returns:
            A mapping for each layer.
        """

    @property
    def flow_side(self) -> int | None:
        """Pixels on the longer side of the flow for the geometry; None for kinds that do not start from geometry."""
        return None

    def geometry_grid(self, size: tuple[int, int], frame_count: int) -> tuple[int, int] | None:
        """Returns the grid of the geometry that the mappings are initialized from (`compute_clip_geometry`).

        Args:
            size: (width, height) of the frames in pixels.
            frame_count: number of frames of the clip.

        Returns:
            (columns, rows) of the residuals of a frame; None for kinds that do not start from geometry.
        """
        return None

    def plan_box(self, size: tuple[int, int], margin: float) -> tuple[Box, float]:
        """Plans a canonical box without geometry.

        Args:
            size: (width, height) of the frames in pixels.
            margin: share of the frame by which the box extends beyond each side.

        Returns:
            The box in uv units, and the number of texels per pixel of the frame (1: equally fine).
        """
        reach = 1 + 2 * margin
        return Box(*(side * reach for side in coords.frame_box(*size).as_tuple())), 1.0

    def scale_steps(self, total: int, final: int) -> MappingConfig:
        """Adapts the settings to the number of steps of a training.

        Args:
            total: number of steps of the training.
            final: number of steps that the settings are given for.

        Returns:
            The settings with their times scaled.
        """
        return self


class Mapping(nn.Module):
    """Maps points of the video to the canonical plane of one layer."""

    uv_scale = 1.0  # how many uv units one xy unit becomes where nothing is warped

    @abstractmethod
    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Computes the uv of any points.

        Args:
            xyt: x and y in xy units, t in (-1, 1) (see `coords`).

        Returns:
            Canonical positions in uv units.
        """

    def map_frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width 2"]:
        """Computes the uv of every pixel of whole frames.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.

        Returns:
            Canonical positions in uv units.
        """
        points = frame_points(frames, frame_count, size)
        return self(points).view(len(frames), size[1], size[0], 2)

    def knot_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns (rows, columns) of knots, evenly over the frame, between which uv are bilinear, or nearly so.

        Args:
            size: (width, height) of the frames in pixels.
        """
        columns, rows = (max(2, round(side / KNOT_CELL_PX)) for side in size)
        return rows, columns

    def sample_knots(
        self, t: int, frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "knot_rows knot_columns 2"]:
        """Computes the uv of a frame at the knots, and at one more beyond each edge.

        Args:
            t: number of the frame.
            frame_count: number of frames of the clip.
            size: (width, height) of the frames in pixels.

        Returns:
            Canonical positions in uv units. Those beyond the edges go on as between the outermost knots and the edge.
        """
        rows, columns = self.knot_grid(size)
        box = coords.frame_box(*size)
        # A third of a cell beyond the outermost knots says how the map goes on to the edges.
        x, y = (
            edge * ((torch.tensor([0, *range(1, 3 * cells, 3), 3 * cells - 1]) + 0.5) / (1.5 * cells) - 1)
            for edge, cells in ((box.u1, columns), (box.v1, rows))
        )
        time = torch.tensor([float(coords.normalize_time(t, frame_count))])
        uv = self(torch.cartesian_prod(y, x, time)[:, [1, 0, 2]]).view(rows + 2, columns + 2, 2)
        for axis in (0, 1):
            first, knots, last = uv.split([1, uv.shape[axis] - 2, 1], dim=axis)
            first_knot, last_knot = knots.narrow(axis, 0, 1), knots.narrow(axis, -1, 1)
            edges = first_knot + 3 * (first - first_knot), last_knot + 3 * (last - last_knot)
            uv = torch.cat([edges[0], knots, edges[1]], dim=axis)
        return uv

    def uv_per_pixel(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n 2"] | None:
        """Returns the distance along u and v of neighboring pixels in frame `t`; None where that is not known."""
        return None

    def initialize(
        self, number: int, shape: ModelShape, geometry: LayerGeometry | None, options: WarmUpOptions
    ) -> None:
        """Initializes the mapping in place before the first step; by default it does nothing.

        Args:
            number: of the layer, front to back.
            shape: sizes of the model.
            geometry: of the layer, where the kind of mapping asks for it (`MappingConfig.geometry_grid`).
            options: seed, device and time limit of a start that takes steps.
        """

    def plan_pretraining(self) -> ColorPretraining | None:
        """Plans a pretraining with the colors of the clip, after `initialize`; None for kinds that need none."""
        return None

    def measure_box(self, size: tuple[int, int]) -> Box | None:
        """Returns the box that the start gives the canonical picture; None where it keeps the one that was planned.

        Args:
            size: (width, height) of the frames in pixels.
        """
        return None

    def begin_step(self, step: int) -> None:
        """Prepares a training step: it updates the schedule of the mapping; by default it does nothing."""

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns the trained parameters in groups with their learning rates, for the optimizer."""


def project_points(matrix: Float[Tensor, "*#n 3 3"], xy: Float[Tensor, "*#n 2"]) -> Float[Tensor, "*n 2"]:
    """Moves points by homographies."""
    x, y = xy[..., 0], xy[..., 1]
    row = [matrix[..., i, 0] * x + matrix[..., i, 1] * y + matrix[..., i, 2] for i in range(3)]
    return torch.stack([row[0] / row[2], row[1] / row[2]], dim=-1)


def center_jacobian(matrix: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 2 2"]:
    """Returns the derivatives of u and v (rows) by x and y that homographies have at the center of the frame.

    With perspective these are not the numbers of the matrix: those change with the place of the frame on the plane,
    which says nothing about its scale.
    """
    depth = matrix[..., 2:, 2:]
    return (matrix[..., :2, :2] - matrix[..., :2, 2:] / depth * matrix[..., 2:, :2]) / depth

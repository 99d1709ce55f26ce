"""The mapping of Deformable Sprites: a homography that follows a spline in time, and a spline grid of shifts.

Ye et al., "Deformable Sprites for Unsupervised Video Decomposition" (2022), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.planar.init.geometry import LayerGeometry
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.mappings.frame_grid import compute_table_size
from neural_fields.planar.mappings.mapping import PAPER_ADAM, Mapping, MappingConfig, PointFunction, center_jacobian


@dataclass(frozen=True)
class SplineMappingConfig(MappingConfig, PointFunction):
    """Sets a homography along a spline in time and a spline grid of bounded displacements (Deformable Sprites)."""

    kind: ClassVar[str] = "spline"
    time_step: int = 2  # frames between knots, at least 1
    cell: float = 16.0  # pixels between the knots of the displacements, at least 2
    max_shift: float = 0.1  # largest displacement in uv units; half the longer side of a frame is 1
    motion_rate: float = 5e-4  # learning rate of the homography's parameters
    learning_rate: float = 1e-3  # of the displacements, before they are bounded
    flow_size: int = 480  # pixels on the longer side at which flow is computed

    def __post_init__(self) -> None:
        require_valid(self.time_step >= 1, "time_step must be at least 1 frame")
        require_valid(self.cell >= 2, "cell must be at least 2 pixels")
        require_valid(self.max_shift > 0, "max_shift must be above 0")
        require_valid(self.flow_size >= 64, "flow_size must be at least 64 pixels")

    def build(self, shape: ModelShape, spans: Sequence[tuple[int, int]]) -> list[SplineMapping]:
        """See `MappingConfig.build`."""
        return [SplineMapping(self, shape.frame_count, shape.size) for _ in shape.layers]

    @property
    def flow_side(self) -> int | None:
        """See `MappingConfig.flow_side`."""
        return self.flow_size

    def geometry_grid(self, size: tuple[int, int], frame_count: int) -> tuple[int, int] | None:
        """See `MappingConfig.geometry_grid`."""
        return compute_table_size(size, self.cell, frame_count)


class SplineMapping(Mapping):
    """Maps by uv = homography(t)(x, y) + max_shift * tanh(shift(x, y, t)), both of uniform cubic B-splines.

    The eight numbers of the homography have a knot every `time_step` frames; shifts have knots every `cell` pixels and
    every `time_step` frames. The knots start at the identity and without shifts.

    Args:
        settings: distances of the knots, and learning rates.
        frame_count: number of frames of the clip.
        size: (width, height) of the frames in pixels.
    """

    def __init__(self, settings: SplineMappingConfig, frame_count: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.settings = settings
        self.frame_count = frame_count
        self.size = size
        self.pixel = 2 / max(size)  # one pixel in uv units
        times = knot_count(frame_count - 1, settings.time_step)
        columns, rows = (knot_count(side, settings.cell) for side in size)
        self.motion = torch.nn.Parameter(torch.eye(3).flatten()[:8].repeat(times, 1))
        self.shifts = torch.nn.Parameter(torch.zeros(times, 2, rows, columns))

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points."""
        frame = torch.as_tensor(coords.denormalize_time(xyt[:, 2], self.frame_count))
        moments, which = frame.unique(return_inverse=True)
        if len(moments) > 32:  # many moments: a grid for each point, as few points share one
            moments, which = frame, torch.arange(len(frame), device=frame.device)
        xy = xyt[:, :2]
        # The homography.
        matrix = self.homography_at(moments)[which]
        moved = (matrix @ torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)[..., None])[..., 0]
        # The shifts: four by four knots around each point.
        grids = self._interpolate_grids(moments).flatten(2).transpose(1, 2)  # [m, rows * columns, 2]
        columns = self.shifts.shape[3]
        place = coords.denormalize_pixels(xy, *self.size) / self.settings.cell
        x, weight_x = spline_weights(place[:, 0], columns)
        y, weight_y = spline_weights(place[:, 1], self.shifts.shape[2])
        shift = torch.zeros_like(xy)
        for i in range(4):
            for j in range(4):
                corner = grids[which, (y + i) * columns + x + j]
                shift = shift + corner * (weight_y[:, i] * weight_x[:, j])[:, None]
        return moved[:, :2] / moved[:, 2:] + self.settings.max_shift * torch.tanh(shift)

    def map_frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width 2"]:
        """See `Mapping.map_frames`.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.
        """
        xy = coords.frame_xy(*size, device=frames.device).view(-1, 2).T
        moved = self.homography_at(frames.float()) @ torch.cat([xy, torch.ones_like(xy[:1])])
        plane = (moved[:, :2] / moved[:, 2:]).view(len(frames), 2, size[1], size[0])
        along_x, along_y = (
            spline_matrix((torch.arange(count) + 0.5) * (side / count / self.settings.cell), knots).to(frames.device)
            for count, side, knots in zip(size, self.size, reversed(self.shifts.shape[2:]), strict=True)
        )
        shift = along_y @ self._interpolate_grids(frames.float()) @ along_x.T
        return (plane + self.settings.max_shift * torch.tanh(shift)).permute(0, 2, 3, 1)

    def homography_at(self, moments: Float[Tensor, " m"]) -> Float[Tensor, "m 3 3"]:
        """Returns transforms from xy to uv at some moments (fractions of frames)."""
        eight = spline_matrix(moments / self.settings.time_step, len(self.motion)) @ self.motion
        return torch.cat([eight, torch.ones_like(eight[:, :1])], dim=1).view(-1, 3, 3)

    def _interpolate_grids(self, moments: Float[Tensor, " m"]) -> Float[Tensor, "m 2 rows columns"]:
        """Returns the grids of shifts, before tanh, at some moments."""
        weights = spline_matrix(moments / self.settings.time_step, len(self.shifts))
        return (weights @ self.shifts.flatten(1)).view(len(moments), *self.shifts.shape[1:])

    def initialize(
        self, number: int, shape: ModelShape, geometry: LayerGeometry | None, options: WarmUpOptions
    ) -> None:
        """See `Mapping.initialize`; the motion nearest to the homographies that geometry found.

        Args:
            number: of the layer, front to back.
            shape: sizes of the model.
            geometry: of the layer; None keeps the identity.
            options: seed, device and time limit of a start that takes steps.
        """
        if geometry is not None:
            self.start_from_homographies(torch.from_numpy(geometry.homography))

    def start_from_homographies(self, homography: Float[Tensor, "time 3 3"]) -> None:
        """Starts the motion nearest to a transform of each frame (xy to uv), by least squares."""
        eight = (homography / homography[:, 2:, 2:]).flatten(1)[:, :8].double()
        moments = torch.arange(len(eight)) / self.settings.time_step
        design = spline_matrix(moments.float(), len(self.motion)).double()
        # More knots than frames can ask for: of all solutions the one is taken that changes least from knot to knot.
        steps = torch.diff(torch.eye(len(self.motion), dtype=torch.float64), dim=0) * 1e-3
        both = torch.cat([design, steps])
        found = torch.linalg.lstsq(both, torch.cat([eight, eight.new_zeros(len(steps), 8)])).solution
        with torch.no_grad():
            self.motion.copy_(found)

    def uv_per_pixel(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
        """See `Mapping.uv_per_pixel`; by the homography at the center of the frame, without gradients."""
        return center_jacobian(self.homography_at(t.detach()).detach()).norm(dim=2) * self.pixel

    def param_groups(self) -> list[dict]:
        """Returns the knots of the homography and those of the shifts in groups with their learning rates."""
        settings = self.settings
        return [
            {"params": [self.motion], "lr": settings.motion_rate, **PAPER_ADAM},
            {"params": [self.shifts], "lr": settings.learning_rate, **PAPER_ADAM},
        ]


def knot_count(length: float | int, step: float | int) -> int:
    """Returns the number of knots of a cubic B-spline over [0, length] that are `step` apart."""
    return math.ceil(length / step) + 3


def spline_weights(place: Float[Tensor, " n"], knots: int) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 4"]]:
    """Returns the first of the four knots that a place depends on, and their weights, which sum to one.

    Args:
        place: in steps between knots from the beginning; beyond the ends, the end pieces continue.
        knots: their number.
    """
    first = place.detach().floor().clamp(0, knots - 4)
    s = place - first
    weights = [(1 - s) ** 3, 3 * s**3 - 6 * s**2 + 4, -3 * s**3 + 3 * s**2 + 3 * s + 1, s**3]
    return first.long(), torch.stack(weights, dim=1) / 6


def spline_matrix(place: Float[Tensor, " n"], knots: int) -> Float[Tensor, "n knots"]:
    """Returns the matrix from values at the knots to those at some places (arguments as of `spline_weights`)."""
    first, weights = spline_weights(place, knots)
    index = first[:, None] + torch.arange(4, device=place.device)
    return torch.zeros(len(place), knots, device=place.device).scatter(1, index, weights)

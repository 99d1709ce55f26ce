"""The mapping of the default preset: a homography per frame, and a grid of small shifts on top of it."""

from __future__ import annotations

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
from neural_fields.planar.mappings.frame_grid import FrameTable, compute_table_size, make_zero_table, mean_squared_steps
from neural_fields.planar.mappings.mapping import Mapping, MappingConfig, center_jacobian, project_points


@dataclass(frozen=True)
class GridMappingConfig(MappingConfig):
    """Sets a homography and a smooth residual grid for each frame, both initialized from optical flow."""

    kind: ClassVar[str] = "grid"
    cell: float = 8.0  # pixels between the knots of the residual grid, at least 2
    learning_rate: float = 0.25  # pixels a step
    flow_size: int = 480  # pixels on the longer side at which flow is computed, at least 64; bounds the memory

    def __post_init__(self) -> None:
        require_valid(self.cell >= 2, "cell must be at least 2 pixels")
        require_valid(self.flow_size >= 64, "flow_size must be at least 64 pixels")

    def build(self, shape: ModelShape, spans: Sequence[tuple[int, int]]) -> list[GridMapping]:
        """See `MappingConfig.build`."""
        mappings = []
        for layer in shape.layers:
            starts = [chart.first for chart in layer.charts[1:]]
            mappings.append(GridMapping(self, shape.frame_count, shape.size, layer.reference, starts))
        return mappings

    @property
    def flow_side(self) -> int | None:
        """See `MappingConfig.flow_side`."""
        return self.flow_size

    def geometry_grid(self, size: tuple[int, int], frame_count: int) -> tuple[int, int] | None:
        """See `MappingConfig.geometry_grid`."""
        return compute_table_size(size, self.cell, frame_count)


class GridMapping(Mapping):
    """Maps by uv = homography_t(x, y) + residual_t(x, y).

    The homography comes from the geometry and is not trained; the residual is a trained grid of small shifts. Between
    frames, the uv of both neighbors are blended linearly.

    Args:
        settings: cell size and learning rate.
        frame_count: number of frames of the clip.
        size: (width, height) of the frames in pixels.
        pinned: the frame whose uv stay as they are initialized; None trains all frames.
        starts: the first frame of each chart but the first one; nothing is blended across them.
    """

    def __init__(
        self,
        settings: GridMappingConfig,
        frame_count: int,
        size: tuple[int, int],
        pinned: int | None = None,
        starts: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.starts = tuple(starts)
        self.pinned = pinned
        self.register_buffer("homography", torch.eye(3).repeat(frame_count, 1, 1))  # xy units to uv units
        self.homography: Tensor
        self.pixel = 2 / max(size)  # one pixel in uv units
        table = make_zero_table(frame_count, 2, size, settings.cell)
        self.residual = FrameTable(table, size, settings.learning_rate * self.pixel)
        self.register_buffer("placed", self.residual.flat.detach().clone())  # the shifts that geometry found
        self.placed: Tensor

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points; between frames those of both neighbors are blended, but not across `starts`."""
        count = len(self.homography)
        t = coords.denormalize_time(xyt[:, 2], count)
        before = torch.as_tensor(t).floor().clamp(0, count - 1).long()
        after = (before + 1).clamp(max=count - 1)
        share = (t - before).clamp(0, 1)[:, None]
        for first in self.starts:
            share = torch.where((after == first)[:, None] & (before != after)[:, None], share.round(), share)
        start, end = (project_points(self.homography[index], xyt[:, :2]) for index in (before, after))
        return start + share * (end - start) + self.residual(xyt)

    def map_frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width 2"]:
        """See `Mapping.map_frames`.

        Args:
            frames: numbers of the frames.
            frame_count: number of frames of the clip.
            size: (width, height) of the result in pixels: the training size or another one.
        """
        # What a homography adds up along a row and along a column is the same for all rows and columns.
        x, y = coords.frame_axes(*size, device=frames.device)
        matrix = self.homography[frames][..., None]
        moved = (matrix[:, :, 0] * x)[:, :, None] + (matrix[:, :, 1] * y + matrix[:, :, 2])[..., None]
        plane = moved[:, :2] / moved[:, 2:]
        return (plane + self.residual.sample_frames(frames, size)).permute(0, 2, 3, 1)

    def knot_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """See `Mapping.knot_grid`; those of the shifts, between which the homographies are nearly bilinear."""
        return self.residual.shape[2], self.residual.shape[3]

    def begin_step(self, step: int) -> None:
        """Puts the shifts of the pinned frame back to those that geometry found."""
        if self.pinned is not None:  # what the step before moved by less than a learning rate goes back
            with torch.no_grad():
                self.residual.flat[self.pinned] = self.placed[self.pinned]

    def uv_per_pixel(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
        """See `Mapping.uv_per_pixel`; by the homography of the nearest frame at the center of the frame."""
        nearest = t.round().long().clamp(0, len(self.homography) - 1)
        return center_jacobian(self.homography[nearest]).norm(dim=2) * self.pixel

    def initialize(
        self, number: int, shape: ModelShape, geometry: LayerGeometry | None, options: WarmUpOptions
    ) -> None:
        """See `Mapping.initialize`; the homographies and shifts that geometry found.

        Args:
            number: of the layer, front to back.
            shape: sizes of the model.
            geometry: of the layer; None keeps the identity.
            options: seed, device and time limit of a start that takes steps.
        """
        if geometry is not None:
            shifts = torch.from_numpy(geometry.residual).permute(0, 3, 1, 2)
            self.start_from_geometry(torch.from_numpy(geometry.homography), shifts)

    def start_from_geometry(
        self, homography: Float[Tensor, "time 3 3"], shifts: Float[Tensor, "time 2 rows columns"]
    ) -> None:
        """Starts the mapping from geometry.

        Args:
            homography: of each frame, from xy units to uv units.
            shifts: of each frame, in uv units.
        """
        with torch.no_grad():
            self.homography.copy_(homography)
            self.residual.values.copy_(shifts)
            self.placed.copy_(self.residual.flat)

    def residual_anchor(self, frames: Int[Tensor, " frames"]) -> Float[Tensor, ""]:
        """Computes the mean squared distance of the shifts from their start, in pixels of the training size.

        Where the picture is flat the colors say nothing; without this the shifts would wander there.
        """
        rows = self.residual.frame_rows(frames)
        return (rows - self.placed[frames].view_as(rows)).square().mean() / self.pixel**2

    def residual_smoothness(self, frames: Int[Tensor, " frames"]) -> Float[Tensor, ""]:
        """Computes the mean squared difference of what neighboring shifts have moved since their start, in pixels.

        What geometry found is evidence: parallax and bending are not smoothed away.
        """
        rows = self.residual.frame_rows(frames)
        return mean_squared_steps(rows - self.placed[frames].view_as(rows)) / self.pixel**2

    def param_groups(self) -> list[dict]:
        """Returns the grid of shifts with its learning rate; the homographies are not trained."""
        return self.residual.param_groups()

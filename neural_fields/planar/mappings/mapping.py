"""Mappings from points of the video to the canonical plane of a layer, (x, y, t) -> (u, v)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.config import planar
from neural_fields.core import coords
from neural_fields.nn.hash_grid import HashGrid, HashGridConfig, compute_release_weights
from neural_fields.nn.mlp import MLP
from neural_fields.planar.mappings.frame_grid import FrameTable, make_zero_table, mean_squared_steps
from neural_fields.planar.mappings.frame_points import evaluate_in_parts, frame_points

PAPER_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}  # torch's defaults, which the papers' code leaves as they are


class Mapping(nn.Module):
    """Maps points of the video to the canonical plane of one layer."""

    uv_scale = 1.0  # how many uv units one xy unit becomes where nothing is warped

    @abstractmethod
    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points."""

    def map_frames(
        self, frames: Int[Tensor, " frames"], frame_count: int, size: tuple[int, int]
    ) -> Float[Tensor, "frames height width 2"]:
        """Returns the uv of every pixel of whole frames.

        Args:
            frames: numbers of frames.
            frame_count: of the clip.
            size: (width, height) in pixels, that of the training or another one.
        """
        points = frame_points(frames, frame_count, size)
        return self(points).view(len(frames), size[1], size[0], 2)

    def uv_per_pixel(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n 2"] | None:
        """Returns the distance along u and v of neighboring pixels in frame `t`; None where that is not known."""
        return None

    def begin_step(self, step: int) -> None:
        """Is called before each training step: what the mapping does by schedule moves on here."""

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Returns what the optimizer changes, with learning rates."""


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


class GridMapping(Mapping):
    """uv = homography_t(x, y) + residual_t(x, y): the homography is geometry, the residual a grid of small shifts.

    Between frames both neighbors' uv are blended linearly.

    Args:
        settings: cell size and learning rate.
        frame_count: of the clip.
        size: (width, height) of the frames in pixels.
        pinned: a frame that keeps the uv it starts with.
        starts: the first frames of the charts after the first; nothing is blended across them.
    """

    def __init__(
        self,
        settings: planar.GridMappingConfig,
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
        """See `Mapping.map_frames`."""
        xy = coords.frame_xy(*size, device=frames.device).view(-1, 2).T
        moved = self.homography[frames] @ torch.cat([xy, torch.ones_like(xy[:1])])
        plane = (moved[:, :2] / moved[:, 2:]).view(len(frames), 2, size[1], size[0])
        return (plane + self.residual.sample_frames(frames, size)).permute(0, 2, 3, 1)

    def begin_step(self, step: int) -> None:
        """Puts the shifts of the pinned frame back to those that geometry found."""
        if self.pinned is not None:  # what the step before moved by less than a learning rate goes back
            with torch.no_grad():
                self.residual.flat[self.pinned] = self.placed[self.pinned]

    def uv_per_pixel(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
        """See `Mapping.uv_per_pixel`; by the homography of the nearest frame at the center of the frame."""
        nearest = t.round().long().clamp(0, len(self.homography) - 1)
        return center_jacobian(self.homography[nearest]).norm(dim=2) * self.pixel

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


class MlpMapping(Mapping):
    """A ReLU network of (x, y, t) with tanh at the end and no encoding, so that it stays smooth.

    Kasten et al., "Layered Neural Atlases" (2021), section 3.1. uv lies in (-1, 1); `warm_up.warm_up` starts it at
    `uv_scale` times the identity.
    """

    def __init__(self, settings: planar.MlpMappingConfig, layers: int) -> None:
        super().__init__()
        self.settings = settings
        self.uv_scale = settings.uv_scale
        self.network = MLP(3, 2, settings.width, layers, output="tanh")

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points, in (-1, 1)."""
        return evaluate_in_parts(self.network, xyt)

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM}]


class HashMapping(Mapping):
    """uv = xy plus a displacement: a 3-D hash grid whose levels come in over the run, and a small network behind it.

    Ouyang et al., "CoDeF" (2024), section 3.2. The network also reads the raw coordinates, each from 0 to 1 across the
    frame or the clip; its output times `output_scale` is the displacement in widths and heights of the frame. Levels
    that are not released yet are not computed. The progress of the release (`released`) is saved with the weights.
    """

    def __init__(self, settings: planar.HashMappingConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.settings = settings
        self.grid = HashGrid(3, make_hash_grid_config(settings))
        self.network = build_hash_network(3 + self.grid.out_dim, 2, settings.width, settings.hidden_layers)
        self.register_buffer("released", torch.zeros(()))
        self.released: Tensor
        box = coords.frame_box(*size)
        self.extent = (box.u1, box.v1)

    def begin_step(self, step: int) -> None:
        """Sets the progress of the release, 0 to 1, which rises linearly between the steps of `settings.release`."""
        begin, end = self.settings.release
        share = float(step >= begin) if end <= begin else (step - begin) / (end - begin)
        self.released.fill_(min(1.0, max(0.0, share)))

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points with the levels that are released so far."""
        return evaluate_in_parts(self._map_points, xyt)

    def _map_points(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Does what `forward` does, for a part of the points."""
        extent = xyt.new_tensor(self.extent)
        place = (xyt / torch.cat([extent, extent.new_ones(1)]) + 1) / 2  # each axis from 0 to 1
        released = float(self.released)
        if released == 0:
            features = place.new_zeros(len(place), self.grid.out_dim)
        else:
            weights = None if released == 1 else compute_release_weights(self.settings.levels, released)
            features = self.grid(place, weights)
        shift = self.settings.output_scale * self.network(torch.cat([place, features], 1))
        return xyt[:, :2] + 2 * extent * shift

    def param_groups(self) -> list[dict]:
        """Returns the tables and the network with their learning rate."""
        return [{"params": list(self.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM}]


def make_hash_grid_config(
    settings: planar.HashMappingConfig | planar.HashTextureConfig | planar.HashNetworkConfig,
) -> HashGridConfig:
    """Returns the shape of the hash grid that the settings ask for."""
    return HashGridConfig(
        n_levels=settings.levels,
        n_features=settings.features,
        log2_table=settings.log2_table,
        base_resolution=settings.base_resolution,
        growth=settings.growth,
    )


def build_hash_network(inputs: int, outputs: int, width: int, hidden_layers: int) -> MLP:
    """Builds the network behind a hash grid, started as tiny-cuda-nn starts its own: Glorot's uniform weights, no bias.

    Args:
        inputs: number of features that the network reads.
        outputs: number of values that it returns.
        width: neurons of a hidden layer.
        hidden_layers: their number.
    """
    network = MLP(inputs, outputs, width, hidden_layers + 1)
    for layer in network.layers:
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network

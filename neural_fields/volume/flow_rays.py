"""The rays that optical flow leads to from the person's pixels: made once from the pictures, read in each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.capture import Capture
from neural_fields.data.flow.compute import compute_pair_flow
from neural_fields.volume.rays import Rays, camera_rays


class FlowTable:
    """Holds for every pixel around the person the ray along which the moment before shows the same point.

    The moment before is the one in the capture, whether its view is trained on or not: where it is left out, the flow
    still leads one moment back and not two.

    Args:
        capture: pictures and cameras.
        views: those that are trained on.
        near: where the person may be, for each of `views`.
        device: of the table.
    """

    def __init__(
        self,
        capture: Capture,
        views: Sequence[int],
        near: Bool[np.ndarray, "views height width"],
        device: torch.device | None = None,
    ) -> None:
        rows = np.full(near.shape, -1, np.int32)
        directions, origins, times, of_view = [], [], [], []
        count = 0
        for index, view in enumerate(views):
            other = find_previous_view(capture, view)
            origins.append(np.zeros(3) if other is None else capture.cameras[other].position)
            times.append(0 if other is None else capture.times[other])
            if other is None:
                continue
            vectors, trusted = compute_pair_flow(capture.frames[view], capture.frames[other])
            chosen = trusted & near[index]
            rays = flow_rays(capture.cameras[view], capture.cameras[other], vectors, capture.times[other])
            directions.append(rays.direction.numpy()[chosen.ravel()])
            rows[index][chosen] = np.arange(count, count + len(directions[-1]))
            of_view += [index] * len(directions[-1])
            count += len(directions[-1])
        all_directions = np.concatenate(directions) if directions else np.zeros((0, 3))
        self._rows = torch.from_numpy(rows).to(device).view(-1)
        self._direction = torch.tensor(all_directions, dtype=torch.float32, device=device)
        self._view = torch.tensor(of_view, dtype=torch.int64, device=device)
        self._origin = torch.tensor(np.stack(origins), dtype=torch.float32, device=device)
        self._time = torch.tensor(times, device=device)

    def __call__(self, places: Int[Tensor, " rays"]) -> tuple[Rays, Bool[Tensor, " rays"]]:
        """Returns rays of the moment before for pixels of all views, and which of them can be trusted."""
        row = self._rows[places].long()
        valid = row >= 0
        if not len(self._direction):
            unknown: Float[Tensor, "rays 3"] = torch.zeros(len(row), 3, device=row.device)
            return Rays(unknown, unknown, torch.zeros_like(row)), valid
        row = row.clamp_min(0)
        view = self._view[row]
        return Rays(self._origin[view], self._direction[row], self._time[view]), valid


def flow_rays(camera: Camera, other: Camera, flow: Float[NDArray, "height width 2"], time: int) -> Rays:
    """Computes the rays of another view through the pixels that optical flow matches with those of this view.

    Args:
        camera: of the view itself.
        other: camera of the view that the flow leads to.
        flow: from this view to the other, in pixels.
        time: moment of the other view.

    Returns:
        The rays on the CPU, row by row.
    """
    columns, rows = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    pixels = np.stack([columns, rows], axis=-1) + flow
    return camera_rays(other, pixels.reshape(-1, 2), time)


def find_previous_view(capture: Capture, view: int) -> int | None:
    """Finds the view that shows the moment before, of the camera that stands nearest; None for the first moment."""
    before = [other for other, time in enumerate(capture.times) if time == capture.times[view] - 1]
    own = capture.cameras[view].position
    return min(before, key=lambda other: float(np.linalg.norm(capture.cameras[other].position - own)), default=None)

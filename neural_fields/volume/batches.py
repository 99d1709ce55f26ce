"""Which pixels a step sees: drawn from a capture that lies on the device, the same for the same generator."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_fields.data.capture import Capture
from neural_fields.volume.flow_table import FlowTable
from neural_fields.volume.rays import Rays, ViewRays

EDGE = 1 / 40  # of a picture's longer side around a mask: nobody knows whose such a pixel is
ON_PERSON = 0.8  # of the rays of the person's stage lie on the person, as in HOSNeRF; the others in the box around
TRIES = 4  # pixels drawn for each that is wanted where only some views' pixels will do


@dataclass(frozen=True)
class RayBatch:
    """Rays and what they should see."""

    rays: Rays
    color: Float[Tensor, "rays 3"]
    person: Bool[Tensor, " rays"]  # whether the mask is there
    places: Int[Tensor, " rays"]  # of the pixels, among those of all views one behind the other


class Pixels:
    """A capture on a device, ready to draw from.

    Args:
        views: those to draw from; by default all.
        with_flow: makes `flow`, a `FlowTable`.
    """

    def __init__(
        self,
        capture: Capture,
        views: tuple[int, ...] | None = None,
        device: torch.device | None = None,
        with_flow: bool = False,
    ) -> None:
        chosen = list(range(capture.view_count)) if views is None else list(views)
        self.device = device
        self.view_count, (self.width, self.height) = len(chosen), capture.size
        self._rays = ViewRays([capture.cameras[v] for v in chosen], [capture.times[v] for v in chosen], device)
        self._frames = torch.from_numpy(np.ascontiguousarray(capture.frames[chosen])).to(device).view(-1, 3)
        masks = np.zeros(capture.frames.shape[:3], bool) if capture.masks is None else capture.masks
        masks = np.ascontiguousarray(masks[chosen])
        reach = max(1, round(EDGE * max(capture.size)))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        near = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in masks])
        self._masks = torch.from_numpy(masks).to(device).view(-1)
        self._near = torch.from_numpy(near).to(device).view(-1)
        self.flow = FlowTable(capture, chosen, near, device) if with_flow and near.any() else None
        boxes = np.array([_box(mask) for mask in near])
        self._shown = torch.from_numpy(np.flatnonzero(boxes[:, 2] > 0)).to(device)
        self._boxes = torch.from_numpy(boxes).to(device)

    @property
    def has_person(self) -> bool:
        """Whether a mask is anywhere."""
        return len(self._shown) > 0

    def any(self, count: int, generator: torch.Generator) -> RayBatch:
        """Pixels from all over."""
        return self._batch(self._draw(count, generator))

    def background(self, count: int, generator: torch.Generator) -> RayBatch:
        """Pixels that keep away from the person; fewer than `count` where nearly everything is the person."""
        found = self._draw(TRIES * count, generator) if self.has_person else self._draw(count, generator)
        return self._batch(found[~self._near[found]][:count])

    def person(self, count: int, generator: torch.Generator) -> RayBatch:
        """Pixels on the person, and some in the box around, from views that show them.

        Raises:
            ValueError: no view does.
        """
        if not self.has_person:
            raise ValueError("no view has a mask")
        many = TRIES * count
        view = self._shown[self._integers(len(self._shown), many, generator)]
        left, top, width, height = self._boxes[view].unbind(1)
        across, down = (torch.rand(many, generator=generator).to(self.device) for _ in range(2))
        column = left + (across * width).long().clamp_max(width - 1)
        row = top + (down * height).long().clamp_max(height - 1)
        found = view * self.width * self.height + row * self.width + column
        here = self._masks[found]
        on, off = found[here][: round(ON_PERSON * count)], found[~here]
        return self._batch(torch.cat([on, off[: count - len(on)]]))

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self._integers(len(self._masks), count, generator)

    def _integers(self, below: int, count: int, generator: torch.Generator) -> Tensor:
        # Drawn where the generator is, so that a step sees the same pixels on every device.
        return torch.randint(below, (count,), generator=generator).to(self.device)

    def _batch(self, places: Tensor) -> RayBatch:
        view, pixel = places // (self.width * self.height), places % (self.width * self.height)
        return RayBatch(self._rays(view, pixel), self._frames[places].float() / 255, self._masks[places], places)


def _box(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what a mask covers; zeros where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0)
    return (int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)

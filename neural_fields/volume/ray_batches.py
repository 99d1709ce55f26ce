"""The pixels that a step sees: drawn from a capture on the device, the same for the same generator."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_fields.data.capture.capture import Capture
from neural_fields.volume.flow_rays import FlowTable
from neural_fields.volume.rays import Rays, ViewRays


@dataclass(frozen=True)
class PixelDrawingSettings:
    """Settings of how pixels are drawn."""

    edge_share: float = 1 / 40  # of a picture's longer side around a mask: nobody knows whose such a pixel is
    person_share: float = 0.8  # of the rays of the person's stage lie on the person, as in HOSNeRF; others around
    tries: int = 4  # pixels drawn for each that is wanted where only some pixels will do


DEFAULTS = PixelDrawingSettings()


@dataclass(frozen=True)
class RayBatch:
    """Holds rays and their target values.

    Attributes:
        color: of the pixels, in [0, 1].
        person: whether the mask is there.
        pixel_indices: indices into the concatenated pixels of all views.
    """

    rays: Rays
    color: Float[Tensor, "rays 3"]
    person: Bool[Tensor, " rays"]
    pixel_indices: Int[Tensor, " rays"]


class CapturePixels:
    """Holds the pixels of a capture on a device, and draws batches from them.

    Args:
        capture: pictures, masks and cameras.
        views: those to draw from; by default all.
        device: of the pixels.
        with_flow: makes `flow`, a `FlowTable`.
        settings: of how pixels are drawn.
    """

    def __init__(
        self,
        capture: Capture,
        views: tuple[int, ...] | None = None,
        device: torch.device | None = None,
        with_flow: bool = False,
        settings: PixelDrawingSettings = DEFAULTS,
    ) -> None:
        chosen = list(range(capture.view_count)) if views is None else list(views)
        self.device, self.settings = device, settings
        self.view_count, (self.width, self.height) = len(chosen), capture.size
        self._rays = ViewRays([capture.cameras[v] for v in chosen], [capture.times[v] for v in chosen], device)
        self._frames = torch.from_numpy(np.ascontiguousarray(capture.frames[chosen])).to(device).view(-1, 3)
        masks = np.zeros(capture.frames.shape[:3], bool) if capture.masks is None else capture.masks
        masks = np.ascontiguousarray(masks[chosen])
        reach = max(1, round(settings.edge_share * max(capture.size)))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        near = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in masks])
        self._masks = torch.from_numpy(masks).to(device).view(-1)
        self._near = torch.from_numpy(near).to(device).view(-1)
        self.flow = FlowTable(capture, chosen, near, device) if with_flow and near.any() else None
        # Left, top, width and height of what each mask covers; zeros where it is empty.
        boxes = np.zeros((len(near), 4), np.int64)
        for box, mask in zip(boxes, near, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if len(rows):
                box[:] = columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1
        self._views_with_person = torch.from_numpy(np.flatnonzero(boxes[:, 2] > 0)).to(device)
        self._boxes = torch.from_numpy(boxes).to(device)

    @property
    def has_person(self) -> bool:
        """Whether any view has a mask that is not empty."""
        return len(self._views_with_person) > 0

    def draw_any(self, count: int, generator: torch.Generator) -> RayBatch:
        """Draws pixels from everywhere."""
        return self._make_batch(self._draw_integers(len(self._masks), count, generator))

    def draw_background(self, count: int, generator: torch.Generator) -> RayBatch:
        """Draws pixels away from the person; fewer than `count` where nearly everything is the person."""
        drawn = self.settings.tries * count if self.has_person else count
        pixels = self._draw_integers(len(self._masks), drawn, generator)
        return self._make_batch(pixels[~self._near[pixels]][:count])

    def draw_person(self, count: int, generator: torch.Generator) -> RayBatch:
        """Draws pixels on the person, and some in the box around, from views that show them.

        Raises:
            ValueError: no view does.
        """
        if not self.has_person:
            raise ValueError("no view has a mask")
        many = self.settings.tries * count
        view = self._views_with_person[self._draw_integers(len(self._views_with_person), many, generator)]
        left, top, width, height = self._boxes[view].unbind(1)
        across, down = (torch.rand(many, generator=generator).to(self.device) for _ in range(2))
        column = left + (across * width).long().clamp_max(width - 1)
        row = top + (down * height).long().clamp_max(height - 1)
        pixels = view * self.width * self.height + row * self.width + column
        on_person = self._masks[pixels]
        inside, around = pixels[on_person][: round(self.settings.person_share * count)], pixels[~on_person]
        return self._make_batch(torch.cat([inside, around[: count - len(inside)]]))

    def _draw_integers(self, below: int, count: int, generator: torch.Generator) -> Tensor:
        # Drawn where the generator is, so that a step sees the same pixels on every device.
        return torch.randint(below, (count,), generator=generator).to(self.device)

    def _make_batch(self, places: Tensor) -> RayBatch:
        view, pixel = places // (self.width * self.height), places % (self.width * self.height)
        return RayBatch(self._rays(view, pixel), self._frames[places].float() / 255, self._masks[places], places)

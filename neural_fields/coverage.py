"""From a fitted model to canonical images: the texture, and how much of the clip each texel is seen in."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields import coords
from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage
from neural_fields.coords import Box
from neural_fields.planar.model import PlanarModel

SEEN = 0.5  # a texel is seen in a frame where the layer has at least this weight
FULLY_SEEN = 3  # frames in which a texel is seen to be opaque in the canonical image


@torch.no_grad()
def canonical_images(model: PlanarModel, maps: Maps) -> Iterator[tuple[CanonicalImage, Int[Tensor, "height width"]]]:
    """The canonical image of every layer, front to back, and in how many frames each of its texels is seen."""
    for number, shape in enumerate(model.shape.layers):
        size = (shape.width, shape.height)
        seen = frames_seen(maps, number, shape.box, size)
        uv = coords.texel_centres(shape.box, *size)
        rows = [model.canonical_color(shape.name, part) for part in uv.split(max(1, 250_000 // shape.width))]
        rgb = torch.cat(rows).clamp(0, 1).permute(2, 0, 1)
        alpha = (torch.from_numpy(seen).float() / min(FULLY_SEEN, maps.frame_count)).clamp(0, 1)
        yield CanonicalImage(torch.cat([rgb, alpha[None]]), shape.box, shape.name), torch.from_numpy(seen).int()


def frames_seen(maps: Maps, layer: int, box: Box, size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """In how many frames each texel of a layer's canonical image is seen.

    Counted on cells about as far apart as the pixels are, then enlarged: a texel between two pixels is seen too.
    """
    step = _pixel_step(maps, layer)
    columns = max(1, min(size[0], round(box.width / step)))
    rows = max(1, min(size[1], round(box.height / step)))
    total = np.zeros((rows, columns), np.float32)
    for t in range(maps.frame_count):
        uv = maps.uv_small(t, layer)[maps.layer_weight_small(t, layer) >= SEEN]
        x = ((uv[:, 0] - box.u0) * (columns / box.width)).astype(np.int64)
        y = ((uv[:, 1] - box.v0) * (rows / box.height)).astype(np.int64)
        inside = (uv[:, 0] >= box.u0) & (x < columns) & (uv[:, 1] >= box.v0) & (y < rows)
        hit = np.zeros((rows, columns), np.uint8)
        hit[y[inside], x[inside]] = 1
        total += cv2.morphologyEx(hit, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    return cv2.resize(total, size, interpolation=cv2.INTER_LINEAR)


def _pixel_step(maps: Maps, layer: int) -> float:
    """The usual distance, in uv units, between the canonical points of neighbouring pixels of the layer."""
    steps = []
    for t in range(0, maps.frame_count, max(1, maps.frame_count // 8)):
        uv, weight = maps.uv_small(t, layer), maps.layer_weight_small(t, layer)
        both = (weight[:, 1:] >= SEEN) & (weight[:, :-1] >= SEEN)
        steps.append(np.linalg.norm(uv[:, 1:] - uv[:, :-1], axis=-1)[both])
    found = np.concatenate(steps)
    return float(np.median(found).clip(1e-4)) if len(found) else 2 / max(maps.size)

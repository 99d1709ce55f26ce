"""From a trained model to canonical images: the texture, and in how many frames each texel is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class CoverageSettings:
    """Settings of the count of the frames in which a texel is seen."""

    min_weight: float = 0.5  # of the layer in a pixel that shows its texel
    opaque_frames: int = 3  # in which a texel is seen to be opaque in the canonical image
    step_frames: int = 8  # about so many frames give the usual distance between pixels
    min_step: float = 1e-4  # uv units


DEFAULTS = CoverageSettings()


@torch.no_grad()
def make_canonical_images(
    model: PlanarModel, maps: Maps, settings: CoverageSettings = DEFAULTS
) -> Iterator[tuple[CanonicalImage, Int[Tensor, "height width"]]]:
    """Yields the canonical image of every layer, front to back, and in how many frames each of its texels is seen."""
    for number, shape in enumerate(model.shape.layers):
        size = (shape.width, shape.height)
        seen = count_frames_seen(maps, number, shape.box, size, settings)
        uv = coords.texel_centers(shape.box, *size)
        rows_at_once = max(1, 250_000 // shape.width)  # a network needs much memory for each texel
        rows = [model.sample_canonical(shape.name, part) for part in uv.split(rows_at_once)]
        rgb = torch.cat(rows).clamp(0, 1).permute(2, 0, 1)
        alpha = (torch.from_numpy(seen).float() / min(settings.opaque_frames, maps.frame_count)).clamp(0, 1)
        yield CanonicalImage(torch.cat([rgb, alpha[None]]), shape.box, shape.name), torch.from_numpy(seen).int()


def count_frames_seen(
    maps: Maps, layer: int, box: Box, size: tuple[int, int], settings: CoverageSettings = DEFAULTS
) -> Float[np.ndarray, "height width"]:
    """Counts in how many frames each texel of a layer's canonical image is seen.

    Counted on cells about as far apart as the pixels are, then enlarged: a texel between two pixels is seen too.

    Args:
        maps: the baked maps.
        layer: number of the layer.
        box: that the canonical image covers, in uv units.
        size: its (width, height) in texels.
        settings: which pixels show a texel.
    """
    # The usual distance, in uv units, between the canonical points of neighboring pixels of the layer.
    steps = []
    for t in range(0, maps.frame_count, max(1, maps.frame_count // settings.step_frames)):
        uv, weight = maps.read_uv_small(t, layer), maps.read_layer_weight_small(t, layer)
        both = (weight[:, 1:] >= settings.min_weight) & (weight[:, :-1] >= settings.min_weight)
        steps.append(np.linalg.norm(uv[:, 1:] - uv[:, :-1], axis=-1)[both])
    distances = np.concatenate(steps)
    step = float(np.median(distances).clip(settings.min_step)) if len(distances) else 2 / max(maps.size)
    # The cells that each frame shows, holes between its pixels closed.
    columns = max(1, min(size[0], round(box.width / step)))
    rows = max(1, min(size[1], round(box.height / step)))
    total = np.zeros((rows, columns), np.float32)
    for t in range(maps.frame_count):
        uv = maps.read_uv_small(t, layer)[maps.read_layer_weight_small(t, layer) >= settings.min_weight]
        x = ((uv[:, 0] - box.u0) * (columns / box.width)).astype(np.int64)
        y = ((uv[:, 1] - box.v0) * (rows / box.height)).astype(np.int64)
        inside = (uv[:, 0] >= box.u0) & (x < columns) & (uv[:, 1] >= box.v0) & (y < rows)
        hit = np.zeros((rows, columns), np.uint8)
        hit[y[inside], x[inside]] = 1
        total += cv2.morphologyEx(hit, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    return cv2.resize(total, size, interpolation=cv2.INTER_LINEAR)

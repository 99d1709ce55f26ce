"""The points of whole frames, as every network that has no faster way sees them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields import coords

POINTS_AT_ONCE = 1 << 17  # bounds the memory of a wide network on a large frame to some hundreds of MB


def frame_points(
    frames: Int[Tensor, " frames"] | Float[Tensor, " frames"], frame_count: int, size: tuple[int, int]
) -> Float[Tensor, "n 3"]:
    """xyt of every pixel of some frames of `size` (width, height), frame by frame in row-major order."""
    xy = coords.frame_xy(*size, device=frames.device).view(1, -1, 2).expand(len(frames), -1, -1)
    time = torch.as_tensor(coords.normalise_time(frames.float(), frame_count))
    return torch.cat([xy, time[:, None, None].expand(-1, xy.shape[1], 1)], dim=-1).reshape(-1, 3)


def evaluate(network: Callable[[Tensor], Tensor], points: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
    """`network(points)`; where no gradient is wanted, part by part, so that a whole frame needs little memory."""
    if torch.is_grad_enabled() or len(points) <= POINTS_AT_ONCE:
        return network(points)
    return torch.cat([network(part) for part in points.split(POINTS_AT_ONCE)])

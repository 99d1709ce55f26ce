"""Points of whole frames, and the evaluation of networks at many points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.core import coords


def frame_points(
    frames: Int[Tensor, " frames"] | Float[Tensor, " frames"], frame_count: int, size: tuple[int, int]
) -> Float[Tensor, "n 3"]:
    """Returns xyt of every pixel of some frames of `size` (width, height), frame by frame in row-major order."""
    xy = coords.frame_xy(*size, device=frames.device).view(1, -1, 2).expand(len(frames), -1, -1)
    time = torch.as_tensor(coords.normalize_time(frames.float(), frame_count))
    return torch.cat([xy, time[:, None, None].expand(-1, xy.shape[1], 1)], dim=-1).reshape(-1, 3)


def evaluate_in_parts(
    network: Callable[[Tensor], Tensor], points: Float[Tensor, "n inputs"], max_points: int = 1 << 17
) -> Float[Tensor, "n outputs"]:
    """Returns `network(points)`; where no gradient is wanted, part by part, so that a whole frame needs little memory.

    Args:
        network: from points to values.
        points: any number.
        max_points: of a part; the default keeps a wide network at some hundreds of MB.
    """
    if torch.is_grad_enabled() or len(points) <= max_points:
        return network(points)
    return torch.cat([network(part) for part in points.split(max_points)])

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
    """Returns xyt of every pixel of some frames, frame by frame and row by row.

    Args:
        frames: numbers of the frames.
        frame_count: number of frames of the clip.
        size: (width, height) of the frames in pixels.

    Returns:
        x and y in xy units, t in (-1, 1).

    Example:
        >>> frame_points(torch.tensor([0]), 2, (2, 1)).tolist()
        [[-0.5, 0.0, -0.5], [0.5, 0.0, -0.5]]
    """
    xy = coords.frame_xy(*size, device=frames.device).view(1, -1, 2).expand(len(frames), -1, -1)
    time = torch.as_tensor(coords.normalize_time(frames.float(), frame_count))
    return torch.cat([xy, time[:, None, None].expand(-1, xy.shape[1], 1)], dim=-1).reshape(-1, 3)


def evaluate_in_parts(
    network: Callable[[Tensor], Tensor], points: Float[Tensor, "n inputs"], max_points: int = 1 << 17
) -> Float[Tensor, "n outputs"]:
    """Evaluates a network at points; without gradients in parts, so that a frame needs little memory.

    Args:
        network: from points to values.
        points: any number of points.
        max_points: number of points of a part; the default keeps a wide network at some hundreds of MB.

    Returns:
        The values of the network, one row for each point.
    """
    if torch.is_grad_enabled() or len(points) <= max_points:
        return network(points)
    return torch.cat([network(part) for part in points.split(max_points)])

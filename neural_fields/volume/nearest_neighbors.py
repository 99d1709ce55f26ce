"""Nearest neighbors: by pytorch3d where it is installed, which keeps no table of distances, else by torch in parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def find_nearest(
    points: Float[Tensor, "points axes"], candidates: Float[Tensor, "others axes"], rows: int = 2048
) -> Int[Tensor, " points"]:
    """Finds the index of the nearest of `candidates` to each point, by Euclidean distance.

    Args:
        points: that look for a neighbor.
        candidates: that are searched.
        rows: points at a time whose distances from all others are in memory; pytorch3d keeps none.
    """
    found = import_knn_points()
    if found is not None:
        return found(points[None].contiguous(), candidates[None].contiguous(), K=1).idx[0, :, 0]
    return torch.cat([torch.cdist(part, candidates).argmin(dim=1) for part in points.split(rows)])


@cache
def import_knn_points() -> Callable[..., Any] | None:
    """Imports pytorch3d's function; None where it is not installed, or was built for another torch."""
    try:
        return import_module("pytorch3d.ops").knn_points
    except (ImportError, OSError, AttributeError):
        return None

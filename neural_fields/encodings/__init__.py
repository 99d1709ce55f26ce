"""Encodings of coordinates and the networks behind them.

An encoding is an `nn.Module` that turns points into features. Nothing is imported here: `hash_grid`, `grid`, `fourier`
and `mlp` are loaded by whoever builds a model, and tiny-cuda-nn only when a grid runs on a GPU (`tcnn`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Encoding(Protocol):
    """Points [N, in_dim] in [0, 1] to float32 features [N, out_dim]."""

    in_dim: int
    out_dim: int

    def __call__(self, x: Tensor, /) -> Tensor: ...

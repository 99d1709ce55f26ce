"""Pictures larger than a model was trained for: the denoiser runs on windows, and its outputs are averaged.

All windows are parts of the same noised latents at every step, so that their results match (MultiDiffusion, Bar-Tal et
al., 2023, eq. 5, with weights that decrease toward the edge of a window).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.backend.noise_schedule import Latents

Window = tuple[slice, slice]  # rows and columns of the latents


@dataclass(frozen=True)
class WindowSettings:
    """Settings of running a denoiser in windows."""

    min_overlap: float = 0.25  # share of a window that the next window covers too
    max_stretch: float = 1.25  # a picture up to this many times as long as a window is seen as a whole


DEFAULTS = WindowSettings()


def run_in_windows(
    latents: Float[Tensor, "n _ rows columns"],
    side: int,
    multiple: int,
    run: Callable[[Tensor, Window], Latents],
    settings: WindowSettings = DEFAULTS,
) -> Latents:
    """Runs a denoiser on windows of latents and blends the outputs.

    Args:
        latents: latents of any size.
        side: side of a window, in latents.
        multiple: windows start and end at multiples of this, in latents.
        run: called with the latents of a window and its position; returns an output of the same size.
        settings: overlap of the windows.

    Returns:
        The weighted mean of the outputs, at the size of the latents.
    """
    height, width = latents.shape[-2:]
    if max(height, width) <= settings.max_stretch * side:
        return run(latents, (slice(0, height), slice(0, width)))
    total = torch.zeros((), device=latents.device)
    weights = torch.zeros((), device=latents.device)
    for rows in divide_into_windows(height, side, multiple, settings):
        for columns in divide_into_windows(width, side, multiple, settings):
            output = run(latents[..., rows, columns], (rows, columns))
            row_weights = _compute_window_weights(rows, height, settings)
            column_weights = _compute_window_weights(columns, width, settings)
            weight = row_weights[:, None] * column_weights[None]
            padding = (columns.start, width - columns.stop, rows.start, height - rows.stop)
            total = total + torch.nn.functional.pad(output * weight.to(output), padding)
            weights = weights + torch.nn.functional.pad(weight.to(output), padding)
    return total / weights


def divide_into_windows(length: int, side: int, multiple: int, settings: WindowSettings = DEFAULTS) -> list[slice]:
    """Divides a length into evenly spaced windows; a length that is little longer than a window is one window.

    Args:
        length: length to cover, in latents.
        side: side of a window, in latents.
        multiple: windows start and end at multiples of this, in latents.
        settings: overlap of the windows.

    Example:
        >>> divide_into_windows(length=128, side=64, multiple=8)
        [slice(0, 64, None), slice(32, 96, None), slice(64, 128, None)]
        >>> divide_into_windows(length=72, side=64, multiple=8)
        [slice(0, 72, None)]
    """
    if length <= settings.max_stretch * side:
        return [slice(0, length)]
    step = max(multiple, int(side * (1 - settings.min_overlap)) // multiple * multiple)
    count = -(-(length - side) // step) + 1
    starts = [round(i * (length - side) / (count - 1) / multiple) * multiple for i in range(count)]
    return [slice(start, start + side) for start in starts]


def _compute_window_weights(span: slice, length: int, settings: WindowSettings) -> Float[Tensor, " side"]:
    """Computes the weight of a window at each of its latents; it decreases toward edges within the picture."""
    side = span.stop - span.start
    ramp = torch.arange(side) + 0.5
    reach = settings.min_overlap * side
    from_start = torch.ones(side) if span.start == 0 else ramp / reach
    from_end = torch.ones(side) if span.stop == length else ramp.flip(0) / reach
    return torch.minimum(from_start, from_end).clamp(max=1)

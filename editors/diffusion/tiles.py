"""Pictures larger than a model was trained for: the denoiser sees windows of them, and its answers are averaged.

All windows are parts of the same noised latents at every step, so that what they make joins (MultiDiffusion, Bar-Tal et
al., 2023, eq. 5, with weights that fall towards the edge of a window).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.schedule import Latents

OVERLAP = 0.25  # of a window, at least, is shared with the next one
STRETCH = 1.25  # a picture larger than a window by no more than this is seen as a whole

Window = tuple[slice, slice]  # rows and columns of the latents


def in_windows(
    latents: Float[Tensor, "n _ rows columns"], side: int, multiple: int, run: Callable[[Tensor, Window], Latents]
) -> Latents:
    """What `run` says of windows of latents, joined.

    Args:
        latents: of any size.
        side: of a window, in latents.
        multiple: windows begin and end at multiples of this.
        run: called with the latents of a window and its place; answers at the same size.
    """
    height, width = latents.shape[-2:]
    if max(height, width) <= STRETCH * side:
        return run(latents, (slice(0, height), slice(0, width)))
    total = torch.zeros((), device=latents.device)
    weights = torch.zeros((), device=latents.device)
    for rows in spans(height, side, multiple):
        for columns in spans(width, side, multiple):
            answer = run(latents[..., rows, columns], (rows, columns))
            weight = _weight(rows, height)[:, None] * _weight(columns, width)[None]
            room = (columns.start, width - columns.stop, rows.start, height - rows.stop)
            total = total + torch.nn.functional.pad(answer * weight.to(answer), room)
            weights = weights + torch.nn.functional.pad(weight.to(answer), room)
    return total / weights


def spans(length: int, side: int, multiple: int) -> list[slice]:
    """Windows of `side` that cover a length, evenly, at multiples; one over all of it where it is not much longer."""
    if length <= STRETCH * side:
        return [slice(0, length)]
    step = max(multiple, int(side * (1 - OVERLAP)) // multiple * multiple)
    count = -(-(length - side) // step) + 1
    starts = [round(i * (length - side) / (count - 1) / multiple) * multiple for i in range(count)]
    return [slice(start, start + side) for start in starts]


def _weight(span: slice, length: int) -> Float[Tensor, " side"]:
    """How much a window counts at each of its latents: less towards edges that are not the picture's own."""
    side = span.stop - span.start
    ramp = torch.arange(side) + 0.5
    reach = OVERLAP * side
    from_start = torch.ones(side) if span.start == 0 else ramp / reach
    from_end = torch.ones(side) if span.stop == length else ramp.flip(0) / reach
    return torch.minimum(from_start, from_end).clamp(max=1)

"""Frames that the model shows, without the source: `--what reconstruction` and `--what layers`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import UInt8
from numpy import ndarray

from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.composition.samples import composite_layers


@torch.no_grad()
def reconstruct_frames(
    run: PlanarRun, indices: Sequence[int], size: tuple[int, int]
) -> Iterator[UInt8[ndarray, "height width 3"]]:
    """Reconstructs frames.

    Args:
        run: the open run.
        indices: the frames of the run.
        size: (width, height) in pixels.

    Yields:
        What the model shows of each frame, RGB.
    """
    for t in indices:
        shown = composite_layers(run.model.sample_frame(t, size)).clamp(0, 1).view(size[1], size[0], 3)
        yield (shown * 255).round().to(torch.uint8).numpy()


@torch.no_grad()
def reconstruct_layer(
    run: PlanarRun, indices: Sequence[int], layer: int, size: tuple[int, int], with_alpha: bool
) -> Iterator[UInt8[ndarray, "height width channels"]]:
    """Reconstructs a layer alone.

    Args:
        run: the open run.
        indices: the frames of the run.
        layer: number of the layer, front to back.
        size: (width, height) in pixels.
        with_alpha: whether frames have the layer's weight as their alpha; else it is shown over gray.

    Yields:
        Each frame, RGB or RGBA.
    """
    for t in indices:
        samples = run.model.sample_frame(t, size)
        color, alpha = samples.lit_color[:, layer].clamp(0, 1), samples.weight[:, layer, None]
        shown = torch.cat([color, alpha], dim=1) if with_alpha else color * alpha + 0.5 * (1 - alpha)
        yield (shown * 255).round().to(torch.uint8).view(size[1], size[0], -1).numpy()

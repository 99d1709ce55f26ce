"""The canonical pictures of a trained model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.coverage import DEFAULTS, CoverageSettings, count_frames_seen
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.progress import ProgressReporter, report_nothing, report_part
from neural_fields.planar.composition.model import PlanarModel


@torch.no_grad()
def make_canonical_images(
    model: PlanarModel,
    maps: Maps,
    report: ProgressReporter = report_nothing,
    settings: CoverageSettings = DEFAULTS,
) -> Iterator[tuple[CanonicalImage, Int[np.ndarray, "height width"]]]:
    """Computes the canonical picture of every layer.

    Args:
        model: the trained model.
        maps: its baked maps.
        report: called after each frame of each layer, as the stage "baking".
        settings: of the coverage.

    Yields:
        The picture of each layer, front to back, and the number of frames that show each of its texels.
    """
    layers = len(model.shape.layers)
    for number, shape in enumerate(model.shape.layers):
        size = (shape.width, shape.height)
        report_layer = report_part(report, "baking", number / layers, (number + 1) / layers)
        seen = count_frames_seen(maps, number, shape.box, size, report_layer, settings)
        uv = coords.texel_centers(shape.box, *size)
        rows_at_once = max(1, 250_000 // shape.width)  # a network needs much memory for each texel
        rows = [model.sample_canonical(shape.name, part) for part in uv.split(rows_at_once)]
        rgb = torch.cat(rows).clamp(0, 1)
        alpha = (torch.from_numpy(seen).float() / min(settings.opaque_frames, maps.frame_count)).clamp(0, 1)
        rgba = torch.cat([rgb, alpha[..., None]], dim=-1).numpy()
        yield CanonicalImage(rgba, shape.box, shape.name), seen.astype(np.int32)

"""The canonical pictures of a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Int

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.coverage import DEFAULTS, CoverageSettings, FrameReader, count_frames_seen, read_maps
from neural_fields.atlas.source_detail import choose_detail_frames, compute_detail_size, sharpen_canonical
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.progress import ProgressReporter, report_nothing, report_part
from neural_fields.data.video.io import source_frames
from neural_fields.nn.torch_threads import open_torch_threads
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.composition.model import PlanarModel

FramesSeen = Int[np.ndarray, "height width"]


@torch.no_grad()
def make_canonical_images(
    model: PlanarModel,
    maps: Maps | None,
    report: ProgressReporter = report_nothing,
    settings: CoverageSettings = DEFAULTS,
) -> Iterator[tuple[CanonicalImage, FramesSeen]]:
    """Computes the canonical picture of every layer.

    Args:
        model: the trained model.
        maps: its baked maps; without them, uv and weights are the model's.
        report: called after each frame of each layer, as the stage "baking".
        settings: of the coverage.

    Yields:
        The picture of each layer, front to back, and the number of frames that show each of its texels.
    """
    layers, frame_count = len(model.shape.layers), model.shape.frame_count
    for number, shape in enumerate(model.shape.layers):
        size = (shape.width, shape.height)
        report_layer = report_part(report, "baking", number / layers, (number + 1) / layers)
        read_frame = read_maps(maps, number) if maps else _read_model(model, number)
        pool = None if maps else open_torch_threads(torch.get_num_threads())
        seen = count_frames_seen(read_frame, frame_count, shape.box, size, report_layer, settings, pool)
        uv = coords.texel_centers(shape.box, *size)
        rows_at_once = max(1, 250_000 // shape.width)  # a network needs much memory for each texel
        rows = [model.sample_canonical(shape.name, part) for part in uv.split(rows_at_once)]
        rgb = torch.cat(rows).clamp(0, 1)
        alpha = (torch.from_numpy(seen).float() / min(settings.opaque_frames, frame_count)).clamp(0, 1)
        rgba = torch.cat([rgb, alpha[..., None]], dim=-1).numpy()
        yield CanonicalImage(rgba, shape.box, shape.name), seen.astype(np.int32)


def sharpen_pictures(
    run: PlanarRun,
    images: Iterable[tuple[CanonicalImage, FramesSeen]],
    size: tuple[int, int],
    report: ProgressReporter = report_nothing,
) -> Iterator[tuple[CanonicalImage, FramesSeen]]:
    """Gives canonical pictures the detail of the source.

    Args:
        run: the open run, with its baked maps.
        images: the pictures of the model, with the number of frames that show each texel.
        size: (width, height) of frames whose texels they get.
        report: called after each frame, as the stage "baking".

    Yields:
        The larger pictures, with the same numbers.

    Raises:
        UserError: the source is gone or has changed (exit 3).
    """
    chosen = choose_detail_frames(run.frame_count, run.source_size)
    frames = dict(zip(chosen, source_frames(run.metadata, run.frames[chosen.start :: chosen.step]), strict=True))
    for number, (image, frames_seen) in enumerate(images):
        share = report_part(report, "baking", number / len(run.layers), (number + 1) / len(run.layers))
        wanted = compute_detail_size(image.size, run.maps.size, size)
        yield sharpen_canonical(image, run.maps, frames, wanted, share), frames_seen


def _read_model(model: PlanarModel, number: int) -> FrameReader:
    """Returns what reads uv and weight of a layer in a frame from a model."""
    size, count = model.shape.size, model.shape.frame_count

    @torch.no_grad()
    def read_frame(t: int) -> tuple[np.ndarray, np.ndarray]:
        frame = torch.tensor([t])
        uv = model.mappings[number].map_frames(frame, count, size)[0].numpy()
        weights = compute_layer_weights(model.opacity.sample_frames(frame, count, size)[0])
        return uv, weights[..., number].numpy()

    return read_frame

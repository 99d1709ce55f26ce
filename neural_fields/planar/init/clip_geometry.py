"""The geometry of all layers of a clip, for the mappings that start from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import numpy as np

from neural_fields.core.memmap import return_freed_memory
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.dataset import ClipDataset
from neural_fields.nn.torch_threads import map_in_torch_threads
from neural_fields.planar.init.geometry import (
    GeometrySettings,
    LayerGeometry,
    choose_early_frames,
    compute_layer_geometry,
)
from neural_fields.planar.init.region_tracking import RegionTrackingSettings, compute_region_geometry
from neural_fields.planar.init.visibility import KEPT_BYTES, LayerVisibility


def compute_clip_geometry(
    clip: ClipDataset,
    grid: tuple[int, int],
    report: ProgressReporter,
    settings: GeometrySettings,
    show: Callable[[tuple[LayerGeometry, ...], range], None] | None = None,
) -> tuple[LayerGeometry, ...]:
    """Computes the geometry of every layer, front to back.

    Args:
        clip: frames, masks, flow and cuts.
        grid: (columns, rows) of the residuals.
        report: called after each frame, as the stage "geometry".
        settings: of the geometry.
        show: called with the geometry of the frames that are placed first, and their numbers, when it is there; that of
            all frames has the same planes. Not called where no frames come first: short clips, several charts, tracked
            regions.
    """
    size = clip.flow.size if clip.flow else clip.size
    done = [0.0] * len(clip.layer_names)  # share of the work on each layer

    def begin(number: int) -> Iterator[LayerGeometry]:
        share = lru_cache(KEPT_BYTES // (4 * size[0] * size[1]))(partial(clip.compute_visible_share, number, size=size))
        visible = LayerVisibility(share, range(clip.frame_count), size)
        track = clip.regions.get(clip.layer_names[number])
        if track:
            all_visible = np.stack([visible[t] for t in range(len(visible))])
            tracking = RegionTrackingSettings(geometry=settings)
            yield compute_region_geometry(clip, all_visible, track, grid, tracking)
            return

        def report_layer(progress: Progress) -> None:
            done[number] = max(done[number], progress.share)
            report(Progress("geometry", min(999, round(1000 * sum(done) / len(done))), 1000))

        is_background = number == len(done) - 1
        yield from compute_layer_geometry(clip, visible, is_background, grid, clip.cuts, report_layer, settings)

    # Several layers at once: the frames before and after the reference frame of each are two rows of work, often of
    # different length.
    layers = [begin(number) for number in range(len(done))]
    found = list(map_in_torch_threads(next, layers))
    early = choose_early_frames(clip.frame_count, settings)
    if show and all(len(layer.homography) == len(early) for layer in found):
        show(tuple(found), early)
    rest = map_in_torch_threads(lambda layer: next(layer, None), layers)
    geometry = tuple(after or before for before, after in zip(found, rest, strict=True))
    report(Progress("geometry", 1, 1))
    del found, rest, layers
    return_freed_memory()
    return geometry

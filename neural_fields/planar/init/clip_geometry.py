"""The geometry of all layers of a clip, for the mappings that start from it."""

from __future__ import annotations

from functools import partial

import numpy as np

from neural_fields.core.progress import Progress, ProgressReporter, report_part
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.init.geometry import GeometrySettings, LayerGeometry, compute_layer_geometry
from neural_fields.planar.init.region_tracking import RegionTrackingSettings, compute_region_geometry
from neural_fields.planar.init.visibility import LayerVisibility


def compute_clip_geometry(
    clip: ClipDataset, grid: tuple[int, int], report: ProgressReporter, settings: GeometrySettings
) -> tuple[LayerGeometry, ...]:
    """Computes the geometry of every layer, front to back.

    Args:
        clip: frames, masks, flow and cuts.
        grid: (columns, rows) of the residuals.
        report: called after each frame, as the stage "geometry".
        settings: of the geometry.
    """
    size = clip.flow.size if clip.flow else clip.size
    geometry: list[LayerGeometry] = []
    for number, name in enumerate(clip.layer_names):
        visible = LayerVisibility(partial(clip.compute_visible_share, number, size=size), range(clip.frame_count), size)
        track = clip.regions.get(name)
        if track:
            all_visible = np.stack([visible[t] for t in range(len(visible))])
            tracking = RegionTrackingSettings(geometry=settings)
            geometry.append(compute_region_geometry(clip, all_visible, track, grid, tracking))
        else:
            is_background = number == len(clip.layer_names) - 1
            layers = len(clip.layer_names)
            report_layer = report_part(report, "geometry", number / layers, (number + 1) / layers)
            geometry.append(
                compute_layer_geometry(clip, visible, is_background, grid, clip.cuts, report_layer, settings)
            )
            report_layer(Progress("geometry", 1, 1))
    return tuple(geometry)

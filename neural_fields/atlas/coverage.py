"""Coverage: the number of frames that show each texel of a canonical picture."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.prefetch import map_in_threads
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing


@dataclass(frozen=True)
class CoverageSettings:
    """Settings of the count of the frames in which a texel is seen."""

    min_weight: float = 0.5  # a pixel shows a texel of the layer if the layer has at least this weight in it
    # A texel that so many frames show is opaque in the canonical picture; with fewer, alpha is lower.
    opaque_frames: int = 3
    step_frames: int = 8  # number of frames from which the usual distance between neighboring pixels is measured


DEFAULTS = CoverageSettings()


FrameReader = Callable[[int], tuple[Float[np.ndarray, "height width 2"], Float[np.ndarray, "height width"]]]


def read_maps(maps: Maps, layer: int) -> FrameReader:
    """Returns what reads uv and weight of a layer in a frame from baked maps."""
    return lambda t: (maps.read_uv_small(t, layer), maps.read_layer_weight_small(t, layer))


def count_frames_seen(
    read_frame: FrameReader,
    frame_count: int,
    box: Box,
    size: tuple[int, int],
    report: ProgressReporter = report_nothing,
    settings: CoverageSettings = DEFAULTS,
    pool: Executor | None = None,
) -> Float[np.ndarray, "height width"]:
    """Counts the frames that show each texel of a layer's canonical picture.

    It counts cells of about the size of a pixel and enlarges the result, so that texels between two pixels count too.

    Args:
        read_frame: reads uv and weight of the layer in each pixel of a frame.
        frame_count: number of frames.
        box: the part of the canonical plane that the picture covers, in uv units.
        size: (width, height) of the picture in texels.
        report: called after each frame, as the stage "baking".
        settings: least weight of a pixel that counts, and the size of cells.
        pool: threads that read frames; those of torch where a model is read.

    Returns:
        The number of frames; fractions are interpolated.
    """
    # The usual distance, in uv units, between the canonical points of neighboring pixels of the layer.
    steps = []
    for t in range(0, frame_count, max(1, frame_count // settings.step_frames)):
        uv, weight = read_frame(t)
        both = (weight[:, 1:] >= settings.min_weight) & (weight[:, :-1] >= settings.min_weight)
        across = (uv[:, 1:] - uv[:, :-1])[both]
        steps.append(np.hypot(across[:, 0], across[:, 1]))
    distances = np.concatenate(steps)
    step = max(1e-9, float(np.median(distances))) if len(distances) else 2 / max(uv.shape[:2])
    # The cells that each frame shows, holes between its pixels closed.
    columns = max(1, min(size[0], round(box.width / step)))
    rows = max(1, min(size[1], round(box.height / step)))

    def find_cells(t: int) -> UInt8[np.ndarray, "rows columns"]:
        uv, weight = read_frame(t)
        seen = weight >= settings.min_weight
        x = (uv[..., 0][seen] - box.u0) * (columns / box.width)
        y = (uv[..., 1][seen] - box.v0) * (rows / box.height)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        hit = np.zeros(rows * columns, np.uint8)
        hit[y[inside].astype(np.int32) * columns + x[inside].astype(np.int32)] = 1
        return cv2.morphologyEx(hit.reshape(rows, columns), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))

    total = np.zeros((rows, columns), np.float32)
    for t, cells in enumerate(map_in_threads(find_cells, range(frame_count), pool)):
        total += cells
        report(Progress("baking", t + 1, frame_count))
    return cv2.resize(total, size, interpolation=cv2.INTER_LINEAR)

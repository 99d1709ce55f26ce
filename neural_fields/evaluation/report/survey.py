"""Surveys the frames of a run, for `train` and `eval`: the quality of each, and what it says about each layer.

Everything about a layer is summed on a grid of cells over its canonical picture, so memory does not grow with the clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core.box import Box
from neural_fields.core.even_spread import spread_indices
from neural_fields.evaluation.report.map_distortion import measure_distortion
from neural_fields.planar.composition.samples import LayerSamples


@dataclass(frozen=True)
class SurveySettings:
    """Settings of a survey of the frames of a run."""

    min_weight: float = 0.5  # a pixel shows the layers that have at least this weight in it
    # Side of a cell of the maps in pixels of the frame: small enough for detail, large enough to have no holes.
    cell_px: int = 2
    max_cells: int = 600  # most cells along the longer side of a canonical picture
    thumbnails: int = 10  # number of frames in the contact sheet
    thumbnail_width_px: int = 160  # width of each of them
    # The worst frame of each of so many parts of the clip is kept, so that the worst three are not neighbors.
    parts: int = 12
    kept_side_px: int = 480  # longer side at which these frames are kept


DEFAULTS = SurveySettings()

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class SurveyedFrame:
    """Holds a small frame for the page: the source, the reconstruction, and their difference in 8-bit levels."""

    t: int
    psnr: float
    source: UInt8[np.ndarray, "h w 3"]
    reconstruction: UInt8[np.ndarray, "h w 3"]
    error: UInt8[np.ndarray, "h w"]  # root mean square error over the colors


@dataclass
class LayerSurvey:
    """Sums over the cells of one layer's canonical picture."""

    name: str
    box: Box
    cells: tuple[int, int]  # (columns, rows)
    psnr: list[float] = field(default_factory=list)
    pixels: int = 0  # number of pixels that show the layer, in all frames
    bent: int = 0  # number of measured squares of four pixels
    stretched: int = 0  # number of these squares that are stretched beyond the limit
    folded: int = 0

    def __post_init__(self) -> None:
        self.frames, self.hits, self.squares, self.bends, self.log_stretch, self.folds = (
            np.zeros(self.cells[0] * self.cells[1]) for _ in range(6)
        )

    def locate_cells(
        self, uv: Float[np.ndarray, "height width 2"], where: Bool[np.ndarray, "height width"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cells of the canonical points of `where` that lie in the box, and which of the points do."""
        columns, rows = self.cells
        x = np.floor((uv[..., 0][where] - self.box.u0) * (columns / self.box.width))
        y = np.floor((uv[..., 1][where] - self.box.v0) * (rows / self.box.height))
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        return (y[inside] * columns + x[inside]).astype(np.int64), inside

    def add_frame(self, uv: np.ndarray, seen: np.ndarray, error: np.ndarray | None, stretched: float) -> None:
        """Adds one frame.

        Args:
            uv: [height, width, 2] canonical coordinates.
            seen: [height, width] whether the layer is what a pixel shows.
            error: [height, width] mean squared color error in 8-bit levels; None adds no heat, only coverage.
            stretched: least stretch of a place that counts as stretched.
        """
        self.pixels += int(seen.sum())
        cell, inside = self.locate_cells(uv, seen)
        # A frame counts once in each cell that it shows, and in small gaps between such cells.
        hit = np.zeros(len(self.frames), np.uint8)
        hit[cell] = 1
        hit = hit.reshape(self.cells[::-1])
        self.frames += cv2.morphologyEx(hit, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).ravel()
        if error is None:
            return
        size = len(self.hits)
        self.hits += np.bincount(cell, minlength=size)
        self.squares += np.bincount(cell, error[seen][inside], size)
        found = measure_distortion(uv, seen)
        stretch, folded = found.stretch[found.valid], found.folded[found.valid]
        self.bent += len(stretch)
        self.stretched += int((stretch > stretched).sum())
        self.folded += int(folded.sum())
        cell, inside = self.locate_cells(uv[:-1, :-1], found.valid)
        self.bends += np.bincount(cell, minlength=size)
        self.log_stretch += np.bincount(cell, np.log2(stretch[inside]), size)
        self.folds += np.bincount(cell, folded[inside], size)


@dataclass(frozen=True)
class LayerHeatMaps:
    """Holds the measurements of each cell of a layer's canonical picture; nan where there are none."""

    frames: Float[np.ndarray, "rows columns"]  # number of frames of the clip that show the place
    stretch: Float[np.ndarray, "rows columns"]  # geometric mean; 1 is none
    fold: Float[np.ndarray, "rows columns"]  # share of these frames in which the place folds over
    residual: Float[np.ndarray, "rows columns"]  # root mean square color error, in 8-bit levels


class Survey:
    """Gathers what a report shows, a frame at a time.

    Args:
        boxes: the box of each layer's canonical picture, front to back.
        size: (width, height) of the frames.
        frames: the frames that are sampled.
        heat: those of them in which stretch, fold-over and residual are measured.
        stretched: least stretch of a place that counts as stretched.
    """

    def __init__(
        self,
        boxes: dict[str, Box],
        size: tuple[int, int],
        frames: Sequence[int],
        heat: Sequence[int],
        stretched: float,
        settings: SurveySettings = DEFAULTS,
    ) -> None:
        self._settings = settings
        self.size, self.surveyed_frames, self.heat, self.stretched = size, tuple(frames), frozenset(heat), stretched
        self.layers = []
        for name, box in boxes.items():
            unit_px = max(size) / 2  # one unit of uv is half the longer side
            side = max(settings.cell_px / unit_px, max(box.width, box.height) / settings.max_cells)
            cells = (max(1, math.ceil(box.width / side)), max(1, math.ceil(box.height / side)))
            self.layers.append(LayerSurvey(name, box, cells))
        self.psnr: list[float] = []
        self.thumbnails: list[tuple[int, Picture]] = []
        self._thumbnail_frames = {
            self.surveyed_frames[i] for i in spread_indices(len(self.surveyed_frames), settings.thumbnails)
        }
        self._worst: dict[int, SurveyedFrame] = {}

    def add_frame(self, t: int, source: Picture, shown: Picture, samples: LayerSamples) -> None:
        """Adds frame `t`; frames come in the order of `frames`.

        Args:
            t: number of the frame in the run.
            source: the frame.
            shown: its reconstruction, of the same size.
            samples: the samples from which the reconstruction is composited.
        """
        height, width = source.shape[:2]
        weight = samples.weight.view(height, width, -1).numpy()
        # Mean squared difference over the colors, in 8-bit levels; OpenCV is several times as fast as numpy here.
        apart = cv2.absdiff(np.ascontiguousarray(source), shown).astype(np.float32)
        squares = cv2.transform(apart * apart, np.full((1, 3), 1 / 3, np.float32))
        psnr = _compute_psnr(float(squares.mean(dtype=np.float64)))
        place = len(self.psnr) * self._settings.parts // len(self.surveyed_frames)
        self.psnr.append(psnr)
        worst = self._worst.get(place)
        if worst is None or psnr < worst.psnr:
            error = np.sqrt(squares).clip(0, 255).astype(np.uint8)
            shrink = min(1.0, self._settings.kept_side_px / max(error.shape))
            small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            pictures = (np.asarray(source), shown, error)
            kept = (cv2.resize(picture, small, interpolation=cv2.INTER_AREA) for picture in pictures)
            self._worst[place] = SurveyedFrame(t, psnr, *kept)
        if t in self._thumbnail_frames:
            thumbnail_width = self._settings.thumbnail_width_px
            small = (thumbnail_width, max(1, round(height * thumbnail_width / width)))
            self.thumbnails.append((t, cv2.resize(source, small, interpolation=cv2.INTER_AREA)))
        for number, layer in enumerate(self.layers):
            seen = weight[..., number] >= self._settings.min_weight
            layer.psnr.append(_compute_psnr(float(squares[seen].mean(dtype=np.float64))) if seen.any() else math.nan)
            if samples.uv is not None:
                uv = samples.uv[:, number].reshape(height, width, 2).numpy()
                layer.add_frame(uv, seen, squares if t in self.heat else None, self.stretched)

    def worst_frames(self, count: int) -> list[SurveyedFrame]:
        """Returns the frames with the lowest PSNR, from different parts of the clip, worst first."""
        return sorted(self._worst.values(), key=lambda frame: frame.psnr)[:count]

    def compute_layer_maps(self, layer: LayerSurvey, frame_count: int) -> LayerHeatMaps:
        """Computes the heat maps of a layer.

        Args:
            layer: one of `layers`.
            frame_count: number of frames of the clip; frames that were not sampled count like the sampled ones.
        """
        shape = layer.cells[::-1]
        frames = layer.frames.reshape(shape) * (frame_count / max(1, len(self.psnr)))

        return LayerHeatMaps(
            frames=frames,
            stretch=np.exp2(_average_cells(layer.log_stretch, layer.bends, frames)),
            fold=_average_cells(layer.folds, layer.bends, frames).clip(0, 1),
            residual=np.sqrt(_average_cells(layer.squares, layer.hits, frames).clip(0)),
        )


def _average_cells(
    total: Float[np.ndarray, " cells"], count: Float[np.ndarray, " cells"], frames: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "rows columns"]:
    """Divides sums by counts, both over 3 x 3 cells; nan where nothing was counted or no frame shows a cell."""
    top, below = (cv2.boxFilter(values.reshape(frames.shape), -1, (3, 3), normalize=False) for values in (total, count))
    return np.where((below > 0.5) & (frames > 0), top / np.maximum(below, 1), np.nan)


def _compute_psnr(error: float) -> float:
    """Converts a mean squared error in 8-bit levels to PSNR; inf when there is none."""
    return math.inf if error == 0 else -10 * math.log10(error / 255**2)

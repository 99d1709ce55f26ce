"""Baked uv maps: the canonical position of every pixel of every frame, so that rendering needs no network.

Maps are stored at the training size, with a rim of one pixel, and resampled to any larger size when they are read: the
mapping is smooth, so nothing is lost, and a 4K source takes no more disk space than its model. They are in `maps/`,
compressed frame by frame (`map_files.py`):

    maps.json               layers, boxes, size, frame count, and the checkpoint they were baked from
    uv-<layer>.bin          [T, H + 2, W + 2, 2], bilinear between the knots of the mapping, or to 1/512 pixel
    weight.bin              bytes [T, L, H + 2, W + 2], 255 is one
    gain-<layer>.bin        [T, h + 2, w + 2, 3] in steps of 1/2048, one value every 4 pixels (`gain_size`)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from neural_fields.atlas.chart import Chart
from neural_fields.atlas.map_files import BAKE_AGAIN, MapFile, damaged_maps_error
from neural_fields.config.loader import load_json
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.imaging.resampling import RIM, enlarge_map, sample_rimmed_maps, warp_part

GAIN_STEP = 1 / 2048


@dataclass(frozen=True)
class MapsHeader:
    """Holds the content of maps.json.

    Attributes:
        layers: names of the layers, front to back.
        boxes: the part of the canonical plane that each layer's picture covers, in uv units.
        size: (width, height) of the maps in pixels, without their rim.
        frame_count: number of frames of the run.
        has_gain: whether there are gain maps.
        charts: the charts that continue each other, one list for each series.
        step: training step of the checkpoint from which they were baked.
    """

    layers: tuple[str, ...]
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    frame_count: int
    has_gain: bool
    charts: tuple[tuple[Chart, ...], ...] = ()
    step: int = 0

    def __post_init__(self) -> None:
        if len(self.boxes) != len(self.layers):
            raise ValueError(f"{len(self.boxes)} boxes for {len(self.layers)} layers")


@dataclass(frozen=True)
class MapSamples:
    """Holds samples of the maps at scattered pixels, a row for each layer."""

    uv: Float[np.ndarray, "layers n 2"]
    weight: Float[np.ndarray, "layers n"]  # sums to one
    gain: Float[np.ndarray, "layers n 3"]


@dataclass(frozen=True)
class Maps:
    """Reads the baked maps of a run from disk. Sizes are (width, height) in pixels."""

    folder: Path
    layers: tuple[str, ...]
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    frame_count: int
    has_gain: bool
    charts: tuple[tuple[Chart, ...], ...] = ()  # series of charts that show the same object over time

    @staticmethod
    def open(folder: Path) -> Maps:
        """Opens the maps of a trained run.

        Args:
            folder: the folder `maps` of the run.

        Raises:
            UserError: the run has no maps yet, or they are damaged (exit 5).
        """
        path = folder / "maps.json"
        if not path.is_file():
            raise UserError(
                ExitCode.DAMAGED_RUN,
                f"{folder.parent} has no baked maps",
                where=str(path),
                why="training did not finish, or the folder maps/ was removed",
                fix=f"unwrap train <the video> --out {folder.parent} (it continues and bakes)",
            )
        header = load_json(MapsHeader, path, BAKE_AGAIN)

        # Every file is opened, and its shape compared.
        layers, count, (width, height) = header.layers, header.frame_count, header.size
        rows, columns = height + 2 * RIM, width + 2 * RIM
        expected = {f"uv-{name}": (count, 2, rows, columns) for name in layers}
        expected["weight"] = (count, len(layers), rows, columns)
        if header.has_gain:
            gain_width, gain_height = gain_size(header.size)
            gain_shape = (count, 3, gain_height + 2 * RIM, gain_width + 2 * RIM)
            expected |= {f"gain-{name}": gain_shape for name in layers}
        for name, shape in expected.items():
            file = MapFile(folder / f"{name}.bin")
            found = (file.frame_count, *file.planes)
            if found != shape:
                raise damaged_maps_error(folder, f"{name}.bin has the shape {found}, not {shape}")
        return Maps(folder, layers, header.boxes, header.size, count, header.has_gain, header.charts)

    def keep_uv_frames(self, count: int) -> None:
        """Keeps so many frames of uv in memory that were read last, for what looks at neighbors, too."""
        for file in self._uv_files:
            file.kept_frames = max(file.kept_frames, count)

    def find_chart(self, layer: str, t: int) -> Chart | None:
        """Finds the chart of a layer that frame `t` belongs to; None: the layer is not one of several charts."""
        own = (chart for series in self.charts for chart in series if chart.layer == layer)
        return next((chart for chart in own if chart.first <= t <= chart.last), None)

    def read_uv(self, t: int, layer: int, size: tuple[int, int]) -> Float[np.ndarray, "height width 2"]:
        """Returns the uv of every pixel of a frame.

        Args:
            t: index of the frame in the run.
            layer: number of the layer, front to back.
            size: (width, height) of the frame, at least that of the maps.

        Returns:
            Canonical positions in uv units.
        """
        return enlarge_map(self._uv_files[layer][t], self.size, size)

    def read_uv_small(self, t: int, layer: int) -> Float[np.ndarray, "height width 2"]:
        """Returns the uv of every pixel of a frame at the size of the maps."""
        return self._uv_files[layer][t][RIM:-RIM, RIM:-RIM]

    def read_weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """Returns the share of each pixel that each layer fills, in [0, 1]; the shares of a pixel sum to one."""
        planes = [enlarge_map(plane, self.size, size) for plane in self._weight_file[t]]
        weights = np.stack(planes).astype(np.float32) / 255
        return weights / weights.sum(0).clip(1e-3)

    def read_layer_weight(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice] | None = None
    ) -> Float[np.ndarray, "height width"]:
        """Returns the weight of a layer in a frame.

        Args:
            t: index of the frame in the run.
            layer: number of the layer, front to back.
            size: (width, height) of the frame.
            part: rows and columns of the frame to return; None returns all of them.

        Returns:
            The share of each pixel that the layer fills, 0 to 1.
        """
        return enlarge_map(self._weight_file[t][layer], self.size, size, part).astype(np.float32) / 255

    def read_layer_weight_small(self, t: int, layer: int) -> Float[np.ndarray, "height width"]:
        """Returns the weight of a layer in a frame at the size of the maps, 0 to 1."""
        return self._weight_file[t][layer, RIM:-RIM, RIM:-RIM].astype(np.float32) / 255

    def read_uv_part(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice]
    ) -> Float[np.ndarray, "height width 2"]:
        """Returns the uv in a part of a frame.

        Args:
            t: index of the frame in the run.
            layer: number of the layer, front to back.
            size: (width, height) of the frame.
            part: rows and columns of the frame.

        Returns:
            Canonical positions in uv units.
        """
        return enlarge_map(self._uv_files[layer][t], self.size, size, part)

    def read_gain(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice] | None = None
    ) -> Float[np.ndarray, "height width 3"]:
        """Returns the gain of a layer in a frame; ones where the model has no gain.

        Args:
            t: index of the frame in the run.
            layer: number of the layer, front to back.
            size: (width, height) of the frame.
            part: rows and columns of the frame to return; None returns all of them.

        Returns:
            A factor above 0 for each channel.
        """
        if not self.has_gain:
            rows, columns = part or (slice(0, size[1]), slice(0, size[0]))
            return np.ones((rows.stop - rows.start, columns.stop - columns.start, 3), np.float32)
        return enlarge_map(self._gain_files[layer][t], gain_size(self.size), size, part)

    def read_rimmed(
        self, t: int, layer: int
    ) -> tuple[Float[np.ndarray, "height width 2"], UInt8[np.ndarray, "height width"]]:
        """Returns the stored uv and weight (255 is one) of a layer in a frame, with their rim."""
        return self._uv_files[layer][t], self._weight_file[t][layer]

    def read_light(
        self, t: int, layer: int, rows: slice, columns: slice, lit: bool = True
    ) -> Float[np.ndarray, "height width 4"]:
        """Returns weight times gain (RGB; without `lit` the weight), and the weight, in a part of the rimmed maps.

        Args:
            t: the frame.
            layer: number of the layer.
            rows: rows of the rimmed maps.
            columns: columns of the rimmed maps.
            lit: whether the weight is multiplied by the gain.
        """
        weight = cv2.multiply(self._weight_file[t][layer][rows, columns], 1 / 255, dtype=cv2.CV_32F)
        weights = cv2.merge([weight] * 4)
        if not self.has_gain or not lit:
            return weights
        here = (slice(rows.start - RIM, rows.stop - RIM), slice(columns.start - RIM, columns.stop - RIM))
        # The fourth channel that comes with the others is one.
        gain = cv2.cvtColor(self._gain_files[layer][t], cv2.COLOR_RGB2RGBA)
        return cv2.multiply(weights, enlarge_map(gain, gain_size(self.size), self.size, here), dst=weights)

    def sample_at_points(
        self, t: int, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], size: tuple[int, int]
    ) -> MapSamples:
        """Samples all layers at scattered pixels of a frame.

        Args:
            t: index of the frame in the run.
            x: columns; 0 is the center of the first pixel, and fractions lie between pixels.
            y: rows.
            size: (width, height) of the frame.

        Returns:
            uv, weight and gain of each layer, front to back.
        """
        uv = sample_rimmed_maps([file[t] for file in self._uv_files], x, y, self.size, size)
        weight = sample_rimmed_maps(list(self._weight_file[t]), x, y, self.size, size).astype(np.float32)
        gain = np.ones((len(self.layers), len(x), 3), np.float32)
        if self.has_gain:
            gain = sample_rimmed_maps([file[t] for file in self._gain_files], x, y, gain_size(self.size), size)
        return MapSamples(uv, weight / weight.sum(0).clip(1), gain)

    def read_samples(
        self, t: int, x: Int[np.ndarray, " n"], y: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "layers n 2"], Float[np.ndarray, "layers n"], Float[np.ndarray, "layers n 4"]]:
        """Returns uv, weight (sums to one) and gain of all layers at some samples of the rimmed maps.

        Args:
            t: the frame.
            x: columns of the rimmed maps.
            y: rows of the rimmed maps.

        Returns:
            The fourth channel of the gain is one.
        """
        place = y * (self.size[0] + 2 * RIM) + x
        uv = np.stack([file[t].reshape(-1, 2).take(place, axis=0) for file in self._uv_files])
        weight = np.stack([plane.reshape(-1).take(place) for plane in self._weight_file[t]]).astype(np.float32)
        weight /= np.maximum(weight.sum(0), 1)
        if not self.has_gain:
            return uv, weight, np.ones((len(uv), len(x), 4), np.float32)
        gains = [cv2.cvtColor(file[t], cv2.COLOR_RGB2RGBA) for file in self._gain_files]
        return uv, weight, sample_rimmed_maps(gains, x - RIM, y - RIM, gain_size(self.size), self.size)

    def resample_part(
        self,
        values: Float[np.ndarray, "h w c"],
        corner: tuple[int, int],
        size: tuple[int, int],
        part: tuple[slice, slice],
    ) -> Float[np.ndarray, "rows columns c"]:
        """Resamples values at the size of the maps in a part of a frame; the values at their edges are repeated.

        Args:
            values: a rectangle of the rimmed maps.
            corner: (row, column) in the rimmed maps of the first of these values.
            size: (width, height) of the frame.
            part: rows and columns of the frame.

        Returns:
            The values of the part.
        """
        return warp_part(values, corner, self.size, size, part)

    @cached_property
    def _uv_files(self) -> list[MapFile]:
        return [MapFile(self.folder / f"uv-{name}.bin") for name in self.layers]

    @cached_property
    def _weight_file(self) -> MapFile:
        return MapFile(self.folder / "weight.bin")

    @cached_property
    def _gain_files(self) -> list[MapFile]:
        return [MapFile(self.folder / f"gain-{name}.bin") for name in self.layers]


def uv_step(size: tuple[int, int]) -> float:
    """Returns the largest error of baked uv: 1/512 pixel, in uv units.

    Args:
        size: (width, height) of the maps in pixels, without their rim.
    """
    return 2 / max(size) / 512


def gain_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (width, height) of a baked gain map, without its rim, for maps of `size`.

    Example:
        >>> gain_size((640, 360))
        (160, 90)
    """
    stride = 4  # pixels
    return (max(2, size[0] // stride), max(2, size[1] // stride))


def _add_rim(values: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "hh ww c"]:
    """Adds a rim of one pixel that continues the last two pixels linearly."""
    rows, columns = values.shape[:2]
    out = np.empty((rows + 2, columns + 2, *values.shape[2:]), values.dtype)
    out[1:-1, 1:-1] = values
    out[0, 1:-1] = 2 * values[0] - values[min(1, rows - 1)]
    out[-1, 1:-1] = 2 * values[-1] - values[max(-2, -rows)]
    out[:, 0] = 2 * out[:, 1] - out[:, min(2, columns)]
    out[:, -1] = 2 * out[:, -2] - out[:, max(-3, -columns - 1)]
    return out

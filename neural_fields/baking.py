"""Baked maps: where every pixel of every frame lies on each canonical image, so that rendering runs no network.

Maps are kept at the size of the fit, with a rim of one pixel, and brought to any larger size when they are read: the
mapping is smooth, so nothing is lost, and a 4K source costs no more disk than its fit. They lie under `maps/`:

    maps.json               layers, boxes, size, frame count, and the checkpoint they were baked from
    uv-<layer>.npy          float32 [T, H + 2, W + 2, 2]
    weight.npy              uint8   [T, L, H + 2, W + 2], 255 is one
    gain-<layer>.npy        float16 [T, h + 2, w + 2, 3], one value every GAIN_STRIDE pixels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from neural_fields.coords import Box
from neural_fields.errors import ExitCode, UserError
from neural_fields.files import atomic_write, read_json, require_room, write_json
from neural_fields.lookup import RIM, at_points, enlarge, warped
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.opacity import layer_weights
from neural_fields.planar.sheets import Chart
from neural_fields.run import Run

GAIN_STRIDE = 4


@dataclass(frozen=True)
class MapSamples:
    """The maps at scattered pixels; one row per layer."""

    uv: Float[np.ndarray, "layers n 2"]
    weight: Float[np.ndarray, "layers n"]  # sums to one
    gain: Float[np.ndarray, "layers n 3"]


class _StoredFrames:
    """An .npy file read a frame at a time, remembering the last one: mapped, a long clip would fill memory.

    What is stored as float16 comes as float32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.start = file.tell()
        self.shape: tuple[int, ...] = shape[1:]
        self.last: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index: int | tuple[Any, ...]) -> np.ndarray:
        t, *rest = index if isinstance(index, tuple) else (index,)
        last = self.last
        if last is None or last[0] != t:
            count = math.prod(self.shape)
            offset = self.start + t * count * self.dtype.itemsize
            values = np.fromfile(self.path, self.dtype, count, offset=offset).reshape(self.shape)
            last = (t, values.astype(np.float32) if self.dtype == np.float16 else values)
            self.last = last
        return last[1][tuple(rest)]


@dataclass(frozen=True)
class Maps:
    """The baked maps of a run, on disk. Sizes are (width, height)."""

    folder: Path
    layers: tuple[str, ...]
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    frame_count: int
    has_gain: bool
    charts: tuple[tuple[Chart, ...], ...] = ()  # parts of canonical planes that go on from one another

    @staticmethod
    def open(run: Run) -> Maps:
        """The maps of a fitted run.

        Raises:
            UserError: the run has no maps yet, or they are damaged.
        """
        path = run.maps / "maps.json"
        if not path.is_file():
            raise UserError(
                ExitCode.DAMAGED_RUN,
                f"{run.path} has no baked maps",
                where=str(path),
                why="the fit did not finish, or the folder maps/ was removed",
                fix=f"unwrap train <the video> --out {run.path} (it continues and bakes)",
            )
        try:
            maps = _described(run.maps, read_json(path))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _unreadable(run.maps, f"maps.json does not say what lies there ({error!r})") from error
        maps._check()
        return maps

    def uv(self, t: int, layer: int, size: tuple[int, int]) -> Float[np.ndarray, "height width 2"]:
        """Canonical coordinates of every pixel of frame `t`."""
        return enlarge(self._uv[layer][t], self.size, size)

    def uv_small(self, t: int, layer: int) -> Float[np.ndarray, "height width 2"]:
        """Canonical coordinates at the size of the fit."""
        return self._uv[layer][t, RIM:-RIM, RIM:-RIM]

    def weight(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """How much of each pixel each layer fills; sums to one."""
        planes = [enlarge(plane, self.size, size) for plane in self._weight[t]]
        weights = np.stack(planes).astype(np.float32) / 255
        return weights / weights.sum(0).clip(1e-3)

    def layer_weight(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice] | None = None
    ) -> Float[np.ndarray, "height width"]:
        """The weight of one layer; `part` (rows, columns) asks for a part of the frame."""
        return enlarge(self._weight[t, layer], self.size, size, part).astype(np.float32) / 255

    def layer_weight_small(self, t: int, layer: int) -> Float[np.ndarray, "height width"]:
        """The weight of one layer at the size of the fit."""
        return self._weight[t, layer, RIM:-RIM, RIM:-RIM].astype(np.float32) / 255

    def uv_part(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice]
    ) -> Float[np.ndarray, "height width 2"]:
        """Canonical coordinates in a part (rows, columns) of the frame."""
        return enlarge(self._uv[layer][t], self.size, size, part)

    def gain(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice] | None = None
    ) -> Float[np.ndarray, "height width 3"]:
        """The lighting gain of a layer; ones where the model has none."""
        if not self.has_gain:
            rows, columns = part or (slice(0, size[1]), slice(0, size[0]))
            return np.ones((rows.stop - rows.start, columns.stop - columns.start, 3), np.float32)
        return enlarge(self._gain[layer][t], gain_size(self.size), size, part)

    def rimmed(
        self, t: int, layer: int
    ) -> tuple[Float[np.ndarray, "height width 2"], UInt8[np.ndarray, "height width"]]:
        """Canonical coordinates and weight (255 is one) of a layer as they are stored, with their rim."""
        return self._uv[layer][t], self._weight[t, layer]

    def light(
        self, t: int, layer: int, rows: slice, columns: slice, lit: bool = True
    ) -> Float[np.ndarray, "height width 4"]:
        """Weight times gain (RGB; without `lit` the weight), and the weight, at a part of the rimmed maps."""
        weight = cv2.multiply(self._weight[t, layer][rows, columns], 1 / 255, dtype=cv2.CV_32F)
        weights = cv2.merge([weight] * 4)
        if not self.has_gain or not lit:
            return weights
        here = (slice(rows.start - RIM, rows.stop - RIM), slice(columns.start - RIM, columns.stop - RIM))
        # The fourth channel that comes with the others is one.
        gain = cv2.cvtColor(self._gain[layer][t], cv2.COLOR_RGB2RGBA)
        return cv2.multiply(weights, enlarge(gain, gain_size(self.size), self.size, here), dst=weights)

    def at(self, t: int, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], size: tuple[int, int]) -> MapSamples:
        """All layers at scattered pixels (column x, row y) of a frame of `size`."""
        uv = at_points([plane[t] for plane in self._uv], x, y, self.size, size)
        weight = at_points(list(self._weight[t]), x, y, self.size, size).astype(np.float32)
        return MapSamples(uv, weight / weight.sum(0).clip(1), self._gain_at(t, x, y, size))

    def at_samples(
        self, t: int, x: Int[np.ndarray, " n"], y: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "layers n 2"], Float[np.ndarray, "layers n"], Float[np.ndarray, "layers n 4"]]:
        """Canonical coordinates, weight (sums to one) and gain of all layers at some samples of the rimmed maps.

        They lie at column x and row y. The fourth channel of the gain is one.
        """
        place = y * (self.size[0] + 2 * RIM) + x
        uv = np.stack([plane[t].reshape(-1, 2).take(place, axis=0) for plane in self._uv])
        weight = np.stack([plane.reshape(-1).take(place) for plane in self._weight[t]]).astype(np.float32)
        weight /= np.maximum(weight.sum(0), 1)
        if not self.has_gain:
            return uv, weight, np.ones((len(uv), len(x), 4), np.float32)
        gains = [cv2.cvtColor(plane[t], cv2.COLOR_RGB2RGBA) for plane in self._gain]
        return uv, weight, at_points(gains, x - RIM, y - RIM, gain_size(self.size), self.size)

    def enlarged(
        self,
        values: Float[np.ndarray, "h w c"],
        corner: tuple[int, int],
        size: tuple[int, int],
        part: tuple[slice, slice],
    ) -> Float[np.ndarray, "rows columns c"]:
        """Values at the size of the fit in a part (rows, columns) of a frame of `size`.

        The first of them lies at `corner` (row, column) of the rimmed maps. Beyond their edges the last ones go on.
        """
        return warped(values, corner, self.size, size, part)

    def _gain_at(self, t: int, x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if not self.has_gain:
            return np.ones((len(self.layers), len(x), 3), np.float32)
        return at_points([plane[t] for plane in self._gain], x, y, gain_size(self.size), size)

    @cached_property
    def _uv(self) -> list[_StoredFrames]:
        return [_StoredFrames(self.folder / f"uv-{name}.npy") for name in self.layers]

    @cached_property
    def _weight(self) -> _StoredFrames:
        return _StoredFrames(self.folder / "weight.npy")

    @cached_property
    def _gain(self) -> list[_StoredFrames]:
        return [_StoredFrames(self.folder / f"gain-{name}.npy") for name in self.layers]

    def _check(self) -> None:
        """Opens every file and compares its shape."""
        width, height = self.size
        expected = (self.frame_count, height + 2 * RIM, width + 2 * RIM)
        small = gain_size(self.size)
        wanted = {f"uv-{name}": (*expected, 2) for name in self.layers}
        wanted["weight"] = (self.frame_count, len(self.layers), *expected[1:])
        if self.has_gain:
            rimmed = (self.frame_count, small[1] + 2 * RIM, small[0] + 2 * RIM, 3)
            wanted |= {f"gain-{name}": rimmed for name in self.layers}
        for name, shape in wanted.items():
            try:
                found = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).shape
            except (OSError, ValueError) as error:
                raise _unreadable(self.folder, f"{name}.npy cannot be read: {error}") from error
            if found != shape:
                raise _unreadable(self.folder, f"{name}.npy has the shape {found}, not {shape}")


def _described(folder: Path, facts: Any) -> Maps:
    """The maps that maps.json speaks of; any built-in error of a wrong key or value goes through."""
    boxes = tuple(Box(*map(float, box)) for box in facts["boxes"])
    layers = tuple(map(str, facts["layers"]))
    if len(boxes) != len(layers):
        raise ValueError(f"{len(boxes)} boxes for {len(layers)} layers")
    width, height = map(int, facts["size"])
    charts = tuple(tuple(Chart.from_json(chart) for chart in series) for series in facts.get("charts", ()))
    return Maps(folder, layers, boxes, (width, height), int(facts["frame_count"]), bool(facts["has_gain"]), charts)


def _unreadable(folder: Path, why: str) -> UserError:
    return UserError(
        ExitCode.DAMAGED_RUN,
        "the baked maps cannot be read",
        where=str(folder),
        why=why,
        fix="run unwrap train again with the same --out: it bakes them anew",
    )


def bake(run: Run, model: PlanarModel, step: int, progress: Callable[[int, int], None] | None = None) -> Maps:
    """Evaluates the model once per frame and writes the maps.

    Raises:
        UserError: not enough room on the disk.
    """
    shape = model.shape
    width, height = (side + 2 * RIM for side in shape.size)
    small_width, small_height = (side + 2 * RIM for side in gain_size(shape.size))
    count, names = shape.frame_count, model.layers
    has_gain = len(model.gains) > 0
    sizes: dict[str, tuple[tuple[int, ...], type[np.generic]]]
    sizes = {f"uv-{name}": ((count, height, width, 2), np.float32) for name in names}
    sizes["weight"] = ((count, len(names), height, width), np.uint8)
    if has_gain:
        sizes |= {f"gain-{name}": ((count, small_height, small_width, 3), np.float16) for name in names}
    run.maps.mkdir(parents=True, exist_ok=True)
    require_room(run.maps, sum(int(np.prod(s)) * np.dtype(d).itemsize for s, d in sizes.values()))
    (run.maps / "maps.json").unlink(missing_ok=True)  # what lies there is stale from here on
    with ExitStack() as stack:
        files = {name: stack.enter_context(_appending(run.maps / f"{name}.npy", *spec)) for name, spec in sizes.items()}
        for t in range(count):
            for name, value in _frame_maps(model, t).items():
                files[name].write(np.ascontiguousarray(value, sizes[name][1]).tobytes())
            if progress:
                progress(t + 1, count)
    boxes = [model.canonical_box(name).as_tuple() for name in names]
    facts = {"layers": names, "boxes": boxes, "size": shape.size, "frame_count": count, "has_gain": has_gain}
    charts = [[asdict(chart) for chart in series] for series in model.charts()]
    write_json(run.maps / "maps.json", {**facts, "charts": charts, "step": step})
    return Maps.open(run)


def gain_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a baked gain map."""
    return (max(2, size[0] // GAIN_STRIDE), max(2, size[1] // GAIN_STRIDE))


@torch.no_grad()
def _frame_maps(model: PlanarModel, t: int) -> dict[str, np.ndarray]:
    """The maps of one frame, with their rim."""
    size, count, frame = model.shape.size, model.shape.frame_count, torch.tensor([t])
    maps: dict[str, np.ndarray] = {}
    places = [mapping.frames(frame, count, size) for mapping in model.mappings]  # type: ignore[operator]
    for name, uv in zip(model.layers, places, strict=True):
        maps[f"uv-{name}"] = _rimmed(uv[0].numpy())
    weights = layer_weights(model.opacity.frames(frame, count, size)[0]).numpy()
    maps["weight"] = (255 * _rimmed(weights)).round().clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    for number, gain in enumerate(model.gains):
        maps[f"gain-{model.layers[number]}"] = _rimmed(_small_gain(gain, frame, count, size, places[number]))
    return maps


def _small_gain(
    gain: torch.nn.Module, frame: torch.Tensor, count: int, size: tuple[int, int], uv: torch.Tensor
) -> Float[np.ndarray, "h w 3"]:
    """The gain of a frame at `gain_size`: its points there, or the means of their surroundings where it has detail."""
    small = gain_size(size)
    if not gain.on_canonical:
        return gain.frames(frame, count, small)[0].numpy()  # type: ignore[operator]
    return cv2.resize(gain.frames(frame, count, size, uv)[0].numpy(), small, interpolation=cv2.INTER_AREA)  # type: ignore[operator]


def _rimmed(values: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "hh ww c"]:
    """Values with a rim of one pixel that goes on as the last two pixels do."""
    for axis in (0, 1):
        first, second = (np.take(values, [i], axis) for i in (0, min(1, values.shape[axis] - 1)))
        last, before = (np.take(values, [i], axis) for i in (-1, max(-2, -values.shape[axis])))
        values = np.concatenate([2 * first - second, values, 2 * last - before], axis)
    return values


@contextmanager
def _appending(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[BinaryIO]:
    """An .npy file to which frames are appended under a temporary name, so that no frame stays in memory."""
    with atomic_write(path) as part, part.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file

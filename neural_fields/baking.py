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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields.coords import Box
from neural_fields.errors import ExitCode, UserError
from neural_fields.files import atomic_write, read_json, require_room, write_json
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.opacity import layer_weights
from neural_fields.run import Run

GAIN_STRIDE = 4
RIM = 1  # pixels around the frame, so that enlarging needs no extrapolation


@dataclass(frozen=True)
class MapSamples:
    """The maps at scattered pixels; one row per layer."""

    uv: Float[np.ndarray, "layers n 2"]
    weight: Float[np.ndarray, "layers n"]  # sums to one
    gain: Float[np.ndarray, "layers n 3"]


class _StoredFrames:
    """An .npy file read a frame at a time, remembering the last one: mapped, a long clip would fill memory."""

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
            last = (t, np.fromfile(self.path, self.dtype, count, offset=offset).reshape(self.shape))
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
        return _enlarge(self._uv[layer][t], self.size, size)

    def uv_small(self, t: int, layer: int) -> Float[np.ndarray, "height width 2"]:
        """Canonical coordinates at the size of the fit."""
        return self._uv[layer][t, RIM:-RIM, RIM:-RIM]

    def weight(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """How much of each pixel each layer fills; sums to one."""
        planes = [_enlarge(plane, self.size, size) for plane in self._weight[t]]
        weights = np.stack(planes).astype(np.float32) / 255
        return weights / weights.sum(0).clip(1e-3)

    def layer_weight(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice] | None = None
    ) -> Float[np.ndarray, "height width"]:
        """The weight of one layer; `part` (rows, columns) asks for a part of the frame."""
        return _enlarge(self._weight[t, layer], self.size, size, part).astype(np.float32) / 255

    def layer_weight_small(self, t: int, layer: int) -> Float[np.ndarray, "height width"]:
        """The weight of one layer at the size of the fit."""
        return self._weight[t, layer, RIM:-RIM, RIM:-RIM].astype(np.float32) / 255

    def uv_part(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice]
    ) -> Float[np.ndarray, "height width 2"]:
        """Canonical coordinates in a part (rows, columns) of the frame."""
        return _enlarge(self._uv[layer][t], self.size, size, part)

    def gain(
        self, t: int, layer: int, size: tuple[int, int], part: tuple[slice, slice] | None = None
    ) -> Float[np.ndarray, "height width 3"]:
        """The lighting gain of a layer; ones where the model has none."""
        if not self.has_gain:
            rows, columns = part or (slice(0, size[1]), slice(0, size[0]))
            return np.ones((rows.stop - rows.start, columns.stop - columns.start, 3), np.float32)
        small = gain_size(self.size)
        return _enlarge(self._gain[layer][t].astype(np.float32), small, size, part)

    def at(self, t: int, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], size: tuple[int, int]) -> MapSamples:
        """All layers at scattered pixels (column x, row y) of a frame of `size`."""
        uv = np.stack([_at(plane[t], x, y, self.size, size) for plane in self._uv])
        weight = np.stack([_at(plane, x, y, self.size, size) for plane in self._weight[t]]).astype(np.float32)
        if self.has_gain:
            small = gain_size(self.size)
            gain = np.stack([_at(plane[t].astype(np.float32), x, y, small, size) for plane in self._gain])
        else:
            gain = np.ones((*uv.shape[:2], 3), np.float32)
        return MapSamples(uv, weight / weight.sum(0).clip(1), gain)

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
    return Maps(folder, layers, boxes, (width, height), int(facts["frame_count"]), bool(facts["has_gain"]))


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
    write_json(run.maps / "maps.json", {**facts, "step": step})
    return Maps.open(run)


def gain_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a baked gain map."""
    return (max(2, size[0] // GAIN_STRIDE), max(2, size[1] // GAIN_STRIDE))


@torch.no_grad()
def _frame_maps(model: PlanarModel, t: int) -> dict[str, np.ndarray]:
    """The maps of one frame, with their rim."""
    size, count, frame = model.shape.size, model.shape.frame_count, torch.tensor([t])
    maps: dict[str, np.ndarray] = {}
    for name, mapping in zip(model.layers, model.mappings, strict=True):
        maps[f"uv-{name}"] = _rimmed(mapping.frames(frame, count, size)[0].numpy())  # type: ignore[operator]
    weights = layer_weights(model.opacity.frames(frame, count, size)[0]).numpy()
    maps["weight"] = (255 * _rimmed(weights)).round().clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    for name, gain in zip(model.layers, model.gains, strict=False):
        maps[f"gain-{name}"] = _rimmed(gain.frames(frame, count, gain_size(size))[0].numpy())  # type: ignore[operator]
    return maps


def _rimmed(values: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "hh ww c"]:
    """Values with a rim of one pixel that goes on as the last two pixels do."""
    for axis in (0, 1):
        first, second = (np.take(values, [i], axis) for i in (0, min(1, values.shape[axis] - 1)))
        last, before = (np.take(values, [i], axis) for i in (-1, max(-2, -values.shape[axis])))
        values = np.concatenate([2 * first - second, values, 2 * last - before], axis)
    return values


def _enlarge(
    values: np.ndarray, stored: tuple[int, int], size: tuple[int, int], part: tuple[slice, slice] | None = None
) -> np.ndarray:
    """Linear interpolation of a rimmed map to pixel centres of `size`, or of a part (rows, columns) of it."""
    rows, columns = part or (slice(0, size[1]), slice(0, size[0]))
    if stored == size:
        return np.ascontiguousarray(
            values[rows.start + RIM : rows.stop + RIM, columns.start + RIM : columns.stop + RIM]
        )
    scale_x, scale_y = stored[0] / size[0], stored[1] / size[1]
    # Pixel j of the result has its centre at stored sample (j + 0.5) * scale - 0.5 + RIM.
    matrix = np.array(
        [
            [scale_x, 0, (columns.start + 0.5) * scale_x - 0.5 + RIM],
            [0, scale_y, (rows.start + 0.5) * scale_y - 0.5 + RIM],
        ]
    )
    target = (columns.stop - columns.start, rows.stop - rows.start)
    return cv2.warpAffine(
        values, matrix, target, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )


def _at(values: np.ndarray, x: np.ndarray, y: np.ndarray, stored: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Linear interpolation of a rimmed map at scattered pixels of `size`; [n] or [n, channels]."""
    column = ((x + 0.5) * (stored[0] / size[0]) - 0.5 + RIM).astype(np.float32)
    row = ((y + 0.5) * (stored[1] / size[1]) - 0.5 + RIM).astype(np.float32)
    return scattered(values, column, row)


def scattered(image: np.ndarray, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> np.ndarray:
    """Bilinear lookup of an image at sample positions (0 is the centre of the first pixel); [n] or [n, channels]."""
    side = 1 << 14  # OpenCV's remap takes images below 32768 on a side
    parts = [
        cv2.remap(
            image, x[i : i + side, None], y[i : i + side, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        for i in range(0, len(x), side)
    ]
    channels = image.shape[2:]
    return np.concatenate(parts).reshape(len(x), *channels) if parts else np.zeros((0, *channels), image.dtype)


@contextmanager
def _appending(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[BinaryIO]:
    """An .npy file to which frames are appended under a temporary name, so that no frame stays in memory."""
    with atomic_write(path) as part, part.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file

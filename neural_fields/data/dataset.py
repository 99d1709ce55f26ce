"""The training data of a clip: frames, masks and flow, and the batches drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from neural_fields.core import coords
from neural_fields.core.memmap import release_memory
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks, settle_front_to_back
from neural_fields.data.masks.roi import RegionTrack


@dataclass(frozen=True)
class ClipPixels:
    """Holds frames and masks of a clip as tensors on a device; of soft masks the shares, 0 to 255."""

    frames: UInt8[Tensor, "time height width 3"]
    masks: Bool[Tensor, "layers time height width"] | UInt8[Tensor, "layers time height width"]


@dataclass(frozen=True)
class ClipDataset:
    """Holds a clip at the training size: frames, masks, flow and cuts."""

    frames: UInt8[np.ndarray, "time height width 3"]
    masks: LayerMasks
    flow: FlowField | None
    # Tracked regions, by layer; their canonical plane is that of a frame.
    regions: dict[str, RegionTrack] = field(default_factory=dict)
    cuts: tuple[int, ...] = ()  # the first frames of all shots but the first
    # Frames at the size of the flow, where that is larger than the training's: the geometry looks at these.
    flow_frames: UInt8[np.ndarray, "time rows columns 3"] | None = None
    pixels: ClipPixels | None = None  # copies of frames and masks on the device of the training; see `copy_to_device`

    @property
    def frame_count(self) -> int:
        """The number of frames."""
        return self.frames.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return (self.frames.shape[2], self.frames.shape[1])

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Layer names, front to back; the last is the background."""
        return (*self.masks.names, "background")

    @property
    def reference_frames(self) -> dict[str, int]:
        """The frame in whose coordinates the canonical plane is, by layer, for layers of tracked regions."""
        return {name: track.frame for name, track in self.regions.items()}

    @property
    def _shares(self) -> np.ndarray:
        """The shares of the front layers, 0 to 255, or their masks where all are hard: a byte for each pixel."""
        return self.masks.masks if self.masks.shares is None else self.masks.shares

    def select_frames(self, chosen: range) -> ClipDataset:
        """Returns a clip of some frames, with their masks; without flow, which is between neighbors."""
        part = slice(chosen.start, chosen.stop, chosen.step)
        shares = None if self.masks.shares is None else self.masks.shares[:, part]
        return ClipDataset(self.frames[part], LayerMasks(self.masks.names, self.masks.masks[:, part], shares), None)

    def copy_to_device(self, device: torch.device) -> ClipDataset:
        """Copies frames and masks to a device, a byte for each value; batches then read them there.

        On a GPU without room for twice the frames, the clip is returned unchanged, and every step copies its frames.
        """
        size = self.frames.nbytes + self._shares.nbytes
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 2 * size:
            return self
        frames = torch.from_numpy(np.array(self.frames)).to(device)
        return replace(self, pixels=ClipPixels(frames, torch.from_numpy(np.array(self._shares)).to(device)))

    def read_frame_colors(self, frames: Int[Tensor, " frames"]) -> Float[Tensor, "n 3"]:
        """Returns the RGB in [0, 1] of every pixel of some frames, frame by frame and row by row."""
        if self.pixels is not None:
            return self.pixels.frames[frames.to(self.pixels.frames.device)].float().div_(255).reshape(-1, 3)
        stacked = np.stack([self.frames[t] for t in frames.tolist()])
        return torch.from_numpy(stacked).float().div_(255).reshape(-1, 3)

    def read_frame_masks(self, frames: Int[Tensor, " frames"]) -> Float[Tensor, "n layers"]:
        """Returns the masks of the front layers, 0 to 1, in every pixel of some frames, frame by frame, row by row."""
        if self.pixels is not None:
            return _to_unit(self.pixels.masks[:, frames.to(self.pixels.masks.device)].flatten(1).T)
        return _to_unit(torch.from_numpy(self._shares[:, frames.numpy()]).flatten(1).T)

    def colors_at(self, index: Int[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Returns RGB in [0, 1] at (frame, row, column); positions beyond the edge read the edge."""
        if self.pixels is not None:
            return self.pixels.frames[self._clamp_tensor(index.to(self.pixels.frames.device))].float() / 255
        t, row, column = self._clamp_index(index)
        return torch.from_numpy(self.frames[t, row, column]).float() / 255

    def masks_at(self, index: Int[Tensor, "n 3"]) -> Float[Tensor, "n layers"]:
        """Returns the masks of the front layers, 0 to 1, at (frame, row, column)."""
        if self.pixels is not None:
            return _to_unit(self.pixels.masks[(slice(None), *self._clamp_tensor(index.to(self.pixels.masks.device)))].T)
        t, row, column = self._clamp_index(index)
        return _to_unit(torch.from_numpy(np.ascontiguousarray(self._shares[:, t, row, column].T)))

    def compute_visible_share(
        self, layer: int, t: int, size: tuple[int, int] | None = None
    ) -> Float[np.ndarray, "rows columns"]:
        """Computes the share of each pixel of a frame that a layer fills, 0 to 1, from the masks.

        Args:
            layer: number of the layer, front to back.
            t: the frame.
            size: (width, height) of the result; by default that of the clip.
        """
        if not len(self.masks.masks):  # one layer alone
            width, height = size or self.size
            return np.ones((height, width), np.float32)
        if self.masks.shares is not None:
            visible, _ = settle_front_to_back(np.asarray(self.masks.shares[:, t]))
            own = visible[layer] if layer < len(visible) else 255 - visible.sum(0, dtype=np.uint8)
            share = own.astype(np.float32) / 255
        else:
            masks = self.masks.masks[:, t]
            front = masks[:layer].any(0) if layer else np.zeros(self.frames.shape[1:3], bool)
            full = masks[layer] if layer < len(masks) else np.ones_like(front)
            share = (full & ~front).astype(np.float32)
        if size is None or size == self.size:
            return share
        mode = cv2.INTER_AREA if size[0] < self.size[0] else cv2.INTER_LINEAR
        return cv2.resize(share, size, interpolation=mode)

    def draw_frames(self, count: int, step: int, seed: int) -> Batch:
        """Draws whole frames for a step: every frame is drawn once before any is drawn again.

        Args:
            count: frames of a batch.
            step: number of the training step, from 0.
            seed: seed of the run.

        Returns:
            The batch; the same for the same arguments.
        """
        per_round = -(-self.frame_count // count)
        order = torch.randperm(self.frame_count, generator=_make_generator(seed, step // per_round))
        first = step % per_round * count
        chosen = order[first : first + count]
        if len(chosen) < count:  # the last step of a round is filled up from its beginning
            chosen = torch.cat([chosen, order[: count - len(chosen)]])
        return Batch(self, chosen.sort().values, None)

    def draw_pixels(self, count: int, step: int, seed: int) -> Batch:
        """Draws pixels for a step, uniform over the clip.

        Args:
            count: pixels of a batch.
            step: number of the training step, from 0.
            seed: seed of the run.

        Returns:
            The batch; the same for the same arguments.
        """
        generator = _make_generator(seed, step)
        width, height = self.size
        highest = (self.frame_count, height, width)
        index = torch.stack([torch.randint(high, (count,), generator=generator) for high in highest], dim=1)
        return Batch(self, index[:, 0].unique(), index)

    def release_memory(self) -> None:
        """Releases the memory of frames and masks that are mapped from files; batches read them again."""
        release_memory(self.frames)
        release_memory(self.masks.masks)
        if self.masks.shares is not None:
            release_memory(self.masks.shares)

    def _clamp_index(self, index: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        width, height = self.size
        t, row, column = index.numpy().T
        return t, row.clip(0, height - 1), column.clip(0, width - 1)

    def _clamp_tensor(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width, height = self.size
        return index[:, 0], index[:, 1].clamp(0, height - 1), index[:, 2].clamp(0, width - 1)


@dataclass(frozen=True)
class Batch:
    """Holds the points of a training step: whole frames (`index` is None) or pixels scattered over the clip."""

    clip: ClipDataset
    frames: Int[Tensor, " frames"]  # numbers of the frames that contain the points, each once
    pixel_index: Int[Tensor, "n 3"] | None  # (frame, row, column) of scattered pixels

    @cached_property
    def positions(self) -> Int[Tensor, "n 3"]:
        """(frame, row, column) of every point; whole frames in row-major order."""
        if self.pixel_index is not None:
            return self.pixel_index
        width, height = self.clip.size
        axes = (self.frames, torch.arange(height), torch.arange(width))
        return torch.cartesian_prod(*axes)

    @cached_property
    def xyt(self) -> Float[Tensor, "n 3"]:
        """Network coordinates of every point."""
        return self.normalize_positions(self.positions[:, [2, 1]] + 0.5, self.positions[:, 0])

    @cached_property
    def rgb(self) -> Float[Tensor, "n 3"]:
        """Colors in [0, 1] of every point."""
        if self.pixel_index is not None:
            return self.clip.colors_at(self.pixel_index)
        return self.clip.read_frame_colors(self.frames)

    @cached_property
    def layer_masks(self) -> Float[Tensor, "n layers"]:
        """The masks of the front layers at every point: 0 or 1, or the shares in between of soft ones."""
        if self.pixel_index is not None:
            return self.clip.masks_at(self.pixel_index)
        return self.clip.read_frame_masks(self.frames)

    def normalize_positions(self, xy: Float[Tensor, "n 2"], t: Tensor) -> Float[Tensor, "n 3"]:
        """Converts pixel coordinates in frames `t` to network coordinates (x, y, t)."""
        unit = coords.normalize_pixels(xy.float(), *self.clip.size)
        time = coords.normalize_time(t.float(), self.clip.frame_count)
        return torch.cat([unit, torch.as_tensor(time)[:, None]], dim=1)


def _to_unit(masks: Bool[Tensor, "*n"] | UInt8[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Converts masks, or shares of 0 to 255, to numbers from 0 to 1."""
    return masks.float() if masks.dtype == torch.bool else masks.float() / 255


def _make_generator(seed: int, number: int) -> torch.Generator:
    """Makes a generator from (seed, number) alone, so that a resumed run repeats the uninterrupted one."""
    mixed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))

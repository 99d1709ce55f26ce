"""The training data of a clip: frames, masks and flow, and the batches drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from neural_fields.core import coords
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.masks.roi import RegionTrack


@dataclass(frozen=True)
class ClipPixels:
    """Holds frames and masks of a clip as tensors on a device."""

    frames: UInt8[Tensor, "time height width 3"]
    masks: Bool[Tensor, "layers time height width"]


@dataclass(frozen=True)
class ClipDataset:
    """Holds a clip at the training size: frames, masks and flow."""

    frames: UInt8[np.ndarray, "time height width 3"]
    masks: LayerMasks
    flow: FlowField | None
    regions: dict[str, RegionTrack] = field(default_factory=dict)  # layers whose canonical plane is that of a frame
    pixels: ClipPixels | None = None  # frames and masks where the steps are computed; see `resident`

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
        """The frame whose coordinates the canonical plane of a layer has, for layers that have one."""
        return {name: track.frame for name, track in self.regions.items()}

    def copy_to_device(self, device: torch.device) -> ClipDataset:
        """Copies frames and masks to a device, a byte for each value; batches then read them there.

        On a GPU without room for twice the frames, the clip is returned unchanged, and every step copies its frames.
        """
        size = self.frames.nbytes + self.masks.masks.nbytes
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 2 * size:
            return self
        frames = torch.from_numpy(np.array(self.frames)).to(device)
        return replace(self, pixels=ClipPixels(frames, torch.from_numpy(np.array(self.masks.masks)).to(device)))

    def read_frame_colors(self, frames: Int[Tensor, " frames"]) -> Float[Tensor, "n 3"]:
        """Returns the RGB in [0, 1] of every pixel of some frames, frame by frame and row by row."""
        if self.pixels is not None:
            return self.pixels.frames[frames.to(self.pixels.frames.device)].float().div_(255).reshape(-1, 3)
        stacked = np.stack([self.frames[t] for t in frames.tolist()])
        return torch.from_numpy(stacked).float().div_(255).reshape(-1, 3)

    def read_frame_masks(self, frames: Int[Tensor, " frames"]) -> Bool[Tensor, "n layers"]:
        """Returns the masks of the front layers in every pixel of some frames, frame by frame and row by row."""
        if self.pixels is not None:
            return self.pixels.masks[:, frames.to(self.pixels.masks.device)].flatten(1).T
        return torch.from_numpy(self.masks.masks[:, frames.numpy()]).flatten(1).T

    def colors_at(self, index: Int[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Returns RGB in [0, 1] at (frame, row, column); positions beyond the edge read the edge."""
        if self.pixels is not None:
            return self.pixels.frames[self._clamp_tensor(index.to(self.pixels.frames.device))].float() / 255
        t, row, column = self._clamp_index(index)
        return torch.from_numpy(self.frames[t, row, column]).float() / 255

    def masks_at(self, index: Int[Tensor, "n 3"]) -> Bool[Tensor, "n layers"]:
        """Returns the masks of the front layers at (frame, row, column)."""
        if self.pixels is not None:
            return self.pixels.masks[(slice(None), *self._clamp_tensor(index.to(self.pixels.masks.device)))].T
        t, row, column = self._clamp_index(index)
        return torch.from_numpy(np.ascontiguousarray(self.masks.masks[:, t, row, column].T))

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
    frames: Int[Tensor, " frames"]  # the frames that the points lie in, each once
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
        """The masks of the front layers (0 or 1) at every point."""
        if self.pixel_index is not None:
            return self.clip.masks_at(self.pixel_index).float()
        return self.clip.read_frame_masks(self.frames).float()

    def normalize_positions(self, xy: Float[Tensor, "n 2"], t: Tensor) -> Float[Tensor, "n 3"]:
        """Converts pixel coordinates in frames `t` to network coordinates (x, y, t)."""
        unit = coords.normalize_pixels(xy.float(), *self.clip.size)
        time = coords.normalize_time(t.float(), self.clip.frame_count)
        return torch.cat([unit, torch.as_tensor(time)[:, None]], dim=1)


def draw_frames(clip: ClipDataset, count: int, step: int, seed: int) -> Batch:
    """Draws whole frames for a step: every frame is drawn once before any is drawn again.

    Args:
        clip: to draw from.
        count: frames of a batch.
        step: of the training, from 0.
        seed: of the run.

    Returns:
        The batch; the same for the same arguments.
    """
    per_round = -(-clip.frame_count // count)
    order = torch.randperm(clip.frame_count, generator=_make_generator(seed, step // per_round))
    first = step % per_round * count
    chosen = order[first : first + count]
    if len(chosen) < count:  # the last step of a round is filled up from its beginning
        chosen = torch.cat([chosen, order[: count - len(chosen)]])
    return Batch(clip, chosen.sort().values, None)


def draw_pixels(clip: ClipDataset, count: int, step: int, seed: int) -> Batch:
    """Draws pixels for a step, uniform over the clip.

    Args:
        clip: to draw from.
        count: pixels of a batch.
        step: of the training, from 0.
        seed: of the run.

    Returns:
        The batch; the same for the same arguments.
    """
    generator = _make_generator(seed, step)
    width, height = clip.size
    highest = (clip.frame_count, height, width)
    index = torch.stack([torch.randint(high, (count,), generator=generator) for high in highest], dim=1)
    return Batch(clip, index[:, 0].unique(), index)


def _make_generator(seed: int, number: int) -> torch.Generator:
    """Makes a generator from (seed, number) alone, so that a resumed run repeats the uninterrupted one."""
    mixed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))

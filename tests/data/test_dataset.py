"""Batches read the same pixels wherever the clip's frames lie, and every pixel is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from neural_fields.data.dataset import Batch, ClipDataset
from neural_fields.data.masks.layer_masks import LayerMasks

FRAMES, HEIGHT, WIDTH = 5, 6, 9
CPU = torch.device("cpu")


@pytest.fixture
def clip() -> ClipDataset:
    """Noise with two masks."""
    generator = np.random.default_rng(0)
    masks = generator.random((2, FRAMES, HEIGHT, WIDTH)) < 0.5
    frames = generator.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    return ClipDataset(frames, LayerMasks(("one", "two"), masks), None)


@pytest.mark.parametrize("draw", [lambda clip: clip.draw_frames(3, 4, 0), lambda clip: clip.draw_pixels(200, 4, 0)])
def test_a_resident_clip_gives_the_batches_of_the_clip_itself(
    clip: ClipDataset, draw: Callable[[ClipDataset], Batch]
) -> None:
    plain, resident = draw(clip), draw(clip.copy_to_device(CPU))
    assert resident.clip.pixels is not None and plain.clip.pixels is None
    for name in ("positions", "xyt", "rgb", "layer_masks"):
        assert torch.equal(getattr(plain, name), getattr(resident, name)), name


@pytest.mark.parametrize("resident", [False, True])
def test_batches_hold_the_shares_of_soft_masks(clip: ClipDataset, resident: bool) -> None:
    shares = np.random.default_rng(1).integers(0, 256, clip.masks.masks.shape, np.uint8)
    soft = replace(clip, masks=LayerMasks(clip.masks.names, shares >= 128, shares))
    soft = soft.copy_to_device(CPU) if resident else soft
    expected = torch.from_numpy(shares).float() / 255
    assert torch.equal(Batch(soft, torch.tensor([1, 3]), None).layer_masks, expected[:, [1, 3]].flatten(1).T)
    assert torch.equal(soft.masks_at(torch.tensor([[2, 4, 5]])), expected[:, 2, 4, 5][None])


def test_the_visible_shares_of_all_layers_fill_each_pixel_and_are_those_of_hard_masks_where_masks_are_hard(
    clip: ClipDataset,
) -> None:
    shares = np.random.default_rng(1).integers(0, 256, clip.masks.masks.shape, np.uint8)
    soft = replace(clip, masks=LayerMasks(clip.masks.names, shares >= 128, shares))
    visible = np.stack([soft.compute_visible_share(layer, 2) for layer in range(3)])
    assert np.allclose(visible.sum(0), 1, atol=1e-6) and np.array_equal(visible[0], shares[0, 2] / np.float32(255))
    full = replace(clip, masks=LayerMasks(clip.masks.names, clip.masks.masks, 255 * clip.masks.masks.astype(np.uint8)))
    for layer in range(3):
        assert np.array_equal(full.compute_visible_share(layer, 2), clip.compute_visible_share(layer, 2))


def test_positions_beyond_the_edge_read_the_edge_also_from_resident_pixels(clip: ClipDataset) -> None:
    index = torch.tensor([[1, -2, 3], [4, HEIGHT, WIDTH + 1], [0, 2, -1]])
    inside = [clip.frames[1, 0, 3], clip.frames[4, -1, -1], clip.frames[0, 2, 0]]
    expected = torch.from_numpy(np.stack(inside)).float() / 255
    assert torch.equal(clip.colors_at(index), expected)
    assert torch.equal(clip.copy_to_device(CPU).colors_at(index), expected)


def test_a_batch_of_whole_frames_holds_every_pixel_in_row_major_order(clip: ClipDataset) -> None:
    batch = Batch(clip, torch.tensor([1, 3]), None)
    assert torch.equal(batch.rgb, clip.colors_at(batch.positions))
    assert torch.equal(batch.layer_masks, clip.masks_at(batch.positions))


def test_a_gpu_without_room_leaves_the_frames_where_they_are(
    clip: ClipDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (clip.frames.nbytes, 1 << 40))
    assert clip.copy_to_device(torch.device("cuda")) is clip

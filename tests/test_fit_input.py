"""What a fit does with the masks it is given before it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_fields import fit_input
from neural_fields.config import load_config
from neural_fields.data.flow import FlowField
from neural_fields.data.masks import LayerMasks
from neural_fields.fit_options import FitOptions

COUNT, HEIGHT, WIDTH = 12, 20, 30


def still() -> FlowField:
    vectors, ok = np.zeros((COUNT - 1, HEIGHT, WIDTH, 2), np.float16), np.ones((COUNT - 1, HEIGHT, WIDTH), bool)
    return FlowField(vectors, vectors, ok, ok)


def given() -> LayerMasks:
    masks = np.zeros((2, COUNT, HEIGHT, WIDTH), bool)
    masks[0, :, 5:15, 5:15] = masks[1, :, 2:18, 18:28] = True
    return LayerMasks(("a", "b"), masks)


def mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: tuple[int, int]) -> tuple[LayerMasks, list[int]]:
    """The masks after mending that takes some rows off each layer, and how often it was asked."""
    calls: list[int] = []

    def refine(frames: np.ndarray, flow: FlowField, masks: LayerMasks, progress: object = None) -> LayerMasks:
        calls.append(len(frames))
        better = np.array(masks.masks)
        for layer, off in enumerate(rows):
            better[layer, :, :off] = False
        return LayerMasks(masks.names, better)

    monkeypatch.setattr(fit_input, "refine_masks", refine)
    frames = np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)
    result = fit_input._mended(tmp_path, frames, still(), given(), lambda progress: None)
    return result, calls


def test_a_mask_that_mending_changes_much_is_replaced_and_a_sure_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = mended(tmp_path, monkeypatch, (8, 2))  # of the first mask 3 of 10 rows go, of the second none
    assert result.masks[0].sum() == COUNT * 70 and np.array_equal(result.masks[1], given().masks[1])


def test_masks_are_mended_once_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, calls = mended(tmp_path, monkeypatch, (8, 2))
    again, more = mended(tmp_path, monkeypatch, (8, 2))
    assert calls == [COUNT] and more == [] and np.array_equal(first.masks, again.masks)


def test_a_long_clip_with_sure_masks_is_only_looked_at_in_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_input, "LONG_CLIP", 10)
    monkeypatch.setattr(fit_input, "SAMPLE", 4)
    same, calls = mended(tmp_path, monkeypatch, (0, 0))
    assert calls == [4, 4] and np.array_equal(same.masks, given().masks)
    _, calls = mended(tmp_path, monkeypatch, (9, 0))
    assert calls == [4, COUNT]


@pytest.mark.parametrize(
    ("masks", "frames", "size", "preset", "wanted"),
    [
        (("a.npy",), 12, (240, 427), "atlas", True),
        (("auto",), 12, (240, 427), "atlas", False),
        (("none",), 12, (240, 427), "atlas", False),
        (("a.npy",), 5, (240, 427), "atlas", False),
        (("a.npy",), 12, (60, 80), "atlas", False),
        (("a.npy",), 12, (240, 427), "lna", False),
    ],
)
def test_only_masks_of_a_users_own_are_mended_and_only_where_that_can_work(
    masks: tuple[str, ...], frames: int, size: tuple[int, int], preset: str, wanted: bool
) -> None:
    clip = np.broadcast_to(np.uint8(0), (frames, *size, 3))
    assert fit_input._mends_masks(load_config(preset), FitOptions(masks=masks), clip) is wanted


def test_many_masks_are_mapped_from_a_file_with_the_same_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_input, "LARGE", 100)
    mapped = fit_input._on_disk(given(), tmp_path)
    assert isinstance(mapped.masks, np.memmap) and np.array_equal(mapped.masks, given().masks)
    assert fit_input._on_disk(mapped, tmp_path) is mapped

"""The main thing in a frame, from a tiny ONNX file in the layout of the hub: there, what is bright stands out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neural_fields.core.errors import UserError
from neural_fields.data.segmentation.networks import main_object
from neural_fields.data.segmentation.networks.main_object import MainObjectFinder
from neural_fields.nn import pretrained
from neural_fields.nn.pretrained import NetworkSource
from tests.support.tiny_onnx import write_birefnet

HEIGHT, WIDTH = 48, 64
needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed: the extra `onnx`"
)


def make_frame(*discs: tuple[int, int, int]) -> np.ndarray:
    """White discs (x, y, radius) on dark noise."""
    frame = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
    frame[make_mask(*discs)] = 255
    frame.flags.writeable = False  # as those mapped from a file
    return frame


def make_mask(*discs: tuple[int, int, int]) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.any([(x - cx) ** 2 + (y - cy) ** 2 <= r**2 for cx, cy, r in discs], axis=0)


def find(folder: Path, frame: np.ndarray) -> np.ndarray:
    return MainObjectFinder(NetworkSource(str(folder), "cpu")).find_in_frame(frame)


@needs_onnxruntime
def test_logits_and_shares_a_fixed_size_and_any_size_give_the_same_mask(tmp_path: Path) -> None:
    disc = (40, 20, 12)
    found = find(write_birefnet(tmp_path / "a"), make_frame(disc))
    assert found.shape == (HEIGHT, WIDTH) and found.dtype == bool
    both, either = found & make_mask(disc), found | make_mask(disc)
    assert both.sum() > 0.85 * either.sum()
    for folder in (
        write_birefnet(tmp_path / "b", ends_with_sigmoid=True),
        write_birefnet(tmp_path / "c", size=("height", "width")),
        write_birefnet(tmp_path / "d", weights="model.onnx_data"),
    ):
        assert np.mean(find(folder, make_frame(disc)) == found) > 0.99


@needs_onnxruntime
def test_all_parts_are_kept_but_specks(tmp_path: Path) -> None:
    found = find(write_birefnet(tmp_path, size=(HEIGHT, WIDTH)), make_frame((16, 24, 14), (50, 12, 6), (50, 40, 1)))
    assert found[24, 16] and found[12, 50] and not found[38:43, 47:54].any()


@needs_onnxruntime
def test_a_frame_without_anything_gives_nothing(tmp_path: Path) -> None:
    assert not find(write_birefnet(tmp_path / "a"), make_frame()).any()
    assert not find(write_birefnet(tmp_path / "b", ends_with_sigmoid=True), make_frame()).any()


@needs_onnxruntime
@pytest.mark.parametrize("is_link", [False, True])
def test_weights_outside_the_folder_are_not_read(tmp_path: Path, is_link: bool) -> None:
    folder = write_birefnet(tmp_path / "net", weights="model.onnx_data" if is_link else "../../outside")
    if is_link:
        (folder / "onnx/model.onnx_data").rename(tmp_path / "outside")
        (folder / "onnx/model.onnx_data").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="cannot be read"):
        find(folder, make_frame())


@needs_onnxruntime
def test_a_folder_of_links_as_in_the_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    folder = write_birefnet(tmp_path / "snapshots/main", weights="model.onnx_data")
    (tmp_path / "blobs").mkdir()
    for path in [*folder.glob("onnx/*")]:
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(Path("../../../blobs") / path.name)
    assert find(folder, make_frame((40, 20, 12)))[20, 40]


@needs_onnxruntime
def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a network that finds the main thing") as caught:
        find(write_birefnet(tmp_path / "a", channels=4), make_frame())
    assert "[1, 4, 32, 32]" in caught.value.why and "BiRefNet_lite-ONNX" in caught.value.fix
    folder = write_birefnet(tmp_path / "b")
    (folder / "onnx/model.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="cannot be read"):
        find(folder, make_frame())


@needs_onnxruntime
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image_mean": "ImageNet"}, "numbers were expected"),
        ({"image_std": [0.2, 0, 0.2]}, "must be above 0"),
        ({"size": {"width": 1 << 20, "height": 32}}, "up to 4096x4096"),
        ({"size": None}, "NonexNone"),
    ],
)
def test_a_damaged_preparation_is_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    path = write_birefnet(tmp_path, size=("height", "width")) / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=text):
        find(tmp_path, make_frame())


@needs_onnxruntime
def test_a_gpu_that_onnxruntime_cannot_use_is_an_error_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(main_object, "choose_device", lambda name: torch.device("cuda"))
    folder = str(write_birefnet(tmp_path))
    assert MainObjectFinder(NetworkSource(folder, "auto")).find_in_frame(make_frame((40, 20, 12))).any()
    with pytest.raises(UserError, match="cannot run on the GPU"):
        MainObjectFinder(NetworkSource(folder, "cuda")).find_in_frame(make_frame())


def test_what_is_wrong_with_a_folder_is_said_before_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "bert").mkdir()
    with pytest.raises(UserError, match="not a network that finds the main thing") as caught:
        find(tmp_path / "bert", make_frame())
    assert "onnx/model.onnx" in caught.value.why
    folder = write_birefnet(tmp_path / "net")
    with pytest.raises(UserError, match="needs onnxruntime") as caught:
        find(folder, make_frame())
    assert caught.value.fix == "pip install -e '.[onnx]' in the folder of Unwrap"
    (folder / "preprocessor_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        find(folder, make_frame())

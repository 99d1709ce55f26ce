"""Folders of networks with weights: what is refused before anything in them is used, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.nn import pretrained
from neural_fields.nn.pretrained import NetworkSource, find_network_folder


def find(folder: Path | str) -> tuple[Path, str]:
    return find_network_folder(NetworkSource(str(folder)), ("sam2_video",), "that follows objects", "owner/example")


def make_folder(folder: Path, kind: str = "sam2_video", weights: str = "model.safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / weights).write_bytes(b"")
    return folder


def refused(folder: Path | str, code: ExitCode = ExitCode.BAD_INPUT) -> str:
    with pytest.raises(UserError) as caught:
        find(folder)
    assert caught.value.code == code
    return str(caught.value)


def test_a_folder_of_the_right_kind_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: object())  # transformers is there
    folder = make_folder(tmp_path / "net")
    assert find(folder) == (folder, "sam2_video")


def test_a_folder_of_another_kind_is_named_with_what_would_work(tmp_path: Path) -> None:
    text = refused(make_folder(tmp_path / "net", kind="bert"))
    assert "a bert, not a network that follows objects" in text and "owner/example" in text


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    assert "there is no network" in refused(tmp_path / "none")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is a file" in refused(tmp_path / "model.safetensors")
    assert "there is no network ''" in refused("")


def test_a_folder_without_a_config_or_weights_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "net", weights="readme.txt")
    assert "there are no weights" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "damaged" in refused(folder)
    (folder / "config.json").write_text("[" * 100_000)
    assert "damaged" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)


def test_weights_that_could_run_code_are_refused(tmp_path: Path) -> None:
    text = refused(make_folder(tmp_path / "net", weights="pytorch_model.bin"), ExitCode.UNSAFE_FILE)
    assert "pytorch_model.bin could run code" in text


def test_a_name_without_a_network_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("transformers")

    def fail(*_: object, **__: object) -> None:
        raise hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    text = refused("facebook/sam2.1-hiera-tiny")
    assert "is not on this machine" in text and "hf download facebook/sam2.1-hiera-tiny" in text


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    assert pretrained.INSTALL in refused(make_folder(tmp_path / "net"))
    assert pretrained.INSTALL in refused("facebook/sam2.1-hiera-tiny")
    assert "there is no network" in refused(tmp_path / "none")  # what is wrong with a folder comes first
    assert list(pretrained.describe_known_networks()) == ["networks"]


def test_too_little_memory_in_onnxruntime_is_no_damage() -> None:
    with pytest.raises(UserError, match="not enough memory") as caught, pretrained.explain_network_errors("net"):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 4294967296")
    assert caught.value.code == ExitCode.NO_ROOM


def test_doctor_says_which_networks_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    here = "facebook/sam2.1-hiera-tiny"
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file) if name == here else None
    )
    lines = pretrained.describe_known_networks()
    assert set(lines) == {network.name for network in pretrained.KNOWN_NETWORKS}
    assert lines[here].startswith("in the hub cache")
    assert "hf download hustvl/vitmatte-small-composition-1k" in lines["hustvl/vitmatte-small-composition-1k"]
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None if "onnx" in name else object())
    needed = "needs onnxruntime (pip install -e '.[onnx]' in the folder of Unwrap)"
    told = {name for name, line in pretrained.describe_known_networks().items() if needed in line}
    assert told == {"onnx-community/BiRefNet_lite-ONNX"}

"""Where weights come from: every way in which it can fail says in one sentence what to do."""

from __future__ import annotations

import errno
import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType

import pytest

from editors.diffusion.backend.diffusers_model import load_controlnet, load_model
from editors.diffusion.backend.weights import (
    GIB,
    WeightsSource,
    check_model_folder,
    count_parameters,
    explain_load_errors,
    plan_loading,
)
from neural_fields.core.errors import ExitCode, UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> Path:
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("model") / "sd")


def failure(weights: WeightsSource, problem: Exception) -> UserError:
    with pytest.raises(UserError) as caught, explain_load_errors(weights):
        raise problem
    return caught.value


def test_a_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name))
    with pytest.raises(UserError) as caught, explain_load_errors(WeightsSource("any/model")):
        raise AssertionError("nothing is read without the package")
    assert "'.[diffusion]'" in caught.value.fix


@pytest.mark.parametrize("name", ["no-such-folder", "./runs/model", "a/b/c", "", "weights;rm"])
def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_model(WeightsSource(name))
    assert caught.value.code == ExitCode.BAD_INPUT and "folder" in caught.value.why


def test_a_single_file_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="is a file"):
        load_model(WeightsSource(str(path)))


def test_a_model_that_is_not_here_and_cannot_be_fetched_says_so() -> None:
    pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    with pytest.raises(UserError, match="not on this machine") as caught:
        load_model(WeightsSource("nobody/nothing"))
    assert "folder" in caught.value.fix


def test_gated_weights_ask_for_the_license() -> None:
    kind = type("GatedRepoError", (OSError,), {})
    assert "license" in failure(WeightsSource("a/b"), kind("403")).fix


def test_an_unknown_name_on_the_hub_is_told_apart_from_no_network() -> None:
    kind = type("RepositoryNotFoundError", (OSError,), {})
    assert "there is no model a/b" in failure(WeightsSource("a/b"), kind("404")).what


def test_a_full_disk_ends_with_no_room() -> None:
    assert failure(WeightsSource("a/b"), OSError(errno.ENOSPC, "No space left")).code == ExitCode.NO_ROOM


def test_memory_that_runs_out_ends_with_no_room() -> None:
    kind = type("OutOfMemoryError", (RuntimeError,), {})
    assert failure(WeightsSource("a/b"), kind("CUDA out of memory")).code == ExitCode.NO_ROOM


def test_a_cause_behind_another_error_is_found() -> None:
    kind = type("GatedRepoError", (OSError,), {})
    outer = OSError("cannot load")
    outer.__cause__ = kind("403")
    assert "gated" in failure(WeightsSource("a/b"), outer).what


def test_weights_that_could_run_code_are_refused_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        check_model_folder(tmp_path)
    assert caught.value.code == ExitCode.UNSAFE_FILE and "--unsafe-weights" in caught.value.fix
    assert check_model_folder(tmp_path, unsafe=True)


def test_a_folder_that_names_classes_of_other_libraries_is_refused(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["subprocess", "Popen"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as caught:
        check_model_folder(tmp_path)
    assert caught.value.code == ExitCode.UNSAFE_FILE


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_readable_index_is_no_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_model(WeightsSource(str(tmp_path)))
    assert caught.value.code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"[]"])
def test_a_damaged_file_of_weights_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        count_parameters(tmp_path)


def test_parameters_are_counted_from_the_headers(model: Path) -> None:
    loaded = load_model(WeightsSource(str(model), device="cpu"))
    counts = count_parameters(model)
    assert counts["unet"] == sum(p.numel() for p in loaded.denoiser.parameters())
    assert counts["vae"] == sum(p.numel() for p in loaded.vae.parameters())


def test_a_file_cut_short_is_one_clear_error(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sd"
    for path in model.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(model)).write_bytes(path.read_bytes())
    cut = next((copy / "unet").glob("*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_model(WeightsSource(str(copy), device="cpu"))


def test_a_controlnet_is_not_taken_for_a_model_nor_the_other_way_round(
    model: Path, tmp_path: Path, tiny_models: ModuleType
) -> None:
    control = tiny_models.controlnet(tmp_path / "control")
    with pytest.raises(UserError, match="ControlNetModel"):
        load_model(WeightsSource(str(control)))
    with pytest.raises(UserError, match="is no ControlNet"):
        load_controlnet(WeightsSource(str(model)), load_model(WeightsSource(str(model), device="cpu")))


@pytest.mark.parametrize("text", ["missing.safetensors", "missing.safetensors@0.5"])
def test_a_missing_lora_is_said_to_be_missing(text: str) -> None:
    with pytest.raises(UserError, match="missing"):
        WeightsSource("a/b", loras=(text,)).find_lora_files()


def test_a_lora_has_a_strength_and_must_be_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(b"")
    assert WeightsSource("a/b", loras=(f"{path}@0.7",)).find_lora_files() == [(path, 0.7)]
    assert WeightsSource("a/b", loras=(str(path),)).find_lora_files() == [(path, 1.0)]
    with pytest.raises(UserError, match="lora"):
        WeightsSource("a/b", loras=(f"{path}@strong",)).find_lora_files()
    pickled = tmp_path / "style.ckpt"
    pickled.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        WeightsSource("a/b", loras=(str(pickled),)).find_lora_files()
    assert caught.value.code == ExitCode.UNSAFE_FILE


COUNTS = {"unet": 860_000_000, "vae": 84_000_000, "text_encoder": 123_000_000}  # Stable Diffusion 1.5


@pytest.mark.parametrize(
    ("device", "free", "dtype", "offload"),
    [
        ("cuda", 24.0 * GIB, "float16", "none"),
        ("cuda", 3.4 * GIB, "float16", "parts"),
        ("cuda", 2.0 * GIB, "float16", "layers"),
        ("cpu", 16.0 * GIB, "float32", "none"),
        ("cpu", 4.0 * GIB, "bfloat16", "none"),
    ],
)
def test_a_model_is_held_in_the_quickest_way_that_fits(device: str, free: float, dtype: str, offload: str) -> None:
    found = plan_loading(COUNTS, device, free)
    assert (found.dtype, found.offload) == (dtype, offload)
    assert bool(found.note) == (free < 8 * GIB), "what is unusual is told"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_that_cannot_fit_says_how_much_it_needs(device: str) -> None:
    with pytest.raises(UserError, match="not enough memory") as caught:
        plan_loading(COUNTS, device, 0.5 * GIB)
    assert caught.value.code == ExitCode.NO_ROOM and "GiB" in caught.value.why

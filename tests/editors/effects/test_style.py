"""A style network: its files are read exactly or refused, and it paints what the video shows and nothing else."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from editors.api import edit
from editors.effects.style import Style, StyleInput
from editors.effects.style_network import NCNN_FLOAT16_TAG, NETWORK_LAYERS, read_style_network, stylize_picture
from neural_fields.atlas import canonical
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.run import Run

pytestmark = pytest.mark.slow


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a network of the right shapes, exact as float16."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, less, more, kernel, _, _, norm in NETWORK_LAYERS:
        scale = 60 if not norm else 1  # so that colors differ
        weight = torch.randn(more, less, kernel, kernel, generator=generator) * scale / (less * kernel**2) ** 0.5
        state[f"{name}.conv2d.weight"] = weight.half().float()
        state[f"{name}.conv2d.bias"] = torch.full((more,), 0.0 if norm else 128.0)
        if norm:
            state[f"{norm}.weight"] = 1 + 0.1 * torch.randn(more, generator=generator)
            state[f"{norm}.bias"] = 0.1 * torch.randn(more, generator=generator)
    return state


def ncnn(state: dict[str, torch.Tensor]) -> bytes:
    parts = []
    for value in state.values():
        if value.ndim == 4:
            data = value.numpy().astype("<f2").tobytes()
            parts.append(NCNN_FLOAT16_TAG + data + b"\0" * (-len(data) % 4))
        else:
            parts.append(value.numpy().astype("<f4").tobytes())
    return b"".join(parts)


def reference(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The network as pytorch/examples spells it, with torch's own modules."""

    class Conv(torch.nn.Module):
        def __init__(self, less: int, more: int, kernel: int, stride: int = 1, larger: int = 1) -> None:
            super().__init__()
            self.larger = larger
            self.pad = torch.nn.ReflectionPad2d(kernel // 2)
            self.conv2d = torch.nn.Conv2d(less, more, kernel, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.larger > 1:
                x = torch.nn.functional.interpolate(x, mode="nearest", scale_factor=self.larger)
            return self.conv2d(self.pad(x))

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = Conv(128, 128, 3), Conv(128, 128, 3)
            self.in1, self.in2 = (torch.nn.InstanceNorm2d(128, affine=True) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.in2(self.conv2(torch.relu(self.in1(self.conv1(x))))) + x

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.conv3 = Conv(3, 32, 9), Conv(32, 64, 3, 2), Conv(64, 128, 3, 2)
            self.res1, self.res2, self.res3, self.res4, self.res5 = (Residual() for _ in range(5))
            self.deconv1, self.deconv2 = Conv(128, 64, 3, larger=2), Conv(64, 32, 3, larger=2)
            self.deconv3 = Conv(32, 3, 9)
            self.in1, self.in2, self.in3, self.in4, self.in5 = (
                torch.nn.InstanceNorm2d(width, affine=True) for width in (32, 64, 128, 64, 32)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for step in "123":
                x = torch.relu(getattr(self, f"in{step}")(getattr(self, f"conv{step}")(x)))
            for step in "12345":
                x = getattr(self, f"res{step}")(x)
            x = torch.relu(self.in4(self.deconv1(x)))
            return self.deconv3(torch.relu(self.in5(self.deconv2(x))))

    net = Net()
    net.load_state_dict(state)
    return net.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.bin"
    path.write_bytes(ncnn(random_state()))
    return path


@pytest.fixture
def run(moving_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(moving_run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([0.5 + 0.4 * np.sin(x / 5), 0.5 + 0.4 * np.cos(y / 7), x / width], axis=-1).astype(np.float32)


def test_all_three_formats_hold_the_same_network(weights: Path, tmp_path: Path) -> None:
    state = random_state()
    torch.save({**state, "in1.running_mean": torch.zeros(32)}, tmp_path / "net.pth")
    save_file(state, tmp_path / "net.safetensors")
    expected = stylize_picture(read_style_network(weights), picture())
    for name in ("net.pth", "net.safetensors"):
        np.testing.assert_array_equal(stylize_picture(read_style_network(tmp_path / name), picture()), expected)


def test_the_network_is_that_of_the_published_code(weights: Path) -> None:
    pixels = torch.from_numpy(picture()).movedim(2, 0)[None] * 255
    with torch.no_grad():
        expected = reference(random_state())(pixels).clamp(0, 255)
    assert expected.std() > 10
    torch.testing.assert_close(read_style_network(weights)(pixels), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("size", [(48, 64), (45, 61), (20, 90), (5, 7)])
def test_a_picture_of_any_size_keeps_it(weights: Path, size: tuple[int, int]) -> None:
    found = stylize_picture(read_style_network(weights), picture(*size))
    assert found.shape == (*size, 3) and found.min() >= 0 and found.max() <= 1


def test_a_smaller_side_paints_the_smaller_picture(weights: Path) -> None:
    found = stylize_picture(read_style_network(weights), picture(48, 64), side=32)
    assert found.shape == (48, 64, 3)
    assert not np.allclose(found, stylize_picture(read_style_network(weights), picture(48, 64)))


def test_files_that_are_something_else_are_refused(weights: Path, tmp_path: Path) -> None:
    data, state = weights.read_bytes(), random_state()
    (tmp_path / "short.bin").write_bytes(data[:-4])
    (tmp_path / "long.bin").write_bytes(data + b"\0" * 4)
    (tmp_path / "tag.bin").write_bytes(b"\0" * 4 + data[4:])
    (tmp_path / "nan.bin").write_bytes(data[:-4] + b"\xff" * 4)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"layers": 3}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({k: v for k, v in state.items() if k != "in4.bias"}, tmp_path / "missing.pth")
    torch.save({**state, "conv1.conv2d.bias": torch.zeros(3)}, tmp_path / "shape.pth")
    torch.save({**state, "conv9.bias": torch.zeros(3)}, tmp_path / "more.pth")
    cases = {
        "short.bin": "3368136 bytes, and the network in this format 3368140",
        "long.bin": "3368144 bytes",
        "tag.bin": "at byte 0",
        "nan.bin": "not finite",
        "text.pth": "no checkpoint",
        "text.safetensors": "",
        "other.pth": "is missing|is no part",
        "list.pth": "no state dict",
        "missing.pth": "in4.bias is missing",
        "shape.pth": "conv1.conv2d.bias is not an array of 32 numbers",
        "more.pth": "conv9.bias is no part of the network",
    }
    for name, why in cases.items():
        with pytest.raises(UserError, match="does not hold a style network") as refused:
            read_style_network(tmp_path / name)
        assert refused.value.code == ExitCode.BAD_INPUT and name in refused.value.where
        assert re.search(why, refused.value.why), (name, refused.value.why)
    with pytest.raises(UserError, match="there is no file"):
        read_style_network(tmp_path / "nowhere.bin")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (tmp_path / "ran", "code")

    torch.save({"conv1.conv2d.weight": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="does not hold a style network"):
        read_style_network(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_the_edit_covers_what_the_video_shows(run: Run, weights: Path) -> None:
    made = edit(run, editor=Style(weights=weights), layers=["foreground"])
    assert made.edit.layers == ("foreground",) and made.edit.record.origin.details["network"]["file"] == "random.bin"
    renderer = open_passes(require_planar(run, "the test"))
    assert isinstance(renderer, OverlayPass)
    overlay = renderer.lookups[0].picture
    seen = canonical.read_pristine(run.canonical, "foreground").rgba[..., 3] > 0
    np.testing.assert_array_equal(overlay[..., 3] > 0, seen)


def test_what_no_frame_shows_does_not_change_the_result(weights: Path) -> None:
    seen = np.zeros((60, 80), bool)
    seen[10:50, 20:70] = True
    results = []
    for color in (0.0, 1.0):
        rgb = np.where(seen[..., None], picture(60, 80), np.float32(color)).astype(np.float32)
        part = StyleInput.from_picture(rgb, seen, texel_size=0.02)
        results.append(part.paint(partial(stylize_picture, read_style_network(weights)), picture(), 50.0)[seen])
    np.testing.assert_array_equal(results[0], results[1])


def test_strokes_have_one_size_in_all_layers_however_large_their_pictures_are(weights: Path) -> None:
    """A picture with twice the texels for the same place is painted as the network sees the smaller one."""
    sizes = []
    network = read_style_network(weights)
    network.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape[2:])))
    for factor in (1, 2):
        rgb = cv2.resize(picture(48, 64), (64 * factor, 48 * factor), interpolation=cv2.INTER_NEAREST)
        StyleInput.from_picture(rgb, np.ones(rgb.shape[:2], bool), texel_size=0.02 / factor).paint(
            partial(stylize_picture, network), picture(), 50.0
        )
    assert sizes[0] == sizes[1]


def test_strength_and_side_are_kept_in_range() -> None:
    for wrong in ({"strength": 0.0}, {"strength": 1.1}, {"side": 10}, {"side": 5000}):
        with pytest.raises(UserError) as refused:
            Style(weights=Path("a.bin"), **wrong)
        assert refused.value.where == f"--{next(iter(wrong))}"


def test_a_side_that_makes_the_picture_smaller_is_told(run: Run, weights: Path) -> None:
    made = edit(run, editor=Style(weights=weights, side=64, strength=0.5), layers=["background"])
    assert any("longer side at 64 of" in note for note in made.notes)


def test_wrong_weights_change_nothing_on_disk(run: Run, tmp_path: Path) -> None:
    (tmp_path / "wrong.bin").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="does not hold a style network"):
        edit(run, editor=Style(weights=tmp_path / "wrong.bin"))
    assert not run.edits.exists() or not list(run.edits.iterdir())


def test_published_networks_are_read_to_the_last_byte(shared_weights: Path) -> None:
    for path in sorted((shared_weights / "style").glob("*.bin")):
        found = stylize_picture(read_style_network(path), picture())
        assert found.std() > 0.05, path

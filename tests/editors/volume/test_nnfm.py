"""Style of a background: nearest features against a slow reference, networks against torchvision's, and what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from editors.volume.base import VolumeEditor, VolumeSource, tune_part
from editors.volume.style import VolumeStyle, color_statistics, measure_style, nearest_features, read_style, style_loss
from editors.volume.vgg_features import load_backbone
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing
from neural_fields.volume.rays import camera_rays
from neural_fields.volume.scene import BACKGROUND
from tests.support import tiny_scene as tiny

pytestmark = pytest.mark.slow


def features(count: int, seed: int) -> Tensor:
    return torch.randn(6, count, generator=torch.Generator().manual_seed(seed))


def test_the_same_features_in_any_order_and_of_any_length_are_at_no_distance() -> None:
    found = features(40, 0)
    shuffled = found[:, torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    assert nearest_features(found, shuffled).item() == pytest.approx(0, abs=1e-6)
    assert nearest_features(3 * found, 0.1 * shuffled).item() == pytest.approx(0, abs=1e-6)
    assert nearest_features(found[:, :7], shuffled).item() == pytest.approx(0, abs=1e-6)
    assert nearest_features(shuffled, found[:, :7]).item() > 0.1  # those without a like are not
    one = torch.eye(6)[:, :1]
    assert nearest_features(one, -one).item() == pytest.approx(2, abs=1e-6)


def test_the_distance_is_the_mean_of_the_least_cosine_distances_and_its_gradient_that_of_the_minimum() -> None:
    found, style = features(2100, 0).requires_grad_(True), features(50, 1)
    unit, target = (values / values.norm(dim=0) for values in (found, style))
    slow = (1 - unit.t() @ target).min(dim=1).values.mean()
    quick = nearest_features(found, style)
    torch.testing.assert_close(quick, slow, atol=1e-5, rtol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, found)[0] for loss in (quick, slow)), atol=1e-6, rtol=1e-3)


def test_a_palette_is_mean_and_covariance() -> None:
    picture = torch.rand(1, 3, 9, 5, generator=torch.Generator().manual_seed(0))
    mean, covariance = color_statistics(picture)
    np.testing.assert_allclose(mean, picture[0].flatten(1).mean(dim=1), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(picture[0].flatten(1).numpy(), bias=True), atol=1e-6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random networks of torchvision, but for VGG-16 cut to the layers that are read and one that tells it."""
    import torchvision

    folder, found = tmp_path_factory.mktemp("backbones"), {}
    torch.manual_seed(0)
    for kind, make in (("squeeze", torchvision.models.squeezenet1_1), ("alex", torchvision.models.alexnet)):
        with torch.device("meta"):
            network = make(weights=None)
        network = network.features.to_empty(device="cpu")
        state = {f"features.{name}": 0.1 * torch.randn_like(value) for name, value in network.state_dict().items()}
        found[kind] = folder / f"{kind}.pth"
        torch.save(state, found[kind])
    channels, state = 3, {"features.28.weight": torch.zeros(512, 512, 3, 3), "features.28.bias": torch.zeros(512)}
    for index, width in zip((0, 2, 5, 7, 10, 12, 14), (64, 64, 128, 128, 256, 256, 256), strict=True):
        state[f"features.{index}.weight"] = 0.1 * torch.randn(width, channels, 3, 3)
        state[f"features.{index}.bias"] = 0.1 * torch.randn(width)
        channels = width
    found["vgg"] = folder / "vgg.safetensors"
    save_file(state, found["vgg"])
    return found


def torchvision_features(kind: str, path: Path, pictures: Tensor) -> Tensor:
    """The same by torchvision's own modules."""
    import torchvision

    if kind == "vgg":
        with torch.device("meta"):
            whole = torchvision.models.vgg16(weights=None).features[:16]
        from safetensors.torch import load_file

        state, taken = load_file(path), [11, 13, 15]
    else:
        with torch.device("meta"):
            whole = getattr(torchvision.models, {"squeeze": "squeezenet1_1", "alex": "alexnet"}[kind])(
                weights=None
            ).features
        state, taken = torch.load(path, weights_only=True), {"squeeze": [6, 7], "alex": [7, 9, 11]}[kind]
    network = whole.to_empty(device="cpu")
    network.load_state_dict({name: state[f"features.{name}"] for name in network.state_dict()})
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    maps, kept = (pictures - mean[:, None, None]) / spread[:, None, None], []
    for index, module in enumerate(network):
        maps = module(maps)
        if index in taken:
            kept.append(maps)
    return torch.cat(kept, dim=1)


@pytest.mark.parametrize("kind", ["squeeze", "alex", "vgg"])
def test_networks_are_told_by_their_numbers_and_see_what_torchvisions_see(kind: str, weights: dict[str, Path]) -> None:
    pictures = torch.rand(1, 3, 70, 81, generator=torch.Generator().manual_seed(0))
    see = load_backbone(weights[kind])
    assert see.kind == kind
    with torch.no_grad():
        torch.testing.assert_close(
            see(pictures), torchvision_features(kind, weights[kind], pictures), atol=1e-3, rtol=1e-4
        )
        assert see(torch.rand(1, 3, see.min_side, see.min_side)).numel() > 0


def test_files_that_hold_no_such_network_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no network")
    (tmp_path / "text.safetensors").write_text("no network")
    for name, word in (
        ("other.pth", "none of the networks"),
        ("text.pth", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("none.pth", "no file"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            load_backbone(tmp_path / name)
        assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix


@pytest.fixture
def source() -> VolumeSource:
    return tiny.tiny_source(size=(40, 30))


def alone(source: VolumeSource) -> Tensor:
    """The first view of the background."""
    seen = source.scene.render_rays(camera_rays(source.cameras[0]), source.moments, parts=frozenset({BACKGROUND}))
    return seen.color.t().reshape(1, 3, 30, 40)


def style_picture(path: Path) -> Path:
    """Orange and blue stripes."""
    rows = np.arange(64)[:, None] // 4 % 2
    rgb = np.where(rows[..., None] == 1, (230, 120, 20), (20, 60, 200)).astype(np.uint8).repeat(64, axis=1)
    Image.fromarray(rgb).save(path)
    return path


def test_the_background_takes_the_style_on_and_the_person_and_all_outlines_stay(
    source: VolumeSource, weights: dict[str, Path], tmp_path: Path
) -> None:
    path = style_picture(tmp_path / "style.png")
    see = load_backbone(weights["squeeze"])
    style = measure_style(read_style(path, 64), see)
    before = {name: value.clone() for name, value in source.scene.state_dict().items()}
    editor = VolumeStyle(style=path, features=weights["squeeze"], steps=60, rate=0.02, side=40, style_side=64)
    assert isinstance(editor, VolumeEditor)
    result = editor.edit(source, report_nothing)
    assert set(result.weights) == {"background.paint.grid.params"} and result.parts == (BACKGROUND,)
    after = source.scene.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)

    rays = camera_rays(source.cameras[0])
    with torch.no_grad():
        plain = source.scene.render_rays(rays, source.moments)
    with tune_part(source.scene, BACKGROUND) as chosen, torch.no_grad():
        for name, value in chosen.paint.items():
            value.copy_(torch.from_numpy(result.weights[name]))
        edited = source.scene.render_rays(rays, source.moments)
        shown = alone(source)
    assert torch.equal(plain.person_opacity, edited.person_opacity)
    solid = plain.person_opacity > 1 - 1e-6
    assert solid.any() and torch.allclose(plain.color[solid], edited.color[solid], atol=1e-5)
    with torch.no_grad():
        old = alone(source)
        losses = [style_loss(picture, old, style, see, 10.0, 0.0).item() for picture in (old, shown)]
    assert losses[1] < 0.5 * losses[0]


def test_views_that_are_too_small_for_the_network_are_refused(
    source: VolumeSource, weights: dict[str, Path], tmp_path: Path
) -> None:
    editor = VolumeStyle(style=style_picture(tmp_path / "s.png"), features=weights["alex"], side=40)
    with pytest.raises(UserError, match="side of 30 pixels") as caught:
        editor.edit(source, report_nothing)
    assert caught.value.fix == "--side 86"


@pytest.mark.parametrize(
    ("settings", "word"), [({"steps": 0}, "steps"), ({"palette": -1.0}, "palette"), ({"side": 4}, "side")]
)
def test_settings_that_cannot_work_are_refused_with_a_flag_to_try(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        VolumeStyle(**({"style": Path("s.png"), "features": Path("f.pth")} | settings))
    assert caught.value.code == ExitCode.USAGE and caught.value.fix.startswith("--")

"""The plugin against a stand-in with nerfstudio's own names: the real package is not among what the tests install."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neural_fields.core.errors import UserError
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.transforms_json import OPENGL_FLIP
from neural_fields.integrations import nerfstudio as plugin

ROOT = Path(__file__).resolve().parents[2]


class Settings:
    """A configuration of nerfstudio's: keeps what it is given."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


@dataclass
class ModelConfig:
    _target: type = field(default_factory=lambda: Model)
    enable_collider: bool = True
    eval_num_rays_per_chunk: int = 4096


class Model(torch.nn.Module):
    """The part of nerfstudio's Model that calls its children."""

    def __init__(self, config: Any, scene_box: Any, num_train_data: int, **kwargs: Any) -> None:
        super().__init__()
        self.config = config
        self.collider: Any = None
        self.populate_modules()
        self.device_indicator_param = torch.nn.Parameter(torch.empty(0))

    def populate_modules(self) -> None:
        if self.config.enable_collider:
            self.collider = object()

    def get_outputs(self, ray_bundle: Any) -> Any:
        raise NotImplementedError

    def forward(self, ray_bundle: Any) -> Any:
        return self.get_outputs(ray_bundle)


@pytest.fixture
def nerfstudio(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules and names as version 1.1 has them."""
    names: dict[str, dict[str, Any]] = {
        "data.datamanagers.base_datamanager": {"VanillaDataManagerConfig": Settings},
        "data.dataparsers.nerfstudio_dataparser": {"NerfstudioDataParserConfig": Settings},
        "engine.optimizers": {"AdamOptimizerConfig": Settings},
        "engine.trainer": {"TrainerConfig": Settings},
        "models.base_model": {"Model": Model, "ModelConfig": ModelConfig},
        "pipelines.base_pipeline": {"VanillaPipelineConfig": Settings},
        "plugins.types": {"MethodSpecification": type("MethodSpecification", (Settings,), {})},
    }
    for path, content in names.items():
        parts = ["nerfstudio", *path.split(".")]
        for end in range(1, len(parts) + 1):
            module = sys.modules.get(".".join(parts[:end])) or ModuleType(".".join(parts[:end]))
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), module)
        sys.modules[".".join(parts)].__dict__.update(content)
    plugin._make_classes.cache_clear()
    yield
    plugin._make_classes.cache_clear()


def test_without_nerfstudio_the_module_loads_and_only_the_method_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nerfstudio", None)
    plugin._make_classes.cache_clear()
    with pytest.raises(ImportError, match="nerfstudio"):
        _ = plugin.method
    with pytest.raises(AttributeError):
        _ = plugin.another
    ours = [path for folder in ("neural_fields", "editors") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in ours if "import nerfstudio_plugin" in path.read_text(encoding="utf-8")]


def test_the_entry_point_leads_to_a_method_whose_saved_configuration_leads_back(nerfstudio: None) -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    module, _, name = points["nerfstudio.method_configs"]["unwrap-background"].partition(":")
    method = getattr(import_module(module), name)
    assert type(method).__name__ == "MethodSpecification" and method.config.method_name == "unwrap-background"
    model = method.config.pipeline.model
    assert set(method.config.optimizers) == {"fields"} and not model.enable_collider
    for kind in (type(model), model._target):  # as YAML finds a class again
        assert getattr(import_module(kind.__module__), kind.__qualname__) is kind


@pytest.mark.slow
def test_the_model_learns_a_color(nerfstudio: None) -> None:
    config = plugin.method.config.pipeline.model
    model = config._target(config, None, 1)
    groups = model.get_param_groups()
    assert sum(len(some) for some in groups.values()) == len(list(model.parameters())) - 1  # all but the marker
    adam = torch.optim.Adam(groups["fields"], lr=1e-2)
    direction = torch.nn.functional.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    bundle = SimpleNamespace(origins=torch.zeros(64, 3), directions=direction)
    batch = {"image": torch.tensor([[0.9, 0.2, 0.1]]).expand(64, 3)}
    psnr = []
    for _ in range(30):
        outputs = model(bundle)
        losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
        assert set(losses) == {"rgb_loss", "distortion_loss", "interlevel_loss"}
        adam.zero_grad()
        sum(losses.values()).backward()
        adam.step()
        psnr.append(float(model.get_metrics_dict(outputs, batch)["psnr"]))
    assert psnr[-1] > psnr[0] + 6
    model.eval()
    picture = SimpleNamespace(origins=torch.zeros(8, 8, 3), directions=direction.view(8, 8, 3))
    with torch.no_grad():
        shown = model(picture)
    assert {name: tuple(value.shape) for name, value in shown.items()} == {
        "rgb": (8, 8, 3),
        "accumulation": (8, 8, 1),
        "depth": (8, 8, 1),
    }
    metrics, images = model.get_image_metrics_and_images(shown, {"image": torch.rand(8, 8, 3)})
    assert "psnr" in metrics and images["img"].shape == (8, 16, 3)


def parsed(camera: Camera, kind: int, distortion: list[float] | None) -> SimpleNamespace:
    """A camera as a data parser of nerfstudio gives it: moved, scaled, with the camera's y up and z back."""
    move = np.eye(4)
    move[:3, :3] = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    move[:3, 3] = (3.0, -1.0, 2.0)
    pose, scale = move @ camera.pose @ OPENGL_FLIP, 0.25
    pose[:3, 3] *= scale
    column = {"fx": camera.focal[0], "fy": camera.focal[1], "cx": camera.center[0], "cy": camera.center[1]}
    column |= {"width": camera.width, "height": camera.height, "camera_type": kind}
    cameras = SimpleNamespace(
        camera_to_worlds=torch.tensor(pose[None, :3]),
        distortion_params=None if distortion is None else torch.tensor([distortion], dtype=torch.float64),
        **{name: torch.tensor([[value]]) for name, value in column.items()},
    )
    return SimpleNamespace(
        image_filenames=[Path("a.png")],
        mask_filenames=None,
        cameras=cameras,
        dataparser_transform=torch.tensor(move[:3]),
        dataparser_scale=scale,
    )


def test_cameras_of_a_data_parser_come_back_in_the_axes_and_units_of_the_files() -> None:
    pose = compute_look_at_pose(np.array([1.0, -4.0, 2.0]), np.zeros(3), np.array([0.0, 0.0, 1.0]))
    camera = Camera(64, 48, (50.0, 51.0), (31.0, 24.5), pose, (0.1, -0.02, 0.003, 0.004, 0.01))
    outputs = parsed(camera, 1, [0.1, -0.02, 0.01, 0.0, 0.003, 0.004])
    config = SimpleNamespace(setup=lambda: SimpleNamespace(get_dataparser_outputs=lambda split: outputs))
    (found,) = plugin.read_dataparser(config)
    assert found.path == Path("a.png") and found.mask_path is None
    assert np.allclose(found.camera.pose, pose) and np.allclose(found.camera.distortion, camera.distortion)
    assert (found.camera.width, found.camera.focal, found.camera.center) == (64, (50.0, 51.0), (31.0, 24.5))
    (bent,) = plugin.convert_dataparser_outputs(parsed(camera, 2, [0.1, 0.2, 0.3, 0.4, 0.0, 0.0]))
    assert bent.camera.lens == "fisheye" and np.allclose(bent.camera.distortion, (0.1, 0.2, 0.3, 0.4))
    with pytest.raises(UserError, match="type 3"):
        plugin.convert_dataparser_outputs(parsed(camera, 3, None))
    with pytest.raises(UserError, match="k4"):
        plugin.convert_dataparser_outputs(parsed(camera, 1, [0.1, 0, 0, 0.2, 0, 0]))

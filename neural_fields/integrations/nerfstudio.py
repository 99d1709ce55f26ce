"""The background field as a method of nerfstudio, and nerfstudio's data parsers as a source of cameras.

Where nerfstudio is installed it finds `method` by the entry point `nerfstudio.method_configs`, and `ns-train
unwrap-background` trains our field with its data, viewer and trainer. Nothing else imports this module, and nerfstudio
itself is imported only when `method` is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from neural_fields.core.errors import bad_input
from neural_fields.data.capture.cameras import Camera, Lens
from neural_fields.data.capture.transforms_json import OPENGL_FLIP, PosedImage
from neural_fields.volume.background import BackgroundField, SceneBounds
from neural_fields.volume.background_losses import distortion_loss, interlevel_loss
from neural_fields.volume.rays import Rays, render_samples

_LAZY = ("method", "BackgroundModel", "BackgroundModelConfig")


@dataclass(frozen=True)
class NerfstudioSettings:
    """Settings of the method's training; weights of the losses as in mip-NeRF 360, sections 4 and 5."""

    steps: int = 20_000  # steps of the training
    rays_per_step: int = 4096  # rays in a step
    learning_rate: float = 1e-2  # learning rate of Adam
    distortion_weight: float = 0.01  # weight of the distortion loss (equation 15)
    interlevel_weight: float = 1.0  # weight of the loss of the proposal (equation 13)


DEFAULTS = NerfstudioSettings()


def __getattr__(name: str) -> Any:
    """Makes `method` and its classes from those of nerfstudio when they are first asked for."""
    if name in _LAZY:
        return getattr(_make_classes(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- cameras --------------------------------------------------------------------------------------------------------


def read_dataparser(config: Any, split: str = "train") -> list[PosedImage]:
    """Reads the images and cameras of a nerfstudio data parser, in the axes and units of its files.

    Args:
        config: a data parser's configuration, such as `NerfstudioDataParserConfig(data=path)`.
        split: "train", "val" or "test".

    Raises:
        UserError: a camera type or a lens that is not read.
    """
    return convert_dataparser_outputs(config.setup().get_dataparser_outputs(split))


def convert_dataparser_outputs(outputs: Any) -> list[PosedImage]:
    """Converts what a data parser returned (`DataparserOutputs`), and undoes its translation and scale of the world.

    Raises:
        UserError: a camera type or a lens that is not read.
    """
    move = np.eye(4)
    move[:3] = _to_numpy(outputs.dataparser_transform)
    back = np.linalg.inv(move)
    cameras = outputs.cameras
    masks = outputs.mask_filenames or [None] * len(outputs.image_filenames)
    found = []
    for index, (path, mask) in enumerate(zip(outputs.image_filenames, masks, strict=True)):
        pose = np.eye(4)
        pose[:3] = _to_numpy(cameras.camera_to_worlds[index])
        pose[:3, 3] /= float(outputs.dataparser_scale)
        values = {}
        for name in ("fx", "fy", "cx", "cy", "width", "height", "camera_type"):
            values[name] = float(_to_numpy(getattr(cameras, name)[index]).ravel()[0])
        perspective, fisheye = 1, 2  # of nerfstudio's CameraType
        kind = int(values["camera_type"])
        if kind not in (perspective, fisheye):
            raise bad_input(
                f"camera {index} is of nerfstudio's type {kind}",
                where=str(path),
                why="perspective (1) and fisheye (2) cameras are read",
                fix="export the pictures as a perspective camera sees them",
            )
        lens: Lens = "fisheye" if kind == fisheye else "perspective"

        # The distortion coefficients in the order of OpenCV.
        coefficients: tuple[float, ...] = ()
        if cameras.distortion_params is not None:
            k1, k2, k3, k4, p1, p2 = _to_numpy(cameras.distortion_params[index]).ravel().tolist()[:6]
            if kind == fisheye:
                coefficients = (k1, k2, k3, k4)
            elif k4:
                raise bad_input(
                    f"camera {index} has k4 = {k4:g}",
                    where=str(path),
                    why="OpenCV's lens has no place for nerfstudio's fourth radial coefficient",
                    fix="fit the cameras again as OPENCV (k1, k2, p1, p2)",
                )
            elif any((k1, k2, p1, p2, k3)):
                coefficients = (k1, k2, p1, p2, k3)
        size = (int(values["width"]), int(values["height"]))
        focal, center = (values["fx"], values["fy"]), (values["cx"], values["cy"])
        camera = Camera(*size, focal, center, back @ pose @ OPENGL_FLIP, coefficients, lens)
        found.append(PosedImage(Path(path), camera, None if mask is None else Path(mask)))
    return found


def _to_numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, np.float64)


# --- method ---------------------------------------------------------------------------------------------------------


@cache
def _make_classes() -> SimpleNamespace:
    """Makes the classes that nerfstudio asks for, and the method that uses them.

    Their names are those of this module, so that the configuration nerfstudio saves leads back here.
    """
    from nerfstudio.models.base_model import Model, ModelConfig

    class BackgroundModel(Model):
        """Our background field in nerfstudio's coordinates: cameras within the unit cube."""

        def populate_modules(self) -> None:
            super().populate_modules()
            self.collider = None  # the field has its own near and far
            self.field = BackgroundField(SceneBounds((0.0, 0.0, 0.0), 1.0))
            self._generator: torch.Generator | None = None

        def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
            return {"fields": list(self.field.parameters())}

        def get_outputs(self, ray_bundle: Any) -> dict[str, Any]:
            if self.training and self._generator is None:
                self._generator = torch.Generator(ray_bundle.origins.device).manual_seed(0)
            generator = self._generator if self.training else None
            origin = ray_bundle.origins.reshape(-1, 3)
            direction = torch.nn.functional.normalize(ray_bundle.directions.reshape(-1, 3), dim=-1)
            rays = Rays(origin, direction, torch.zeros(len(origin), dtype=torch.long, device=origin.device))
            marched, intervals = self.field.march_rays(rays, rays.time, generator)
            rendered = render_samples(marched)
            shape = tuple(ray_bundle.origins.shape[:-1])
            outputs: dict[str, Any] = {
                "rgb": rendered.composite_over(self.field.render_sky(rays, rays.time)).reshape(*shape, 3),
                "accumulation": rendered.opacity.reshape(*shape, 1),
                "depth": rendered.depth.reshape(*shape, 1),
            }
            if generator is not None:  # what the losses need
                outputs["intervals"] = (intervals, rendered.weights)
            return outputs

        def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, torch.Tensor]:
            """Computes the losses of a batch, by name.

            Args:
                outputs: of `get_outputs`.
                batch: with the "image" of the rays.
                metrics_dict: is not read.
            """
            wanted = batch["image"][..., :3].to(outputs["rgb"])
            losses = {"rgb_loss": torch.nn.functional.mse_loss(outputs["rgb"], wanted)}
            if "intervals" in outputs:
                cut, weights = outputs["intervals"]
                losses["distortion_loss"] = DEFAULTS.distortion_weight * distortion_loss(cut.edges, weights)
                losses["interlevel_loss"] = DEFAULTS.interlevel_weight * interlevel_loss(
                    cut.edges, weights, cut.proposed_edges, cut.proposed_weights
                )
            return losses

        def get_metrics_dict(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
            return {"psnr": _compute_psnr(outputs["rgb"], batch["image"])}

        def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> tuple[dict, dict]:
            wanted = batch["image"][..., :3].to(outputs["rgb"])
            metrics = {"psnr": float(_compute_psnr(outputs["rgb"], wanted))}
            return metrics, {"img": torch.cat([wanted, outputs["rgb"]], dim=1)}

    @dataclass
    class BackgroundModelConfig(ModelConfig):
        """Settings that nerfstudio keeps of the model."""

        _target: type = field(default_factory=lambda: BackgroundModel)
        enable_collider: bool = False

    for kind in (BackgroundModel, BackgroundModelConfig):
        kind.__module__, kind.__qualname__ = __name__, kind.__name__
    return SimpleNamespace(
        method=_make_method(BackgroundModelConfig()),
        BackgroundModel=BackgroundModel,
        BackgroundModelConfig=BackgroundModelConfig,
    )


def _make_method(model: Any) -> Any:
    """Makes the method by which nerfstudio trains a model of this configuration."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
    from nerfstudio.engine.optimizers import AdamOptimizerConfig
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
    from nerfstudio.plugins.types import MethodSpecification

    return MethodSpecification(
        config=TrainerConfig(
            method_name="unwrap-background",
            max_num_iterations=DEFAULTS.steps,
            mixed_precision=False,
            pipeline=VanillaPipelineConfig(
                datamanager=VanillaDataManagerConfig(
                    dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=DEFAULTS.rays_per_step
                ),
                model=model,
            ),
            optimizers={
                "fields": {"optimizer": AdamOptimizerConfig(lr=DEFAULTS.learning_rate, eps=1e-15), "scheduler": None}
            },
        ),
        description="The background of Unwrap's 3D route: a hash grid with a dense proposal.",
    )


def _compute_psnr(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    error = torch.nn.functional.mse_loss(found.detach(), wanted[..., :3].to(found))
    return -10 * torch.log10(error.clamp_min(1e-10))

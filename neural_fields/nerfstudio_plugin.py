"""The background field as a method of nerfstudio, and nerfstudio's data parsers as a source of cameras.

Where nerfstudio is installed it finds `method` by the entry point `nerfstudio.method_configs`, and `ns-train
unwrap-background` fits our field with its data, viewer and trainer. Nothing here is imported otherwise, and nerfstudio
itself only when `method` is asked for.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from neural_fields.data.camera_files import OPENGL, PosedPicture
from neural_fields.data.cameras import Camera, Lens
from neural_fields.errors import bad_input
from neural_fields.volume.background import Background, Frame
from neural_fields.volume.rays import Rays, render_marched
from neural_fields.volume.terms import distortion, interlevel

STEPS, RAYS, RATE = 20_000, 4096, 1e-2
DISTORTION, INTERLEVEL = 0.01, 1.0  # mip-NeRF 360, section 4 and 5
_LAZY = ("method", "BackgroundModel", "BackgroundModelConfig")


def __getattr__(name: str) -> Any:
    """`method` and its classes, made of nerfstudio's when they are first asked for."""
    if name in _LAZY:
        return getattr(_kinds(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- cameras --------------------------------------------------------------------------------------------------------


def read_dataparser(config: Any, split: str = "train") -> list[PosedPicture]:
    """The pictures and cameras of a nerfstudio data parser, in the axes and units of its files.

    Args:
        config: a data parser's configuration, such as `NerfstudioDataParserConfig(data=path)`.
        split: "train", "val" or "test".

    Raises:
        UserError: a camera type or a lens that is not read.
    """
    return parsed_pictures(config.setup().get_dataparser_outputs(split))


def parsed_pictures(outputs: Any) -> list[PosedPicture]:
    """The same of what a data parser gave (`DataparserOutputs`); its move and scale of the world are undone.

    Raises:
        UserError: a camera type or a lens that is not read.
    """
    move = np.eye(4)
    move[:3] = _numbers(outputs.dataparser_transform)
    back = np.linalg.inv(move)
    masks = outputs.mask_filenames or [None] * len(outputs.image_filenames)
    found = []
    for index, (path, mask) in enumerate(zip(outputs.image_filenames, masks, strict=True)):
        pose = np.eye(4)
        pose[:3] = _numbers(outputs.cameras.camera_to_worlds[index])
        pose[:3, 3] /= float(outputs.dataparser_scale)
        camera = _camera(outputs.cameras, index, back @ pose @ OPENGL, str(path))
        found.append(PosedPicture(Path(path), camera, None if mask is None else Path(mask)))
    return found


def _camera(cameras: Any, index: int, pose: np.ndarray, where: str) -> Camera:
    def one(name: str) -> float:
        return float(_numbers(getattr(cameras, name)[index]).ravel()[0])

    lens, numbers = _lens(cameras, index, where)
    focal, centre = (one("fx"), one("fy")), (one("cx"), one("cy"))
    return Camera(int(one("width")), int(one("height")), focal, centre, pose, numbers, lens)


def _lens(cameras: Any, index: int, where: str) -> tuple[Lens, tuple[float, ...]]:
    """The lens in OpenCV's words: nerfstudio lists k1 k2 k3 k4 p1 p2."""
    kind = int(_numbers(cameras.camera_type[index]).ravel()[0])
    if kind not in (1, 2):  # of nerfstudio's CameraType: PERSPECTIVE, FISHEYE
        raise bad_input(
            f"camera {index} is of nerfstudio's type {kind}",
            where=where,
            why="perspective (1) and fisheye (2) cameras are read",
            fix="export the pictures as a perspective camera sees them",
        )
    if cameras.distortion_params is None:
        return ("fisheye" if kind == 2 else "perspective"), ()
    k1, k2, k3, k4, p1, p2 = _numbers(cameras.distortion_params[index]).ravel().tolist()[:6]
    if kind == 2:
        return "fisheye", (k1, k2, k3, k4)
    if k4:
        raise bad_input(
            f"camera {index} has k4 = {k4:g}",
            where=where,
            why="nerfstudio's fourth radial number has no place in OpenCV's lens",
            fix="fit the cameras again as OPENCV (k1, k2, p1, p2)",
        )
    numbers = (k1, k2, p1, p2, k3)
    return "perspective", numbers if any(numbers) else ()


def _numbers(value: Any) -> np.ndarray:
    return value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, np.float64)


# --- method ---------------------------------------------------------------------------------------------------------


def _rays(bundle: Any) -> Rays:
    origin = bundle.origins.reshape(-1, 3)
    return Rays(
        origin,
        torch.nn.functional.normalize(bundle.directions.reshape(-1, 3), dim=-1),
        torch.zeros(len(origin), dtype=torch.long, device=origin.device),
    )


def _seen(field: Background, bundle: Any, generator: torch.Generator | None) -> dict[str, Any]:
    """What nerfstudio shows of rays, and in training what the losses need."""
    rays = _rays(bundle)
    marched, stretches = field.march(rays, rays.time, generator)
    shown = render_marched(marched)
    shape = tuple(bundle.origins.shape[:-1])
    found: dict[str, Any] = {
        "rgb": shown.over(field.sky(rays, rays.time)).reshape(*shape, 3),
        "accumulation": shown.opacity.reshape(*shape, 1),
        "depth": shown.depth.reshape(*shape, 1),
    }
    return {**found, "stretches": (stretches, shown.weights)} if generator is not None else found


@cache
def _kinds() -> SimpleNamespace:
    """The classes that nerfstudio asks for, and the method made of them.

    Their names are those of this module, so that the configuration nerfstudio saves leads back here.
    """
    from dataclasses import dataclass, field

    from nerfstudio.models.base_model import Model, ModelConfig

    class BackgroundModel(Model):
        """Our background field where nerfstudio has its scene: cameras within the unit cube."""

        def populate_modules(self) -> None:
            super().populate_modules()
            self.collider = None  # the field has its own near and far
            self.field = Background(Frame((0.0, 0.0, 0.0), 1.0))
            self._generator: torch.Generator | None = None

        def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
            return {"fields": list(self.field.parameters())}

        def get_outputs(self, ray_bundle: Any) -> dict[str, Any]:
            if self.training and self._generator is None:
                self._generator = torch.Generator(ray_bundle.origins.device).manual_seed(0)
            return _seen(self.field, ray_bundle, self._generator if self.training else None)

        def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, torch.Tensor]:
            wanted = batch["image"][..., :3].to(outputs["rgb"])
            losses = {"rgb_loss": torch.nn.functional.mse_loss(outputs["rgb"], wanted)}
            if "stretches" in outputs:
                cut, weights = outputs["stretches"]
                losses["distortion_loss"] = DISTORTION * distortion(cut.edges, weights)
                losses["interlevel_loss"] = INTERLEVEL * interlevel(
                    cut.edges, weights, cut.proposed_edges, cut.proposed_weights
                )
            return losses

        def get_metrics_dict(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
            return {"psnr": _psnr(outputs["rgb"], batch["image"])}

        def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> tuple[dict, dict]:
            wanted = batch["image"][..., :3].to(outputs["rgb"])
            metrics = {"psnr": float(_psnr(outputs["rgb"], wanted))}
            return metrics, {"img": torch.cat([wanted, outputs["rgb"]], dim=1)}

    @dataclass
    class BackgroundModelConfig(ModelConfig):
        """Settings that nerfstudio keeps of the model."""

        _target: type = field(default_factory=lambda: BackgroundModel)
        enable_collider: bool = False

    for kind in (BackgroundModel, BackgroundModelConfig):
        kind.__module__, kind.__qualname__ = __name__, kind.__name__
    return SimpleNamespace(
        method=_method(BackgroundModelConfig()),
        BackgroundModel=BackgroundModel,
        BackgroundModelConfig=BackgroundModelConfig,
    )


def _method(model: Any) -> Any:
    """The method by which nerfstudio trains a model of this configuration."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
    from nerfstudio.engine.optimizers import AdamOptimizerConfig
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
    from nerfstudio.plugins.types import MethodSpecification

    return MethodSpecification(
        config=TrainerConfig(
            method_name="unwrap-background",
            max_num_iterations=STEPS,
            mixed_precision=False,
            pipeline=VanillaPipelineConfig(
                datamanager=VanillaDataManagerConfig(
                    dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=RAYS
                ),
                model=model,
            ),
            optimizers={"fields": {"optimizer": AdamOptimizerConfig(lr=RATE, eps=1e-15), "scheduler": None}},
        ),
        description="The background of Unwrap's 3D route: a hash grid with a dense proposal.",
    )


def _psnr(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    error = torch.nn.functional.mse_loss(found.detach(), wanted[..., :3].to(found))
    return -10 * torch.log10(error.clamp_min(1e-10))

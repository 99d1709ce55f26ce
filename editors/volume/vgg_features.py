"""Features of image classifiers, with which style is measured.

The user provides the weights in a file: torchvision's VGG-16, SqueezeNet 1.1 or AlexNet, recognized by its shapes. Only
convolutions are needed, so each network is built here from the tensors in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.core.errors import bad_input

PictureBatch = Float[Tensor, "n 3 height width"]
FeatureMaps = Float[Tensor, "n channels rows columns"]
FeatureStep = Callable[[Tensor], Tensor]

IMAGENET_MEAN, IMAGENET_SPREAD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of the pictures that torchvision's networks saw


@dataclass(frozen=True)
class FeatureBackbone:
    """Computes features with the first layers of an image classifier.

    Attributes:
        kind: "vgg", "squeeze" or "alex".
        steps: operations, applied in order.
        feature_steps: indices of the steps whose results are the features; all results have the same size in pixels.
        min_side: smallest side in pixels of a picture.
    """

    kind: str
    steps: tuple[FeatureStep, ...]
    feature_steps: tuple[int, ...]
    min_side: int

    def __call__(self, pictures: PictureBatch) -> FeatureMaps:
        """Computes features of pictures in [0, 1], concatenated over the layers. Differentiable."""
        mean, spread = (torch.tensor(values).to(pictures)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_SPREAD))
        maps, features = (pictures - mean) / spread, []
        for index, step in enumerate(self.steps):
            maps = step(maps)
            if index in self.feature_steps:
                features.append(maps)
        return torch.cat(features, dim=1)


def load_backbone(path: Path, device: torch.device | None = None) -> FeatureBackbone:
    """Reads a network from a state dict of torchvision.

    Args:
        path: a .pth or .safetensors file.
        device: device of the network; by default the CPU.

    Raises:
        UserError: the file cannot be read, or it contains another network (exit 3).
    """
    from safetensors.torch import load_file

    # The tensors of the file; nothing in it is run.
    if not path.is_file():
        raise bad_input(f"there is no file {path}", fix="--features vgg16-397923af.pth, as torchvision fetches it")
    try:
        is_safe = path.suffix == ".safetensors"
        tensors: object = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises some ten unrelated types for a file that is no checkpoint
        why = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise bad_input(f"{path} cannot be read", where=str(path), why=why, fix="fetch the file again") from problem
    state: dict[str, Tensor] = {}
    for name, value in tensors.items() if isinstance(tensors, dict) else ():
        if isinstance(value, Tensor) and str(name).startswith("features."):
            state[str(name)] = value.float().to(device)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    steps: list[FeatureStep]

    # VGG-16 up to the third block, whose three layers are the features, as in ARF (Zhang et al., 2022).
    if shapes.get("features.28.weight") == (512, 512, 3, 3):
        steps = []
        for index in (0, 2, 5, 7, 10, 12, 14):  # with a pooling before the fifth and the tenth
            if index in (5, 10):
                steps.append(partial(F.max_pool2d, kernel_size=2))
            steps.append(_make_convolution(state, f"features.{index}", padding=1))
        return FeatureBackbone("vgg", tuple(steps), (6, 7, 8), 8)

    # SqueezeNet 1.1 up to the fourth fire module; the last two are the features.
    if shapes.get("features.12.expand3x3.weight") == (256, 64, 3, 3):
        steps = [
            _make_convolution(state, "features.0", stride=2),
            partial(F.max_pool2d, kernel_size=3, stride=2, ceil_mode=True),
            _fire_module(state, "features.3"),
            _fire_module(state, "features.4"),
            partial(F.max_pool2d, kernel_size=3, stride=2, ceil_mode=True),
            _fire_module(state, "features.6"),
            _fire_module(state, "features.7"),
        ]
        return FeatureBackbone("squeeze", tuple(steps), (5, 6), 16)

    # AlexNet up to the fifth layer; the last three are the features.
    if shapes.get("features.0.weight") == (64, 3, 11, 11):
        steps = [
            _make_convolution(state, "features.0", stride=4, padding=2),
            partial(F.max_pool2d, kernel_size=3, stride=2),
            _make_convolution(state, "features.3", padding=2),
            partial(F.max_pool2d, kernel_size=3, stride=2),
            _make_convolution(state, "features.6", padding=1),
            _make_convolution(state, "features.8", padding=1),
            _make_convolution(state, "features.10", padding=1),
        ]
        return FeatureBackbone("alex", tuple(steps), (4, 5, 6), 64)

    raise bad_input(
        f"{path} is none of the networks that style is read from",
        where=str(path),
        why="expected torchvision's VGG-16, SqueezeNet 1.1 or AlexNet",
        fix="--features vgg16-397923af.pth, as torchvision fetches it",
    )


def _make_convolution(state: Mapping[str, Tensor], name: str, stride: int = 1, padding: int = 0) -> FeatureStep:
    """Makes a convolution with ReLU from the tensors of a layer."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return lambda maps: F.relu(F.conv2d(maps, weight, bias, stride, padding))


def _fire_module(state: Mapping[str, Tensor], name: str) -> FeatureStep:
    squeeze = _make_convolution(state, f"{name}.squeeze")
    narrow = _make_convolution(state, f"{name}.expand1x1")
    wide = _make_convolution(state, f"{name}.expand3x3", padding=1)

    def step(maps: Tensor) -> Tensor:
        small = squeeze(maps)
        return torch.cat([narrow(small), wide(small)], dim=1)

    return step

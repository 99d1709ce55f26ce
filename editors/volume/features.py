"""What networks trained to name pictures see in them: the features that style is told by.

The weights are a file of the user's: torchvision's VGG-16, SqueezeNet 1.1 or AlexNet, which is told by its shapes. Only
convolutions are needed, so each network is written out here from the numbers in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.errors import bad_input

Images = Float[Tensor, "n 3 height width"]
Maps = Float[Tensor, "n channels rows columns"]
Step = Callable[[Tensor], Tensor]

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that torchvision's networks saw


@dataclass(frozen=True)
class Backbone:
    """A network up to the layers that style is read from.

    Attributes:
        kind: "vgg", "squeeze" or "alex".
        steps: applied one after the other.
        kept: the steps whose results are the features; all have the same size.
        least: side in pixels of the smallest picture it can look at.
    """

    kind: str
    steps: tuple[Step, ...]
    kept: tuple[int, ...]
    least: int

    def __call__(self, pictures: Images) -> Maps:
        """Features of pictures in [0, 1], the layers one behind the other. Differentiable."""
        mean, spread = (torch.tensor(values).to(pictures)[:, None, None] for values in (MEAN, SPREAD))
        maps, found = (pictures - mean) / spread, []
        for index, step in enumerate(self.steps):
            maps = step(maps)
            if index in self.kept:
                found.append(maps)
        return torch.cat(found, dim=1)


def load_backbone(path: Path, device: torch.device | None = None) -> Backbone:
    """Reads a network from a state dict of torchvision, as .pth or as .safetensors.

    Raises:
        UserError: the file cannot be read, or it holds another network (exit 3).
    """
    state = {name: value.float().to(device) for name, value in _numbers(path).items() if name.startswith("features.")}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if shapes.get("features.28.weight") == (512, 512, 3, 3):
        return _vgg(state)
    if shapes.get("features.12.expand3x3.weight") == (256, 64, 3, 3):
        return _squeeze(state)
    if shapes.get("features.0.weight") == (64, 3, 11, 11):
        return _alex(state)
    raise bad_input(
        f"{path} is none of the networks that style is read from",
        where=str(path),
        why="expected torchvision's VGG-16, SqueezeNet 1.1 or AlexNet",
        fix="--features vgg16-397923af.pth, as torchvision fetches it",
    )


def _numbers(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file; nothing in it is run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise bad_input(f"there is no file {path}", fix="--features vgg16-397923af.pth, as torchvision fetches it")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as problem:
        raise _damaged(path, problem) from problem
    # torch raises some ten unrelated types for a file that is no checkpoint
    except Exception as problem:
        raise _damaged(path, problem) from problem
    tensors = (
        {str(name): value for name, value in found.items() if isinstance(value, Tensor)} if _is_dict(found) else {}
    )
    return tensors


def _is_dict(found: object) -> bool:
    return isinstance(found, dict)


def _damaged(path: Path, problem: Exception) -> Exception:
    why = next(iter(str(problem).splitlines()), type(problem).__name__)
    return bad_input(f"{path} cannot be read", where=str(path), why=why, fix="fetch the file again")


def _convolution(state: Mapping[str, Tensor], name: str, stride: int = 1, padding: int = 0) -> Step:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return lambda maps: F.relu(F.conv2d(maps, weight, bias, stride, padding))


def _vgg(state: Mapping[str, Tensor]) -> Backbone:
    """Up to the third block, whose three layers are the features: the choice of ARF (Zhang et al., 2022)."""
    steps: list[Step] = []
    for index in (0, 2, 5, 7, 10, 12, 14):  # with a pooling before the fifth and the tenth
        if index in (5, 10):
            steps.append(lambda maps: F.max_pool2d(maps, 2))
        steps.append(_convolution(state, f"features.{index}", padding=1))
    return Backbone("vgg", tuple(steps), (6, 7, 8), 8)


def _squeeze(state: Mapping[str, Tensor]) -> Backbone:
    """Up to the fourth fire module; the last two are the features."""

    def fire(index: int) -> Step:
        name = f"features.{index}"
        squeeze = _convolution(state, f"{name}.squeeze")
        narrow = _convolution(state, f"{name}.expand1x1")
        wide = _convolution(state, f"{name}.expand3x3", padding=1)

        def step(maps: Tensor) -> Tensor:
            small = squeeze(maps)
            return torch.cat([narrow(small), wide(small)], dim=1)

        return step

    def pool(maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 3, 2, ceil_mode=True)

    first = _convolution(state, "features.0", stride=2)
    return Backbone("squeeze", (first, pool, fire(3), fire(4), pool, fire(6), fire(7)), (5, 6), 16)


def _alex(state: Mapping[str, Tensor]) -> Backbone:
    """Up to the fifth layer; the last three are the features."""

    def pool(maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 3, 2)

    steps = (
        _convolution(state, "features.0", stride=4, padding=2),
        pool,
        _convolution(state, "features.3", padding=2),
        pool,
        _convolution(state, "features.6", padding=1),
        _convolution(state, "features.8", padding=1),
        _convolution(state, "features.10", padding=1),
    )
    return Backbone("alex", steps, (4, 5, 6), 64)

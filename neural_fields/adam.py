"""Adam (Kingma and Ba 2015) for whole parameters and for tables of which a step touches a few rows.

The library's optimisers import torch's compiler the first time one is made: seconds of start-up in a tool that fits in
seconds. This one has the same arithmetic (a test compares them), keeps a step count per row, so that a row seen for the
first time late in a run is corrected like any other, and hands its memory out as plain tensors for checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class _Memory:
    """What Adam remembers of one parameter; `steps` has one count, or one for each row of a table."""

    parameter: Tensor
    rate: float
    betas: tuple[float, float]
    eps: float
    by_rows: bool
    mean: Tensor = field(init=False)
    square: Tensor = field(init=False)
    steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.parameter), torch.zeros_like(self.parameter)
        self.steps = torch.zeros(len(self.parameter) if self.by_rows else 1, dtype=torch.int64)


@dataclass(frozen=True)
class Patch:
    """The gradient of a rectangle of a picture [channels, rows, columns]; the rest of the picture has none."""

    top: int
    left: int
    gradient: Float[Tensor, "channel height width"]

    def of(self, picture: Float[Tensor, "channel rows columns"]) -> Float[Tensor, "channel height width"]:
        """The rectangle, as a view."""
        height, width = self.gradient.shape[1:]
        return picture[:, self.top : self.top + height, self.left : self.left + width]


class Adam:
    """The optimiser of a fit.

    A parameter whose attribute `patches` is a list of `Patch` that do not overlap is moved there only: a step sees a
    small part of a large picture.

    Args:
        groups: dictionaries with "params" and "lr", and maybe "betas", "eps" and "sparse" (tables [rows, values] whose
            gradient is sparse).
        betas, eps: for groups that do not bring their own.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-10) -> None:
        self.factor = 1.0  # all learning rates are multiplied with it
        self._memories = [
            _Memory(p, g["lr"], g.get("betas", betas), g.get("eps", eps), bool(g.get("sparse")))
            for g in groups
            for p in g["params"]
        ]

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for memory in self._memories:
            memory.parameter.grad = None
            memory.parameter.patches = []  # type: ignore[attr-defined]

    def gradients(self) -> Iterator[Tensor]:
        """The values of every gradient there is."""
        for memory in self._memories:
            gradient = memory.parameter.grad
            if gradient is not None:
                yield gradient.coalesce().values() if gradient.is_sparse else gradient
            yield from (patch.gradient for patch in _patches(memory.parameter))

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients."""
        for memory in self._memories:
            gradient = memory.parameter.grad
            if patches := _patches(memory.parameter):
                _step_patches(memory, patches, self.factor)
            if gradient is None:
                continue
            if gradient.is_sparse:
                gradient = gradient.coalesce()
                _step_rows(memory, gradient.indices()[0], gradient.values(), self.factor)
            else:
                _step_whole(memory, gradient, self.factor)

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""
        names = ("mean", "square", "steps")
        return {f"{n}.{name}": getattr(memory, name) for n, memory in enumerate(self._memories) for name in names}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` gave."""
        for number, memory in enumerate(self._memories):
            for name in ("mean", "square", "steps"):
                getattr(memory, name).copy_(tensors[f"{number}.{name}"])


def _patches(parameter: Tensor) -> list[Patch]:
    return getattr(parameter, "patches", [])


def _step_patches(memory: _Memory, patches: list[Patch], factor: float) -> None:
    """Moves rectangles of a picture, which remembers one count of steps: memory starts at zero everywhere, so a texel
    that is first seen late moves by about the learning rate all the same."""
    (first, second), memory.steps = memory.betas, memory.steps + 1
    count = int(memory.steps)
    for patch in patches:
        mean, square, gradient = patch.of(memory.mean), patch.of(memory.square), patch.gradient
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = square.div(1 - second**count).sqrt_().add_(memory.eps)
        patch.of(memory.parameter).addcdiv_(mean, scale, value=-memory.rate * factor / (1 - first**count))


def _step_whole(memory: _Memory, gradient: Float[Tensor, "*shape"], factor: float) -> None:
    """Moves a whole parameter."""
    (first, second), memory.steps = memory.betas, memory.steps + 1
    count = int(memory.steps)
    memory.mean.lerp_(gradient, 1 - first)
    memory.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    scale = memory.square.div(1 - second**count).sqrt_().add_(memory.eps)
    memory.parameter.addcdiv_(memory.mean, scale, value=-memory.rate * factor / (1 - first**count))


def _step_rows(
    memory: _Memory, rows: Int[Tensor, " rows"], gradient: Float[Tensor, "rows values"], factor: float
) -> None:
    """Moves some rows of a table."""
    first, second = memory.betas
    memory.steps[rows.cpu()] += 1
    count = memory.steps[rows.cpu()].to(gradient)[:, None]
    mean = memory.mean[rows].lerp_(gradient, 1 - first)
    square = memory.square[rows].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    memory.mean[rows], memory.square[rows] = mean, square
    scale = square.div_(1 - second**count).sqrt_().add_(memory.eps)
    memory.parameter[rows] -= mean.div_(1 - first**count).div_(scale).mul_(memory.rate * factor)

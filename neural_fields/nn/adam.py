"""Adam (Kingma and Ba 2015) for whole parameters and for tables of which a step touches a few rows.

The library's optimizers import torch's compiler the first time one is made: seconds of start-up in a tool that trains
in seconds. This one has the same arithmetic (a test compares them), keeps a step count per row, so that a row that gets
its first gradient late is corrected like any other, and hands its memory out as plain tensors for checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
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
class RectangleGradient:
    """The gradient of a rectangle of a picture [channels, rows, columns]; the rest of the picture has none."""

    top: int
    left: int
    gradient: Float[Tensor, "channel height width"]

    def crop(self, picture: Float[Tensor, "channel rows columns"]) -> Float[Tensor, "channel height width"]:
        """Returns the rectangle of a picture, as a view."""
        height, width = self.gradient.shape[1:]
        return picture[:, self.top : self.top + height, self.left : self.left + width]


class Adam:
    """The optimizer of a training.

    A parameter whose attribute `patches` is a list of `RectangleGradient` that do not overlap is moved there only: a
    step sees a small part of a large picture.

    Args:
        groups: dictionaries with "params" and "lr", and maybe "betas", "eps" and "sparse" (tables [rows, values] whose
            gradient is sparse).
        betas, eps: for groups that do not bring their own.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-10) -> None:
        self.rate_factor = 1.0  # all learning rates are multiplied with it
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

    def iterate_gradients(self) -> Iterator[Tensor]:
        """Yields the values of every gradient there is."""
        for memory in self._memories:
            gradient = memory.parameter.grad
            if gradient is not None:
                yield gradient.coalesce().values() if gradient.is_sparse else gradient
            yield from (patch.gradient for patch in _rectangle_gradients(memory.parameter))

    @torch.no_grad()
    def step(self) -> None:
        """Makes one step along the gradients."""
        for memory in self._memories:
            first, second = memory.betas
            rate = memory.rate * self.rate_factor
            # Rectangles of a picture, which remembers one count of steps: memory starts at zero everywhere, so a texel
            # that is first seen late moves by about the learning rate all the same.
            if patches := _rectangle_gradients(memory.parameter):
                memory.steps = memory.steps + 1
                count = int(memory.steps)
                for patch in patches:
                    mean, square, gradient = patch.crop(memory.mean), patch.crop(memory.square), patch.gradient
                    mean.lerp_(gradient, 1 - first)
                    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                    scale = square.div(1 - second**count).sqrt_().add_(memory.eps)
                    patch.crop(memory.parameter).addcdiv_(mean, scale, value=-rate / (1 - first**count))
            whole = memory.parameter.grad
            if whole is None:
                continue

            # The rows of a table that have a gradient, each with its own count of steps.
            if whole.is_sparse:
                sparse = whole.coalesce()
                rows, gradient = sparse.indices()[0], sparse.values()
                memory.steps[rows.cpu()] += 1
                counts = memory.steps[rows.cpu()].to(gradient)[:, None]
                mean = memory.mean[rows].lerp_(gradient, 1 - first)
                square = memory.square[rows].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                memory.mean[rows], memory.square[rows] = mean, square
                scale = square.div_(1 - second**counts).sqrt_().add_(memory.eps)
                memory.parameter[rows] -= mean.div_(1 - first**counts).div_(scale).mul_(rate)
                continue

            # A whole parameter.
            memory.steps = memory.steps + 1
            count = int(memory.steps)
            memory.mean.lerp_(whole, 1 - first)
            memory.square.mul_(second).addcmul_(whole, whole, value=1 - second)
            scale = memory.square.div(1 - second**count).sqrt_().add_(memory.eps)
            memory.parameter.addcdiv_(memory.mean, scale, value=-rate / (1 - first**count))

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns all that is remembered, by name."""
        names = ("mean", "square", "steps")
        return {f"{n}.{name}": getattr(memory, name) for n, memory in enumerate(self._memories) for name in names}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` gave."""
        for number, memory in enumerate(self._memories):
            for name in ("mean", "square", "steps"):
                getattr(memory, name).copy_(tensors[f"{number}.{name}"])


def _rectangle_gradients(parameter: Tensor) -> list[RectangleGradient]:
    """Returns the attribute that `zero_grad` sets; parameters that never were in an optimizer have none."""
    return getattr(parameter, "patches", [])

"""Adam (Kingma and Ba 2015) for dense parameters and for tables of which a step changes a few rows.

torch's optimizers import its compiler when the first one is made, which takes seconds in a tool that trains in seconds.
This one has the same arithmetic (a test compares them), keeps a step count for each row, so that the bias correction is
right for rows with a late first gradient, and returns its state as plain tensors for checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
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


class Adam:
    """Optimizes the parameters of a model with Adam.

    Args:
        groups: dictionaries with "params" and "lr", and optionally "betas", "eps" and "sparse" (for tables
            [rows, values] with sparse gradients).
        betas: decay of the two means, for groups without "betas".
        eps: added to the root of the second mean, for groups without "eps".

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = Adam([{"params": [weight], "lr": 0.1}])
        >>> optimizer.zero_grad()
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> print(f"{weight.item():.3f}")
        0.900
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-10) -> None:
        self.rate_factor = 1.0  # all learning rates are multiplied with it
        self._memories = [
            _Memory(p, g["lr"], g.get("betas", betas), g.get("eps", eps), bool(g.get("sparse")))
            for g in groups
            for p in g["params"]
        ]

    def zero_grad(self) -> None:
        """Clears all gradients."""
        for memory in self._memories:
            memory.parameter.grad = None

    def iterate_gradients(self) -> Iterator[Tensor]:
        """Yields the values of all gradients that are set."""
        for memory in self._memories:
            gradient = memory.parameter.grad
            if gradient is not None:
                yield gradient.coalesce().values() if gradient.is_sparse else gradient

    @torch.no_grad()
    def step(self) -> None:
        """Changes the parameters by one step."""
        for memory in self._memories:
            first, second = memory.betas
            rate = memory.rate * self.rate_factor
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
        """Returns the state of the optimizer: its tensors by name."""
        names = ("mean", "square", "steps")
        return {f"{n}.{name}": getattr(memory, name) for n, memory in enumerate(self._memories) for name in names}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restores the state that `state_tensors` returned."""
        for number, memory in enumerate(self._memories):
            for name in ("mean", "square", "steps"):
                getattr(memory, name).copy_(tensors[f"{number}.{name}"])

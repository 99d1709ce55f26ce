"""Anderson acceleration of a fixed-point iteration.

Walker and Ni, "Anderson Acceleration for Fixed-Point Iterations" (2011), in the form with differences.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class AndersonAcceleration:
    """Combines the last few passes of an iteration x -> g(x) so that it converges faster.

    Args:
        passes: that are remembered, at most.
        mib: of memory for them; long states are accelerated with fewer passes, but one at least.
    """

    def __init__(self, passes: int, mib: float) -> None:
        self.passes, self.mib = passes, mib
        self.moves: list[Tensor] = []  # differences of successive x
        self.changes: list[Tensor] = []  # differences of successive g(x) - x
        self.last: tuple[Tensor, Tensor] | None = None  # x and g(x) - x

    def accelerate(self, state: Float[Tensor, " n"], result: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Returns the state to go on from.

        Args:
            state: x.
            result: g(x).
        """
        rest = result - state
        best = result
        if self.last is not None:
            best = result.clone()
            passes = max(1, min(self.passes, int(self.mib * 2**20 / (2 * state.nbytes))))
            self.moves = [*self.moves, state - self.last[0]][-passes:]
            self.changes = [*self.changes, rest - self.last[1]][-passes:]
            products = torch.tensor([[float(a @ b) for b in self.changes] for a in self.changes], dtype=torch.float64)
            right = torch.tensor([float(a @ rest) for a in self.changes], dtype=torch.float64)
            damping = 1e-6 * products.trace() / len(products)
            weights = torch.linalg.solve(products + damping * torch.eye(len(products), dtype=torch.float64), right)
            for weight, move, change in zip(weights.tolist(), self.moves, self.changes, strict=True):
                best.sub_(move, alpha=weight).sub_(change, alpha=weight)
        self.last = (state, rest)
        return best

    def forget(self) -> None:
        """Forgets all passes."""
        self.moves, self.changes, self.last = [], [], None

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns what it remembers, by name."""
        tensors = {f"moves.{number}": move for number, move in enumerate(self.moves)}
        tensors |= {f"changes.{number}": change for number, change in enumerate(self.changes)}
        return tensors | (dict(zip(("last.x", "last.rest"), self.last, strict=True)) if self.last else {})

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state_tensors` returned; other names are left alone."""
        count = sum(name.startswith("moves.") for name in tensors)
        self.moves = [tensors[f"moves.{number}"] for number in range(count)]
        self.changes = [tensors[f"changes.{number}"] for number in range(count)]
        self.last = (tensors["last.x"], tensors["last.rest"]) if "last.x" in tensors else None

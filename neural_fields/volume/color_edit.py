"""Color edits of a field: a change of color that depends on the position. Density is not changed.

A field adds it to its colors before their sigmoid. It is a sum of grids from coarse to fine, so that large parts can
change color together in few steps and detail comes after them; all zeros, as it starts, change nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.nn.hash_grid import HashGrid, HashGridConfig, compute_growth

FIELD_MODULES = {
    "person": "person.field",
    "background": "background",
}  # modules with density and color of the parts


@dataclass(frozen=True)
class PaintConfig:
    """Sizes of a paint."""

    n_levels: int = 6
    """Grids, from coarse to fine."""
    n_features: int = 4
    """Numbers of a vertex: a hash grid has 1, 2, 4 or 8, so that one of them is not used."""
    log2_table: int = 15
    """Entries of a grid at most, as a power of two."""
    base_resolution: int = 4
    """Vertices of the coarsest grid along each axis."""
    finest: int = 96
    """Vertices of the finest grid along each axis."""
    fade: float = 1.0
    """How much less a finer grid counts: its share falls as the size of its cells to this power."""


# A background is many times larger than a person, and its strokes are to show.
PAINT_CONFIGS = {
    "person": PaintConfig(),
    "background": PaintConfig(log2_table=16, base_resolution=8, finest=256, fade=0.5),
}


class ColorPaint(nn.Module):
    """Computes a change of color in the unit cube.

    Details of pictures are weaker the finer they are, about as their size (Field, 1987): each grid counts for less than
    the coarser one before it.
    """

    shares: Tensor

    def __init__(self, config: PaintConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or PaintConfig()
        growth = compute_growth(c.finest, c.base_resolution, c.n_levels)
        self.grid = HashGrid(3, HashGridConfig(c.n_levels, c.n_features, c.log2_table, c.base_resolution, growth))
        nn.init.zeros_(self.grid.params)
        shares = growth ** (-c.fade * torch.arange(c.n_levels, dtype=torch.float32))
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Computes the change of colors before the sigmoid, at positions in [0, 1]."""
        levels = self.grid(points).view(len(points), -1, self.config.n_features)[..., :3]  # RGB
        return torch.einsum("nlc,l->nc", levels, self.shares)


def add_paint(scene: nn.Module, part: str) -> None:
    """Gives a part of a scene a paint that changes nothing yet, unless it has one.

    A field's attribute `paint` is None until then. Parameters of a paint are called `person.field.paint.*` and
    `background.paint.*`.
    """
    field = scene.get_submodule(FIELD_MODULES[part])
    if field.paint is None:
        field.paint = ColorPaint(PAINT_CONFIGS[part]).to(next(field.parameters()).device)


def add_paints(scene: nn.Module, names: Iterable[str]) -> None:
    """Gives a scene the paints to which parameters of these names belong."""
    for part, field in FIELD_MODULES.items():
        if any(name.startswith(f"{field}.paint.") for name in names):
            add_paint(scene, part)

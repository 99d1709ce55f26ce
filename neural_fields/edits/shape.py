"""The deformation of a layer, as an edit stores it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_fields.core.box import Box
from neural_fields.imaging.resampling import sample_bilinear


@dataclass(frozen=True)
class Deformation:
    """Holds a deformation of a layer.

    Attributes:
        field: displacement in uv units at the centers of equal cells of `box`; zero at its rim, and beyond.
        box: the part of the canonical plane that is deformed.
        span: the first and the last frame of the run that it is for; None: it is for all frames.
        strength: the strength in frame `t` of a run, 0 to 1.
    """

    field: Float[np.ndarray, "2 height width"]
    box: Box
    span: tuple[int, int] | None = None
    strength: Callable[[int], float] = lambda t: 1.0

    def at_frame(self, t: int) -> Deformation:
        """Returns the part of the deformation that frame `t` shows."""
        is_meant = self.span is None or self.span[0] <= t <= self.span[1]
        strength = self.strength(t) if is_meant else 0.0
        return self if strength == 1 else Deformation(np.float32(strength) * self.field, self.box, self.span)

    def displacement_at(self, uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Samples the displacement at any uv."""
        height, width = self.field.shape[1:]
        x = (uv[:, 0] - self.box.u0) / self.box.width * width - 0.5
        y = (uv[:, 1] - self.box.v0) / self.box.height * height - 0.5
        image = np.ascontiguousarray(np.moveaxis(self.field, 0, -1))
        return sample_bilinear(image, x.astype(np.float32), y.astype(np.float32))

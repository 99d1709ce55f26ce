"""Point tracks: where points are in every frame, and where they are visible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class PointTracks:
    """The positions and the visibility of points in every frame."""

    positions: Float[np.ndarray, "points frames 2"]  # in pixels; also where a point is hidden or outside the frame
    visibility: Bool[np.ndarray, "points frames"]

"""Animated overlays of a layer, one for each frame: an edited unwrapped clip, a video as a background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from neural_fields.core.box import Box


@dataclass(frozen=True)
class AnimatedOverlay:
    """Holds an overlay for every frame of a run.

    Attributes:
        frames: opens the sequence from its start, frame by frame of the run: RGBA with straight alpha, all of one size.
        count: the number of overlays: that of the run's frames, or one that is the same in all of them.
        box: the part of the canonical plane that they cover; None: each covers the video's frame itself.
        notes: what the user should know about how they were made.
    """

    frames: Callable[[], Iterator[UInt8[np.ndarray, "height width 4"]]]
    count: int
    box: Box | None
    notes: tuple[str, ...] = ()

"""What a 3D fit starts from: pictures with cameras, the person's masks, bones, and when the carried object changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields.data.cameras import Camera
from neural_fields.data.skeleton import Motion


@dataclass(frozen=True)
class Capture:
    """Views of a scene. Several views may show one moment: `times` says which.

    Attributes:
        cameras: one a view, all of the size of `frames`.
        frames: RGB.
        times: the moment that a view shows: an index into the frames of `motion`.
        masks: where the person and what they carry are seen; None where nobody is.
        motion: the bones at every moment; None for a scene without a person.
        switches: moments from which the carried object is in its next state, rising; state k begins at switches[k - 1].
        notes: what a user should know about how it was read, one sentence each.
    """

    cameras: tuple[Camera, ...]
    frames: UInt8[np.ndarray, "views height width 3"]
    times: tuple[int, ...]
    masks: Bool[np.ndarray, "views height width"] | None = None
    motion: Motion | None = None
    switches: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def view_count(self) -> int:
        return len(self.cameras)

    @property
    def size(self) -> tuple[int, int]:
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def state_count(self) -> int:
        return len(self.switches) + 1


def state_at(switches: tuple[int, ...], time: int) -> int:
    """The object's state at a moment."""
    return sum(time >= switch for switch in switches)

"""The data of a 3D scene: frames with cameras, masks of the person, bones, and the changes of the held object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.skeleton import SkeletonMotion


@dataclass(frozen=True)
class Capture:
    """Views of a 3D scene. Several views may show one moment: `times` says which.

    Attributes:
        cameras: one a view, all of the size of `frames`.
        frames: RGB.
        times: the moment that a view shows: an index into the frames of `motion`.
        masks: the visible person with carried objects; None for a scene without a person.
        motion: the bones at every moment; None for a scene without a person.
        switches: moments from which the held object is in its next state, rising; state k begins at switches[k - 1].
        notes: for the user, on how the files were read; one sentence each.
    """

    cameras: tuple[Camera, ...]
    frames: UInt8[np.ndarray, "views height width 3"]
    times: tuple[int, ...]
    masks: Bool[np.ndarray, "views height width"] | None = None
    motion: SkeletonMotion | None = None
    switches: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def view_count(self) -> int:
        """The number of views."""
        return len(self.cameras)

    @property
    def size(self) -> tuple[int, int]:
        """Returns width and height of the views in pixels."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def state_count(self) -> int:
        """The number of states of the held object, at least 1."""
        return len(self.switches) + 1


def find_object_state(switches: tuple[int, ...], time: int) -> int:
    """Returns the index of the held object's state at a moment."""
    return sum(time >= switch for switch in switches)

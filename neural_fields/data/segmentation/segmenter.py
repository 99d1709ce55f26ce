"""What finds objects in a clip from hints: the base class of all ways to do it, and what goes in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8

from neural_fields.core.progress import ProgressReporter
from neural_fields.data.flow.compute import FlowField


@dataclass(frozen=True)
class FrameHints:
    """Holds what the user said about one object in one frame, at the size of the frames that are segmented.

    Attributes:
        labels: 1 surely the object, -1 surely not, 0 not said: points and strokes.
        box: left, top, right and bottom, in pixels; the object is inside. None without a box.
        mask: the whole object. None unless the user gave it.
    """

    labels: Int8[np.ndarray, "height width"]
    box: tuple[int, int, int, int] | None = None
    mask: Bool[np.ndarray, "height width"] | None = None


@dataclass(frozen=True)
class ClipSegmentation:
    """Holds the objects of a clip.

    Attributes:
        names: of the objects, front to back.
        shares: share of each object in each pixel, 0 to 255; 128 and more is the object.
        confidence: how sure each object is in each frame, 0 to 1; 0 where it was not found.
        notes: for the user, one sentence each.
    """

    names: tuple[str, ...]
    shares: UInt8[np.ndarray, "objects time height width"]
    confidence: Float[np.ndarray, "objects time"]
    notes: tuple[str, ...] = ()


class ObjectSegmenter(ABC):
    """Finds the objects that a user points at in all frames of a clip."""

    @abstractmethod
    def segment(
        self,
        frames: UInt8[np.ndarray, "time height width 3"],
        flow: FlowField,
        objects: Mapping[str, Mapping[int, FrameHints]],
        report: ProgressReporter,
    ) -> ClipSegmentation:
        """Finds the objects.

        Args:
            frames: RGB; may be memory-mapped.
            flow: between neighboring frames, at the size of the frames.
            objects: for each object its hints, by the number of the frame in the clip.
            report: called with the progress.

        Raises:
            UserError: hints that contradict each other, or that no object fits (exit 3).
        """

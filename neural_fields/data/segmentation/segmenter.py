"""What finds objects in a clip from hints: the base class of all ways to do it, and what goes in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8

from neural_fields.core.errors import UserError, bad_input
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

    @property
    def marked_mask(self) -> Bool[np.ndarray, "height width"]:
        """The mask that the user gave, with what else they marked in its frame."""
        assert self.mask is not None
        return (self.mask | (self.labels > 0)) & (self.labels >= 0)


@dataclass(frozen=True)
class ClipSegmentation:
    """Holds the objects of a clip.

    Attributes:
        names: of the objects, in the order in which they were asked for.
        shares: share of each object in each pixel, 0 to 255; 128 and more is the object. Objects may overlap until
            they are told apart.
        confidence: how sure each object is in each frame, 0 to 1, about the IoU to expect; 0 where it was not found.
        notes: for the user, one sentence each.
    """

    names: tuple[str, ...]
    shares: UInt8[np.ndarray, "objects time height width"]
    confidence: Float[np.ndarray, "objects time"]
    notes: tuple[str, ...] = ()


class UnusableHintsError(UserError):
    """Says that no object fits the hints of one frame.

    Args:
        name: of the object.
        frame: number of the frame in the clip.
        problem: what is wrong with the hints.
    """

    def __init__(self, name: str, frame: int, problem: UserError) -> None:
        where = f"{name}, {problem.where or f'frame {frame}'}"
        super().__init__(problem.code, problem.what, where=where, why=problem.why, fix=problem.fix)
        self.name = name
        self.frame = frame


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
        """Finds the objects, each as if it were alone.

        Args:
            frames: RGB; may be memory-mapped.
            flow: between neighboring frames, at the size of the frames.
            objects: for each object its hints, by the number of the frame in the clip.
            report: called with the progress.

        Raises:
            UserError: hints that contradict each other, or that no object fits (exit 3); an `UnusableHintsError` where
                it is those of one frame.
        """

    def separate(
        self,
        frames: UInt8[np.ndarray, "time height width 3"],
        flow: FlowField,
        objects: Mapping[str, Mapping[int, FrameHints]],
        found: ClipSegmentation,
        order: Sequence[str],
        report: ProgressReporter,
    ) -> ClipSegmentation:
        """Tells objects apart that were each found as if they were alone. Here, a pixel goes to the surest of them.

        Args:
            frames: RGB; may be memory-mapped.
            flow: between neighboring frames, at the size of the frames.
            objects: for each object its hints, by the number of the frame in the clip.
            found: what was found of each, named in the same order.
            order: names of objects whose order the user gave, front to back; may be empty.
            report: called with the progress.

        Returns:
            The objects, none of whose pixels is that of another one.
        """
        shares = found.shares.copy()
        settle_overlaps(shares)
        return replace(found, shares=shares)


def missing_place_error(name: str, hints: Mapping[int, FrameHints]) -> UserError:
    """Makes the error of an object of which only pixels are marked that do not belong to it."""
    return bad_input(
        f"{name}: nothing says where the object is",
        why="there are only pixels that do not belong to it",
        fix=f"unwrap mask VIDEO --object {name} --frame {min(hints, default=0)} --box x,y,width,height",
    )


def settle_overlaps(shares: UInt8[np.ndarray, "objects time height width"]) -> None:
    """Gives each pixel that several objects want to the surest of them, in place, a frame at a time."""
    for number in range(shares.shape[1] if len(shares) > 1 else 0):
        plane = shares[:, number].astype(np.int32)
        top = plane.max(axis=0)
        others = plane.sum(axis=0) - top
        too_much = others + top > 255
        if too_much.any():
            winner = np.arange(len(plane))[:, None, None] == plane.argmax(axis=0)
            scaled = plane * (255 - top) // np.maximum(others, 1)
            shares[:, number] = np.where(too_much & ~winner, scaled, plane)

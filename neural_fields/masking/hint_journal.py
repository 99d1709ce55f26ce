"""The journal of hints, hints.jsonl: the video that they are about, then one line for each step; append-only.

A step adds the hints of one command, or takes back the last step that is in force, or restores the last that was taken
back; a command that failed cancels its step, as if it had never been. Pictures of strokes and masks are copied into a
folder beside the journal, named by their content.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool

from neural_fields.config.loader import from_mapping, to_mapping
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import atomic_write, disk_errors, make_folder, sha256_file, write_synced
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.masking.hints import AnyHint, MaskHint, StrokeHint

HINTS_FILE = "hints.jsonl"
PICTURES_FOLDER = "hints"


@dataclass(frozen=True, kw_only=True)
class HintedVideo:
    """Identifies the video of a journal: its first line.

    Attributes:
        schema: version of the journal; a program refuses journals with another version.
        sha256: of the video's content.
        size: (width, height) in pixels.
        frame_count: number of frames.
        first_number: number of the first frame.
    """

    schema: Literal[1] = 1
    sha256: str
    size: tuple[int, int]
    frame_count: int
    first_number: int = 0


@dataclass(frozen=True)
class HintStep:
    """Holds a line of the journal after the first.

    Attributes:
        operation: what was done.
        hints: for "add": the hints.
    """

    operation: Literal["add", "undo", "redo", "cancel"]
    hints: tuple[AnyHint, ...] = ()


@dataclass(frozen=True)
class HintHistory:
    """Holds the state after all lines of a journal.

    Attributes:
        done: steps that are in force, oldest first.
        undone: steps that "redo" can restore, the last undone last.
        before: the state before the last step, which "cancel" restores; None without it.
    """

    done: tuple[HintStep, ...] = ()
    undone: tuple[HintStep, ...] = ()
    before: HintHistory | None = field(default=None, compare=False, repr=False)

    @property
    def hints(self) -> tuple[AnyHint, ...]:
        """The hints in force, oldest first."""
        return tuple(hint for step in self.done for hint in step.hints)

    def apply(self, step: HintStep) -> HintHistory:
        """Returns the state after one more step; undoing or redoing nothing changes nothing."""
        before = replace(self, before=None)  # one step can be canceled: the last one
        if step.operation == "add":
            return HintHistory((*self.done, step), before=before)
        if step.operation == "undo":
            return HintHistory(self.done[:-1], (*self.undone, *self.done[-1:]), before)
        if step.operation == "redo":
            return HintHistory((*self.done, *self.undone[-1:]), self.undone[:-1], before)
        return self.before or self


def identify_video(metadata: VideoMetadata) -> HintedVideo:
    """Returns the first line of a journal about a video."""
    size = (metadata.width, metadata.height)
    count, first = metadata.frame_count, metadata.first_number
    return HintedVideo(sha256=metadata.sha256, size=size, frame_count=count, first_number=first)


def read_hints(folder: Path, metadata: VideoMetadata | None = None) -> HintHistory:
    """Reads the journal of a folder of masks.

    Args:
        folder: the folder; without a journal there are no hints.
        metadata: the video that the hints must be about; None takes those of any video.

    Returns:
        The steps in force, and those that can be redone.

    Raises:
        UserError: hints of another video (exit 3), or a damaged journal (5).
    """
    path = folder / HINTS_FILE
    # A last line without its end was cut by a power cut, or is the empty rest after the last line.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    history = HintHistory()
    for number, line in enumerate(lines, start=1):
        try:
            if number == 1:
                video = from_mapping(HintedVideo, json.loads(line))
            else:
                history = history.apply(from_mapping(HintStep, json.loads(line)))
        except (ValueError, RecursionError, UserError) as problem:
            why = f"line {number}: {problem.what if isinstance(problem, UserError) else 'not JSON'}"
            fix = "restore it from a copy, or give the hints again in another folder: --out FOLDER"
            raise UserError(
                ExitCode.DAMAGED_RUN, f"{path.name} is damaged", where=str(path), why=why, fix=fix
            ) from None
        if number == 1 and metadata is not None and video != identify_video(metadata):
            size = f"{video.size[0]}x{video.size[1]} and {video.frame_count} frames"
            own_size = f"{metadata.width}x{metadata.height} and {metadata.frame_count} frames"
            other = "other pictures of the same size" if size == own_size else own_size
            raise bad_input(
                f"the hints in {folder} are about another video",
                where=str(path),
                why=f"that has {size}, {metadata.path} has {other}",
                fix=f"unwrap mask {metadata.path} --out ANOTHER_FOLDER",
            )
    return history


def append_step(folder: Path, metadata: VideoMetadata, step: HintStep) -> None:
    """Appends a step. Earlier lines are never rewritten, except a last one that a power cut left incomplete.

    Args:
        folder: the folder of masks, which is made if it is missing.
        metadata: the video that the hints are about.
        step: what was done.
    """
    path = folder / HINTS_FILE
    line = json.dumps(to_mapping(step, without_defaults=True)).encode() + b"\n"
    with disk_errors(path):
        kept = path.read_bytes() if path.exists() else b""
        kept = kept[: kept.rfind(b"\n") + 1]
        if not kept or path.stat().st_size != len(kept):
            kept = kept or json.dumps(to_mapping(identify_video(metadata))).encode() + b"\n"
            with atomic_write(path) as part:
                write_synced(part, kept + line)
            return
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def store_pictures(folder: Path, hints: Sequence[AnyHint]) -> tuple[AnyHint, ...]:
    """Copies the pictures of strokes and masks beside the journal, so that the hints last.

    Args:
        folder: the folder of masks.
        hints: hints whose pictures were read and checked already.

    Returns:
        The hints, with the copies as their files, relative to `folder`.
    """
    stored: list[AnyHint] = []
    for hint in hints:
        if isinstance(hint, StrokeHint | MaskHint) and not is_stored(hint.file):
            name = Path(PICTURES_FOLDER) / f"{sha256_file(hint.file)[:24]}{hint.file.suffix.lower()}"
            target = folder / name
            if not target.exists():
                with disk_errors(target):
                    make_folder(target.parent)
                    with atomic_write(target) as part:
                        write_synced(part, hint.file.read_bytes())
            hint = replace(hint, file=name)
        stored.append(hint)
    return tuple(stored)


def store_mask(folder: Path, mask: Bool[np.ndarray, "height width"]) -> Path:
    """Writes a mask beside the journal, named by its content; returns the path relative to `folder`."""
    _, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    name = Path(PICTURES_FOLDER) / f"{hashlib.sha256(data.tobytes()).hexdigest()[:24]}.png"
    with atomic_write(folder / name) as part:
        write_synced(part, data.tobytes())
    return name


def is_stored(file: Path) -> bool:
    """Whether the file of a hint is the copy beside the journal."""
    return file.parent == Path(PICTURES_FOLDER) and len(file.stem) == 24

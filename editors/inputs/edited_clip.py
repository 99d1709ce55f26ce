"""Tells a clip that another program painted on from one that it only saved again, or restyled as a whole.

Who encodes frames again changes every pixel of them, and nothing of that is paint. So some frames are compared with
those of the source as a single painted frame is (`match_to_original.py`). They tell the conversion of colors, whether
the frames are copies at all, and whether they are those of the run. With the conversion undone, every frame is then
searched for clear paint at a smaller size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from editors.inputs.clear_paint import find_clear_paint
from editors.inputs.color_match import ColorMap
from editors.inputs.frame_recognition import check_frame_number
from editors.inputs.match_to_original import match_to_original
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.imaging.image_io import make_picture
from neural_fields.open_runs.planar_run import PlanarRun

Frame = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class EditedClipSettings:
    """Settings of the comparison of an edited clip with its source."""

    samples: int = 5  # frames that are compared thoroughly, evenly spread
    side_px: int = 960  # longer side of the pictures in which every frame is searched for paint
    whole_share: float = 0.35  # share of a frame with clear paint from which it was restyled as a whole


DEFAULTS = EditedClipSettings()


@dataclass(frozen=True)
class ClipPaint:
    """Holds what an edited clip shows beside the source.

    Attributes:
        colors: the conversion from the colors of the source to those of the clip.
        painted: indices, in the run, of the frames with paint.
    """

    colors: ColorMap
    painted: tuple[int, ...]


def find_painted_frames(
    run: PlanarRun,
    open_frames: Callable[[], Iterator[Frame]],
    name: str,
    report: ProgressReporter,
    settings: EditedClipSettings = DEFAULTS,
) -> ClipPaint | None:
    """Finds the frames of an edited clip that carry paint.

    Args:
        run: the open run.
        open_frames: returns an iterator over the edited frames of the run, from the first; called twice.
        name: name of the clip, for messages.
        report: called with the number of frames that were compared.
        settings: how many frames are compared thoroughly, and at which size all of them are.

    Returns:
        The paint; None if the clip was restyled as a whole, so that all of it is the edit.

    Raises:
        UserError: the frames are cropped, shifted, stretched or mirrored, or are other frames of the video (exit 3).
    """
    count = run.frame_count
    sampled = {round(place) for place in np.linspace(0, count - 1, min(count, settings.samples))}
    matches = []
    for t, frame in enumerate(open_frames()):
        if t in sampled:
            number = run.frames[t]
            size = (frame.shape[1], frame.shape[0])
            base = _resize_down(run.read_frame(number), size)
            try:
                match = match_to_original(
                    _to_floats(frame), _to_floats(base), np.ones(frame.shape[:2], bool), f"the frame {number}", name,
                    False, run.source_size,
                )  # fmt: skip
            except UserError:
                _check_order(run, frame, number, name)  # where the camera pans, another frame looks like a shifted one
                raise
            if match.clear is None or match.clear.mask.mean() > settings.whole_share:
                continue
            _check_order(run, frame, number, name)
            matches.append(match)
    if 2 * len(matches) <= len(sampled):
        return None
    colors = max((match.colors for match in matches), key=lambda one: one.gain)
    painted = []
    for t, (frame, plain) in enumerate(zip(open_frames(), run.iterate_frames(), strict=True)):
        height, width = frame.shape[:2]
        scale = min(1.0, settings.side_px / max(width, height))
        size = (round(width * scale), round(height * scale))
        small, base = (_to_floats(_resize_down(one, size)) for one in (frame, plain))
        clear = find_clear_paint(small, colors.convert(base), np.ones(small.shape[:2], bool))
        if clear.mask.any():
            painted.append(t)
        report(Progress("comparing", t + 1, count))
    return ClipPaint(colors, tuple(painted))


def _check_order(run: PlanarRun, frame: Frame, number: int, name: str) -> None:
    """Refuses a frame that is another one of the video than its place in the clip says."""
    try:
        check_frame_number(run, make_picture(frame, f"a frame of {name}"), number)
    except UserError as problem:
        fix = "give all frames of the run or of its source, in their order"
        raise bad_input(problem.what, where=name, why=problem.why, fix=fix) from problem


def _to_floats(frame: Frame) -> np.ndarray:
    return frame.astype(np.float32) / 255


def _resize_down(frame: Frame, size: tuple[int, int]) -> Frame:
    return frame if frame.shape[1::-1] == size else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)

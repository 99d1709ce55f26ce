"""Finds the frame of a clip that a picture was painted on, by its comment and by what it shows.

`unwrap frame` writes the number into the file, and many programs keep it. What the picture shows is compared with all
frames at the size of the training, which tells neighbors apart by a few pixels that moved, however much was painted.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.inputs.color_match import estimate_color_map
from editors.inputs.match_to_original import find_misplacement, measure_fit
from neural_fields.core.errors import bad_input
from neural_fields.export.pictures.frame_picture import parse_frame_comment
from neural_fields.imaging.alpha import resize_image
from neural_fields.imaging.image_io import Picture
from neural_fields.open_runs.planar_run import PlanarRun

Frame = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class RecognitionSettings:
    """Settings of the recognition of frames. Levels are 8-bit levels of a color."""

    thumbnail_px: int = 64  # longer side of the pictures that are correlated with all frames
    blur_px: int = 3
    most_levels: float = 24.0  # larger differences count as this much: they may be paint
    margin_levels: float = 6.0  # a pixel speaks for the frame that it is nearer to by this much
    near_levels: float = 16.0  # and at most this far from
    min_pixels: int = 24  # least number of pixels that speak for another frame
    min_ratio: float = 2.0  # how many times more pixels must speak for another frame than for the given one
    min_fit: float = 0.1  # least share of the given frame that must be left, unless the picture looks like a frame
    min_correlation: float = 0.5  # of thumbnails, for a frame that was not given


DEFAULTS = RecognitionSettings()


def check_frame_number(run: PlanarRun, picture: Picture, number: int, settings: RecognitionSettings = DEFAULTS) -> None:
    """Refuses a picture that was painted on another frame than the given one.

    Args:
        run: the open run.
        picture: the painted picture, with the aspect ratio of a frame.
        number: number of the frame in the source that the user gave.
        settings: thresholds of the comparison.

    Raises:
        UserError: another frame fits clearly better, or the file says that it is another one (exit 3).
    """
    told = parse_frame_comment(picture.comment, run)
    if told == number:
        return
    comparison = _FrameComparison.open(run, picture, number, settings)
    frames = run.video.frames
    every, shown = np.ones(frames.shape[1:3], bool), comparison.shown.astype(np.float32) / 255
    left = measure_fit(shown, comparison.given.astype(np.float32) / 255, every)
    likeness = _correlate_thumbnails(frames, picture, settings).max()
    if left is not None and left < settings.min_fit and likeness < settings.min_correlation:
        misplaced = find_misplacement(
            shown, comparison.given.astype(np.float32) / 255, every, 0.0, f"the frame {number}", picture.source,
            run.source_size,
        )  # fmt: skip
        raise (
            misplaced.error
            if misplaced is not None
            else bad_input(
                f"{picture.source or 'the picture'} looks like no frame of the video",
                where=picture.source,
                why=f"only {left:.0%} of frame {number} is left in it",
                fix=f"paint on the frame that `unwrap frame {run.path} {number}` writes",
            )
        )
    best = told if told is not None else comparison.find_best()
    if best == number or not comparison.prefers(best):
        return
    # Where the camera pans, a shifted canvas looks like another frame, too.
    given, other = (frames[run.frames.index(one)].astype(np.float32) / 255 for one in (number, best))
    name, share = f"the frame {number}", measure_fit(shown, other, every)
    if told is None and share is not None:
        misplaced = find_misplacement(shown, given, every, 0.0, name, picture.source, run.source_size)
        if misplaced is not None and misplaced.share > share:
            raise misplaced.error
    raise bad_input(
        f"{picture.source or 'the picture'} looks like frame {best}, not like frame {number}",
        where=picture.source,
        why=f"where the two differ, it shows frame {best}; the first frame of the video is {run.metadata.first_number}",
        fix=f"use --frame {best}, or paint on the frame that `unwrap frame {run.path} {number}` writes",
    )


def recognize_frame(run: PlanarRun, picture: Picture, settings: RecognitionSettings = DEFAULTS) -> int | None:
    """Finds the frame that a picture was painted on; None if it looks like none.

    Args:
        run: the open run.
        picture: the painted picture.
        settings: thresholds of the comparison.
    """
    told = parse_frame_comment(picture.comment, run)
    if told is not None:
        return told
    width, height = run.source_size
    if abs(picture.size[0] / picture.size[1] * height / width - 1) > 0.02:
        return None
    likeness = _correlate_thumbnails(run.video.frames, picture, settings)
    if likeness.max() < settings.min_correlation:
        return None
    return _FrameComparison.open(run, picture, run.frames[int(likeness.argmax())], settings).find_best()


@dataclass(frozen=True)
class _FrameComparison:
    """Compares a picture with all frames of a run, at the size of the training.

    Attributes:
        run: the open run.
        shown: the picture in the colors of the clip.
        given: the frame that the user gave.
        settings: thresholds.
    """

    run: PlanarRun
    shown: Frame
    given: Frame
    settings: RecognitionSettings

    @classmethod
    def open(cls, run: PlanarRun, picture: Picture, number: int, settings: RecognitionSettings) -> _FrameComparison:
        """Brings the picture to the size and the colors of the clip.

        Args:
            run: the open run.
            picture: the painted picture.
            number: number of the frame in the source that the user gave.
            settings: thresholds of the comparison.
        """
        frames = run.video.frames
        height, width = frames.shape[1:3]
        small = resize_image(np.ascontiguousarray(picture.rgba[..., :3]), (width, height))
        given = np.asarray(frames[run.frames.index(number)])
        likest = np.asarray(frames[int(_correlate_thumbnails(frames, picture, settings).argmax())])
        # A conversion of colors is that of the frame which it explains better.
        tried = []
        for frame in (given, likest):
            colors = estimate_color_map(small, frame.astype(np.float32) / 255, np.ones((height, width), bool))
            shown = np.rint(255 * (colors.invert(small) if colors.shift else small)).astype(np.uint8)
            tried.append(
                (float(np.minimum(_measure_distance(shown, frame, settings), settings.most_levels).mean()), shown)
            )
        return cls(run, min(tried, key=lambda one: one[0])[1], given, settings)

    def find_best(self) -> int:
        """Returns the number of the frame that fits best; paint counts the same for all of them."""
        limit = self.settings.most_levels
        costs = [
            float(np.minimum(_measure_distance(self.shown, np.asarray(frame), self.settings), limit).mean())
            for frame in self.run.video.frames
        ]
        return self.run.frames[int(np.argmin(costs))]

    def prefers(self, number: int) -> bool:
        """Tells whether the picture shows another frame where that differs from the given one."""
        settings = self.settings
        frame = np.asarray(self.run.video.frames[self.run.frames.index(number)])
        there, here = (_measure_distance(self.shown, one, settings) for one in (frame, self.given))
        for_it = int(((there + settings.margin_levels < here) & (there < settings.near_levels)).sum())
        against = int(((here + settings.margin_levels < there) & (here < settings.near_levels)).sum())
        return for_it >= settings.min_pixels and for_it > settings.min_ratio * against


def _measure_distance(one: Frame, other: Frame, settings: RecognitionSettings) -> Float[np.ndarray, "height width"]:
    """Measures the distance of local means, in levels."""
    window = (settings.blur_px,) * 2
    off = cv2.absdiff(cv2.blur(one, window), cv2.blur(other, window))
    return off.max(axis=-1).astype(np.float32)


def _correlate_thumbnails(
    frames: np.ndarray, picture: Picture, settings: RecognitionSettings
) -> Float[np.ndarray, " n"]:
    """Correlates the brightness of small versions of the picture and of all frames."""
    height, width = frames.shape[1:3]
    scale = settings.thumbnail_px / max(width, height)
    size = (max(4, round(width * scale)), max(4, round(height * scale)))
    stack = np.stack([cv2.resize(np.asarray(frame), size, interpolation=cv2.INTER_AREA) for frame in frames])
    own = resize_image(np.ascontiguousarray(picture.rgba[..., :3]), size)
    vectors = [one.mean(axis=-1).reshape(len(one), -1) for one in (stack.astype(np.float32) / 255, own[None])]
    centered = [one - one.mean(axis=1, keepdims=True) for one in vectors]
    length = [np.linalg.norm(one, axis=1) + 1e-6 for one in centered]
    return (centered[0] @ centered[1][0]) / (length[0] * length[1])

"""Edit by unwrapped clip: paint on the unwrapped frames of a layer becomes one overlay per frame.

Every edited frame is compared with the exported unwrapped frame, which is rendered here again. As for pictures
(`canonical_picture.py`), a difference counts where it exceeds the noise of the file, and a conversion of all colors is
undone: the first frame that shows enough of the layer tells it (`match_to_original.py`).
"""

from __future__ import annotations

import tempfile
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from jaxtyping import UInt8

from editors.inputs.color_match import IDENTITY, ColorMap
from editors.inputs.frame_change import DEFAULTS as PAINT_DEFAULTS
from editors.inputs.frame_change import FramePaintSettings, find_frame_paint
from editors.inputs.match_to_original import match_to_original
from editors.inputs.sizes import MAX_SCALE
from neural_fields.core.errors import bad_input
from neural_fields.core.files import disk_errors
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.core.validated_input import read_json_object
from neural_fields.data.video.io import probe_video, source_frames
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.export.pictures.unwrapped import CanonicalFill, has_same_aspect, parse_unwrapped_size
from neural_fields.imaging.tiles import Part, bounding_part
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.uv_space import CanonicalPlane, UnwrappedFrame

LOSSLESS_CODECS = (
    "ffv1",
    "png",
    "apng",
    "tiff",
    "tif",
    "bmp",
    "qtrle",
    "huffyuv",
    "ffvhuff",
    "utvideo",
    "magicyuv",
    "rawvideo",
)
RGB_FORMATS = ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr")  # pixel formats without a color matrix


@dataclass(frozen=True)
class UnwrappedEditSettings:
    """Settings of the comparison of an edited unwrapped clip with the exported one."""

    margin_texels: int = 16  # margin around the visible part; paint farther away would not be visible
    min_unseen_texels: int = 64  # least number of unseen texels for estimating their fill
    max_fill_levels: int = 24  # 8-bit levels: larger differences from the fill are paint
    min_told_texels: int = 4096  # least number of seen texels of a frame that tells the conversion of colors
    max_exact_levels: int = 1  # 8-bit levels: if most texels differ by more, saving changed them in any format
    paint: FramePaintSettings = PAINT_DEFAULTS


DEFAULTS = UnwrappedEditSettings()

Frame = UInt8[np.ndarray, "height width 3"]


def read_unwrapped_paint(
    run: PlanarRun,
    path: Path,
    layer: str | None = None,
    report: ProgressReporter = report_nothing,
    settings: UnwrappedEditSettings = DEFAULTS,
) -> tuple[str, AnimatedOverlay]:
    """Finds the paint on the unwrapped clip of a layer, for every frame of the run.

    The colors include the lighting of the frames on which they were painted: the layer's lighting must not be applied
    to them again.

    Args:
        run: the open run.
        path: the edited clip, in any readable format, or a folder of numbered pictures; with as many frames as the run,
            of the shape of the canonical picture.
        layer: name of the layer; by default the layer that unwrapped.json beside the clip, or in the run, names.
        report: called with the progress.
        settings: thresholds of the comparison.

    Returns:
        The name of the layer, and its paint.

    Raises:
        UserError: a wrong number of frames, a wrong shape, an unknown layer, a clip that cannot be read, or no change
            (exit 3).
    """
    if layer is None:
        for file in (path.parent / "unwrapped.json", run.files.exports / "unwrapped" / "unwrapped.json"):
            if file.is_file():
                layer = str(read_json_object(file, schema=1).get("layer"))
                break
    if layer is None and len(run.layers) > 1:
        raise bad_input(
            f"{path.name} does not tell its layer",
            where=str(path),
            why=f"there is no unwrapped.json beside it; the layers are: {', '.join(run.layers)}",
            fix=f"--layer {run.layers[0]}",
        )
    layer = layer or run.layers[0]
    number, picture = run.require_layer(layer), run.canonical(layer)
    edited = probe_video(path)
    _check_clip(edited, path, picture.size, run.frame_count)
    plane = CanonicalPlane(run.maps, number, picture.box, (edited.width, edited.height))
    # Saving a clip may change its colors; and at another size no program makes the very texels that are made here.
    plain_colors = edited.kind == "images" or edited.pixel_format.startswith(RGB_FORMATS)
    same_size = plane.size == parse_unwrapped_size("canonical", picture.size)
    is_lossy = not plain_colors or edited.codec not in LOSSLESS_CODECS or not same_size
    comparison = FrameComparison(CanonicalFill.from_canonical(picture, plane.size), is_lossy, settings, path.name)
    pairs = zip(run.iterate_frames(), source_frames(edited, edited.numbers), strict=True)
    with disk_errors(run.path):
        found = _PackedFrames(run.path, plane.size)
        for t, (frame, painted) in enumerate(pairs):
            found.append(comparison.find_paint(plane.unwrap_frame(t, frame), painted))
            report(Progress("comparing", t + 1, run.frame_count))
    if not found.painted_count:
        raise bad_input(
            f"no change found in {path.name}",
            where=str(path),
            why=f"its frames equal the unwrapped clip of the layer {layer} where they show it"
            + (f", in other colors ({comparison.colors.name})" if comparison.colors.name else ""),
            fix="paint on it, save it, and run the same command again",
        )
    notes = [f"{found.painted_count} of {run.frame_count} frames were painted on"]
    if comparison.colors.name:
        notes.append(f"all colors of {path.name} differ in the same way ({comparison.colors.name}): that was undone")
    return layer, AnimatedOverlay(found.read_frames, run.frame_count, picture.box, tuple(notes))


def _check_clip(edited: VideoMetadata, path: Path, size: tuple[int, int], count: int) -> None:
    """Refuses a clip whose size or length is not that of the unwrapped clip."""
    if edited.frame_count != count:
        raise bad_input(
            f"{path.name} has {edited.frame_count} frames instead of {count}",
            where=str(path),
            why="every frame of the run needs its own, in the same order",
            fix="save all frames of the unwrapped clip, at its rate and without a cut",
        )
    own = (edited.width, edited.height)
    scale = sum(own) / sum(size)
    if not has_same_aspect(own, size) or not 1 / MAX_SCALE <= scale <= MAX_SCALE:
        raise bad_input(
            f"{path.name} has {own[0]}x{own[1]} pixels",
            where=str(path),
            why=f"the canonical picture has {size[0]}x{size[1]}: the same shape, at most {MAX_SCALE} times larger or "
            "smaller, is expected",
            fix="paint without cropping, turning or stretching the clip",
        )


@dataclass
class FrameComparison:
    """Compares painted frames with the frames before they were painted on.

    Attributes:
        filling: the picture that fills the texels that a frame does not show.
        is_lossy: whether saving may have changed colors.
        settings: thresholds of the comparison.
        source: name of the clip, for messages.
        base: the kind of base that the clip was painted on, as `_make_base` numbers them; None if not known yet.
        colors: the conversion from the colors of the exported clip to those of the painted one.
        is_told: whether that is known already.
    """

    filling: CanonicalFill
    is_lossy: bool
    settings: UnwrappedEditSettings
    source: str = "the clip"
    base: int | None = None
    colors: ColorMap = IDENTITY
    is_told: bool = False

    def find_paint(self, flat: UnwrappedFrame, painted: Frame) -> tuple[Part, np.ndarray] | None:
        """Finds the painted part of a frame, and its paint (straight uint8 RGBA); returns None if there is no paint.

        Raises:
            UserError: the clip is cropped, shifted, stretched or mirrored (exit 3).
        """
        shown = bounding_part((flat.visibility > 0).astype(np.uint8), self.settings.margin_texels)
        if shown is None:
            return None
        # The flat frame as it was exported, or as a program lays it on a background of its own. The first frame that
        # tells which of them it was decides for all frames.
        if self.base is None:
            unseen, soft = flat.visibility == 0, flat.visibility < 1
            if unseen.sum() >= self.settings.min_unseen_texels:
                limit = self.settings.max_fill_levels
                off = [cv2.absdiff(self._make_base(index, flat, painted), painted)[soft] for index in range(4)]
                self.base = int(np.argmin([np.minimum(values, limit).mean() for values in off]))
        base = flat.color if self.base is None else self._make_base(self.base, flat, painted)
        if not self.is_told and (flat.visibility > 0.5).sum() >= self.settings.min_told_texels:
            self._tell_colors(painted, base, flat.visibility > 0.5)
        if self.colors is not IDENTITY:
            base = np.rint(255 * self.colors.convert(base / 255)).astype(np.uint8)
        found = find_frame_paint(
            painted[shown], base[shown], flat.visibility[shown] > 0.5, self.is_lossy, self.settings.paint
        )
        if found is None:
            return None
        alpha = np.rint(255 * found).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(alpha)
        if not width:
            return None
        part = (
            slice(shown[0].start + top, shown[0].start + top + height),
            slice(shown[1].start + left, shown[1].start + left + width),
        )
        alpha = alpha[top : top + height, left : left + width]
        color = painted[part]
        if self.colors is not IDENTITY:
            color = np.rint(255 * self.colors.invert(color / 255)).astype(np.uint8)
        return part, np.dstack([cv2.bitwise_and(color, color, mask=alpha), alpha])

    def _tell_colors(self, painted: Frame, base: Frame, seen: np.ndarray) -> None:
        """Finds out what saving the clip did to all of its colors."""
        self.is_told = True
        if np.median(cv2.absdiff(painted, base).max(axis=-1)[seen]) <= self.settings.max_exact_levels:
            return  # nothing, and it is no other part of the picture
        self.is_lossy = True
        after, before = (np.ascontiguousarray(one, np.float32) / 255 for one in (painted, base))
        size = (seen.shape[1], seen.shape[0])
        self.colors = match_to_original(after, before, seen, "the unwrapped clip", self.source, False, size).colors

    def _make_base(self, number: int, flat: UnwrappedFrame, painted: Frame) -> Frame:
        """Makes a candidate for the frame before it was painted on.

        Args:
            number: 0 for the exported frame, 1 for that with the canonical picture around it; 2 and 3 for the same on a
                flat color.
            flat: the unwrapped frame.
            painted: the painted frame, which gives the flat color where the layer is not visible.
        """
        frame = self.filling.fill_frame(flat) if number in (1, 3) else flat.color
        if number < 2:
            return frame
        seen = flat.visibility
        color = np.median(painted[seen == 0], axis=0) if (seen == 0).any() else np.zeros(3)
        return np.rint(seen[..., None] * frame + (1 - seen[..., None]) * color).astype(np.uint8)


class _PackedFrames:
    """Stores the overlays of frames in a temporary file in `folder`, because a long clip would fill the memory."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.size = size
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as frames are asked for
        weakref.finalize(self, self.file.close)
        # Of each frame: where its paint is, and how many bytes it takes.
        self.places: list[tuple[Part, int] | None] = []

    @property
    def painted_count(self) -> int:
        """The number of frames with paint."""
        return sum(place is not None for place in self.places)

    def append(self, paint: tuple[Part, UInt8[np.ndarray, "rows columns 4"]] | None) -> None:
        """Appends the paint of the next frame."""
        if paint is None:
            self.places.append(None)
            return
        part, rgba = paint
        packed = zlib.compress(rgba.tobytes(), 1)
        self.file.write(packed)
        self.places.append((part, len(packed)))

    def read_frames(self) -> Iterator[UInt8[np.ndarray, "height width 4"]]:
        """Yields the overlays of all frames, from the first."""
        start = 0
        for place in self.places:
            rgba = np.zeros((*self.size[::-1], 4), np.uint8)
            if place is not None:
                part, length = place
                self.file.seek(start)
                start += length
                packed = zlib.decompress(self.file.read(length))
                rgba[part] = np.frombuffer(packed, np.uint8).reshape(rgba[part].shape)
            yield rgba

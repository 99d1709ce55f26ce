"""`replace`: replaces the texture of the background, or of any other layer, with a picture or a video.

The new texture moves with the layer. With --still it stays in place in the frame, like a backdrop behind the layers in
front.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.core.stack import EditEffects
from editors.options.effects import ReplaceOptions
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.box import Box
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.video.io import probe_video, source_frames
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.edits.record import SourceFile
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import read_picture


@dataclass(frozen=True)
class ReplaceSettings:
    """Limits on the size of textures."""

    max_texels: int = 16_000_000  # largest number of texels of a picture
    max_video_side_px: int = 1920  # largest video, as the side of a square of its area; it is stored losslessly


DEFAULTS = ReplaceSettings()


@dataclass(frozen=True, kw_only=True)
class Replace(ReplaceOptions, PlanarEditor):
    """Replace the texture of a layer (default: the background) with a picture or a video."""

    starts_with = "back"

    def edit(self, source: EditSource, report: ProgressReporter, settings: ReplaceSettings = DEFAULTS) -> EditorResult:
        """Makes the overlay of one layer.

        Args:
            source: the run, and the layer to replace.
            report: called with the progress.
            settings: limits on the size of textures.

        Raises:
            UserError: several layers, a mask, or a file that cannot be read.
        """
        if len(source.layers) > 1 or source.mask is not None:
            raise bad_input("only one entire layer can be replaced at a time", fix=f"--layer {source.layers[0]}")
        layer = source.layers[0]
        metadata, chosen = source.run.metadata, source.run.frames
        overlays, moving, notes = {}, {}, []

        # The area to cover: the frame, all of the layer's plane, or its first chart, from which edits are transferred.
        box = None
        if not self.still:
            box = source.pictures[layer].box
            for charts in source.maps.charts:
                own = [chart for chart in charts if chart.layer == layer]
                if own:
                    box = own[0].box
                    notes.append(f"{layer} has {len(charts)} charts: the edit of the first is propagated to the others")
                    break
        aspect = metadata.width / metadata.height if box is None else box.width / box.height

        if self.image.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"):
            read = read_picture(self.image)
            notes += read.notes
            rgba = _limit_size(_change_aspect(read.rgba, aspect, self.fit), settings.max_texels)
            if box is not None:
                overlays[layer] = Overlay(rgba, box)
            else:  # the same picture in every frame
                frame = _as_bytes(_limit_size(rgba, settings.max_video_side_px**2))
                moving[layer] = AnimatedOverlay(lambda: iter([frame]), 1, None)
        else:
            # A video in step with that of the run; it starts again where it is shorter.
            own_video = probe_video(self.image)
            length = own_video.timestamps[-1] - own_video.timestamps[0] + 1 / own_video.rate
            notes += [f"{self.image.name}: {note}" for note in own_video.notes]
            times = metadata.find_times(chosen)
            elapsed = [t - own_video.timestamps[0] for t in own_video.timestamps]
            shown = []
            for moment in times:
                time = (moment - times[0]) % length if length > 0 else Fraction(0)
                shown.append(max(i for i, t in enumerate(elapsed) if t <= time))
            if times[-1] - times[0] >= length:
                notes.append(f"{self.image.name} is shorter than the clip: it begins again")
            video = _TimedVideo(own_video, tuple(shown))
            moving[layer] = self._animate_video(video, source, aspect, box, report, settings)
        effects = EditEffects(moving=moving, lit=self.lit)
        return EditorResult(overlays, tuple(notes), effects=effects, sources=(SourceFile(file=self.image.name),))

    def _animate_video(
        self,
        video: _TimedVideo,
        source: EditSource,
        aspect: float,
        box: Box | None,
        report: ProgressReporter,
        settings: ReplaceSettings,
    ) -> AnimatedOverlay:
        """Makes an animated overlay with one frame of the video for each frame of the run."""
        count = source.maps.frame_count

        def iterate_overlays() -> Iterator[UInt8[np.ndarray, "height width 4"]]:
            for number, frame in enumerate(video.iterate_frames()):
                report(Progress("taking frames", number + 1, count))
                rgba = np.dstack([frame, np.full(frame.shape[:2], 255, np.uint8)]).astype(np.float32) / 255
                yield _as_bytes(_limit_size(_change_aspect(rgba, aspect, self.fit), settings.max_video_side_px**2))

        return AnimatedOverlay(iterate_overlays, count, box)


@dataclass(frozen=True)
class _TimedVideo:
    """Holds a video, and which of its frames each frame of a run shows.

    Attributes:
        metadata: metadata of the video.
        shown: places of its frames, from 0; they increase, except where the video restarts.
    """

    metadata: VideoMetadata
    shown: tuple[int, ...]

    def iterate_frames(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yields the frames for each frame of the run."""
        every = self.metadata.numbers
        run, at = source_frames(self.metadata, every), 0
        last = next(run)
        for number in self.shown:
            if number < at:
                run, at = source_frames(self.metadata, every), 0
                last = next(run)
            while at < number:
                last = next(run)
                at += 1
            yield last


def _change_aspect(rgba: Float[np.ndarray, "h w 4"], aspect: float, how: str) -> Float[np.ndarray, "height width 4"]:
    """Changes the aspect (width / height) of a picture: crops it, pads it with transparency, or stretches it."""
    height, width = rgba.shape[:2]
    if how == "stretch":
        if width < height * aspect:
            size = (max(1, round(height * aspect)), height)
        else:
            size = (width, max(1, round(width / aspect)))
        return unpremultiply(resize_image(premultiply(rgba), size))
    if how == "cover":
        wide, high = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - wide) // 2, (height - high) // 2
        return np.ascontiguousarray(rgba[top : top + max(1, high), left : left + max(1, wide)])
    wide, high = max(width, round(height * aspect)), max(height, round(width / aspect))
    left, top = (wide - width) // 2, (high - height) // 2
    return np.pad(rgba, ((top, high - height - top), (left, wide - width - left), (0, 0)))


def _limit_size(rgba: Float[np.ndarray, "h w 4"], most: int) -> Float[np.ndarray, "height width 4"]:
    """Shrinks a picture that has more than `most` pixels."""
    height, width = rgba.shape[:2]
    scale = min(1.0, (most / (width * height)) ** 0.5)
    if scale == 1:
        return rgba
    return unpremultiply(resize_image(premultiply(rgba), (max(1, round(width * scale)), max(1, round(height * scale)))))


def _as_bytes(rgba: Float[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    return cv2.convertScaleAbs(np.ascontiguousarray(rgba), alpha=255)

"""Replace: the background, or any layer's texture, by a picture or a video.

It follows the layer, as if the layer were made of it, or with --still it stays where it is in the frame, like a
backdrop behind everything that is in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.base import EditorResult, Report, Source
from editors.stack import Effects
from neural_fields.canonical import Overlay
from neural_fields.coords import Box
from neural_fields.data.facts import VideoFacts
from neural_fields.data.video import probe, source_frames
from neural_fields.errors import bad_input
from neural_fields.moving import Moving
from neural_fields.output import source_facts
from neural_fields.pictures import premultiplied, read_picture, resize, straight

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
MOST_TEXELS = 16_000_000  # of a picture that becomes a texture
LONGEST = 1920  # pixels of a video that becomes a texture: it is kept a frame at a time, without loss


@dataclass(frozen=True, kw_only=True)
class Replace:
    """Put a picture or a video in the place of a layer's texture (default: the background's)."""

    name: ClassVar[str] = "replace"
    starts_with: ClassVar[str] = "back"

    picture: Path
    """The picture, or the video, to show instead."""
    fit: Literal["cover", "contain", "stretch"] = "cover"
    """How it fits: cropped to cover everything, whole with the old texture around it, or stretched."""
    still: bool = False
    """It stays where it is in the frame, instead of moving with the layer."""
    lit: bool = False
    """The light and shade of the layer fall on it."""

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """The overlay of one layer.

        Raises:
            UserError: several layers, a mask, or a file that cannot be read.
        """
        if len(source.layers) > 1 or source.mask is not None:
            raise bad_input("one whole layer is replaced at a time", fix=f"--layer {source.layers[0]}")
        layer = source.layers[0]
        facts, _ = source_facts(source.run)
        box, notes = (None, []) if self.still else _room(source, layer)
        aspect = facts.width / facts.height if box is None else box.width / box.height
        if self.picture.suffix.lower() in PICTURES:
            read = read_picture(self.picture)
            notes += read.notes
            rgba = _bounded(_fitted(read.rgba, aspect, self.fit), MOST_TEXELS)
            result = {"overlays": {layer: Overlay(rgba, box)}} if box is not None else {}
            moving = {} if box is not None else {layer: _standing(rgba)}
        else:
            video, more = _video(self.picture, source, facts)
            notes += more
            result, moving = {}, {layer: self._moving(video, source, aspect, box, report)}
        effects = Effects(moving=moving, lit=self.lit)
        source_file = {"source": {"file": self.picture.name}}
        return EditorResult(result.get("overlays", {}), tuple(notes), source_file, effects=effects)

    def _moving(self, video: _Timed, source: Source, aspect: float, box: Box | None, report: Report) -> Moving:
        """A frame of the video for each of the run."""
        count = source.maps.frame_count

        def frames() -> Iterator[UInt8[np.ndarray, "height width 4"]]:
            for number, frame in enumerate(video.frames()):
                report("taking frames", number + 1, count)
                rgba = np.dstack([frame, np.full(frame.shape[:2], 255, np.uint8)]).astype(np.float32) / 255
                yield _as_bytes(_bounded(_fitted(rgba, aspect, self.fit), LONGEST**2))

        return Moving(frames, count, box)


@dataclass(frozen=True)
class _Timed:
    """A video, and which of its frames each frame of a run shows; rising, but where it begins anew."""

    facts: VideoFacts
    shown: tuple[int, ...]

    def frames(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """The frames for each frame of the run."""
        every = range(self.facts.frame_count)
        run, at = source_frames(self.facts, every), 0
        last = next(run)
        for number in self.shown:
            if number < at:
                run, at = source_frames(self.facts, every), 0
                last = next(run)
            while at < number:
                last = next(run)
                at += 1
            yield last


def _video(path: Path, source: Source, facts: VideoFacts) -> tuple[_Timed, list[str]]:
    """A video in step with the run's, again from its start where it is shorter.

    Raises:
        UserError: it cannot be read (exit 3).
    """
    own = probe(path)
    _, chosen = source_facts(source.run)
    length = own.timestamps[-1] - own.timestamps[0] + 1 / own.rate
    notes = [f"{path.name}: {note}" for note in own.notes]
    start = facts.timestamps[chosen[0]]
    shown = []
    for k in chosen:
        time = (facts.timestamps[k] - start) % length if length > 0 else Fraction(0)
        shown.append(max(i for i, t in enumerate(own.timestamps) if t - own.timestamps[0] <= time))
    if facts.timestamps[chosen[-1]] - start >= length:
        notes.append(f"{path.name} is shorter than the clip: it begins again")
    return _Timed(own, tuple(shown)), notes


def _room(source: Source, layer: str) -> tuple[Box, list[str]]:
    """The part of a layer's plane to cover: all of it, or the first of its parts, from which edits are carried on."""
    for series in source.maps.charts:
        own = [chart for chart in series if chart.layer == layer]
        if own:
            return own[0].box, [f"{layer} has {len(series)} parts: the first is covered, and carried to the others"]
    return source.pictures[layer].box, []


def _fitted(rgba: Float[np.ndarray, "h w 4"], aspect: float, how: str) -> Float[np.ndarray, "height width 4"]:
    """A picture of another aspect (width / height): cropped, with transparent room around it, or stretched."""
    height, width = rgba.shape[:2]
    if how == "stretch":
        size = (
            (max(1, round(height * aspect)), height)
            if width < height * aspect
            else (width, max(1, round(width / aspect)))
        )
        return straight(resize(premultiplied(rgba), size))
    if how == "cover":
        wide, high = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - wide) // 2, (height - high) // 2
        return np.ascontiguousarray(rgba[top : top + max(1, high), left : left + max(1, wide)])
    wide, high = max(width, round(height * aspect)), max(height, round(width / aspect))
    left, top = (wide - width) // 2, (high - height) // 2
    room = ((top, high - height - top), (left, wide - width - left), (0, 0))
    return np.pad(rgba, room)


def _bounded(rgba: Float[np.ndarray, "h w 4"], most: int) -> Float[np.ndarray, "height width 4"]:
    """A picture of at most so many pixels."""
    height, width = rgba.shape[:2]
    scale = min(1.0, (most / (width * height)) ** 0.5)
    if scale == 1:
        return rgba
    return straight(resize(premultiplied(rgba), (max(1, round(width * scale)), max(1, round(height * scale)))))


def _standing(rgba: Float[np.ndarray, "h w 4"]) -> Moving:
    """The same picture in every frame, laid over the frame itself."""
    frame = _as_bytes(_bounded(rgba, LONGEST**2))
    return Moving(lambda: iter([frame]), 1, None)


def _as_bytes(rgba: Float[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    return cv2.convertScaleAbs(np.ascontiguousarray(rgba), alpha=255)

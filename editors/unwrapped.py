"""Edit by unwrapped clip: what was painted on a layer laid flat, frame by frame, becomes an overlay of each frame.

Every edited frame is compared with the flat frame as it is exported, which is made here once more. As for pictures
(`image.py`), a difference counts where it stands out of the noise of the file.
"""

from __future__ import annotations

import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.flat_change import find_paint
from editors.image import MAX_SCALE
from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.data.facts import VideoFacts
from neural_fields.data.user_files import read_json_object
from neural_fields.data.video import probe, source_frames
from neural_fields.errors import bad_input
from neural_fields.export.base import Report, chosen_layers, quiet
from neural_fields.export.unwrapped import SCHEMA, Filling, flat_size, same_shape
from neural_fields.files import disk_errors
from neural_fields.frame_parts import Part
from neural_fields.moving import Moving
from neural_fields.output import source_facts
from neural_fields.run import Run
from neural_fields.unwrapping import Flat, Plane

LOSSLESS = (
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
COLOURS_AS_THEY_ARE = ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr")  # pixel formats without a colour matrix
BEYOND = 16  # texels around what a frame shows of the layer; paint farther off would not be seen
SAMPLE = 64  # texels where a frame does not show the layer that tell what was put there
OTHER = 24  # 8-bit levels: what differs more is paint, and tells nothing of what was put behind

Frame = UInt8[np.ndarray, "height width 3"]


def moving_from_unwrapped(
    run: Run, maps: Maps, path: Path, layer: str | None = None, report: Report = quiet
) -> tuple[str, Moving]:
    """The layer, and what was painted on its unwrapped clip, for every frame of the run.

    The colours are those of the painted frames, under whose light they were painted: the layer's light must not fall
    on them again.

    Args:
        path: the edited clip, in any format that is read, or a folder of numbered pictures; as many frames as the run
            has, of the shape of the canonical picture.
        layer: the layer; by default the one that unwrapped.json beside the clip, or in the run, names.

    Raises:
        UserError: another number of frames or shape, an unknown layer, a clip that cannot be read, no change (exit 3).
    """
    number = maps.layers.index(layer) if layer in maps.layers else _layer_of(run, maps, path, layer)
    picture = canonical.pristine(run.canonical, maps.layers[number])
    source, chosen = source_facts(run)
    edited = probe(path)
    _check(edited, path, picture.size, len(chosen))
    plane = Plane(maps, number, picture.box, (edited.width, edited.height))
    # At another size no program makes the very texels that are made here.
    is_lossy = _is_lossy(edited) or plane.size != flat_size("canonical", picture.size)
    ground = _Ground(Filling.of(picture, plane.size), is_lossy)
    pairs = zip(source_frames(source, chosen), source_frames(edited, range(len(chosen))), strict=True)
    with disk_errors(run.path):
        found = _Frames(run.path, plane.size)
        for t, (frame, painted) in enumerate(pairs):
            found.add(ground.paint(plane.flat(t, frame), painted))
            report("comparing", t + 1, len(chosen))
    if not found.painted:
        raise bad_input(
            f"no change found in {path.name}",
            where=str(path),
            why=f"its frames equal the unwrapped clip of the layer {maps.layers[number]} where they show it",
            fix="paint on it, save it, and run the same command again",
        )
    notes = (f"{found.painted} of {len(chosen)} frames were painted on",)
    return maps.layers[number], Moving(found.read, len(chosen), picture.box, notes)


def _layer_of(run: Run, maps: Maps, path: Path, layer: str | None) -> int:
    """The number of the layer that was named, or else the layer that a clip was exported from."""
    known = (path.parent / "unwrapped.json", run.exports / "unwrapped" / "unwrapped.json")
    for file in known if layer is None else ():
        if file.is_file():
            layer = str(read_json_object(file, SCHEMA).get("layer"))
            break
    if layer is None and len(maps.layers) > 1:
        raise bad_input(
            f"{path.name} does not tell its layer",
            where=str(path),
            why=f"there is no unwrapped.json beside it; the layers are: {', '.join(maps.layers)}",
            fix=f"--layer {maps.layers[0]}",
        )
    return chosen_layers(maps, (layer or maps.layers[0],))[0]


def _check(edited: VideoFacts, path: Path, size: tuple[int, int], count: int) -> None:
    """Refuses a clip that cannot be an edited unwrapped one."""
    if edited.frame_count != count:
        raise bad_input(
            f"{path.name} has {edited.frame_count} frames instead of {count}",
            where=str(path),
            why="every frame of the run needs its own, in the same order",
            fix="save all frames of the unwrapped clip, at its rate and without a cut",
        )
    own = (edited.width, edited.height)
    scale = sum(own) / sum(size)
    if not same_shape(own, size) or not 1 / MAX_SCALE <= scale <= MAX_SCALE:
        raise bad_input(
            f"{path.name} has {own[0]}x{own[1]} pixels",
            where=str(path),
            why=f"the canonical picture has {size[0]}x{size[1]}: the same shape, at most {MAX_SCALE} times larger or "
            "smaller, is expected",
            fix="paint without cropping, turning or stretching the clip",
        )


def _is_lossy(facts: VideoFacts) -> bool:
    """Whether saving a clip as it was may have changed its colours."""
    plain = facts.kind == "images" or facts.pixel_format.startswith(COLOURS_AS_THEY_ARE)
    return not plain or facts.codec not in LOSSLESS


@dataclass
class _Ground:
    """What the painted frames were before they were painted on."""

    filling: Filling
    is_lossy: bool
    ground: int | None = None  # which of `_grounds` it is; None: not known yet

    def paint(self, flat: Flat, painted: Frame) -> tuple[Part, np.ndarray] | None:
        """Where a frame was painted on, and the paint there (uint8 RGBA, straight); None where it was not."""
        shown = _window(flat.seen)
        if shown is None:
            return None
        base = self._before(flat, painted)[shown]
        found = find_paint(painted[shown], base, flat.seen[shown] > 0.5, self.is_lossy)
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
        colour = cv2.bitwise_and(painted[part], painted[part], mask=alpha)
        return part, np.dstack([colour, alpha])

    def _before(self, flat: Flat, painted: Frame) -> Frame:
        """The flat frame as it was exported, or as a program lays it on a background of its own."""
        if self.ground is None:
            unseen = flat.seen == 0
            if unseen.sum() < SAMPLE:
                return flat.colour
            soft = flat.seen < 1
            grounds = [ground(flat, painted) for ground in self._grounds]
            self.ground = int(np.argmin([np.minimum(cv2.absdiff(g, painted)[soft], OTHER).mean() for g in grounds]))
        return self._grounds[self.ground](flat, painted)

    @property
    def _grounds(self) -> tuple[Callable[[Flat, Frame], Frame], ...]:
        """What a frame may have been: without or with the canonical picture, as exported or on a flat colour."""
        return (
            lambda flat, painted: flat.colour,
            lambda flat, painted: self.filling.around(flat),
            lambda flat, painted: _laid(flat.colour, flat.seen, painted),
            lambda flat, painted: _laid(self.filling.around(flat), flat.seen, painted),
        )


def _laid(frame: Frame, seen: Float[np.ndarray, "height width"], painted: Frame) -> Frame:
    """A flat frame laid, by its alpha, on the colour that a painted one has where the layer is not seen."""
    colour = np.median(painted[seen == 0], axis=0) if (seen == 0).any() else np.zeros(3)
    return np.rint(seen[..., None] * frame + (1 - seen[..., None]) * colour).astype(np.uint8)


def _window(seen: Float[np.ndarray, "height width"]) -> Part | None:
    """The rows and columns of what a frame shows of the layer, and some around them."""
    left, top, width, height = cv2.boundingRect((seen > 0).astype(np.uint8))
    if not width:
        return None
    return (
        slice(max(0, top - BEYOND), min(seen.shape[0], top + height + BEYOND)),
        slice(max(0, left - BEYOND), min(seen.shape[1], left + width + BEYOND)),
    )


class _Frames:
    """Overlays of frames, packed in a file in `folder` that goes with them: a long clip would fill memory."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.size = size
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as frames are asked for
        weakref.finalize(self, self.file.close)
        self.places: list[
            tuple[Part, int] | None
        ] = []  # of each frame: where its paint is, and how many bytes it takes

    @property
    def painted(self) -> int:
        """How many frames have paint."""
        return sum(place is not None for place in self.places)

    def add(self, paint: tuple[Part, UInt8[np.ndarray, "rows columns 4"]] | None) -> None:
        """The paint of one more frame."""
        if paint is None:
            self.places.append(None)
            return
        part, rgba = paint
        packed = zlib.compress(rgba.tobytes(), 1)
        self.file.write(packed)
        self.places.append((part, len(packed)))

    def read(self) -> Iterator[UInt8[np.ndarray, "height width 4"]]:
        """All frames from the first on."""
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

"""Describes an export of maps for its scripts and README: layers, frames, files, and the path of the source.

Nothing that comes from a user gets into a script unless it is made of letters, digits and a few harmless signs: scripts
are programs, and a file name must not become a part of them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from neural_fields.data.video.image_sequence import list_images
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.export.maps.conventions import MapConvention

_HARMLESS = re.compile(r"[\w ./+,=@~()-]+")


@dataclass(frozen=True)
class CompLayer:
    """Describes a layer: the (width, height) of its canonical picture, of its overlay, and of its inverse maps."""

    name: str
    size: tuple[int, int]
    overlay_size: tuple[int, int]
    unwrapped_size: tuple[int, int]


@dataclass(frozen=True)
class SourceFrames:
    """Describes the files of the source, for a script.

    Attributes:
        file: relative to the folder of the export; numbered pictures have %0Nd in it.
        first: the number of the source's first frame in its files: that of a picture, 1 in a film.
        is_video: a video file instead of numbered pictures.
        count: frames in all.
    """

    file: str
    first: int
    is_video: bool
    count: int


@dataclass(frozen=True)
class CompDescription:
    """Describes the exported files, for scripts and the README.

    Attributes:
        layers: front to back.
        size: (width, height) of the frames.
        frames: numbers of the frames that have maps.
        first_number: number of the first frame of the source.
        last_number: number of the last frame of the run, with or without a map.
        digits: of a number in a file name.
        source: None where it cannot be named.
        forward, inverse, light: which kinds of files there are.
    """

    convention: MapConvention
    layers: tuple[CompLayer, ...]
    size: tuple[int, int]
    frames: tuple[int, ...]
    first_number: int
    last_number: int
    digits: int
    rate: Fraction
    pixel_aspect: float
    source: SourceFrames | None
    forward: bool
    inverse: bool
    light: bool

    @property
    def map_kinds(self) -> list[str]:
        """The folders of numbered files."""
        return [kind for kind in ("forward", "inverse", "light") if getattr(self, kind)]

    def file_pattern(self, kind: str, layer: CompLayer) -> str:
        """Returns the path of the numbered files of a layer, with %0Nd for the number."""
        return f"{kind}/{layer.name}.%0{self.digits}d{self.convention.suffix}"


def locate_source(metadata: VideoMetadata, folder: Path) -> SourceFrames | None:
    """Locates the source relative to `folder`; None where no script can name it.

    Raises:
        UserError: the pictures that the source is made of are not there any more.
    """
    path, first = Path(metadata.path).resolve(), 1
    number = ""
    if metadata.kind == "images":
        images = list_images(path)
        match = re.fullmatch(r"([^%#]*?)(\d+)(\.\w+)", images[0].name)
        if match is None:
            return None
        first, number = int(match[2]), f"%0{len(match[2])}d"
        if [image.name for image in images] != [
            f"{match[1]}{k:0{len(match[2])}d}{match[3]}" for k in range(first, first + len(images))
        ]:
            return None
        path = images[0].parent / f"{match[1]}{number}{match[3]}"
    where = Path(os.path.relpath(path, folder.resolve())).as_posix()
    if not _HARMLESS.fullmatch(where.removesuffix(path.name) + path.name.replace(number, "", 1)):
        return None
    return SourceFrames(where, first, metadata.kind == "file", metadata.frame_count)

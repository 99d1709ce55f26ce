"""The settings of exporters, which are flags of `unwrap export RUN NAME`; they load no package of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from neural_fields.config.flags import MapProgram, Repeated

CanonicalFormat = Literal["ora", "psd", "png", "exr"]
MatteFormat = Literal["png", "exr", "prores4444"]


@dataclass(frozen=True, kw_only=True)
class CanonicalExportOptions:
    """Holds the settings of `CanonicalExporter`."""

    name: ClassVar[str] = "canonical"

    layer: Repeated = ()
    """The layers to write (default: all). Repeatable."""
    format: CanonicalFormat = "ora"
    """ora: layered, for Krita and MyPaint; psd: layered, for Photoshop, GIMP and others; png: only the picture, 16-bit
    with straight alpha; exr: only the picture, 32-bit float, premultiplied."""


@dataclass(frozen=True, kw_only=True)
class STMapOptions:
    """Holds the settings of `STMapExporter`."""

    name: ClassVar[str] = "stmap"

    layer: Repeated = ()
    """The layers to write (default: all). Repeatable."""
    convention: MapProgram = "nuke"
    """The program that the maps are for; each has its convention for positions."""
    direction: Literal["forward", "inverse", "both"] = "both"
    """forward warps a canonical picture to the frame, inverse warps the frame to the canonical picture."""
    size: str = "source"
    """Size of the frames that the maps are for: source, 480p, Np or WxH."""
    canonical_size: str = "source"
    """Size of the inverse maps and the overlays: source (that of the canonical picture, and overlays as fine as their
    edits), 480p, Np or WxH."""
    every: int = 1
    """Write every n-th frame only (1: all frames)."""


@dataclass(frozen=True, kw_only=True)
class MatteOptions:
    """Holds the settings of `MatteExporter`."""

    name: ClassVar[str] = "matte"

    layer: Repeated = ()
    """Layers to write, repeatable (default: all)."""
    format: MatteFormat = "png"
    """png: 16-bit gray; exr: 32-bit float, channels A and Y; prores4444: white with alpha, a video for each layer."""
    size: str = "source"
    """Size of the pictures: source, 480p, Np or WxH."""
    every: int = 1
    """Write every n-th frame only."""


@dataclass(frozen=True, kw_only=True)
class LayersOptions:
    """Holds the settings of `LayersExporter`."""

    name: ClassVar[str] = "layers"

    layer: Repeated = ()
    """Layers to write, repeatable (default: all)."""
    format: MatteFormat = "png"
    """png: 16-bit RGBA, straight; exr: 32-bit float, premultiplied; prores4444: straight, a video for each layer."""
    what: Literal["source", "model"] = "source"
    """source: the pixels of the frame; model: the canonical pictures with the shading of the frame."""
    edited: bool = False
    """Show the active edits."""
    size: str = "source"
    """Size of the pictures: source, 480p, Np or WxH."""
    every: int = 1
    """Write every n-th frame only."""


@dataclass(frozen=True, kw_only=True)
class UnwrappedExportOptions:
    """Holds the settings of `UnwrappedExporter`."""

    name: ClassVar[str] = "unwrapped"

    layer: str | None = None
    """The layer (default: the front one)."""
    format: Literal["ffv1", "prores4444", "png"] = "ffv1"
    """ffv1: lossless, .mkv; prores4444: .mov; png: a folder of numbered pictures. All have alpha."""
    size: str = "canonical"
    """Size of the frames: canonical, 480p, Np or WxH with the same aspect."""
    fill: bool = False
    """Show the canonical picture where a frame does not show the layer; alpha does not change."""


@dataclass(frozen=True, kw_only=True)
class TracksOptions:
    """Holds the settings of `TracksExporter`."""

    name: ClassVar[str] = "tracks"

    frame: int | None = None
    """Number of the frame of the points in the source (default: the middle one)."""
    point: Repeated = ()
    """A point of that frame in pixels of the source, from the upper left corner: "x,y". Repeatable."""
    points: Path | None = None
    """A CSV file with x,y in each row; or a tracks.csv, of which the points of that frame are used."""
    grid: int | None = None
    """A grid of points: their number along the longer side of the frame."""
    format: Repeated = ()
    """csv, nuke, after_effects or blender. Repeatable (default: all of them)."""


@dataclass(frozen=True, kw_only=True)
class LabelsOptions:
    """Holds the settings of `LabelsExporter`."""

    name: ClassVar[str] = "labels"

    labels: Path | None = None
    """A PNG, TIFF or BMP picture of the frame: each color, gray value or palette index is a class."""
    frame: int | None = None
    """Number of its frame in the source (default: the middle one)."""
    masks: bool = False
    """Also write a folder of masks for each class, for `unwrap train --masks NAME=FOLDER`."""


OPTIONS = {  # by the name of the exporter
    "canonical": CanonicalExportOptions,
    "stmap": STMapOptions,
    "matte": MatteOptions,
    "layers": LayersOptions,
    "unwrapped": UnwrappedExportOptions,
    "tracks": TracksOptions,
    "labels": LabelsOptions,
}

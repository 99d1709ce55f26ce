"""Canonical pictures, the still pictures of a video's layers, and the overlays that change them.

In a run, `canonical/<layer>.png` is the picture to paint on, `canonical/<layer>.json` holds its metadata, and
`canonical/pristine/` keeps every version that the program wrote, so that a painted picture can be compared with the
version it started from. A picture that was painted on is never overwritten.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Int

from neural_fields.config.loader import load_json, to_mapping
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import atomic_write, write_json
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import encode_png, read_picture
from neural_fields.imaging.notebook_pictures import encode_thumbnail
from neural_fields.imaging.resampling import sample_bilinear


@dataclass(frozen=True)
class FramePaint:
    """Holds the paint on one frame, as somebody painted it: that frame shows it as it is.

    Attributes:
        frame: number of the frame in the source.
        rgba: RGB with straight alpha in [0, 1]. Any size.
        box: left, top, right and bottom of what it covers, as shares of the frame's width and height.
        is_whole: whether it is all that the frame shows of the edit; otherwise the frame shows under it what the edit
            looks like in other frames.
    """

    frame: int
    rgba: Float[np.ndarray, "height width 4"]
    box: tuple[float, float, float, float]
    is_whole: bool = True


@dataclass(frozen=True)
class Overlay:
    """Holds a change of a canonical picture.

    Attributes:
        rgba: RGB with straight alpha in [0, 1]; black where alpha is zero. Premultiply it before resampling. Any size.
        box: the part of the canonical plane that it covers, in uv units.
        notes: sentences for the user about how it was made.
        frames: the painted frames that it was made from, if they are to be shown as they were painted.
    """

    rgba: Float[np.ndarray, "height width 4"]
    box: Box
    notes: tuple[str, ...] = ()
    frames: tuple[FramePaint, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.rgba.shape[1], self.rgba.shape[0]


@dataclass(frozen=True)
class CanonicalImage:
    """Holds a layer as a still picture.

    Attributes:
        rgba: RGB with straight alpha in [0, 1]; alpha is the coverage: where frames show the layer.
        box: the part of the canonical plane that the picture covers, in uv units.
        layer: the name of the layer.

    Example:
        >>> image = CanonicalImage(np.ones((2, 3, 4), np.float32), Box(-1.0, -1.0, 1.0, 1.0), "background")
        >>> image.size
        (3, 2)
        >>> image.sample_rgba(np.zeros((1, 2), np.float32)).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    rgba: Float[np.ndarray, "height width 4"]
    box: Box
    layer: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.rgba.shape[1], self.rgba.shape[0]

    def _repr_png_(self) -> bytes:
        """Shows the picture in a notebook."""
        return encode_thumbnail(self.rgba)

    def sample_rgba(self, uv: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 4"]:
        """Samples the picture bilinearly.

        Args:
            uv: positions in uv units.

        Returns:
            RGB and straight alpha in [0, 1]; alpha is zero outside the box.
        """
        # Half a texel back from the corner of the first one to its center, and one on for the rim of zeros around it.
        x, y = (array_coords.uv_to_texels(np.asarray(uv, np.float32), self.box, *self.size) + 0.5).reshape(-1, 2).T
        if not len(x):
            return np.zeros((*uv.shape[:-1], 4), np.float32)
        # Only the part of the rimmed picture that is asked for: pictures are much larger than frames.
        (width, height), starts, stops = self.size, [], []
        for places, side in ((y, height), (x, width)):
            starts.append(int(np.clip(np.floor(places.min()), 0, side + 1)))
            stops.append(int(np.clip(np.floor(places.max()) + 2, starts[-1] + 1, side + 2)))
        (top, left), (bottom, right) = starts, stops
        part = self.rgba[max(top - 1, 0) : bottom - 1, max(left - 1, 0) : right - 1]
        rims = [
            (int(first == 0), int(last == side + 2))
            for first, last, side in zip(starts, stops, (height, width), strict=True)
        ]
        rimmed = np.pad(premultiply(part), (*rims, (0, 0)))
        found = sample_bilinear(rimmed, x - np.float32(left), y - np.float32(top))
        return unpremultiply(found[None])[0].reshape(*uv.shape[:-1], 4)

    def composite_overlay(self, overlay: Overlay) -> CanonicalImage:
        """Composites an overlay over this picture.

        Args:
            overlay: an overlay on the same canonical plane, of any size and box.

        Returns:
            The changed picture, of the size and box of this one.
        """
        on_top = premultiply(resample_overlay(overlay, self.size, self.box))
        mixed = on_top + premultiply(self.rgba) * (1 - on_top[..., 3:])
        alpha = mixed[..., 3:]
        color = np.where(alpha > 1e-6, mixed[..., :3] / np.maximum(alpha, 1e-6), self.rgba[..., :3])
        return CanonicalImage(np.concatenate([color, alpha], axis=-1), self.box, self.layer)


@dataclass(frozen=True)
class CanonicalVersion:
    """Identifies a canonical picture that the program wrote.

    Attributes:
        sha256: SHA-256 of the PNG file, in hexadecimal.
        box: the part of the canonical plane that it covers.
        size: (width, height) in texels.
    """

    sha256: str
    box: Box
    size: tuple[int, int]


@dataclass(frozen=True)
class FrameCounts:
    """Summarizes in how many frames the texels of a layer are visible.

    Attributes:
        share: the share of the texels that are visible in any frame, 0 to 1.
        min: the least number of frames of a visible texel.
        median: the median number of frames of the visible texels.
        max: the largest number of frames of a texel.

    Example:
        >>> FrameCounts.from_texels(np.array([[0, 2], [3, 4]]))
        FrameCounts(share=0.75, min=2, median=3, max=4)
    """

    share: float
    min: int
    median: int
    max: int

    @staticmethod
    def from_texels(frames_seen: Int[np.ndarray, "height width"]) -> FrameCounts:
        """Summarizes the number of frames that show each texel; of an even number the lower median counts."""
        seen = np.sort(frames_seen[frames_seen > 0])
        share = round(float((frames_seen > 0).mean()), 6)
        if not len(seen):
            return FrameCounts(share, 0, 0, 0)
        return FrameCounts(share, int(seen[0]), int(seen[(len(seen) - 1) // 2]), int(seen[-1]))


@dataclass(frozen=True, kw_only=True)
class CanonicalSidecar:
    """Holds the content of canonical/<layer>.json.

    Attributes:
        version: version of this format.
        layer: the name of the layer.
        box: the part of the canonical plane that the picture covers, in uv units.
        size: (width, height) of the picture in texels.
        alpha: the meaning of the picture's alpha: where frames show the layer, not premultiplied.
        frames_seen: number of frames in which the texels are visible; null if that was not counted.
        sha256: SHA-256 of the file of the written picture, in hexadecimal.
        versions: every picture of the layer that was written, the newest last.
    """

    version: Literal[1]
    layer: str
    box: Box
    size: tuple[int, int]
    alpha: Literal["coverage, straight"]
    frames_seen: FrameCounts | None
    sha256: str
    versions: tuple[CanonicalVersion, ...]

    def __post_init__(self) -> None:
        if not self.versions:
            raise ValueError("versions is empty: it lists no exported picture")


@dataclass(frozen=True)
class ExportedCanonical:
    """Holds the path of a written canonical picture, and notes for the user."""

    path: Path
    notes: tuple[str, ...] = ()


def export_canonical(
    folder: Path, image: CanonicalImage, frames_seen: Int[np.ndarray, "height width"] | None = None
) -> ExportedCanonical:
    """Writes a layer into the folder `canonical` of a run: the picture to paint on, its metadata, and a pristine copy.

    A picture there that differs in any byte from those that the program wrote belongs to the user: it stays, and the
    new picture becomes `<layer>.new.png` (`<layer>.new2.png` and so on).

    Args:
        folder: the folder `canonical` of the run.
        image: the layer.
        frames_seen: number of frames in which each texel is visible.

    Returns:
        The path of the picture, and a note if it has another name.

    Raises:
        UserError: damaged metadata of an earlier picture (exit 5).
    """
    data = encode_png(image.rgba)
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{image.layer}.json"
    before = read_sidecar(folder, image.layer).versions if path.exists() else ()
    newest = CanonicalVersion(digest, image.box, image.size)
    sidecar = CanonicalSidecar(
        version=1,
        layer=image.layer,
        box=image.box,
        size=image.size,
        alpha="coverage, straight",
        frames_seen=None if frames_seen is None else FrameCounts.from_texels(frames_seen),
        sha256=digest,
        versions=(*(old for old in before if old.sha256 != digest), newest),
    )
    # The pristine copy first and the metadata before the picture: a stop in between never makes our picture a stranger.
    with atomic_write(folder / "pristine" / _pristine_name(image.layer, digest)) as part:
        part.write_bytes(data)
    write_json(path, to_mapping(sidecar))
    ours = {version.sha256 for version in sidecar.versions}
    for ending in chain(("", ".new"), (f".new{n}" for n in count(2))):
        path = folder / f"{image.layer}{ending}.png"
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() in ours:
            break
    with atomic_write(path) as part:
        part.write_bytes(data)
    if path.name == f"{image.layer}.png":
        return ExportedCanonical(path)
    return ExportedCanonical(path, (f"{image.layer}.png was painted on, so it stays; the new picture is {path.name}",))


def read_sidecar(folder: Path, layer: str) -> CanonicalSidecar:
    """Reads the metadata of a layer's canonical picture.

    Args:
        folder: the folder `canonical` of the run.
        layer: the name of the layer.

    Raises:
        UserError: a missing or damaged file (exit 5).
    """
    path = folder / f"{layer}.json"
    if not path.is_file():
        raise _damaged_error(path, "it is missing")
    return load_json(CanonicalSidecar, path, _describe_repair(path))


def read_pristine(folder: Path, layer: str) -> CanonicalImage:
    """Reads the newest picture of a layer that the program wrote, without later paint.

    Args:
        folder: the folder `canonical` of the run.
        layer: the name of the layer.

    Returns:
        The picture with its box.

    Raises:
        UserError: a missing or damaged file (exit 5).
    """
    return _read_pristine_version(folder, layer, read_sidecar(folder, layer).versions[-1])


def read_older_versions(folder: Path, layer: str) -> list[CanonicalImage]:
    """Reads the pictures of a layer that the program wrote before the newest one.

    Args:
        folder: the folder `canonical` of the run.
        layer: the name of the layer.

    Returns:
        The pictures, newer ones first.

    Raises:
        UserError: a missing or damaged file (exit 5).
    """
    older = reversed(read_sidecar(folder, layer).versions[:-1])
    return [_read_pristine_version(folder, layer, version) for version in older]


def resample_overlay(overlay: Overlay, size: tuple[int, int], box: Box) -> Float[np.ndarray, "height width 4"]:
    """Resamples an overlay to another size and box; the result is transparent outside the overlay.

    Args:
        overlay: any overlay of the same canonical plane.
        size: (width, height) of the result in texels.
        box: the part of the canonical plane that the result covers, in uv units.

    Returns:
        RGBA in [0, 1], straight alpha.
    """
    if overlay.box == box:
        if overlay.size == size:
            return overlay.rgba
        return unpremultiply(resize_image(premultiply(overlay.rgba), size))
    rgba = premultiply(overlay.rgba)
    finer = (box.width / size[0]) / (overlay.box.width / overlay.size[0])  # texels of the overlay to one of the result
    if finer > 4.0:  # averaged before it is sampled, so that no texel is missed
        halved = 2.0 ** np.floor(np.log2(finer / 2))
        smaller = (max(1, round(overlay.size[0] / halved)), max(1, round(overlay.size[1] / halved)))
        rgba = np.ascontiguousarray(resize_image(rgba, smaller))
    # The axes of both pictures are parallel, so that the bilinear samples are those of one axis after the other.
    for axis, start, extent, texels, own_start, own_extent in (
        (0, box.v0, box.height, size[1], overlay.box.v0, overlay.box.height),
        (1, box.u0, box.width, size[0], overlay.box.u0, overlay.box.width),
    ):
        texel = own_extent / rgba.shape[axis]
        place = (start + (np.arange(texels) + 0.5) * (extent / texels) - own_start) / texel - 0.5
        left = np.floor(place).astype(np.int64)
        samples = []
        for row, share in ((left, left + 1 - place), (left + 1, place - left)):
            inside = (row >= 0) & (row < rgba.shape[axis])
            weight = np.expand_dims((share * inside).astype(np.float32), (1, 2) if axis == 0 else (0, 2))
            samples.append(weight * rgba.take(row.clip(0, rgba.shape[axis] - 1), axis))
        rgba = samples[0] + samples[1]
    return unpremultiply(rgba)


def find_texel_positions(
    uv: Float[np.ndarray, "rows columns 2"], box: Box, size: tuple[int, int]
) -> Float[np.ndarray, "rows columns 2"]:
    """Finds the positions of uv in a picture; 0 is the center of the first texel.

    Args:
        uv: in uv units.
        box: that the picture covers, in uv units.
        size: (width, height) of the picture in texels.
    """
    x, y = size[0] / box.width, size[1] / box.height
    linear = np.array([[x, 0, -box.u0 * x - 0.5], [0, y, -box.v0 * y - 0.5]])
    return cv2.transform(uv, linear)  # fifty times as fast as numpy along an axis of two


def _pristine_name(layer: str, digest: str) -> str:
    return f"{layer}-{digest[:12]}.png"


def _read_pristine_version(folder: Path, layer: str, version: CanonicalVersion) -> CanonicalImage:
    """Reads an exported picture, and refuses one of another size than its metadata says."""
    path = folder / "pristine" / _pristine_name(layer, version.sha256)
    width, height = version.size
    try:
        picture = read_picture(path)
    except UserError as problem:
        raise _damaged_error(path, problem.what) from problem
    if picture.size != (width, height):
        texels = f"{picture.size[0]}x{picture.size[1]} texels"
        raise _damaged_error(path, f"it has {texels}, its metadata says {width}x{height}")
    return CanonicalImage(picture.rgba, version.box, layer)


def _damaged_error(path: Path, why: str) -> UserError:
    return UserError(
        ExitCode.DAMAGED_RUN,
        f"{path.name} is damaged",
        where=str(path),
        why=why,
        fix=_describe_repair(path),
    )


def _describe_repair(path: Path) -> str:
    return f"remove {path}; unwrap train with the same --out then writes it again"

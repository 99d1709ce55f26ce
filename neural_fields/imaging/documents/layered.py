"""Layered documents as data: the contents of an OpenRaster or a Photoshop document, from the top down.

Names of layers survive every paint program, so they alone distinguish paint from everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from neural_fields.core.errors import ExitCode, UserError, bad_input

PAINT = "paint here"
BASE = "base (locked)"  # followed by ": " and the name of the canonical layer
EDITS = "edits so far (locked)"
GUIDES = "guides"
GUIDE = "guide: "

Rgba = Float[np.ndarray, "height width 4"]
Size = tuple[int, int]


@dataclass(frozen=True)
class DocumentLimits:
    """Limits the size of documents; larger ones are refused as unsafe."""

    layers: int = 500  # most layers and groups of a document
    depth: int = 30  # deepest nesting of groups
    # Farthest corner of a layer from the corner of the canvas; no painting program goes further.
    offset_px: int = 1 << 20
    # Of an OpenRaster document, which is a zip archive:
    entries: int = 1000  # most files in the archive
    xml_bytes: int = 4 << 20  # largest size of its XML text
    # Larger files in the archive are refused if they unpack to more than `compression_ratio` times.
    small_entry_bytes: int = 16 << 20
    compression_ratio: int = 200  # largest ratio of unpacked to packed size of such files


DEFAULTS = DocumentLimits()


@dataclass(frozen=True)
class DocumentLayer:
    """Holds a layer of a document, or a group of layers.

    Attributes:
        name: the name that programs show.
        pixels: gives float32 RGBA in [0, 1] with straight alpha; None for a group. Reading them may raise `UserError`.
        layers: the layers of a group, the top one first.
        corner: (x, y) of its upper left pixel on the canvas.
        opacity: 0 to 1.
        visible: without regard to the groups it is in.
        locked: asks programs not to change it.
        blend: "normal", or a mode as the file names it.
        unsupported_reason: a property besides its pixels that decides what it shows, in a few words; it is then not
            supported.
    """

    name: str
    pixels: Callable[[], Rgba] | None = None
    layers: tuple[DocumentLayer, ...] = ()
    corner: tuple[int, int] = (0, 0)
    opacity: float = 1.0
    visible: bool = True
    locked: bool = False
    blend: str = "normal"
    unsupported_reason: str = ""


@dataclass(frozen=True)
class LayeredDocument:
    """Holds a layered picture.

    Attributes:
        size: (width, height) of the canvas.
        layers: the top one first.
        origin: what ties it to a run: "layer", "box", "sha256" of the canonical picture as exported. Empty where a
            program has dropped them.
        metadata: texts about what made it.
        notes: what was converted when it was read, one sentence each.
    """

    size: Size
    layers: tuple[DocumentLayer, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def crop_canvas(self, corner: tuple[int, int], size: Size) -> LayeredDocument:
        """Returns the document with a part of its canvas: (x, y) of the part's corner, and (width, height)."""
        return replace(
            self, size=size, layers=tuple(move_layer(layer, (-corner[0], -corner[1])) for layer in self.layers)
        )


def move_layer(layer: DocumentLayer, way: tuple[int, int]) -> DocumentLayer:
    """Moves a layer, or all layers of a group, by (x, y) pixels."""
    x, y = layer.corner
    moved = tuple(move_layer(inner, way) for inner in layer.layers)
    return replace(layer, corner=(x + way[0], y + way[1]), layers=moved)


def constant_pixels(picture: Rgba) -> Callable[[], Rgba]:
    """Returns a function for `pixels` of a layer that gives an existing picture."""
    return lambda: picture


def composite_over(top: Rgba, under: Rgba) -> Rgba:
    """Composites one picture over another, straight alpha.

    Where either is alone or the upper one is opaque, its values stay.
    """
    share, below = top[..., 3:], under[..., 3:]
    if not below.any():
        return np.where(share > 0, top, np.concatenate([under[..., :3], share], axis=-1)).astype(np.float32)
    alpha = share + below * (1 - share)
    mixed = (top[..., :3] * share + under[..., :3] * below * (1 - share)) / np.maximum(alpha, np.float32(1e-6))
    alone = np.where(share > 0, top[..., :3], under[..., :3])
    color = np.where((share > 0) & (share < 1) & (below > 0), mixed, alone)
    return np.concatenate([color, alpha], axis=-1).astype(np.float32)


def place_on_canvas(layer: DocumentLayer, size: Size) -> Rgba:
    """Places the pixels of a layer on a canvas of (width, height), without its opacity.

    Raises:
        UserError: they cannot be read.
    """
    assert layer.pixels is not None, "a group has no pixels of its own"
    pixels, (x, y), (width, height) = layer.pixels(), layer.corner, size
    if (x, y) == (0, 0) and pixels.shape[:2] == (height, width):
        return pixels
    canvas = np.zeros((height, width, 4), np.float32)
    rows, columns = slice(max(0, y), max(0, y + pixels.shape[0])), slice(max(0, x), max(0, x + pixels.shape[1]))
    target = canvas[rows, columns]
    target[...] = pixels[max(0, -y) :, max(0, -x) :][: target.shape[0], : target.shape[1]]
    return canvas


def flatten_layers(layers: Sequence[DocumentLayer], size: Size) -> Rgba:
    """Composites the visible layers, all of normal blend mode, the top one first.

    Raises:
        UserError: pixels that cannot be read.
    """
    found = np.zeros((size[1], size[0], 4), np.float32)
    for layer in reversed(layers):
        if layer.visible and layer.opacity > 0:
            picture = flatten_layers(layer.layers, size) if layer.pixels is None else place_on_canvas(layer, size)
            found = composite_over(apply_opacity(picture, layer.opacity), found)
    return found


def apply_opacity(picture: Rgba, opacity: float) -> Rgba:
    """Multiplies the alpha of a picture by an opacity."""
    if opacity == 1:
        return picture
    return np.concatenate([picture[..., :3], picture[..., 3:] * np.float32(opacity)], axis=-1)


def iterate_layers(layers: Sequence[DocumentLayer]) -> Iterator[DocumentLayer]:
    """Yields all layers and groups from the top down: a group before its contents."""
    for layer in layers:
        yield layer
        yield from iterate_layers(layer.layers)


def unsafe_document_error(path: Path, why: str) -> UserError:
    """Makes the error for a document that is not safe to open (exit 7)."""
    return UserError(
        ExitCode.UNSAFE_FILE,
        f"{path.name} was not opened",
        where=str(path),
        why=why,
        fix="save the picture alone as PNG, and give that",
    )


def damaged_document_error(path: Path, why: str) -> UserError:
    """Makes the error for a document that cannot be read (exit 3)."""
    return bad_input(
        f"{path.name} is damaged or not written to its end",
        where=str(path),
        why=why,
        fix="save it again, as .ora, .psd or .png",
    )


def check_canvas(path: Path, size: Size, max_pixels: int) -> None:
    """Refuses a canvas without pixels or with too many.

    Args:
        path: the file, for messages.
        size: (width, height) of the canvas.
        max_pixels: pixels that are accepted.

    Raises:
        UserError: see above (exit 3 or 7).
    """
    if min(size) < 1:
        raise damaged_document_error(path, f"its canvas has {size[0]} x {size[1]} pixels")
    if size[0] * size[1] > max_pixels:
        raise unsafe_document_error(
            path,
            f"it declares {size[0]} x {size[1]} pixels; at most {max_pixels / 1e6:.4g} megapixels are accepted here",
        )

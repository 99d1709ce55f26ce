"""Photoshop documents (.psd): the one place that imports psd_tools (extra `psd`).

Trap: in a document of mode RGB psd_tools turns the alpha of a layer into a mask and leaves the layer opaque; with mode
RGBA alpha comes back bit for bit. psd_tools answers a damaged channel with black pixels and a warning: here that
warning is an error.
"""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.export.layered import (
    MOST_LAYERS,
    MOST_NESTED,
    MOST_OFFSET,
    Document,
    Layer,
    Rgba,
    broken,
    check_canvas,
    flattened,
    unsafe,
)
from neural_fields.export.openraster import parse_xml
from neural_fields.files import atomic_write
from neural_fields.pictures import file_bytes

SIGNATURE = b"8BPS"
MOST_SIDE = 30_000  # pixels; larger documents need another format (.psb)
_HEADER = struct.Struct(">4sH6xHIIHH")  # signature, version, channels, height, width, depth, mode
_RGB = 3
_XMP, _RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC, _XAP = "http://purl.org/dc/elements/1.1/", "http://ns.adobe.com/xap/1.0/"


def write_psd(path: Path, document: Document) -> None:
    """Writes a document with 8 bits per channel.

    Raises:
        UserError: psd-tools is not installed, or the picture is too large for the format (exit 3), no room (4).
    """
    package = _psd_tools(path)
    if max(document.size) > MOST_SIDE:
        raise bad_input(
            f"{document.size[0]} x {document.size[1]} pixels are too many for .psd",
            where=str(path),
            why=f"a side has at most {MOST_SIDE}",
            fix="--format ora",
        )
    psd = package.PSDImage.frompil(_image(flattened(document.layers, document.size)))
    _add_layers(psd, document.layers)
    if facts := {**document.facts, **document.metadata}:
        from psd_tools.constants import Resource
        from psd_tools.psd.image_resources import ImageResource

        text = _xmp(facts, document.metadata.get("software", ""))
        psd.image_resources[Resource.XMP_METADATA] = ImageResource(key=Resource.XMP_METADATA, data=text)
    file = io.BytesIO()
    psd.save(file)
    with atomic_write(path) as part:
        part.write_bytes(file.getvalue())


def read_psd(path: Path, max_pixels: int) -> Document:
    """The document in a file; pixels of a layer are unpacked when they are asked for.

    Args:
        max_pixels: refuse a larger canvas, or a larger layer in it.

    Raises:
        UserError: psd-tools is not installed, no Photoshop document, a damaged one, one of an unusual kind (exit 3), or
            one that is not safe to open (7).
    """
    data = file_bytes(path)
    size = _check_header(path, data, max_pixels)
    package = _psd_tools(path)
    with _border(path):
        psd = package.PSDImage.open(io.BytesIO(data))
        layers = tuple(_layers(path, psd, max_pixels, [0], 1))
        return Document(size, layers, _facts(path, psd))


def _check_header(path: Path, data: bytes, max_pixels: int) -> tuple[int, int]:
    """The (width, height) of the canvas, from the first 26 bytes."""
    if len(data) < _HEADER.size or not data.startswith(SIGNATURE):
        raise broken(path, "it is no Photoshop document")
    _, version, _, height, width, depth, mode = _HEADER.unpack_from(data)
    again = "save it as a Photoshop document (.psd), RGB, with 8 or 16 bits per channel"
    if version != 1:
        kind = "a large document (.psb)" if version == 2 else f"a document of version {version}"
        raise bad_input(f"{path.name} is {kind}", where=str(path), why="only .psd is read", fix=again)
    if mode != _RGB or depth not in (8, 16):
        found = f"it has {depth} bits per channel in colour mode {mode}"
        raise bad_input(f"{path.name} is not RGB", where=str(path), why=found, fix=again)
    check_canvas(path, (width, height), max_pixels)
    return width, height


def _add_layers(parent: Any, layers: tuple[Layer, ...]) -> None:
    """Adds layers to a document or a group; psd_tools puts every new one on top."""
    for layer in reversed(layers):
        if layer.pixels is None:
            made = parent.create_group(name=layer.name)
            _add_layers(made, layer.layers)
        else:
            x, y = layer.corner
            made = parent.create_pixel_layer(_image(layer.pixels()), name=layer.name, top=y, left=x)
        made.opacity = round(255 * layer.opacity)
        made.visible = layer.visible
        if layer.locked:
            made.lock()


def _image(rgba: Rgba) -> Image.Image:
    return Image.fromarray(np.rint(255 * np.clip(rgba, 0, 1)).astype(np.uint8))


def _layers(path: Path, parent: Any, max_pixels: int, count: list[int], depth: int) -> Iterator[Layer]:
    """The layers and groups in a document or a group, the top one first."""
    if depth > MOST_NESTED:
        raise unsafe(path, f"groups are nested more than {MOST_NESTED} deep")
    for item in reversed(list(parent)):
        count[0] += 1
        if count[0] > MOST_LAYERS:
            raise unsafe(path, f"it has more than {MOST_LAYERS} layers")
        said: dict[str, Any] = {
            "name": str(item.name),
            "visible": bool(item.visible),
            "opacity": item.opacity * item.fill_opacity / 255**2,
            "blend": str(item.blend_mode.name).lower(),
        }
        if item.is_group():
            # Passed through or put together first: of layers that lie on each other normally, both give the same.
            said["blend"] = "normal" if said["blend"] == "pass_through" else said["blend"]
            group = tuple(_layers(path, item, max_pixels, count, depth + 1))
            yield Layer(**said, layers=group, trouble=_trouble(item))
            continue
        corner = (int(item.left), int(item.top))
        if item.width * item.height > max_pixels or max(map(abs, corner)) > MOST_OFFSET:
            raise unsafe(path, f"the layer {said['name'][:80]!r} has {item.width} x {item.height} pixels")
        yield Layer(**said, pixels=_pixels(path, item, max_pixels), corner=corner, trouble=_trouble(item))


def _pixels(path: Path, item: Any, max_pixels: int) -> Callable[[], Rgba]:
    """What gives the pixels of a layer, with its mask applied."""

    def pixels() -> Rgba:
        found: Rgba = np.zeros((item.height, item.width, 4), np.float32)
        if not found.size:
            return found
        with _border(path):
            if item.mask is not None and item.mask.width * item.mask.height > max_pixels:
                raise unsafe(path, f"the mask of {item.name[:80]!r} has {item.mask.width} x {item.mask.height} pixels")
            colour, shape = item.numpy("color"), item.numpy("shape")
            found[..., :3] = 0 if colour is None else colour[..., :3]
            found[..., 3] = 1 if shape is None else shape[..., 0]
            if _has_mask(item):
                found[..., 3] *= _mask(item)
        return found

    return pixels


def _has_mask(item: Any) -> bool:
    return item.mask is not None and not item.mask.disabled


def _mask(item: Any) -> np.ndarray:
    """The mask of a layer at the layer's place; beyond its own box it has one value."""
    mask, outside = item.mask, item.mask.background_color / 255
    values = item.numpy("mask")
    whole = np.full((item.height, item.width), outside, np.float32)
    if values is None or not values.size:
        return whole
    left, top, right, bottom = mask.bbox
    x0, y0 = max(left, item.left), max(top, item.top)
    x1, y1 = min(right, item.right), min(bottom, item.bottom)
    if x1 > x0 and y1 > y0:
        part = values[y0 - top : y1 - top, x0 - left : x1 - left, 0]
        whole[y0 - item.top : y1 - item.top, x0 - item.left : x1 - item.left] = part
    return whole


def _trouble(item: Any) -> str:
    """What else than its pixels decides what a layer shows."""
    if item.clipping:
        return "it is clipped to the layer below it"
    if item.has_vector_mask():
        return "it has a vector mask"
    if item.is_group():
        return "it is a group with a mask" if _has_mask(item) else ""
    if not item.has_pixels():
        return "" if item.kind == "pixel" else f"it is of the kind {item.kind}, without pixels"
    return "it has effects" if item.has_effects() else ""


def _xmp(facts: Mapping[str, Any], software: str) -> bytes:
    """XMP metadata with facts as the description, which Photoshop keeps."""
    root = ElementTree.Element(f"{{{_XMP}}}xmpmeta")
    about = ElementTree.SubElement(ElementTree.SubElement(root, f"{{{_RDF}}}RDF"), f"{{{_RDF}}}Description")
    about.set(f"{{{_RDF}}}about", "")
    if software:
        about.set(f"{{{_XAP}}}CreatorTool", software)
    texts = ElementTree.SubElement(ElementTree.SubElement(about, f"{{{_DC}}}description"), f"{{{_RDF}}}Alt")
    item = ElementTree.SubElement(texts, f"{{{_RDF}}}li", {"xml:lang": "x-default"})
    item.text = json.dumps(facts)
    return ElementTree.tostring(root, encoding="UTF-8")


def _facts(path: Path, psd: Any) -> dict[str, Any]:
    """What `_xmp` wrote; nothing where it is gone or another text."""
    from psd_tools.constants import Resource

    data = psd.image_resources.get_data(Resource.XMP_METADATA)
    if not isinstance(data, bytes):
        return {}
    start, end = data.find(b"<"), data.rfind(b">")
    try:
        root = parse_xml(path, data[start : end + 1])
        text = "".join(next(iter(root.iter(f"{{{_DC}}}description"))).itertext())
        found = json.loads(text)
    except (UserError, StopIteration, ValueError, RecursionError):
        return {}  # a text of the painter's own
    return found if isinstance(found, dict) else {}


@contextmanager
def _border(path: Path) -> Iterator[None]:
    """The border around psd_tools, which answers damage with many types of exceptions."""
    from psd_tools.compression import PSDDecompressionWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PSDDecompressionWarning)
            yield
    except UserError:
        raise
    except MemoryError as problem:
        raise UserError(
            ExitCode.NO_ROOM, f"not enough memory to open {path.name}", where=str(path), fix="save it at a smaller size"
        ) from problem
    except Exception as problem:  # of the parser
        text = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise broken(path, text) from problem


def _psd_tools(path: Path) -> ModuleType:
    try:
        import psd_tools
    except ImportError as problem:
        raise bad_input(
            "Photoshop documents need the package psd-tools",
            where=str(path),
            why="it is not installed",
            fix="pip install 'unwrap-video[psd]', or use .ora, which needs no package",
        ) from problem
    logging.getLogger("psd_tools").setLevel(logging.ERROR)  # blocks that it does not know are no news to a painter
    return psd_tools

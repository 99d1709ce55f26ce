"""Photoshop documents (.psd): the one place that imports psd_tools (extra `psd`).

Traps: in a document of mode RGB psd_tools turns the alpha of a layer into a mask and leaves the layer opaque; with mode
RGBA alpha comes back bit for bit. psd_tools answers a damaged channel with black pixels and a warning: here that
warning is an error. Its `Layer.lock` changes an object that is not in the file where a layer has no lock yet, and its
count of layers is positive, which says that the fourth channel is one of the painter's own and no transparency.
"""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import atomic_write
from neural_fields.imaging.documents.layered import (
    DEFAULTS,
    DocumentLayer,
    DocumentLimits,
    LayeredDocument,
    Rgba,
    check_canvas,
    damaged_document_error,
    flatten_layers,
    unsafe_document_error,
)
from neural_fields.imaging.documents.openraster import parse_xml
from neural_fields.imaging.image_io import convert_image, read_file_bytes

SIGNATURE = b"8BPS"
_LOCKED = 0x80000007  # all of it; and transparency, pixels and position, the bits at which most readers look
_XMP, _RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC, _XAP = "http://purl.org/dc/elements/1.1/", "http://ns.adobe.com/xap/1.0/"


def write_psd(path: Path, document: LayeredDocument) -> None:
    """Writes a document with 8 bits per channel.

    Raises:
        UserError: psd-tools is not installed, or the picture is too large for the format (exit 3), no room (4).
    """
    package = _import_psd_tools(path)
    max_side = 30_000  # pixels; larger documents need another format (.psb)
    if max(document.size) > max_side:
        raise bad_input(
            f"{document.size[0]} x {document.size[1]} pixels are too many for .psd",
            where=str(path),
            why=f"a side has at most {max_side}",
            fix="--format ora",
        )
    psd = package.PSDImage.frompil(_to_pillow(flatten_layers(document.layers, document.size)))
    _add_layers(psd, document.layers)
    if metadata := {**document.origin, **document.metadata}:
        from psd_tools.constants import Resource
        from psd_tools.psd.image_resources import ImageResource

        # XMP metadata with these values as the description, which Photoshop keeps.
        root = ElementTree.Element(f"{{{_XMP}}}xmpmeta")
        about = ElementTree.SubElement(ElementTree.SubElement(root, f"{{{_RDF}}}RDF"), f"{{{_RDF}}}Description")
        about.set(f"{{{_RDF}}}about", "")
        if software := document.metadata.get("software", ""):
            about.set(f"{{{_XAP}}}CreatorTool", software)
        texts = ElementTree.SubElement(ElementTree.SubElement(about, f"{{{_DC}}}description"), f"{{{_RDF}}}Alt")
        item = ElementTree.SubElement(texts, f"{{{_RDF}}}li", {"xml:lang": "x-default"})
        item.text = json.dumps(metadata)
        text = ElementTree.tostring(root, encoding="UTF-8")
        psd.image_resources[Resource.XMP_METADATA] = ImageResource(key=Resource.XMP_METADATA, data=text)
    info = psd._record.layer_and_mask_information.layer_info
    info.layer_count = -abs(info.layer_count)
    file = io.BytesIO()
    psd.save(file)
    with atomic_write(path) as part:
        part.write_bytes(file.getvalue())


def read_psd(path: Path, max_pixels: int, limits: DocumentLimits = DEFAULTS) -> LayeredDocument:
    """Reads the document in a file; the pixels of a layer are unpacked on first use.

    Args:
        path: the file.
        max_pixels: refuse a larger canvas, or a larger layer in it.
        limits: largest numbers of layers and bytes.

    Raises:
        UserError: psd-tools is not installed, no Photoshop document, a damaged one, one of an unusual kind (exit 3), or
            one that is not safe to open (7).
    """
    data = read_file_bytes(path)
    header = struct.Struct(">4sH6xHIIHH")  # signature, version, channels, height, width, depth, mode
    if len(data) < header.size or not data.startswith(SIGNATURE):
        raise damaged_document_error(path, "it is no Photoshop document")
    _, version, _, height, width, depth, mode = header.unpack_from(data)
    again = "save it as a Photoshop document (.psd), RGB, with 8 or 16 bits per channel"
    if version != 1:
        kind = "a large document (.psb)" if version == 2 else f"a document of version {version}"
        raise bad_input(f"{path.name} is {kind}", where=str(path), why="only .psd is read", fix=again)
    rgb_mode = 3
    if mode != rgb_mode or depth not in (8, 16):
        found = f"it has {depth} bits per channel in color mode {mode}"
        raise bad_input(f"{path.name} is not RGB", where=str(path), why=found, fix=again)
    check_canvas(path, (width, height), max_pixels)

    package = _import_psd_tools(path)
    from psd_tools.constants import Resource

    with _translate_errors(path):
        psd = package.PSDImage.open(io.BytesIO(data))
        profile = psd.image_resources.get_data(Resource.ICC_PROFILE)
        # Asked of one pixel: what will be converted, and what is said about it.
        notes = () if profile is None else _convert_colors(np.ones((1, 1, 4), np.float32), profile)[1]
        if notes and depth > 8:
            notes = (*notes, "its 16 bits per channel became 8, as the conversion has no more")
        layers = tuple(_read_layers(path, psd, profile if notes else None, max_pixels, limits, [0], 1))

        # What `write_psd` wrote about the document; nothing where it is gone or another text.
        metadata: Any = {}
        xmp = psd.image_resources.get_data(Resource.XMP_METADATA)
        if isinstance(xmp, bytes):
            try:
                root = parse_xml(path, xmp[xmp.find(b"<") : xmp.rfind(b">") + 1])
                metadata = json.loads("".join(next(iter(root.iter(f"{{{_DC}}}description"))).itertext()))
            except (UserError, StopIteration, ValueError, RecursionError):
                metadata = {}  # a text of the painter's own
        return LayeredDocument((width, height), layers, metadata if isinstance(metadata, dict) else {}, notes=notes)


def _add_layers(parent: Any, layers: tuple[DocumentLayer, ...]) -> None:
    """Adds layers to a document or a group; psd_tools puts every new one on top."""
    from psd_tools.constants import Tag
    from psd_tools.psd.tagged_blocks import ProtectedSetting

    for layer in reversed(layers):
        if layer.pixels is None:
            made = parent.create_group(name=layer.name)
            _add_layers(made, layer.layers)
        else:
            x, y = layer.corner
            made = parent.create_pixel_layer(_to_pillow(layer.pixels()), name=layer.name, top=y, left=x)
        made.opacity = round(255 * layer.opacity)
        made.visible = layer.visible
        if layer.locked:
            made.tagged_blocks.set_data(Tag.PROTECTED_SETTING, ProtectedSetting(_LOCKED))


def _to_pillow(rgba: Rgba) -> Image.Image:
    """Converts float RGBA in [0, 1] to an 8-bit picture of Pillow."""
    return Image.fromarray(np.rint(255 * np.clip(rgba, 0, 1)).astype(np.uint8))


def _convert_colors(rgba: Rgba, profile: bytes) -> tuple[Rgba, tuple[str, ...]]:
    """Converts a picture from a color profile to sRGB; returns it with notes on what was converted."""
    image = _to_pillow(rgba)
    image.info["icc_profile"] = profile
    found = convert_image(image)
    return found.rgba, found.notes


def _read_layers(
    path: Path,
    parent: Any,
    profile: bytes | None,
    max_pixels: int,
    limits: DocumentLimits,
    count: list[int],
    depth: int,
) -> Iterator[DocumentLayer]:
    """Yields the layers and groups in a document or a group, the top one first.

    Args:
        path: the file, for messages.
        parent: the document or group of psd_tools.
        profile: the color profile that pixels are converted from; None where they are sRGB.
        max_pixels: refuse a larger layer.
        limits: largest numbers of layers and levels.
        count: one number: the layers and groups so far, in the whole document.
        depth: level of the contents of the parent; 1 in the document.
    """
    if depth > limits.depth:
        raise unsafe_document_error(path, f"groups are nested more than {limits.depth} deep")
    for item in reversed(list(parent)):
        count[0] += 1
        if count[0] > limits.layers:
            raise unsafe_document_error(path, f"it has more than {limits.layers} layers")
        properties: dict[str, Any] = {
            "name": str(item.name).rstrip("\0"),  # Krita ends names with a zero byte
            "visible": bool(item.visible),
            "opacity": item.opacity * item.fill_opacity / 255**2,
            "blend": str(item.blend_mode.name).lower(),
        }
        if item.is_group():
            # Passed through or put together first: of layers that lie on each other normally, both give the same.
            if properties["blend"] == "pass_through":
                properties["blend"] = "normal"
            group = tuple(_read_layers(path, item, profile, max_pixels, limits, count, depth + 1))
            yield DocumentLayer(**properties, layers=group, unsupported_reason=_describe_trouble(item))
            continue
        corner = (int(item.left), int(item.top))
        if item.width * item.height > max_pixels or max(map(abs, corner)) > limits.offset_px:
            raise unsafe_document_error(
                path, f"the layer {properties['name'][:80]!r} has {item.width} x {item.height} pixels"
            )
        pixels = partial(_read_pixels, path, item, profile, max_pixels)
        yield DocumentLayer(**properties, pixels=pixels, corner=corner, unsupported_reason=_describe_trouble(item))


def _read_pixels(path: Path, item: Any, profile: bytes | None, max_pixels: int) -> Rgba:
    """Unpacks the pixels of a layer, in sRGB and with its mask applied."""
    rgba: Rgba = np.zeros((item.height, item.width, 4), np.float32)
    if not rgba.size:
        return rgba
    with _translate_errors(path):
        if item.mask is not None and item.mask.width * item.mask.height > max_pixels:
            raise unsafe_document_error(
                path, f"the mask of {item.name[:80]!r} has {item.mask.width} x {item.mask.height} pixels"
            )
        color, shape = item.numpy("color"), item.numpy("shape")
        rgba[..., :3] = 0 if color is None else color[..., :3]
        rgba[..., 3] = 1 if shape is None else shape[..., 0]
        if profile is not None:
            rgba[..., :3] = _convert_colors(rgba, profile)[0][..., :3]
        if _has_mask(item):
            mask, values = item.mask, item.numpy("mask")
            whole = np.full((item.height, item.width), mask.background_color / 255, np.float32)  # beyond its own box
            left, top, right, bottom = mask.bbox
            x0, y0 = max(left, item.left), max(top, item.top)
            x1, y1 = min(right, item.right), min(bottom, item.bottom)
            if values is not None and values.size and x1 > x0 and y1 > y0:
                part = values[y0 - top : y1 - top, x0 - left : x1 - left, 0]
                whole[y0 - item.top : y1 - item.top, x0 - item.left : x1 - item.left] = part
            rgba[..., 3] *= whole
    return rgba


def _has_mask(item: Any) -> bool:
    """Tells whether a layer has a mask that is switched on."""
    return item.mask is not None and not item.mask.disabled


def _describe_trouble(item: Any) -> str:
    """Describes a property besides its pixels that decides what a layer shows; "" where there is none."""
    if item.clipping:
        return "it is clipped to the layer below it"
    if item.has_vector_mask():
        return "it has a vector mask"
    if item.is_group():
        return "it is a group with a mask" if _has_mask(item) else ""
    if not item.has_pixels():
        return "" if item.kind == "pixel" else f"it is of the kind {item.kind}, without pixels"
    return "it has effects" if item.has_effects() else ""


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Turns the many types of exceptions with which psd_tools answers damage into `UserError`."""
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
        raise damaged_document_error(path, text) from problem


def _import_psd_tools(path: Path) -> ModuleType:
    """Imports psd_tools; `path` is for the message where it is not installed."""
    try:
        import psd_tools
    except ImportError as problem:
        raise bad_input(
            "Photoshop documents need the package psd-tools",
            where=str(path),
            why="it is not installed",
            fix="pip install -e '.[psd]' in the folder of Unwrap, or use .ora, which needs no package",
        ) from problem
    logging.getLogger("psd_tools").setLevel(logging.ERROR)  # blocks that it does not know are no news to a painter
    return psd_tools

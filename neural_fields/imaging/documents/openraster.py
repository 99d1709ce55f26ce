"""OpenRaster documents (.ora): layered pictures that Krita, GIMP and MyPaint open and save.

The file is a zip archive. Its first entry, stored, is `mimetype`; `stack.xml` lists the layers, the top one first, and
`data/*.png` holds them with straight alpha; `mergedimage.png` and a thumbnail are for viewers (openraster.org, file
layout and layer stack specifications). An archive from elsewhere is never unpacked to disk, and what its directory
promises is checked before anything in it is read.
"""

from __future__ import annotations

import io
import json
import math
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.documents.layered import (
    DEFAULTS,
    PAINT,
    DocumentLayer,
    DocumentLimits,
    LayeredDocument,
    Rgba,
    check_canvas,
    damaged_document_error,
    flatten_layers,
    iterate_layers,
    unsafe_document_error,
)
from neural_fields.imaging.image_io import decode_picture, encode_png, read_file_bytes

MIMETYPE = "image/openraster"
METADATA_ENTRY = "unwrap.json"  # our own entry; programs that do not know it drop it
_NORMAL = "svg:src-over"
# Without a frame MyPaint saves whole tiles of 64 pixels: the canvas would grow, and paint beside it would count.
_MYPAINT = "http://mypaint.org/ns/openraster"
ElementTree.register_namespace("mypaint", _MYPAINT)


def write_ora(path: Path, document: LayeredDocument) -> None:
    """Writes a document; the pixels of its layers become 8-bit PNG files.

    Raises:
        UserError: no room on the disk (exit 4).
    """
    width, height = document.size
    image = ElementTree.Element("image", version="0.0.3", w=str(width), h=str(height))
    image.set(f"{{{_MYPAINT}}}frame-active", "true")
    pictures: dict[str, Rgba] = {}
    _add_layers(ElementTree.SubElement(image, "stack"), document.layers, pictures)
    merged = flatten_layers(document.layers, document.size)
    shrink = min(1.0, 256 / max(width, height))  # the specification wants thumbnails of at most 256 pixels
    thumbnail_size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    thumbnail = unpremultiply(resize_image(premultiply(merged), thumbnail_size))
    entries = {
        "mimetype": MIMETYPE.encode(),
        "stack.xml": ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True),
        **{name: encode_png(picture) for name, picture in pictures.items()},
        "mergedimage.png": encode_png(merged),
        "Thumbnails/thumbnail.png": encode_png(thumbnail),
    }
    if metadata := {**document.origin, **document.metadata}:
        entries[METADATA_ENTRY] = json.dumps(metadata, indent=2).encode()
    with atomic_write(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, data in entries.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith((".xml", ".json")) else zipfile.ZIP_STORED
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the same document gives the same bytes
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data, packed)


def read_ora(path: Path, max_pixels: int, limits: DocumentLimits = DEFAULTS) -> LayeredDocument:
    """Reads the document in a file; the pixels of a layer are decoded on first use.

    Args:
        path: the file.
        max_pixels: refuse a larger canvas, or a larger picture in it.
        limits: largest numbers of layers, files and bytes.

    Raises:
        UserError: not an OpenRaster document, a damaged one (exit 3), or one that is not safe to open (7).
    """
    archive = _open_archive(path, read_file_bytes(path), max_pixels, limits)
    names = {info.filename for info in archive.infolist()}
    kind = MIMETYPE
    if "mimetype" in names:
        kind = _read_entry(path, archive, "mimetype").decode("ascii", "replace").strip()
    if kind != MIMETYPE or "stack.xml" not in names:
        raise bad_input(
            f"{path.name} is no OpenRaster document",
            where=str(path),
            why=f"it says it is {kind}" if kind != MIMETYPE else "it has no stack.xml",
            fix="export it from your program as .ora, .psd or .png",
        )
    image = parse_xml(path, _read_entry(path, archive, "stack.xml"), limits.xml_bytes)
    stack = image.find("stack")
    if image.tag != "image" or stack is None:
        raise damaged_document_error(path, "stack.xml lists no layers")
    size = (_read_integer(path, image, "w", limits), _read_integer(path, image, "h", limits))
    check_canvas(path, size, max_pixels)
    layers = tuple(_read_layers(path, archive, stack, max_pixels, limits, 1))
    if sum(1 for _ in iterate_layers(layers)) > limits.layers:
        raise unsafe_document_error(path, f"it has more than {limits.layers} layers")

    # Pictures are converted when they are read; here, the smallest of those with a profile says from which.
    notes: tuple[str, ...] = ()
    pictures = {name: _read_entry(path, archive, name) for name in names if name.startswith("data/")}
    profiled = [name for name, data in pictures.items() if b"iCCP" in data[:4096]]
    if profiled:
        name = min(profiled, key=lambda name: (len(pictures[name]), name))
        found = decode_picture(pictures[name], path / name, max_pixels, ("PNG",))
        notes = tuple(note for note in found.notes if "color profile" in note)

    # What we wrote about the document; nothing where it is not what we write.
    metadata: Any = {}
    if METADATA_ENTRY in names:
        try:
            metadata = json.loads(_read_entry(path, archive, METADATA_ENTRY))
        except (ValueError, RecursionError):
            metadata = {}
    return LayeredDocument(size, layers, metadata if isinstance(metadata, dict) else {}, notes=notes)


def parse_xml(path: Path, data: bytes, max_bytes: int = DEFAULTS.xml_bytes) -> ElementTree.Element:
    """Parses a small XML text without a document type, so that nothing in it can grow or point elsewhere.

    Args:
        path: the file it comes from, for messages.
        data: the text, in UTF-8.
        max_bytes: refuse a longer text.

    Returns:
        The root element.

    Raises:
        UserError: too long or with a document type (exit 7), no XML in UTF-8 (3).
    """
    if len(data) > max_bytes:
        raise unsafe_document_error(path, f"its description has {len(data)} bytes; at most {max_bytes} are accepted")
    try:
        text = data.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise unsafe_document_error(path, "its description has a document type, which no paint program writes")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError) as problem:
        raise damaged_document_error(path, f"its description is no XML: {problem}") from problem


def _add_layers(stack: ElementTree.Element, layers: tuple[DocumentLayer, ...], pictures: dict[str, Rgba]) -> None:
    """Appends layers to a stack, and their pictures under the names of their entries."""
    for layer in layers:
        attributes = {
            "name": layer.name,
            "opacity": f"{layer.opacity:.6g}",
            "visibility": "visible" if layer.visible else "hidden",
            "composite-op": _NORMAL,
        }
        if layer.locked:
            attributes["edit-locked"] = "true"
        if layer.name == PAINT:
            attributes["selected"] = "true"  # programs open the document with this layer selected, ready to paint
        if layer.pixels is None:
            _add_layers(ElementTree.SubElement(stack, "stack", attributes, isolation="auto"), layer.layers, pictures)
            continue
        name = f"data/{len(pictures):03d}.png"
        pictures[name] = layer.pixels()
        x, y = layer.corner
        ElementTree.SubElement(stack, "layer", attributes, src=name, x=str(x), y=str(y))


def _open_archive(path: Path, data: bytes, max_pixels: int, limits: DocumentLimits) -> zipfile.ZipFile:
    """Opens the archive, and refuses a directory that promises too much or names that could lead elsewhere."""
    # Counted before `zipfile` makes an object of each: every entry of the directory starts with these four bytes.
    if data.count(b"PK\x01\x02") > limits.entries:
        raise unsafe_document_error(path, f"it has more than {limits.entries} entries")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OverflowError) as problem:
        raise damaged_document_error(path, f"it is no whole zip archive: {problem}") from problem
    most = 8 * max_pixels + (1 << 20)  # a picture in 16 bits, not compressed at all
    total, names = 0, set()
    for info in archive.infolist():
        # A name that could lead out of a folder, and whatever is not a plain file.
        name = info.orig_filename
        parts = name.removesuffix("/").split("/")
        is_relative = "\\" in name or any(part in ("", ".", "..") for part in parts)
        has_drive = re.match(r"[A-Za-z]:", name) is not None
        if is_relative or has_drive or any(ord(letter) < 32 for letter in name):
            raise unsafe_document_error(path, f"the name {name[:80]!r} in it leads out of the archive")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise unsafe_document_error(path, f"{name[:80]!r} in it is a link or a device")

        shown = f"{info.filename[:80]!r}"
        total += info.file_size
        if info.file_size > most or total > 4 * most:
            raise unsafe_document_error(path, f"{shown} unpacks to more bytes than its pictures can have")
        if info.file_size > max(limits.small_entry_bytes, limits.compression_ratio * info.compress_size):
            raise unsafe_document_error(path, f"{shown} unpacks to {info.file_size} from {info.compress_size} bytes")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise unsafe_document_error(path, f"{shown} is encrypted or packed in an unusual way")
        if info.filename.casefold() in names:
            raise unsafe_document_error(path, f"{shown} is in it twice")
        names.add(info.filename.casefold())
    return archive


def _read_entry(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """Unpacks one entry of the archive."""
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as problem:
        raise damaged_document_error(path, f"{name} in it cannot be unpacked: {problem}") from problem


def _read_layers(
    path: Path,
    archive: zipfile.ZipFile,
    stack: ElementTree.Element,
    max_pixels: int,
    limits: DocumentLimits,
    depth: int,
) -> Iterator[DocumentLayer]:
    """Yields the layers and groups in an element of stack.xml, the top one first.

    Args:
        path: the file, for messages.
        archive: the archive with the pictures.
        stack: the element.
        max_pixels: refuse a larger picture.
        limits: largest numbers of layers and levels.
        depth: level of the contents of the element; 1 in the root.
    """
    if depth > limits.depth:
        raise unsafe_document_error(path, f"groups are nested more than {limits.depth} deep")
    for item in stack:
        visible = item.get("visibility", "visible") != "hidden"
        if item.tag not in ("layer", "stack"):
            # Filters and texts have no pixels to take.
            yield DocumentLayer(
                item.get("name", item.tag), visible=visible, unsupported_reason=f"a {item.tag}, not pixels"
            )
            continue
        operation = item.get("composite-op", _NORMAL)
        properties: dict[str, Any] = {
            "name": item.get("name", ""),
            "opacity": min(1.0, max(0.0, _read_number(path, item, "opacity", 1.0))),
            "visible": visible,
            "locked": item.get("edit-locked") == "true",
            "blend": "normal" if operation in (_NORMAL, "src-over", "") else operation.rpartition(":")[2],
        }
        if item.tag == "stack":
            group = tuple(_read_layers(path, archive, item, max_pixels, limits, depth + 1))
            yield DocumentLayer(**properties, layers=group)
            continue
        source = item.get("src", "")
        if source not in archive.namelist():
            raise damaged_document_error(path, f"the picture of the layer {properties['name']!r} is not in it")
        pixels = partial(_read_pixels, path, archive, source, max_pixels)
        corner = (_read_integer(path, item, "x", limits, 0.0), _read_integer(path, item, "y", limits, 0.0))
        yield DocumentLayer(**properties, pixels=pixels, corner=corner)


def _read_pixels(path: Path, archive: zipfile.ZipFile, entry: str, max_pixels: int) -> Rgba:
    """Decodes the picture of a layer."""
    return decode_picture(_read_entry(path, archive, entry), path / entry, max_pixels, ("PNG",)).rgba


def _read_number(path: Path, item: ElementTree.Element, name: str, default: float | None = None) -> float:
    """Reads an attribute that is a finite number; without a default it must be there."""
    text = item.get(name)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise damaged_document_error(path, f"{name} of <{item.tag}> is {str(text)[:40]!r}")
    return value


def _read_integer(
    path: Path, item: ElementTree.Element, name: str, limits: DocumentLimits, default: float | None = None
) -> int:
    """Reads an attribute in pixels, rounded."""
    value = _read_number(path, item, name, default)
    if abs(value) > limits.offset_px:
        raise unsafe_document_error(path, f"{name} of <{item.tag}> is {value:g}")
    return round(value)

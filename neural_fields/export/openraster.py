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
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float

from neural_fields.errors import bad_input
from neural_fields.export.layered import (
    MOST_LAYERS,
    MOST_NESTED,
    MOST_OFFSET,
    PAINT,
    Document,
    Layer,
    Rgba,
    broken,
    check_canvas,
    every,
    flattened,
    unsafe,
)
from neural_fields.files import atomic_write
from neural_fields.pictures import file_bytes, png_bytes, premultiplied, read_picture_bytes, resize, straight

MIMETYPE = "image/openraster"
FACTS = "unwrap.json"  # our own entry; programs that do not know it drop it
MOST_ENTRIES = 1000
MOST_XML = 4 << 20  # bytes
MOST_RATIO, SMALL = 200, 16 << 20  # an entry above so many bytes that shrank more than so many times is a bomb
THUMBNAIL = 256  # pixels of its longer side
_NORMAL = "svg:src-over"
_STAMP = (1980, 1, 1, 0, 0, 0)  # the same document gives the same bytes
_DRIVE = re.compile(r"[A-Za-z]:")


def write_ora(path: Path, document: Document) -> None:
    """Writes a document; the pixels of its layers become 8-bit PNG files.

    Raises:
        UserError: no room on the disk (exit 4).
    """
    width, height = document.size
    image = ElementTree.Element("image", version="0.0.3", w=str(width), h=str(height))
    pictures: dict[str, Rgba] = {}
    _add_layers(ElementTree.SubElement(image, "stack"), document.layers, pictures)
    merged = flattened(document.layers, document.size)
    entries = {
        "mimetype": MIMETYPE.encode(),
        "stack.xml": ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True),
        **{name: png_bytes(picture) for name, picture in pictures.items()},
        "mergedimage.png": png_bytes(merged),
        "Thumbnails/thumbnail.png": png_bytes(_thumbnail(merged)),
    }
    if facts := {**document.facts, **document.metadata}:
        entries[FACTS] = json.dumps(facts, indent=2).encode()
    with atomic_write(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, data in entries.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith((".xml", ".json")) else zipfile.ZIP_STORED
            info = zipfile.ZipInfo(name, _STAMP)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data, packed)


def read_ora(path: Path, max_pixels: int) -> Document:
    """The document in a file; pixels of a layer are decoded when they are asked for.

    Args:
        max_pixels: refuse a larger canvas, or a larger picture in it.

    Raises:
        UserError: not an OpenRaster document, a damaged one (exit 3), or one that is not safe to open (7).
    """
    archive = _open(path, file_bytes(path), max_pixels)
    names = {info.filename for info in archive.infolist()}
    kind = _read(path, archive, "mimetype").decode("ascii", "replace").strip() if "mimetype" in names else MIMETYPE
    if kind != MIMETYPE or "stack.xml" not in names:
        raise bad_input(
            f"{path.name} is no OpenRaster document",
            where=str(path),
            why=f"it says it is {kind}" if kind != MIMETYPE else "it has no stack.xml",
            fix="export it from your program as .ora, .psd or .png",
        )
    image = parse_xml(path, _read(path, archive, "stack.xml"))
    stack = image.find("stack")
    if image.tag != "image" or stack is None:
        raise broken(path, "stack.xml lists no layers")
    size = (_whole(path, image, "w"), _whole(path, image, "h"))
    check_canvas(path, size, max_pixels)
    layers = tuple(_layers(path, archive, stack, max_pixels, 1))
    if sum(1 for _ in every(layers)) > MOST_LAYERS:
        raise unsafe(path, f"it has more than {MOST_LAYERS} layers")
    return Document(size, layers, _facts(_read(path, archive, FACTS)) if FACTS in names else {})


def parse_xml(path: Path, data: bytes) -> ElementTree.Element:
    """The root of a small XML text without a document type, so that nothing in it can grow or point elsewhere.

    Args:
        path: the file it comes from, for messages.

    Raises:
        UserError: too long or with a document type (exit 7), no XML in UTF-8 (3).
    """
    if len(data) > MOST_XML:
        raise unsafe(path, f"its description has {len(data)} bytes; at most {MOST_XML} are accepted")
    try:
        text = data.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise unsafe(path, "its description has a document type, which no paint program writes")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError) as problem:
        raise broken(path, f"its description is no XML: {problem}") from problem


def _facts(data: bytes) -> dict[str, Any]:
    """What we wrote about the document; nothing where it is not what we write."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _add_layers(stack: ElementTree.Element, layers: tuple[Layer, ...], pictures: dict[str, Rgba]) -> None:
    """Appends layers to a stack, and their pictures under the names of their entries."""
    for layer in layers:
        said = {
            "name": layer.name,
            "opacity": f"{layer.opacity:.6g}",
            "visibility": "visible" if layer.visible else "hidden",
            "composite-op": _NORMAL,
        }
        if layer.locked:
            said["edit-locked"] = "true"
        if layer.name == PAINT:
            said["selected"] = "true"  # programs open with the layer to paint on at hand
        if layer.pixels is None:
            _add_layers(ElementTree.SubElement(stack, "stack", said, isolation="auto"), layer.layers, pictures)
            continue
        name = f"data/{len(pictures):03d}.png"
        pictures[name] = layer.pixels()
        x, y = layer.corner
        ElementTree.SubElement(stack, "layer", said, src=name, x=str(x), y=str(y))


def _thumbnail(merged: Rgba) -> Float[np.ndarray, "rows columns 4"]:
    height, width = merged.shape[:2]
    shrink = min(1.0, THUMBNAIL / max(width, height))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return straight(resize(premultiplied(merged), size))


def _open(path: Path, data: bytes, max_pixels: int) -> zipfile.ZipFile:
    """The archive, with a directory that promises nothing outrageous."""
    # Counted before `zipfile` makes an object of each: every entry of the directory starts with these four bytes.
    if data.count(b"PK\x01\x02") > MOST_ENTRIES:
        raise unsafe(path, f"it has more than {MOST_ENTRIES} entries")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OverflowError) as problem:
        raise broken(path, f"it is no whole zip archive: {problem}") from problem
    most = 8 * max_pixels + (1 << 20)  # a picture in 16 bits, not compressed at all
    total, names = 0, set()
    for info in archive.infolist():
        _check_name(path, info)
        total += info.file_size
        if info.file_size > most or total > 4 * most:
            raise unsafe(path, f"{info.filename[:80]!r} unpacks to more bytes than its pictures can have")
        if info.file_size > max(SMALL, MOST_RATIO * info.compress_size):
            raise unsafe(path, f"{info.filename[:80]!r} unpacks to {info.file_size} from {info.compress_size} bytes")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise unsafe(path, f"{info.filename[:80]!r} is encrypted or packed in an unusual way")
        if info.filename.casefold() in names:
            raise unsafe(path, f"{info.filename[:80]!r} is in it twice")
        names.add(info.filename.casefold())
    return archive


def _check_name(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuses a name that could lead out of a folder, and whatever is not a plain file."""
    name = info.orig_filename
    parts = name.removesuffix("/").split("/")
    bad = any(part in ("", ".", "..") for part in parts) or "\\" in name or _DRIVE.match(name) is not None
    if bad or any(ord(letter) < 32 for letter in name):
        raise unsafe(path, f"the name {name[:80]!r} in it leads out of the archive")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise unsafe(path, f"{name[:80]!r} in it is a link or a device")


def _read(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as problem:
        raise broken(path, f"{name} in it cannot be unpacked: {problem}") from problem


def _layers(
    path: Path, archive: zipfile.ZipFile, stack: ElementTree.Element, max_pixels: int, depth: int
) -> Iterator[Layer]:
    """The layers and groups in an element of stack.xml."""
    if depth > MOST_NESTED:
        raise unsafe(path, f"groups are nested more than {MOST_NESTED} deep")
    for item in stack:
        if item.tag not in ("layer", "stack"):
            # Filters and texts have no pixels to take.
            yield Layer(item.get("name", item.tag), visible=_is_visible(item), trouble=f"a {item.tag}, not pixels")
            continue
        said: dict[str, Any] = {
            "name": item.get("name", ""),
            "opacity": _share(path, item),
            "visible": _is_visible(item),
            "locked": item.get("edit-locked") == "true",
            "blend": _blend(item.get("composite-op", _NORMAL)),
        }
        if item.tag == "stack":
            yield Layer(**said, layers=tuple(_layers(path, archive, item, max_pixels, depth + 1)))
            continue
        source = item.get("src", "")
        if source not in archive.namelist():
            raise broken(path, f"the picture of the layer {said['name']!r} is not in it")

        def pixels(source: str = source) -> Rgba:
            return read_picture_bytes(_read(path, archive, source), path / source, max_pixels, ("PNG",)).rgba

        corner = (_whole(path, item, "x", 0.0), _whole(path, item, "y", 0.0))
        yield Layer(**said, pixels=pixels, corner=corner)


def _is_visible(item: ElementTree.Element) -> bool:
    return item.get("visibility", "visible") != "hidden"


def _blend(operation: str) -> str:
    return "normal" if operation in (_NORMAL, "src-over", "") else operation.rpartition(":")[2]


def _number(path: Path, item: ElementTree.Element, name: str, default: float | None = None) -> float:
    text = item.get(name)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise broken(path, f"{name} of <{item.tag}> is {str(text)[:40]!r}")
    return value


def _whole(path: Path, item: ElementTree.Element, name: str, default: float | None = None) -> int:
    value = _number(path, item, name, default)
    if abs(value) > MOST_OFFSET:
        raise unsafe(path, f"{name} of <{item.tag}> is {value:g}")
    return round(value)


def _share(path: Path, item: ElementTree.Element) -> float:
    return min(1.0, max(0.0, _number(path, item, "opacity", 1.0)))

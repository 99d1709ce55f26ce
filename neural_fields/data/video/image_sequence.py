"""Folders of numbered pictures as video: 00000.png, 00001.png, ... in the order of their numbers."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import accumulate, count, pairwise
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageSequence, UnidentifiedImageError

from neural_fields.core.errors import bad_input
from neural_fields.core.prefetch import map_in_threads
from neural_fields.data.video.decode import convert_parser_errors
from neural_fields.data.video.metadata import DEFAULT_RATE, VideoMetadata, check_size, find_frame_rate, make_metadata
from neural_fields.data.video.metadata import DEFAULTS as LIMITS
from neural_fields.data.video.picture_suffixes import PICTURE_SUFFIXES, is_image
from neural_fields.imaging.image_io import FORMATS, read_picture

_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def list_images(source: Path) -> list[Path]:
    """Lists the pictures of a folder in the order of their numbers; a picture alone is a list of one.

    Raises:
        UserError: there is no picture, numbers are missing or occur twice, or two sequences share the folder.
    """
    if not source.is_dir():
        return [source]
    try:
        found = [p for p in source.iterdir() if is_image(p) and not p.name.startswith(".") and p.is_file()]
    except OSError as error:
        raise bad_input("the folder cannot be read", where=str(source), why=str(error)) from error
    if not found:
        others = Counter(p.suffix.lower() for p in source.iterdir() if p.suffix and p.name[0] != "." and p.is_file())
        folders = sorted(p.name for p in source.iterdir() if p.is_dir() and p.name[0] != ".")
        fix = f"name the folder that holds the frames{f', such as {source / folders[0]}' if folders else ''}"
        if others:
            fix = "convert them to PNG (linear light, as in EXR, with the curve of sRGB), and name the folder of these"
        raise bad_input(
            "no pictures in the folder that can be read",
            where=str(source),
            why=", ".join(f"{count} {suffix} file{'s' * (count > 1)}" for suffix, count in others.most_common(3))
            + (", not read: " if others else "")
            + f"expected numbered files ending in {', '.join(sorted(PICTURE_SUFFIXES))}",
            fix=fix,
        )
    if len(found) == 1:
        return found

    # The text before the last number in each file name, and that number.
    numbers: dict[Path, tuple[str, int]] = {}
    for path in found:
        match = re.fullmatch(r"(.*?)([0-9]+)", path.stem, flags=re.DOTALL)
        if match is None:
            raise bad_input(
                f"the picture {path.name!r} has no number at the end of its name",
                where=str(path.parent),
                why="frames are ordered by their numbers, as in 00000.png, 00001.png",
                fix="rename it, or move it out of the folder",
            )
        numbers[path] = match[1], int(match[2])

    # Two sequences in one folder, double numbers and gaps are refused.
    prefixes = {prefix: path.name for path, (prefix, _) in sorted(numbers.items())}
    if len(prefixes) > 1:
        raise bad_input(
            "several sequences of pictures in one folder",
            where=str(source),
            why="for example " + " and ".join(repr(name) for name in list(prefixes.values())[:3]),
            fix="put each sequence into a separate folder",
        )
    by_number: dict[int, Path] = {}
    for path, (_, number) in sorted(numbers.items()):
        if number in by_number:
            raise bad_input(
                f"two pictures have the number {number}",
                where=str(source),
                why=f"{by_number[number].name!r} and {path.name!r}",
                fix="move one of them out of the folder",
            )
        by_number[number] = path
    order = sorted(by_number)
    gaps = [(a, b) for a, b in pairwise(order) if b != a + 1]
    if gaps:
        shown = []
        for a, b in gaps[:5]:
            shown.append(f"between {by_number[a].name!r} and {by_number[b].name!r}, {b - a - 1} missing")
        raise bad_input(
            f"pictures are missing in the sequence ({len(gaps)} gap{'s' if len(gaps) > 1 else ''})",
            where=str(source),
            why="; ".join(shown),
            fix="add the missing frames, or renumber the files without gaps",
        )
    return [by_number[number] for number in order]


def hash_images(paths: Sequence[Path]) -> str:
    """Computes the SHA-256 of the names and contents of pictures, in hexadecimal.

    Raises:
        UserError: a picture cannot be read.
    """
    whole = hashlib.sha256()
    for path in paths:
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise bad_input("a picture cannot be read", where=str(path), why=str(error)) from error
        whole.update(os.fsencode(path.name) + b"\0" + content.encode() + b"\n")
    return whole.hexdigest()


def read_image_frame(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a picture as upright uint8 [height, width, 3], with notes about lost information.

    Raises:
        UserError: the file is damaged, too large, or not a supported picture.
    """
    plain = _read_plain_rgb(path)
    if plain is not None:
        return plain, ()
    if (count := count_moving_pictures(path)) > 1:
        raise bad_input(
            f"{path.name} holds {count} pictures",
            where=str(path.parent),
            why="a frame of a sequence is one picture",
            fix="save its pages one by one, numbered, in a folder"
            if path.suffix.lower() in (".tif", ".tiff")
            else "name this file alone as the video",
        )
    picture = read_picture(path, LIMITS.max_pixels)
    notes = list(picture.notes)
    if picture.bits > 8:
        notes.append(f"{picture.bits} bit color is read as 8 bit")
    if picture.had_alpha:
        notes.append("transparency is left out: the colors under it are read")
    return np.rint(picture.rgba[..., :3] * 255).astype(np.uint8), tuple(notes)


def _read_plain_rgb(path: Path) -> np.ndarray | None:
    """Reads 8 bit RGB without profile or rotation the quick way; returns None for every other picture."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode != "RGB" or image.info.get("icc_profile") or getattr(image, "n_frames", 1) > 1:
                return None
            if image.width * image.height > LIMITS.max_pixels or image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                return None
            if image.has_transparency_data:
                return None
            if image.format == "PNG":
                with path.open("rb") as file:
                    bit_depth = file.read(25)[24]  # in the header
                if bit_depth != 8:
                    return None
            return np.array(image)
    except (*_DAMAGED, UnidentifiedImageError):
        return None  # `read_picture` looks again and says what is wrong


def count_moving_pictures(path: Path) -> int:
    """Counts the frames of an animated PNG or WebP, or the pages of one size of a TIFF; 1 for every other picture.

    A JPEG with further pictures is one picture: phones add depth and brightness to it.
    """
    try:
        with Image.open(path, formats=("PNG", "WEBP", "TIFF")) as image:
            count, size = getattr(image, "n_frames", 1), image.size
            if image.format == "TIFF" and count > 1:
                image.seek(1)
                count = count if image.size == size else 1  # small pages are previews
            return count
    except (*_DAMAGED, UnidentifiedImageError):
        return 1  # `read_picture` looks again and says what is wrong


def probe_animation(path: Path) -> VideoMetadata:
    """Reads the metadata of an animated WebP, whose pictures have durations.

    Raises:
        UserError: it is damaged, or its frames have another size than is read.
    """
    durations, opaque = [], True
    with convert_parser_errors(path, "reading the animation"), Image.open(path, formats=("WEBP",)) as image:
        check_size(*image.size, where=str(path))
        width, height = image.size
        for picture in ImageSequence.Iterator(image):
            picture.load()
            durations.append(Fraction(round(picture.info.get("duration") or 100), 1000))
            opaque = opaque and bool(np.array(picture.convert("RGBA"))[..., 3].min() == 255)
    starts = tuple(accumulate(durations, initial=Fraction(0)))
    rate, variable = find_frame_rate(starts[:-1], Fraction(1, 1000), None)
    notes = [] if opaque else ["transparency is left out: the colors under it are read"]
    if durations[-1] > 2 / rate:
        notes.append(f"the last frame stays {float(durations[-1]):.3g} seconds")
    return replace(
        make_metadata((width, height), len(durations), rate),
        path=os.path.abspath(path),
        sha256=hash_images([path]),
        bytes=path.stat().st_size,
        time_base=Fraction(1, 1000),
        timestamps=starts[:-1],
        end=starts[-1],
        variable_rate=variable,
        codec="webp",
        notes=tuple(notes),
    )


def _animation_frames(metadata: VideoMetadata, frames: range) -> Iterator[np.ndarray]:
    """Streams the chosen frames of an animated WebP."""
    with convert_parser_errors(metadata.path, "decoding"), Image.open(metadata.path, formats=("WEBP",)) as image:
        for index in frames:
            image.seek(index)
            yield np.array(image.convert("RGBA"))[..., :3]


def probe_images(source: Path) -> VideoMetadata:
    """Reads the metadata of a folder of numbered pictures, or of one picture.

    Raises:
        UserError: pictures are missing, damaged, or differ in size.
    """
    paths = list_images(source)
    sizes = []  # width and height that each picture will have, from its header alone
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                upright = image.size[::-1] if turned else image.size
        except (*_DAMAGED, UnidentifiedImageError):
            upright = read_picture(path, LIMITS.max_pixels).size  # says in a sentence what is wrong
        sizes.append(upright)
    size, _ = Counter(sizes).most_common(1)[0]
    others = [f"{p.name!r} is {w}x{h}" for p, (w, h) in zip(paths, sizes, strict=True) if (w, h) != size]
    if others:
        raise bad_input(
            f"the pictures differ in size ({len(others)} of {len(paths)})",
            where=str(paths[0].parent),
            why=f"{', '.join(others[:5])}; the others are {size[0]}x{size[1]}",
            fix="scale them to one size",
        )
    check_size(*size, where=str(paths[0]))
    _, notes = read_image_frame(paths[0])
    rate = DEFAULT_RATE
    number = re.search(r"[0-9]+$", paths[0].stem) if source.is_dir() else None
    return replace(
        make_metadata(size, len(paths), rate),
        path=os.path.abspath(source),
        sha256=hash_images(paths),
        bytes=sum(path.stat().st_size for path in paths),
        codec=paths[0].suffix.lower().lstrip("."),
        notes=(*notes, *_describe_pictures(source, paths, rate)),
        first_number=int(number[0]) if number else 0,
    )


def _describe_pictures(source: Path, paths: Sequence[Path], rate: Fraction) -> Iterator[str]:
    """Says what is assumed about pictures, and which lie beside a single one."""
    if len(paths) > 1:
        yield (
            f"pictures carry no rate: {rate} frames a second are assumed, and renders are films of that rate; for 30, "
            f"render with --rate 30 --speed 30/{rate}, for pictures with --codec png"
        )
        return
    yield f"one picture is a film of one frame; pictures carry no rate: {rate} frames a second are assumed"
    if source.is_file() and (found := re.fullmatch(r"(.*?)[0-9]+", source.stem, flags=re.DOTALL)):
        pattern = re.compile(re.escape(found[1]) + r"[0-9]+" + re.escape(source.suffix))
        others = [name for name in os.listdir(source.parent) if pattern.fullmatch(name) and name != source.name]
        if others:
            yield f"{len(others)} more pictures of this sequence are beside it: name the folder to read them all"


def image_frames(metadata: VideoMetadata, frames: range) -> Iterator[np.ndarray]:
    """Streams the chosen pictures, upright uint8 [H, W, 3].

    Args:
        metadata: metadata of the folder.
        frames: indices of pictures, in the order of their numbers.

    Raises:
        UserError: the folder has changed since its metadata was read.
    """
    if metadata.codec == "webp" and Path(metadata.path).is_file() and metadata.frame_count > 1:
        yield from _animation_frames(metadata, frames)
        return
    paths = list_images(Path(metadata.path))
    if len(paths) != metadata.frame_count:
        raise bad_input(
            "the folder of frames changed",
            where=metadata.path,
            why=f"{len(paths)} pictures now, {metadata.frame_count} before",
            fix="put the frames back, or train again with --out NEW",
        )
    chosen = [paths[index] for index in frames]
    for path, (picture, _) in zip(chosen, map_in_threads(read_image_frame, chosen), strict=True):
        if picture.shape[:2] != (metadata.height, metadata.width):
            raise bad_input(
                "a picture has another size",
                where=str(path),
                why=f"{picture.shape[1]}x{picture.shape[0]} instead of {metadata.width}x{metadata.height}",
                fix="scale it to the size of the others",
            )
        yield picture


def insert_png_texts(png: bytes, texts: Mapping[str, str] | None) -> bytes:
    """Puts texts by keyword ("Comment" and the like) into a PNG file, right after its header.

    PNG stores them as Latin-1 (section 11.3.3 of its specification); other characters become their numbers.
    """
    end = 8 + 25  # of the signature and the header
    chunks = []
    for keyword, text in (texts or {}).items():
        data = b"tEXt" + keyword.capitalize().encode("ascii") + b"\0" + text.encode("latin-1", "backslashreplace")
        chunks.append(struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)))
    return png[:end] + b"".join(chunks) + png[end:]


def encode_frame(picture: UInt8[np.ndarray, "height width channels"], texts: Mapping[str, str] | None = None) -> bytes:
    """Encodes a frame as PNG, quickly, with texts by keyword; RGB, or RGB with straight alpha."""
    order = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, order), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return insert_png_texts(data.tobytes(), texts)


def write_images(
    path: Path,
    pictures: Iterator[np.ndarray],
    texts: Mapping[str, str] | None = None,
    numbers: Sequence[int] | None = None,
) -> None:
    """Writes a folder of pictures 00000.png, 00001.png and so on.

    Args:
        path: the folder; an existing one is replaced if it holds only such pictures.
        pictures: uint8 [height, width, 3 or 4], RGB or RGB with straight alpha.
        texts: metadata of each file, by name.
        numbers: number of each picture, for its name; None counts from 0.

    Raises:
        UserError: the folder holds other files (exit 3), or no room (exit 4).
    """
    if path.exists():
        foreign = sorted(p.name for p in path.iterdir() if not re.fullmatch(r"\d{5,}\.png", p.name))
        if foreign:
            raise bad_input(
                "the folder holds other files too", where=str(path), why=repr(foreign[0]), fix="use another --out"
            )
    with convert_parser_errors(path, "writing pictures"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".unwrap-part-", dir=path.parent))
    try:
        encoded = map_in_threads(partial(encode_frame, texts=texts), pictures)
        for number, data in zip(count() if numbers is None else numbers, encoded, strict=numbers is not None):
            with convert_parser_errors(path, "writing pictures"), (part / f"{number:05d}.png").open("wb") as file:
                file.write(data)
        with convert_parser_errors(path, "writing pictures"):
            for written in part.iterdir():  # together at the end, so that the disk can order them
                descriptor = os.open(written, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            part.chmod(0o755)
            if not path.exists():
                os.replace(part, path)
                return
            # An older folder is removed only after the new one is in place.
            old = part.with_name(part.name + "-old")
            os.replace(path, old)
            try:
                os.replace(part, path)
            except OSError:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)

"""Pictures of classes: each colour, grey value or palette index is a class. Read within limits, and written again.

A class is a colour that a file keeps exactly. So colours are not converted, not averaged, and files whose compression
changes them are refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from neural_fields.data.masks import ASPECT_SLACK
from neural_fields.errors import bad_input
from neural_fields.pictures import Picture, png_bytes, read_picture

KINDS = ("PNG", "TIFF", "BMP")
MODES = ("1", "L", "P", "LA", "RGB", "RGBA")  # of Pillow, 8 bit; and 16-bit grey, whose mode says the byte order
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
MOST_PIXELS = 40_000_000
MOST_CLASSES = 4096
ORIENTATION = 0x0112
SAVE_AGAIN = "save it as PNG with a palette, grey values or plain colours, without antialiasing"


@dataclass(frozen=True)
class LabelPicture:
    """A picture of classes.

    Attributes:
        classes: the class of each pixel; class 0 is nothing, also where no pixel has it.
        values: for each class what the file stores: a palette index or grey value, or the channels of a colour.
        mode: as Pillow names it ("I;16" is 16-bit grey); "RGB" and "RGBA" may have 16 bits.
        palette: RGB bytes of a picture with a palette.
        transparency: what a PNG says of its transparent index or colour.
        source, sha256: name and digest of the file.
    """

    classes: Int[np.ndarray, "height width"]
    values: Shaped[np.ndarray, "classes channels"]
    mode: str
    palette: bytes = b""
    transparency: bytes | int | tuple[int, int, int] | None = None
    source: str = ""
    sha256: str = ""

    @property
    def bits(self) -> int:
        """Bits a channel."""
        return 1 if self.mode == "1" else 8 * self.values.dtype.itemsize

    def colour(self, number: int) -> list[int]:
        """The colour of a class, channel by channel."""
        value = self.values[number]
        return list(self.palette[3 * value[0] : 3 * value[0] + 3]) if self.mode == "P" else value.tolist()

    def name(self, number: int) -> str:
        """A name for a class that is good for a folder and for `--masks`: class3, or rgb_ff8000."""
        value = self.values[number]
        digits = 2 * self.values.dtype.itemsize
        return f"class{value[0]}" if len(value) == 1 else f"rgb_{''.join(f'{v:0{digits}x}' for v in value.tolist())}"

    def encode(self, classes: Int[np.ndarray, "height width"]) -> bytes:
        """A PNG file of other pixels of the same classes, stored as this picture was."""
        pixels = self.values[classes]
        if self.values.shape[1] > 2 and self.bits == 16:
            return png_bytes(pixels.astype(np.float32) / 65535, 16)
        flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        image = Image.fromarray(flat.astype(bool) if self.mode == "1" else flat)
        if self.mode == "P":
            image.putpalette(self.palette)
        options = {} if self.transparency is None else {"transparency": self.transparency}
        return _encoded(image, **options)


def read_labels(path: Path, size: tuple[int, int]) -> LabelPicture:
    """The classes in a PNG, TIFF or BMP file.

    Args:
        size: (width, height) of the frame; the picture may be larger or smaller, of the same aspect.

    Raises:
        UserError: a file that cannot be read or changes colours, more than `MOST_CLASSES` classes or only one, another
            aspect (exit 3), or too many pixels (7).
    """
    picture = read_picture(path, MOST_PIXELS)  # whatever is damaged, too large or no picture is refused here
    if picture.kind not in KINDS or picture.lossy:
        exact = f"{picture.kind} changes colours, and each colour is a class" if picture.lossy else ""
        raise bad_input(
            f"{path.name} is a {picture.kind} file",
            where=str(path),
            why=exact or f"labels are read from {', '.join(KINDS)}",
            fix=SAVE_AGAIN,
        )
    _check_aspect(path, picture.size, size)
    try:
        with Image.open(path, formats=KINDS) as image:
            _check_stored(path, image, picture)
            image.load()
            pixels, mode = _pixels(image, picture)
            palette = bytes(image.getpalette("RGB") or []) if mode == "P" else b""
            transparency = image.info.get("transparency") if image.format == "PNG" else None
    except (OSError, ValueError, SyntaxError, EOFError) as problem:
        raise bad_input(f"{path.name} cannot be read: {problem}", where=str(path), fix=SAVE_AGAIN) from None
    classes, values = _classes(path, pixels)
    if mode == "P" and 3 * int(values.max()) + 3 > len(palette):
        raise bad_input(f"{path.name} is damaged: a pixel has a colour that its palette lacks", where=str(path))
    return LabelPicture(classes, values, mode, palette, transparency, path.name, picture.sha256)


def mask_bytes(mask: Shaped[np.ndarray, "height width"]) -> bytes:
    """A PNG file of a mask: 255 where it is set, 8 bit."""
    return _encoded(Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))))


def _encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4, **options)
    return buffer.getvalue()


def _check_aspect(path: Path, own: tuple[int, int], size: tuple[int, int]) -> None:
    if abs(own[0] * size[1] / own[1] - size[0]) > max(1.0, ASPECT_SLACK * size[0]):
        raise bad_input(
            f"{path.name} is {own[0]}x{own[1]}, the frames are {size[0]}x{size[1]}",
            where=str(path),
            why="labels may be larger or smaller than the frame, but must have its aspect",
            fix=f"save them at {size[0]}x{size[1]}",
        )


def _check_stored(path: Path, image: Image.Image, picture: Picture) -> None:
    """Refuses what cannot be written again as it is."""
    problem = ""
    deep = ";16" in str(getattr(image, "tile", ""))
    if image.mode not in MODES and not image.mode.startswith("I;16"):
        problem = f"it stores {image.mode}; expected a palette, grey values, or RGB colours"
    elif getattr(image, "n_frames", 1) > 1:
        problem = f"it holds {image.n_frames} pictures; expected one"  # type: ignore[attr-defined]
    elif image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
        problem = "its JPEG or WebP compression changes colours, and each colour is a class"
    elif image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) != 1:
        problem = "it is stored turned (EXIF orientation)"
    elif deep and picture.bits != 16:
        problem = "its 16 bits per channel come with a colour profile, or in an unusual layout"
    if problem:
        raise bad_input(f"{path.name} cannot be used as labels", where=str(path), why=problem, fix=SAVE_AGAIN)


def _pixels(image: Image.Image, picture: Picture) -> tuple[Shaped[np.ndarray, "height width channels"], str]:
    """What a file stores for each pixel, and its mode."""
    if picture.bits == 16 and not image.mode.startswith("I;16"):
        channels = 4 if picture.had_alpha else 3
        return np.rint(picture.rgba[..., :channels] * 65535).astype(np.uint16), ("RGB", "RGBA")[channels - 3]
    deep = image.mode.startswith("I;16")
    values = np.asarray(image).astype(np.uint16 if deep else np.uint8)
    return values.reshape(*values.shape[:2], -1), "I;16" if deep else image.mode


def _classes(
    path: Path, pixels: Shaped[np.ndarray, "height width channels"]
) -> tuple[Int[np.ndarray, "height width"], Shaped[np.ndarray, "classes channels"]]:
    """The class of each pixel, and the values of the classes, nothing (0, or black) first."""
    bits, channels = 8 * pixels.dtype.itemsize, pixels.shape[2]
    packed = np.zeros(pixels.shape[:2], np.uint64)
    for channel in range(channels):
        packed = packed << np.uint64(bits) | pixels[..., channel].astype(np.uint64)
    found = np.unique(packed)
    if len(found) > MOST_CLASSES:
        raise bad_input(
            f"{path.name} has {len(found)} colours",
            where=str(path),
            why=f"each is a class, and at most {MOST_CLASSES} are taken: is it a photo, or are its edges soft?",
            fix=SAVE_AGAIN,
        )
    if len(found) == 1:
        raise bad_input(f"{path.name} has one colour everywhere", where=str(path), why="there is nothing to tell apart")
    solid = channels in (2, 4) and bool((pixels[..., -1] == 2**bits - 1).all())
    nothing = np.uint64(2**bits - 1 if solid else 0)
    found = np.union1d(found, nothing)
    order = np.argsort(found != nothing, kind="stable")
    rank = np.empty(len(found), np.int32)
    rank[order] = np.arange(len(found), dtype=np.int32)
    shifts = np.arange(channels - 1, -1, -1, dtype=np.uint64) * np.uint64(bits)
    values = (found[order][:, None] >> shifts & np.uint64(2**bits - 1)).astype(pixels.dtype)
    return rank[np.searchsorted(found, packed)], values

"""Reads and writes label maps: pictures in which each color, gray value or palette index is a class.

A class is a color that a file keeps exactly. So colors are not converted, not averaged, and files whose compression
changes them are refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from neural_fields.core.errors import bad_input
from neural_fields.data.masks.layer_masks import ASPECT_SLACK
from neural_fields.imaging.image_io import encode_png, read_picture

KINDS = ("PNG", "TIFF", "BMP")
MODES = ("1", "L", "P", "LA", "RGB", "RGBA")  # of Pillow, 8 bit; and 16-bit gray, whose mode says the byte order
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
SAVE_AGAIN = "save it as PNG with a palette, gray values or plain colors, without antialiasing"


@dataclass(frozen=True)
class LabelMap:
    """Holds a label map: the class of each pixel, and the colors of the classes.

    Attributes:
        classes: the class of each pixel; class 0 means no label, even if no pixel has it.
        values: the value of each class in the file: a palette index, a gray value, or the channels of a color.
        mode: the mode in Pillow ("I;16" is 16-bit gray); "RGB" and "RGBA" may have 16 bits.
        palette: RGB bytes of a picture with a palette.
        transparency: the transparent index or color of a PNG.
        source: name of the file.
        sha256: digest of the file, in hexadecimal.
    """

    classes: Int[np.ndarray, "height width"]
    values: Shaped[np.ndarray, "classes channels"]
    mode: str
    palette: bytes = b""
    transparency: bytes | int | tuple[int, int, int] | None = None
    source: str = ""
    sha256: str = ""

    @property
    def bits_per_channel(self) -> int:
        """Bits a channel."""
        return 1 if self.mode == "1" else 8 * self.values.dtype.itemsize

    def class_color(self, number: int) -> list[int]:
        """Returns the color of a class, channel by channel."""
        value = self.values[number]
        return list(self.palette[3 * value[0] : 3 * value[0] + 3]) if self.mode == "P" else value.tolist()

    def class_name(self, number: int) -> str:
        """Returns a name for a class that is good for a folder and for `--masks`: class3, or rgb_ff8000."""
        value = self.values[number]
        digits = 2 * self.values.dtype.itemsize
        return f"class{value[0]}" if len(value) == 1 else f"rgb_{''.join(f'{v:0{digits}x}' for v in value.tolist())}"

    def encode_png(self, classes: Int[np.ndarray, "height width"]) -> bytes:
        """Encodes other pixels of the same classes as a PNG file, stored as this picture was."""
        pixels = self.values[classes]
        if self.values.shape[1] > 2 and self.bits_per_channel == 16:
            return encode_png(pixels.astype(np.float32) / 65535, 16)
        flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        image = Image.fromarray(flat.astype(bool) if self.mode == "1" else flat)
        if self.mode == "P":
            image.putpalette(self.palette)
        options = {} if self.transparency is None else {"transparency": self.transparency}
        return _encode_png(image, **options)


def read_labels(path: Path, size: tuple[int, int], max_pixels: int = 40_000_000, max_classes: int = 4096) -> LabelMap:
    """Reads the classes in a PNG, TIFF or BMP file.

    Args:
        path: the file.
        size: (width, height) of the frame; the picture may be larger or smaller, with the same aspect.
        max_pixels: a picture with more pixels is refused.
        max_classes: a picture with more classes is refused.

    Returns:
        The labels.

    Raises:
        UserError: a file that cannot be read or changes colors, too many classes or only one, another aspect (exit 3),
            or too many pixels (7).
    """
    picture = read_picture(path, max_pixels)  # whatever is damaged, too large or no picture is refused here
    if picture.kind not in KINDS or picture.lossy:
        exact = f"{picture.kind} changes colors, and each color is a class" if picture.lossy else ""
        raise bad_input(
            f"{path.name} is a {picture.kind} file",
            where=str(path),
            why=exact or f"labels are read from {', '.join(KINDS)}",
            fix=SAVE_AGAIN,
        )
    width, height = picture.size
    if abs(width * size[1] / height - size[0]) > max(1.0, ASPECT_SLACK * size[0]):
        raise bad_input(
            f"{path.name} is {width}x{height}, the frames are {size[0]}x{size[1]}",
            where=str(path),
            why="labels may be larger or smaller than the frame, but must have its aspect",
            fix=f"save them at {size[0]}x{size[1]}",
        )
    try:
        with Image.open(path, formats=KINDS) as image:
            # What cannot be written again as it is.
            problem, orientation = "", 0x0112  # the EXIF tag
            deep = ";16" in str(getattr(image, "tile", ""))
            if image.mode not in MODES and not image.mode.startswith("I;16"):
                problem = f"it stores {image.mode}; expected a palette, gray values, or RGB colors"
            elif getattr(image, "n_frames", 1) > 1:
                problem = f"it holds {image.n_frames} pictures; expected one"  # type: ignore[attr-defined]
            elif image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
                problem = "its JPEG or WebP compression changes colors, and each color is a class"
            elif image.format != "TIFF" and image.getexif().get(orientation, 1) != 1:
                problem = "it is stored turned (EXIF orientation)"
            elif deep and picture.bits != 16:
                problem = "its 16 bits per channel come with a color profile, or in an unusual layout"
            if problem:
                raise bad_input(f"{path.name} cannot be used as labels", where=str(path), why=problem, fix=SAVE_AGAIN)

            image.load()
            # What the file stores for each pixel.
            mode, is_deep_gray = image.mode, image.mode.startswith("I;16")
            if picture.bits == 16 and not is_deep_gray:
                mode = "RGBA" if picture.had_alpha else "RGB"
                pixels = np.rint(picture.rgba[..., : len(mode)] * 65535).astype(np.uint16)
            else:
                pixels = np.asarray(image).astype(np.uint16 if is_deep_gray else np.uint8)
                pixels = pixels.reshape(*pixels.shape[:2], -1)
                mode = "I;16" if is_deep_gray else mode
            palette = bytes(image.getpalette("RGB") or []) if mode == "P" else b""
            transparency = image.info.get("transparency") if image.format == "PNG" else None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise bad_input(f"{path.name} cannot be read: {error}", where=str(path), fix=SAVE_AGAIN) from None
    classes, values = _classify_pixels(path, pixels, max_classes)
    if mode == "P" and 3 * int(values.max()) + 3 > len(palette):
        raise bad_input(f"{path.name} is damaged: a pixel has a color that its palette lacks", where=str(path))
    return LabelMap(classes, values, mode, palette, transparency, path.name, picture.sha256)


def encode_mask(mask: Shaped[np.ndarray, "height width"]) -> bytes:
    """Encodes a mask as an 8-bit PNG file with the values 0 and 255."""
    return _encode_png(Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))))


def _encode_png(image: Image.Image, **options: object) -> bytes:
    """Encodes a picture as a PNG file with options of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4, **options)
    return buffer.getvalue()


def _classify_pixels(
    path: Path, pixels: Shaped[np.ndarray, "height width channels"], max_classes: int
) -> tuple[Int[np.ndarray, "height width"], Shaped[np.ndarray, "classes channels"]]:
    """Finds the class of each pixel, and the values of the classes, nothing (0, or black) first."""
    bits, channels = 8 * pixels.dtype.itemsize, pixels.shape[2]
    packed = np.zeros(pixels.shape[:2], np.uint64)
    for channel in range(channels):
        packed = packed << np.uint64(bits) | pixels[..., channel].astype(np.uint64)
    found = np.unique(packed)
    if len(found) > max_classes:
        raise bad_input(
            f"{path.name} has {len(found)} colors",
            where=str(path),
            why=f"each is a class, and at most {max_classes} are taken: is it a photo, or are its edges soft?",
            fix=SAVE_AGAIN,
        )
    if len(found) == 1:
        raise bad_input(f"{path.name} has one color everywhere", where=str(path), why="there is nothing to tell apart")
    solid = channels in (2, 4) and bool((pixels[..., -1] == 2**bits - 1).all())
    nothing = np.uint64(2**bits - 1 if solid else 0)
    found = np.union1d(found, nothing)
    order = np.argsort(found != nothing, kind="stable")
    rank = np.empty(len(found), np.int32)
    rank[order] = np.arange(len(found), dtype=np.int32)
    shifts = np.arange(channels - 1, -1, -1, dtype=np.uint64) * np.uint64(bits)
    values = (found[order][:, None] >> shifts & np.uint64(2**bits - 1)).astype(pixels.dtype)
    return rank[np.searchsorted(found, packed)], values


def resize_labels(labels: Int[np.ndarray, "h w"], size: tuple[int, int]) -> Int[np.ndarray, "rows columns"]:
    """Resizes a label map to (width, height): each pixel has the label of the one that holds its center."""
    height, width = labels.shape
    row = np.minimum(((np.arange(size[1]) + 0.5) * (height / size[1])).astype(int), height - 1)
    column = np.minimum(((np.arange(size[0]) + 0.5) * (width / size[0])).astype(int), width - 1)
    return labels[row[:, None], column]

"""Image I/O: the one place where picture files of other programs are parsed.

A picture is checked before it is decoded (format, pixel count), decoded at its full bit depth, rotated upright once,
and converted to sRGB with straight alpha. `Picture.notes` lists the conversions.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageCms, ImageOps, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.imaging.alpha import to_floats, unpremultiply
from neural_fields.imaging.color_profiles import is_srgb_profile, read_conversion

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
_SAVE_AGAIN = "save it again as PNG, JPEG, TIFF or WebP with 8 or 16 bits per channel"


@dataclass(frozen=True)
class PictureLimits:
    """Limits against files that would exhaust the memory."""

    max_pixels: int = 256_000_000  # most pixels of a picture
    max_bytes: int = 1 << 30  # largest size of a file


DEFAULTS = PictureLimits()


@dataclass(frozen=True)
class Picture:
    """Holds a decoded picture: sRGB colors and straight alpha.

    Attributes:
        rgba: float32 [h, w, 4] in [0, 1].
        had_alpha: whether the file stores alpha (otherwise alpha is one).
        lossy: whether the file's compression changes colors (JPEG, lossy WebP).
        bits: bits per channel that were kept (8 or 16).
        quantization: the JPEG quantization tables, when the file is a JPEG that can be imitated exactly.
        subsampling: the JPEG chroma subsampling as Pillow numbers it (0 is 4:4:4), -1 where unknown.
        notes: what was converted or dropped, one sentence each.
        source: file name; sha256: of the file; kind: "PNG", "JPEG", "TIFF", "WEBP" or "BMP".
        pixels: `rgba` as the bytes that it was made from; None where more than 8 bits were kept.
        comment: the comment in the file.
        rounding: of each texel, how far its color may be off because 8 bits of another color space were converted;
            None where that is less than a level.
    """

    rgba: Float[np.ndarray, "height width 4"]
    had_alpha: bool
    lossy: bool
    bits: int = 8
    quantization: dict[int, tuple[int, ...]] | None = None
    subsampling: int = -1
    notes: tuple[str, ...] = ()
    source: str = ""
    sha256: str = ""
    kind: str = ""
    pixels: UInt8[np.ndarray, "height width 4"] | None = None
    comment: str = ""
    rounding: Float[np.ndarray, "height width"] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.rgba.shape[1], self.rgba.shape[0]


def read_picture(path: str | Path, max_pixels: int = DEFAULTS.max_pixels) -> Picture:
    """Reads a PNG, JPEG, TIFF, WebP or BMP file.

    Args:
        path: the file.
        max_pixels: refuse a larger picture before decoding it. A caller that knows what to expect should say so.

    Raises:
        UserError: missing, empty, damaged or unsupported file (exit 3), too many pixels (7), not enough memory (4).
    """
    path = Path(path)
    return decode_picture(read_file_bytes(path), path, max_pixels)


def decode_picture(
    data: bytes, path: Path, max_pixels: int = DEFAULTS.max_pixels, formats: tuple[str, ...] = FORMATS
) -> Picture:
    """Reads a picture from the bytes of a file, such as one inside an archive.

    Args:
        data: the whole file.
        path: names it in messages; nothing is read there.
        max_pixels: refuse a larger picture before decoding it.
        formats: accepted formats, out of `FORMATS`.

    Raises:
        UserError: as `read_picture`.
    """
    # The one border around foreign parsers: Pillow and OpenCV answer damaged files with a dozen exception types.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=formats) as image:
                width, height = image.size
                if width * height > max_pixels:
                    count = f"{width} x {height} = {width * height / 1e6:.4g} megapixels"
                    raise _pixel_limit_error(path, f"the file declares {count}", max_pixels)
                return _decode_picture(image, data, path)
    except UserError:
        raise
    except Image.DecompressionBombError as problem:
        raise _pixel_limit_error(path, str(problem), max_pixels) from problem
    except MemoryError as problem:
        raise UserError(
            ExitCode.NO_ROOM, f"not enough memory to open {path.name}", where=str(path), fix="save it at a smaller size"
        ) from problem
    except UnidentifiedImageError as problem:
        raise bad_input(
            f"{path.name} is not a picture that can be read",
            where=str(path),
            why=f"expected one of {', '.join(formats)}; {describe_content(data)}",
            fix=_SAVE_AGAIN,
        ) from problem
    except Exception as problem:
        raise bad_input(
            f"{path.name} is damaged and cannot be read",
            where=str(path),
            why=str(problem).splitlines()[0] if str(problem) else type(problem).__name__,
            fix=_SAVE_AGAIN,
        ) from problem


def describe_content(data: bytes) -> str:
    """Says what the content of a file that no reader takes seems to be."""
    kinds = {
        b"II*\0": "its content is a TIFF of a kind that is not read, such as 32 bit floating point",
        b"MM\0*": "its content is a TIFF of a kind that is not read, such as 32 bit floating point",
        b"v/1\x01": "its content is OpenEXR",
        b"SDPX": "its content is DPX",
        b"XPDS": "its content is DPX",
        b"GIF8": "its content is GIF",
        b"8BPS": "its content is a Photoshop document",
        b"\x1aE\xdf\xa3": "its content is a film (Matroska)",
    }
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        pictures = {"heic": "HEIC", "heix": "HEIC", "mif1": "HEIF", "avif": "AVIF"}
        return f"its content is {pictures.get(brand, 'a film (MP4 or MOV)')}"
    return kinds.get(data[:4], "its content is none of them, whatever its name says")


def make_picture(values: np.ndarray, name: str = "the picture") -> Picture:
    """Makes a picture from an array.

    Args:
        values: RGB or RGBA [height, width, 3 or 4] with straight alpha, uint8 or float in [0, 1].
        name: name of the array, for messages.

    Returns:
        The picture; without alpha it is opaque.

    Raises:
        UserError: another shape or type, or values that are not colors (exit 3).
    """
    fits = values.ndim == 3 and values.shape[2] in (3, 4) and values.size > 0
    if not fits or (values.dtype != np.uint8 and values.dtype.kind != "f"):
        raise bad_input(
            f"{name} is {values.dtype} {list(values.shape)}",
            why="expected uint8 or float [height, width, 3 or 4]",
            fix="np.asarray(PIL.Image.open(FILE).convert('RGBA')) has that form",
        )
    if values.dtype != np.uint8 and not (values.min() >= 0 and values.max() <= 1):
        raise bad_input(
            f"{name} has values from {values.min():.4g} to {values.max():.4g}",
            why="floats are colors from 0 to 1",
            fix="divide colors from 0 to 255 by 255, or np.clip(values, 0, 1)",
        )
    is_bytes, had_alpha = values.dtype == np.uint8, values.shape[2] == 4
    if not had_alpha:
        opaque = np.full_like(values[..., :1], 255 if is_bytes else 1)
        values = np.concatenate([values, opaque], axis=-1)
    values = np.ascontiguousarray(values if is_bytes else values.astype(np.float32))
    pixels = values if is_bytes else None
    return Picture(to_floats(values), had_alpha, lossy=False, bits=8 if is_bytes else 16, pixels=pixels)


def convert_image(image: Image.Image) -> Picture:
    """Converts a Pillow image of 8 bits per channel, in any mode, to a picture: upright, in sRGB.

    Raises:
        UserError: more than 8 bits per channel (exit 3).
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise bad_input(
            f"the PIL picture has the mode {image.mode}",
            why="expected 8 bits per channel",
            fix="save it as PNG or TIFF, or give an array",
        )
    notes: list[str] = []
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    pixels = np.ascontiguousarray(_decode_8_bit(ImageOps.exif_transpose(image), notes))
    if is_turned:
        notes.append("turned upright as its EXIF orientation asks")
    # An image that Pillow opened, and nobody changed, still knows how its file was compressed.
    tables, subsampling = None, -1
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode in ("RGB", "L"):
        tables = None if is_turned else {index: tuple(table) for index, table in image.quantization.items()}
        subsampling = JpegImagePlugin.get_sampling(image)
    return Picture(
        rgba=to_floats(pixels),
        had_alpha=image.has_transparency_data,
        lossy=isinstance(image, JpegImagePlugin.JpegImageFile),
        quantization=tables,
        subsampling=subsampling,
        notes=tuple(notes),
        kind="JPEG" if isinstance(image, JpegImagePlugin.JpegImageFile) else "",
        pixels=pixels,
    )


def encode_png(rgba: Float[np.ndarray, "height width channels"], bits: int = 8) -> bytes:
    """Encodes an RGB or RGBA picture in [0, 1] (straight alpha) as PNG with 8 or 16 bits per channel."""
    scale = 255 if bits == 8 else 65535
    values = np.rint(np.clip(rgba, 0, 1) * scale).astype(np.uint8 if bits == 8 else np.uint16)
    order = cv2.COLOR_RGBA2BGRA if rgba.shape[2] == 4 else cv2.COLOR_RGB2BGR
    done, encoded = cv2.imencode(".png", cv2.cvtColor(values, order), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise ValueError(f"a picture of shape {rgba.shape} cannot be written as PNG")
    return encoded.tobytes()


def read_file_bytes(path: Path, max_bytes: int = DEFAULTS.max_bytes) -> bytes:
    """Reads the bytes of a picture file of a user.

    Raises:
        UserError: missing, empty or unreadable file (exit 3), more than `max_bytes` (7).
    """
    if not path.exists():
        raise bad_input(f"there is no file {path}", where=str(path), fix="check the spelling of the path")
    if not path.is_file():
        raise bad_input(f"{path} is not a file", where=str(path), why="expected one picture file")
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UserError(
                ExitCode.UNSAFE_FILE,
                f"{path.name} has {size} bytes, more than the {max_bytes} that are accepted",
                where=str(path),
                fix=_SAVE_AGAIN,
            )
        data = path.read_bytes()
    except OSError as problem:
        raise bad_input(f"{path.name} cannot be read: {problem.strerror}", where=str(path)) from problem
    if not data:
        raise bad_input(f"{path.name} is empty", where=str(path), fix=_SAVE_AGAIN)
    return data


def _pixel_limit_error(path: Path, size: str, limit: int) -> UserError:
    return UserError(
        ExitCode.UNSAFE_FILE,
        f"{path.name} was not opened: its pixel count is over the limit",
        where=str(path),
        why=f"{size}; at most {limit / 1e6:.4g} megapixels are accepted here",
        fix="save it at a smaller size",
    )


def _decode_picture(image: Image.Image, data: bytes, path: Path) -> Picture:
    """Decodes an opened image; what was converted is said in the notes."""
    notes: list[str] = []
    kind = image.format
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"{image.n_frames} pictures in the file: the first is used")  # type: ignore[attr-defined]
    bits = 8  # per channel, as the file states them
    if kind == "PNG" and data[12:16] == b"IHDR":
        bits = data[24]
    elif kind == "TIFF":
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))  # type: ignore[attr-defined]
    if bits > 16 or image.mode in ("I", "F"):
        raise bad_input(
            f"{path.name} stores {max(bits, 32)} bits per channel",
            where=str(path),
            why="expected 8 or 16 whole-number bits per channel",
            fix=_SAVE_AGAIN,
        )
    # Pillow and OpenCV both rotate a TIFF upright while they decode it, and no other format.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if kind != "TIFF" else 1
    tables: dict[int, tuple[int, ...]] | None = None
    subsampling = -1
    if kind in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        tables = {index: tuple(table) for index, table in image.quantization.items()}  # type: ignore[attr-defined]
        subsampling = JpegImagePlugin.get_sampling(image)
    # Pillow decodes everything first, 16 bit included: it notices a file that ends early, OpenCV does not.
    image.load()
    rgba = _decode_16_bit(image, data, notes) if bits == 16 else None
    pixels: np.ndarray | None = _decode_8_bit(image, notes) if rgba is None else None
    rounding: np.ndarray | None = None
    conversion = None if pixels is None else read_conversion(image, data)
    if pixels is not None and conversion is not None:
        rounding = conversion.measure_rounding(np.asarray(image.convert("RGB")))
        if not image.info.get("icc_profile"):  # Pillow does not honor what else a PNG file states
            rgb = np.rint(255 * conversion.convert(pixels[..., :3] / 255)).astype(np.uint8)
            pixels = np.concatenate([rgb, pixels[..., 3:]], axis=-1)
            notes.append(f"converted from its {conversion.name} to sRGB")
    if orientation in range(2, 9):
        rgba, pixels, rounding = (
            None if one is None else _turn_upright(one, orientation) for one in (rgba, pixels, rounding)
        )
        notes.append("turned upright as its EXIF orientation asks")
        tables = None  # the blocks of the file are not the blocks of the upright picture
    if pixels is not None:
        pixels, bits = np.ascontiguousarray(pixels), 8
        rgba = to_floats(pixels)
    # The comment of a PNG or JPEG file, or the description in its EXIF data.
    comment = image.info.get("Comment") or image.info.get("comment")
    comment = comment or image.getexif().get(ExifTags.Base.ImageDescription) or ""
    return Picture(
        rgba=np.ascontiguousarray(rgba, dtype=np.float32),
        had_alpha=image.has_transparency_data,
        lossy=kind in ("JPEG", "MPO") or (kind == "WEBP" and b"VP8 " in data[12:4096]),
        bits=bits,
        quantization=tables,
        subsampling=subsampling,
        notes=tuple(notes),
        source=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        kind="JPEG" if kind == "MPO" else str(kind),
        pixels=pixels,
        comment=comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment),
        rounding=rounding,
    )


def _turn_upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turns a picture, or what is known of each texel, as its EXIF orientation (2 to 8) asks."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def _decode_16_bit(image: Image.Image, data: bytes, notes: list[str]) -> np.ndarray | None:
    """Decodes all 16 bits of a PNG or TIFF; None where only 8 bits can be read (said in the notes)."""
    conversion = read_conversion(image, data)
    profile = image.info.get("icc_profile")
    if profile and conversion is None and not is_srgb_profile(profile):
        notes.append("16-bit picture with a color profile: converted to sRGB at 8 bits per channel")
        return None
    if image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.float32) / 65535
        clear = image.info.get("transparency")
        alpha = np.ones_like(gray) if clear is None else (np.asarray(image) != clear).astype(np.float32)
        notes.append("gray picture: used as RGB")
        return np.stack([gray, gray, gray, alpha], axis=-1)
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    is_rgb = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 2
    plain = image.format == "PNG" or (is_rgb and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 1)
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if plain else None
    if values is None or values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] not in (3, 4):
        notes.append("16-bit picture of an unusual layout: read at 8 bits per channel")
        return None
    rgba = cv2.cvtColor(values, cv2.COLOR_BGRA2RGBA if values.shape[2] == 4 else cv2.COLOR_BGR2RGBA)
    rgba = rgba.astype(np.float32) / 65535
    is_premultiplied = 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    rgba = unpremultiply(rgba) if is_premultiplied else rgba
    if conversion is not None:
        rgba[..., :3] = conversion.convert(rgba[..., :3])
        notes.append(_describe_conversion(conversion.name))
    return rgba


def _decode_8_bit(image: Image.Image, notes: list[str]) -> UInt8[np.ndarray, "height width 4"]:
    """Converts the 8-bit picture to RGBA in sRGB, from any mode that Pillow reads."""
    if image.mode not in ("RGB", "RGBA"):
        names = {"1": "1-bit", "L": "gray", "LA": "gray", "P": "palette", "PA": "palette", "I;16": "gray"}
        notes.append(f"{names.get(image.mode, image.mode)} picture: used as RGB")
    if image.mode.startswith("I;16"):
        gray = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        gray.info = dict(image.info)
        image = gray
    profile = image.info.get("icc_profile")
    has_alpha = image.has_transparency_data
    image = image.convert("RGBA") if has_alpha else image
    if has_alpha and (not profile or is_srgb_profile(profile)):
        return np.asarray(image)
    rgba = cv2.cvtColor(np.asarray(_convert_to_srgb(image, profile, notes)), cv2.COLOR_RGB2RGBA)
    return cv2.insertChannel(np.asarray(image.getchannel("A")), rgba, 3) if has_alpha else rgba


def _describe_conversion(name: str) -> str:
    return f"converted from its color profile '{name}' to sRGB"


def _convert_to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Converts an image to RGB in sRGB. A profile that cannot be used is ignored with a note."""
    if image.mode == "LAB":
        return _convert_profile(image, ImageCms.createProfile("LAB"))
    plain = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    if not profile or is_srgb_profile(profile):
        return plain.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip() or "unnamed"
        space = source.profile.xcolor_space.strip()
        ready = plain if (plain.mode, space) in (("L", "GRAY"), ("CMYK", "CMYK")) else plain.convert("RGB")
        result = _convert_profile(ready, source)
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append("its color profile is damaged or does not fit the picture: ignored, taken as sRGB")
        return plain.convert("RGB")
    notes.append(_describe_conversion(name))
    return result


def _convert_profile(image: Image.Image, source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if result is None:
        raise ValueError("the colors were not converted")
    return result

"""Pictures of masks as files store them, before anything is decided about what their values mean."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, ImageOps

from neural_fields.core.errors import bad_input
from neural_fields.imaging.exr import read_exr

PILLOW_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".gif", ".tga")
PICTURE_SUFFIXES = (*PILLOW_SUFFIXES, ".exr", ".npy")
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_CHOOSE_CHANNEL = "write the mask as the channel A or Y, or as 8-bit or 16-bit gray PNG files"


@dataclass(frozen=True)
class MaskPicture:
    """Holds a picture as it is stored.

    Attributes:
        label: names it in messages.
        values: gray values or palette indices [height, width], or 8-bit colors [height, width, 3].
        alpha: 0 to 255, or floats from 0 to 1; None where the file has none.
        palette: the color of each index; None where the values are no indices.
        is_exact: whether the compression keeps values.
    """

    label: str
    values: Shaped[np.ndarray, "height width *channels"]
    alpha: Shaped[np.ndarray, "height width"] | None = None
    palette: UInt8[np.ndarray, "colors 3"] | None = None
    is_exact: bool = True

    @property
    def is_color(self) -> bool:
        """Whether the values are colors."""
        return self.values.ndim == 3

    def compute_gray(self) -> Shaped[np.ndarray, "height width"]:
        """Returns gray values: of a color its largest channel."""
        if self.palette is not None:
            return self.palette.max(-1)[self.values]
        return self.values if self.values.ndim == 2 else functools.reduce(np.maximum, np.moveaxis(self.values, -1, 0))

    def pack_colors(self) -> Shaped[np.ndarray, "height width"]:
        """Returns colors as numbers 0xRRGGBB."""
        values = self.values if self.palette is None else self.palette[self.values]
        wide = values.astype(np.int64)
        return wide * 0x010101 if wide.ndim == 2 else wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def make_color_picture(
    label: str,
    rgb: UInt8[np.ndarray, "height width 3"],
    alpha: Shaped[np.ndarray, "height width"] | None = None,
    is_exact: bool = True,
) -> MaskPicture:
    """Makes a picture of colors; those that are all gray become gray values.

    Args:
        label: names it in messages.
        rgb: colors.
        alpha: transparency, if there is any.
        is_exact: whether the compression kept the colors.
    """
    is_gray = (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all()
    return MaskPicture(label, np.ascontiguousarray(rgb[..., 0]) if is_gray else rgb, alpha, is_exact=is_exact)


def read_mask_picture(path: Path) -> MaskPicture:
    """Reads one file of a folder of masks.

    Args:
        path: a picture, an OpenEXR file or a .npy file.

    Raises:
        UserError: a file that cannot be read, holds several pictures, or channels of which none is a mask (exit 3).
    """
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return read_exr_mask(path)
    if suffix == ".npy":
        values = np.squeeze(load_array(path))
        if values.ndim != 2:
            shape = "x".join(map(str, values.shape))
            why = "a file of a folder is one mask: height x width numbers"
            raise bad_input(f"{path.name} has shape {shape}", where=str(path), why=why)
        return MaskPicture(path.name, widen_booleans(values))
    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            if count > 1:
                raise bad_input(
                    f"{path.name} holds {count} pictures ({image.format})",
                    where=str(path),
                    why="in a folder, each file is the mask of one frame",
                    fix="save each picture as a file, or give the file instead of the folder",
                )
            return convert_image(image, path.name)
    except DAMAGED as problem:
        raise bad_input(f"{path.name} cannot be read: {problem}", where=str(path), fix="save this mask again") from None


def convert_image(image: Image.Image, label: str) -> MaskPicture:
    """Reads the pixels of an open picture.

    Args:
        image: the picture, at the frame that is wanted.
        label: names it in messages.

    Returns:
        The picture, upright.
    """
    is_exact = image.format != "JPEG" and image.info.get("compression") not in _LOSSY_TIFF
    if image.format == "WEBP":
        with open(image.filename, "rb") as file:  # type: ignore[attr-defined]
            is_exact = b"VP8L" in file.read(4096)  # of its lossless form
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    transparency = image.info.get("transparency")
    if image.mode == "P":
        values, alpha = np.asarray(image), None
        palette = np.zeros((256, 3), np.uint8)
        colors = np.frombuffer(bytes(image.getpalette("RGB") or []), np.uint8).reshape(-1, 3)
        palette[: len(colors)] = colors
        if transparency is not None:
            table = np.full(256, 255, np.uint8)
            if isinstance(transparency, bytes):
                table[: len(transparency)] = np.frombuffer(transparency, np.uint8)
            else:
                table[int(transparency)] = 0
            alpha = table[values]
        return MaskPicture(label, values, alpha, palette)
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        alpha = None if not isinstance(transparency, int) else np.where(values == transparency, 0, 255).astype(np.uint8)
        return MaskPicture(label, widen_booleans(values), alpha, is_exact=is_exact)
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or transparency is not None:
        rgba = np.asarray(image.convert("RGBA"))
        return make_color_picture(label, rgba[..., :3], np.ascontiguousarray(rgba[..., 3]), is_exact)
    return make_color_picture(label, np.asarray(image.convert("RGB")), None, is_exact)


def widen_booleans(values: np.ndarray) -> np.ndarray:
    """Returns booleans as 0 and 255, and whatever else as it is."""
    return values.astype(np.uint8) * 255 if values.dtype == bool else values


def load_array(path: Path) -> np.ndarray:
    """Maps an array of a .npy file, or reads the only one of a .npz file.

    Args:
        path: the file.

    Raises:
        UserError: a file that cannot be read, several arrays, or something else than numbers (exit 3).
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                if len(found.files) != 1:
                    raise bad_input(
                        f"{path.name} holds {len(found.files)} arrays: {', '.join(found.files[:8])}",
                        where=str(path),
                        why="one array of masks is expected",
                        fix=f'numpy.save("masks.npy", numpy.load("{path.name}")["NAME"]), then --masks masks.npy',
                    )
                found = found[found.files[0]]
    except (OSError, ValueError, EOFError, KeyError, MemoryError) as problem:
        raise bad_input(
            f"{path.name} cannot be read: {problem}",
            where=str(path),
            why="expected one array of plain numbers",
            fix="write it with numpy.save",
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "buif":
        kind = getattr(found, "dtype", type(found).__name__)
        raise bad_input(f"{path.name} holds {kind}", where=str(path), why="expected numbers or booleans")
    return found


def read_exr_mask(path: Path) -> MaskPicture:
    """Reads an OpenEXR file: the channel A, and Y, R, G and B, or its only channel.

    Args:
        path: the file.

    Raises:
        UserError: OpenEXR is not installed, a damaged file, or channels of which none is a mask (exit 3).
    """
    planes, header = read_exr(path)
    wanted = {name: planes[name] for name in ("A", "Y", "R", "G", "B") if name in planes}
    if not wanted and len(planes) == 1:
        wanted = {"Y": next(iter(planes.values()))}
    if not wanted:
        why = "expected A, Y or R, G, B, or a single channel"
        names = ", ".join(sorted(planes)[:8])
        raise bad_input(f"{path.name} has the channels {names}", where=str(path), why=why, fix=_CHOOSE_CHANNEL)
    # The data may be a part of the picture only.
    (left, top), _ = ([int(value) for value in corner] for corner in header["dataWindow"])
    (x0, y0), (x1, y1) = ([int(value) for value in corner] for corner in header["displayWindow"])
    whole = {}
    for name, plane in wanted.items():
        out = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.float32)
        part = plane[max(0, y0 - top) : y1 - top + 1, max(0, x0 - left) : x1 - left + 1]
        x, y = max(0, left - x0), max(0, top - y0)
        out[y : y + part.shape[0], x : x + part.shape[1]] = part
        whole[name] = out
    gray = [whole[name] for name in ("Y", "R", "G", "B") if name in whole]
    values = np.maximum.reduce(gray) if gray else whole["A"]
    return MaskPicture(path.name, values, whole.get("A"))

"""Colors of picture files converted to sRGB by what their profile says: its curves and primaries, never its name.

ICC profiles made of three curves and a matrix are read here, because Pillow converts 8 bits only; PNG files may state
a gamma and primaries instead, or a code of video signals, which browsers honor too.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms

SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue: x and y
VIDEO_PRIMARIES = {
    1: SRGB_PRIMARIES,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
VIDEO_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}  # of the codes of transfer functions; 1, 6, 13, 14 and 15 are taken as sRGB
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_CURVE_STEPS = 4096


@dataclass(frozen=True)
class ColorConversion:
    """Converts RGB of a file to sRGB.

    Attributes:
        curves: linear light of each channel at equal distances of its values from 0 to 1.
        matrix: from linear RGB of the file to linear sRGB.
        name: what the file states, for notes.
    """

    curves: Float[np.ndarray, "3 steps"]
    matrix: Float[np.ndarray, "3 3"]
    name: str

    def convert(self, rgb: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
        """Converts colors in [0, 1] to sRGB in [0, 1]."""
        places = np.linspace(0, 1, self.curves.shape[1])
        light = np.stack([np.interp(rgb[..., c], places, self.curves[c]) for c in range(3)], axis=-1)
        light = np.clip(light @ self.matrix.T, 0, 1)
        return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)

    @property
    def is_identity(self) -> bool:
        """Whether it leaves colors as they are, but for rounding to 8 bits."""
        colors = _make_probe()
        return bool(np.abs(self.convert(colors) - colors).max() <= 2 / 255)

    def measure_rounding(self, rgb: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"] | None:
        """Measures how far colors may be off because 8 bits are converted; None if it is less than a level."""
        grays = self.convert(np.repeat(np.arange(256)[:, None], 3, axis=1) / 255)
        steps = np.abs(np.diff(grays, axis=0, prepend=grays[:1], append=grays[-1:]))
        half = np.maximum(steps[1:], steps[:-1]) / 2 + 0.5 / 255
        if half.max() < 1.5 / 255:
            return None
        return np.max([half[rgb[..., c], c] for c in range(3)], axis=0).astype(np.float32)


def read_conversion(image: Image.Image, data: bytes) -> ColorConversion | None:
    """Reads how the colors of a file are converted to sRGB.

    Args:
        image: the opened file.
        data: its bytes.

    Returns:
        The conversion; None where there is none to do, or its profile is not made of curves and a matrix.
    """
    profile = image.info.get("icc_profile")
    found = parse_matrix_profile(profile) if profile else _read_png_conversion(image, data)
    return None if found is None or found.is_identity else found


def is_srgb_profile(profile: bytes) -> bool:
    """Tells whether a profile leaves RGB colors as they are, by what it does to some of them."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            return False
        colors = np.rint(255 * _make_probe()).astype(np.uint8)[None]
        made = ImageCms.profileToProfile(Image.fromarray(colors), source, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
    return made is not None and int(np.abs(np.asarray(made).astype(int) - colors).max()) <= 2


def parse_matrix_profile(profile: bytes) -> ColorConversion | None:
    """Parses an ICC profile of three curves and a matrix; None for every other one.

    Args:
        profile: the bytes of the profile.
    """
    try:
        if profile[16:20] != b"RGB " or profile[20:24] != b"XYZ ":
            return None
        (count,) = struct.unpack_from(">I", profile, 128)
        tags = {}
        for number in range(min(count, 100)):
            name, start, length = struct.unpack_from(">4sII", profile, 132 + 12 * number)
            tags[name] = profile[start : start + length]
        if b"A2B0" in tags or not {b"rTRC", b"gTRC", b"bTRC", b"rXYZ", b"gXYZ", b"bXYZ"} <= set(tags):
            return None
        columns = [np.array(struct.unpack_from(">3i", tags[name], 8)) / 65536 for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        curves = np.stack([_parse_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")])
        name = ImageCms.getProfileDescription(io.BytesIO(profile)).strip() or "unnamed"
    except (struct.error, ValueError, IndexError, ImageCms.PyCMSError, OSError):
        return None
    # Profiles state XYZ under the white of D50; so does this matrix.
    white = np.array([0.9642, 1.0, 0.8249])
    to_xyz = _adapt_white(_make_xyz_matrix(SRGB_PRIMARIES), white)
    return ColorConversion(curves, np.linalg.inv(to_xyz) @ np.column_stack(columns), name)


def _parse_curve(tag: bytes) -> Float[np.ndarray, " steps"]:
    """Parses a curve of a profile: a table, a gamma, or the parameters of a function."""
    places = np.linspace(0, 1, _CURVE_STEPS)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        values = np.frombuffer(tag, ">u2", count, 12).astype(np.float64)
        if count == 0:
            return places
        if count == 1:
            return places ** (values[0] / 256)
        return np.interp(places, np.linspace(0, 1, count), values / 65535)
    if tag[:4] != b"para":
        raise ValueError("an unknown kind of curve")
    (kind,) = struct.unpack_from(">H", tag, 8)
    given = np.array(struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12)) / 65536
    gamma, a, b, c, d, e, f = (given.tolist() + 6 * [0.0])[:7]
    if kind == 0:
        a, d = 1.0, -1.0
    elif kind in (1, 2):
        c, d, e, f = 0.0, -b / a, c, c
    power = np.maximum(a * places + b, 0) ** gamma + e
    return np.where(places >= d, power, c * places + f)


def _read_png_conversion(image: Image.Image, data: bytes) -> ColorConversion | None:
    """Reads the chunks cICP, or gAMA and cHRM, of a PNG file; sRGB goes before the latter."""
    if image.format != "PNG":
        return None
    places = np.linspace(0, 1, _CURVE_STEPS)
    code = data[: data.find(b"IDAT")].find(b"cICP")
    if code >= 0:
        primaries, transfer = data[code + 4], data[code + 5]
        gamma = VIDEO_GAMMAS.get(transfer)
        curve = places**gamma if gamma else _decode_srgb(places)
        name, white = f"cICP {primaries} {transfer}", VIDEO_PRIMARIES.get(primaries, SRGB_PRIMARIES)
    elif "gamma" in image.info and "srgb" not in image.info:
        gamma = float(image.info["gamma"])
        if not 0.05 <= gamma <= 5:
            return None
        # 1 / 2.2 is what programs write for sRGB.
        curve = _decode_srgb(places) if abs(gamma - 1 / 2.2) < 0.01 else places ** (1 / gamma)
        name, white = f"gamma {1 / gamma:.3g}", tuple(image.info.get("chromaticity", SRGB_PRIMARIES))
    else:
        return None
    try:
        target = _make_xyz_matrix(SRGB_PRIMARIES)
        matrix = np.linalg.inv(target) @ _adapt_white(_make_xyz_matrix(white), target.sum(axis=1))
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None
    return ColorConversion(np.stack([curve] * 3), matrix, name)


def _decode_srgb(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _make_xyz_matrix(primaries: tuple[float, ...]) -> Float[np.ndarray, "3 3"]:
    """Makes the matrix from linear RGB to XYZ; the primaries are x and y of white, red, green and blue."""
    points = np.array([[x / y, 1, (1 - x - y) / y] for x, y in np.reshape(primaries, (4, 2))])
    return points[1:].T * np.linalg.solve(points[1:].T, points[0])


def _adapt_white(matrix: Float[np.ndarray, "3 3"], white: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Adapts a matrix to XYZ from its own white to another one (Bradford)."""
    scale = (BRADFORD @ white) / (BRADFORD @ matrix.sum(axis=1))
    return np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD @ matrix


@cache
def _make_probe() -> Float[np.ndarray, "n 3"]:
    """Makes colors that reveal a conversion: all grays, and a grid of colors."""
    grays = np.repeat(np.arange(256)[:, None], 3, axis=1) / 255
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 6)] * 3), axis=-1).reshape(-1, 3)
    return np.concatenate([grays, grid])

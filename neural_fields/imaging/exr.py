"""OpenEXR files: the one place that imports OpenEXR (extra `exr`).

Data passes are float32 under ZIP, which loses nothing: half floats put a map of uv off by a pixel at 4K, and lossy
compressors by many.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Shaped

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import atomic_write, name_in_utf8


def write_exr(
    path: Path, channels: Mapping[str, Shaped[np.ndarray, "height width"]], header: Mapping[str, Any] | None = None
) -> None:
    """Writes one part with ZIP compression.

    Args:
        path: the file, which is written atomically.
        channels: float32 or float16 planes by name, such as "R", "G", "B", "A" or "foreground.R".
        header: attributes beside the usual ones: texts, whole numbers, floats.

    Raises:
        UserError: OpenEXR is not installed (exit 3), no room (4).
    """
    package = _import_openexr(path)
    described = {**(header or {}), "compression": package.ZIP_COMPRESSION, "type": package.scanlineimage}
    planes = {name: np.ascontiguousarray(plane) for name, plane in channels.items()}
    with atomic_write(path) as part, name_in_utf8(part) as name, package.File(described, planes) as file:
        file.write(str(name))


def read_exr(
    path: Path, max_pixels: int = 256_000_000
) -> tuple[dict[str, Shaped[np.ndarray, "height width"]], dict[str, Any]]:
    """Reads the channels of the first part of a file by name, and its header.

    Raises:
        UserError: OpenEXR is not installed, a file that cannot be read (exit 3), or too many pixels (7).
    """
    package = _import_openexr(path)
    # The border around a foreign parser, which answers damage with RuntimeError and others.
    try:
        with name_in_utf8(path) as name, package.File(str(name), header_only=True) as file:
            low, high = file.header()["dataWindow"]
        width, height = (int(b) - int(a) + 1 for a, b in zip(low, high, strict=True))
        if not 0 < width * height <= max_pixels:
            raise UserError(
                ExitCode.UNSAFE_FILE,
                f"{path.name} was not opened: it declares {width} x {height} pixels",
                where=str(path),
                why=f"at most {max_pixels / 1e6:.4g} megapixels are accepted",
            )
        with name_in_utf8(path) as name, package.File(str(name), separate_channels=True) as file:
            return {name: channel.pixels for name, channel in file.channels().items()}, dict(file.header())
    except UserError:
        raise
    except Exception as problem:
        raise bad_input(
            f"{path.name} is damaged or no OpenEXR file", where=str(path), why=str(problem).splitlines()[0]
        ) from problem


def _import_openexr(path: Path) -> ModuleType:
    """Imports OpenEXR; `path` is for the message where it is not installed."""
    try:
        import OpenEXR
    except ImportError as problem:
        raise bad_input(
            "OpenEXR files need the package OpenEXR",
            where=str(path),
            why="it is not installed",
            fix="pip install -e '.[exr]' in the folder of Unwrap",
        ) from problem
    return OpenEXR

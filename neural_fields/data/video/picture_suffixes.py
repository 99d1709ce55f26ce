"""The pictures that videos can be made of, by the endings of their names."""

from __future__ import annotations

from pathlib import Path

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def is_image(path: Path) -> bool:
    """Tells whether a path has the suffix of a supported picture format."""
    return path.suffix.lower() in PICTURE_SUFFIXES

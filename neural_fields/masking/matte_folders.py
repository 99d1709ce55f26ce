"""The folder of one object: a gray picture for each frame of the video, and object.json, from which it was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import UInt8

from neural_fields.config.loader import load_json, to_mapping
from neural_fields.core.errors import UserError
from neural_fields.core.files import disk_errors, flush_to_disk, make_folder, temporary_path, write_json, write_synced

OBJECT_FILE = "object.json"
MIN_SHARE = 2  # of 255: less is written as nothing, as 1 alone in a picture would be read as white


@dataclass(frozen=True, kw_only=True)
class ObjectRecord:
    """Holds the content of object.json.

    Attributes:
        schema: version of the file.
        digest: of the hints and the settings by which the object was found.
        matte_digest: of what was found once overlaps with other objects were settled, and of the kind of edges.
        checksum: of the mattes, by which mattes are recognized that were retouched since.
        confidence: how sure the object is in each frame in use, 0 to 1; 0 where it was not found.
    """

    schema: Literal[1] = 1
    digest: str
    matte_digest: str = ""
    checksum: str = ""
    confidence: tuple[float, ...]


def read_object_record(folder: Path) -> ObjectRecord | None:
    """Reads object.json; None without it, or where it cannot be used: the object is then done again."""
    path = folder / OBJECT_FILE
    if not path.is_file():
        return None
    try:
        return load_json(ObjectRecord, path, fix=f"unwrap mask VIDEO --out {folder.parent}")
    except UserError:
        return None


def write_mattes(
    folder: Path, record: ObjectRecord, mattes: Iterator[UInt8[np.ndarray, "height width"]], first_number: int = 0
) -> Path | None:
    """Writes the mattes of an object beside the folder, then puts them in its place.

    Args:
        folder: of the object; mattes that were retouched there are kept under another name.
        record: what the mattes follow from.
        mattes: one for each frame of the video.
        first_number: number of the first frame of the video, which its matte gets too.

    Returns:
        Where retouched mattes were kept; None if there were none.

    Raises:
        UserError: no room (exit 4), or a folder that may not be written (exit 3).
    """
    kept = None
    with disk_errors(folder), temporary_path(folder.parent) as part:
        make_folder(part)
        for number, matte in enumerate(mattes, start=first_number):
            _, data = cv2.imencode(".png", np.where(matte < MIN_SHARE, 0, matte), [cv2.IMWRITE_PNG_COMPRESSION, 3])
            write_synced(part / f"{number:05d}.png", data.tobytes())
        write_json(part / OBJECT_FILE, to_mapping(replace(record, checksum=_sum_files(part))))
        if folder.exists():
            before = read_object_record(folder)
            if before is None or before.checksum != _sum_files(folder):
                kept = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}-kept{n}")).exists())
                os.replace(folder, kept)
                os.replace(part, folder)
            else:
                with temporary_path(folder.parent) as old:  # removed at the end, after the new one is in place
                    os.replace(folder, old)
                    os.replace(part, folder)
        else:
            os.replace(part, folder)
        flush_to_disk(folder.parent)
    return kept


def _sum_files(folder: Path) -> str:
    """Returns the SHA-256 of the names and contents of the mattes in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.png")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def read_matte(folder: Path, number: int, size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """Reads the matte of a frame at another size; nothing where the file is gone.

    Args:
        folder: of the object.
        number: of the frame in the video.
        size: (width, height) in pixels.
    """
    path = folder / f"{number:05d}.png"
    data = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else np.zeros(0, np.uint8)
    matte = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if len(data) else None
    if matte is None:
        return np.zeros(size[::-1], np.uint8)
    return cv2.resize(matte, size, interpolation=cv2.INTER_AREA)

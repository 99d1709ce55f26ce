"""What was found of each object, alone and apart from the others; kept in the cache.

Objects are found one by one. With what was found of the others, they are told apart anew whenever one of them changes,
so that the masks do not depend on the order of the commands.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from neural_fields.core.files import atomic_write, disk_errors

ALONE = "objects"  # folder in the cache of what was found of each object as if it were alone
APART = "objects-apart"  # and of what is left of it beside the others


@dataclass(frozen=True, eq=False)
class FoundObject:
    """Holds what was found of one object.

    Attributes:
        shares: its share of each pixel, 0 to 255.
        confidence: how sure it is in each frame, 0 to 1; 0 where it was not found.
    """

    shares: UInt8[np.ndarray, "time height width"]
    confidence: tuple[float, ...]


def store_found_object(folder: Path, name: str, digest: str, found: FoundObject) -> None:
    """Stores what was found of an object, instead of what was found of it before.

    Args:
        folder: `ALONE` or `APART` in the cache.
        name: of the object.
        digest: of the hints and the settings by which it was found.
        found: what was found.
    """
    paths = _find_files(folder, name, digest)
    earlier = set(paths[0].parent.glob(f"{escape(name)}-{'?' * 16}-*.npy"))
    for path, values in zip(paths, (found.shares, np.array(found.confidence)), strict=True):
        with atomic_write(path) as part:
            np.save(part, values, allow_pickle=False)
    with disk_errors(paths[0]):
        for file in earlier - set(paths):
            file.unlink(missing_ok=True)


def read_found_object(folder: Path, name: str, digest: str, shape: tuple[int, int, int]) -> FoundObject | None:
    """Maps what was found of an object from its files; None where the cache does not have it.

    Args:
        folder: `ALONE` or `APART` in the cache.
        name: of the object.
        digest: of the hints and the settings by which it was found.
        shape: frames, height and width.
    """
    try:
        shares, confidence = (
            np.load(path, mmap_mode="r", allow_pickle=False) for path in _find_files(folder, name, digest)
        )
    except (OSError, ValueError, EOFError):  # missing or damaged: it is found again
        return None
    if (shares.shape, shares.dtype, confidence.shape) != (shape, np.uint8, shape[:1]):
        return None
    return FoundObject(shares, tuple(confidence.tolist()))


def _find_files(folder: Path, name: str, digest: str) -> tuple[Path, Path]:
    """Returns the paths of the shares and of the confidence."""
    stem = folder / f"{name}-{digest[:16]}"
    return stem.with_name(f"{stem.name}-shares.npy"), stem.with_name(f"{stem.name}-confidence.npy")


def sum_shares(shares: UInt8[np.ndarray, "time height width"]) -> str:
    """Computes the SHA-256 of shares, frame by frame, in hexadecimal."""
    digest = hashlib.sha256()
    for frame in shares:
        digest.update(frame.tobytes())
    return digest.hexdigest()

"""What flow reads from the user's disk: fields (Middlebury .flo or numpy .npy), one file a pair.

Unknown flow in a .flo file (values above 1e9) becomes a mask here; NaN and infinite values are refused.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write

log = logging.getLogger(__name__)

FLO_MAGIC = 202021.25  # Middlebury .flo: float32 magic, int32 width, int32 height, then (dx, dy) per pixel.
FLO_UNKNOWN = 1e9  # Middlebury writes larger values where the flow is unknown.
FLOW_SUFFIXES = (".flo", ".npy")

Vectors = Float[np.ndarray, "height width 2"]


def read_flo(path: Path) -> Vectors:
    """Reads the raw vectors of a Middlebury .flo file (float32); unknown flow keeps the large value in the file.

    Raises:
        UserError: it is not a .flo file, or is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        body = file.read()
    if len(head) < 12 or np.frombuffer(head[:4], "<f4")[0] != np.float32(FLO_MAGIC):
        raise bad_input(f"{path.name} is not a .flo file", where=str(path), why="the first number must be 202021.25")
    width, height = (int(value) for value in np.frombuffer(head[4:], "<i4"))
    if width <= 0 or height <= 0 or len(body) != width * height * 8:
        raise bad_input(
            f"{path.name} is damaged: it says {width}x{height} and holds {len(body)} bytes of flow",
            where=str(path),
            why=f"{width}x{height} vectors take {max(width, 0) * max(height, 0) * 8} bytes",
            fix="write the file again with the program it came from",
        )
    return np.frombuffer(body, "<f4").reshape(height, width, 2).astype(np.float32)


def write_flo(path: Path, flow: Vectors) -> None:
    """Writes a flow field as a Middlebury .flo file, atomically."""
    height, width = flow.shape[:2]
    head = np.array([FLO_MAGIC], "<f4").tobytes() + np.array([width, height], "<i4").tobytes()
    with atomic_write(Path(path)) as part:
        part.write_bytes(head + np.ascontiguousarray(flow, "<f4").tobytes())


@dataclass(frozen=True)
class FlowFiles:
    """One file a pair, in order; `backward` is empty where the user gave none."""

    forward: list[Path]
    backward: list[Path]


def natural_key(path: Path) -> list[int | str]:
    """Returns the key that sorts file names by the numbers in them: "2.png" before "10.png"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _list_fields(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((file for file in folder.iterdir() if file.suffix.lower() in FLOW_SUFFIXES), key=natural_key)


def list_flow_files(folder: Path, pairs: int) -> FlowFiles:
    """Lists the flow files of a folder, checked against the number of pairs of the clip.

    Raises:
        UserError: another number of files than pairs.
    """
    files = FlowFiles(_list_fields(folder / "forward") or _list_fields(folder), _list_fields(folder / "backward"))
    for name, found in (("forward", files.forward), ("backward", files.backward)):
        if len(found) != pairs and (found or name == "forward"):
            raise bad_input(
                f"{folder} holds {len(found)} {name} flow files, the clip has {pairs} pairs of frames",
                where=str(folder),
                why=f"one .flo or .npy file is needed for each pair of frames in use, in order, in {name}/",
                fix="--flow dis",
            )
    if not files.backward:
        log.warning("%s has no backward/ folder: the backward flow comes from DIS", folder)
    return files


def read_user_flow(path: Path, pair: int, size: tuple[int, int]) -> tuple[Vectors, Bool[np.ndarray, "height width"]]:
    """Reads a flow field of the user.

    Args:
        path: a .flo or .npy file.
        pair: its number in the clip, for errors.
        size: (width, height) of the frames, whose aspect it must have.

    Returns:
        Vectors in pixels of the file, and a mask of the known ones.

    Raises:
        UserError: NaN or infinite values, another aspect, a file that cannot be read.
    """
    if path.suffix.lower() == ".flo":
        vectors = read_flo(path)
    else:
        try:
            vectors = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as problem:
            raise bad_input(
                f"{path.name} cannot be read: {problem}", where=str(path), fix="write it with numpy.save"
            ) from None
        if vectors.ndim != 3 or vectors.shape[2] != 2 or vectors.dtype.kind != "f":
            shape = "x".join(map(str, vectors.shape))
            why = "expected floating point numbers of shape height x width x 2, (dx, dy) in pixels"
            raise bad_input(f"{path.name} holds {vectors.dtype} of shape {shape}", where=str(path), why=why)
        vectors = vectors.astype(np.float32)

    known = (np.abs(vectors) < FLO_UNKNOWN).all(-1)
    broken = ~np.isfinite(vectors).all(-1)
    if broken.any():
        row, column = np.argwhere(broken)[0]
        raise bad_input(
            f"{path.name} holds NaN or infinite flow at {int(broken.sum())} pixels (pair {pair} to {pair + 1})",
            where=f"{path}, row {row}, column {column}",
            why="every vector must be a number; .flo files mark unknown flow with values above 1e9",
            fix="write the file again, or use --flow dis",
        )
    vectors = np.where(known[..., None], vectors, 0).astype(np.float32)
    height, width = vectors.shape[:2]
    aspect_slack = 0.02  # relative: flow is often computed at sizes that are rounded
    if abs(width * size[1] - height * size[0]) > aspect_slack * width * size[1]:
        raise bad_input(
            f"{path.name} is {width}x{height}, the frames are {size[0]}x{size[1]}",
            where=str(path),
            why="flow must have the aspect of the frames (it is scaled to their size)",
            fix="--flow dis",
        )
    return vectors, known

"""Optical flow between neighboring frames in both directions, with masks of the reliable vectors.

A flow vector is (dx, dy) in pixels of the stored size: point x of the first frame is at x + flow(x) in the second one.
Masks mark invalid vectors (occluded, out of the frame, unknown); the values of the vectors never do. There are three
sources: OpenCV's DIS (without weights), torchvision's RAFT (Teed and Deng 2020), and files of the user.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core.errors import bad_input
from neural_fields.core.files import disk_errors
from neural_fields.core.memmap import allocate_zeros, iterate_releasing, release_memory
from neural_fields.core.prefetch import map_in_threads
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.flow_files import FlowFiles, list_flow_files, read_flo, read_user_flow, write_flo

__all__ = [
    "FlowField",
    "compute_flow",
    "consistency_mask",
    "read_flo",
    "resize_mask",
    "resize_vectors",
    "write_flo",
]

_ARRAYS = ("forward", "backward", "forward_ok", "backward_ok")

Vectors = Float[np.ndarray, "height width 2"]
Pair = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class FlowField:
    """Holds the optical flow between neighboring frames of a clip, in pixels of its size.

    `forward[t]` is defined on the pixels of frame t and leads to frame t + 1; `backward[t]` is defined on the pixels of
    frame t + 1 and leads to frame t. The masks are True where both directions agree.
    """

    forward: Float[np.ndarray, "pairs height width 2"]
    backward: Float[np.ndarray, "pairs height width 2"]
    forward_ok: Bool[np.ndarray, "pairs height width"]
    backward_ok: Bool[np.ndarray, "pairs height width"]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frames that the vectors are pixels of."""
        return (self.forward.shape[2], self.forward.shape[1])

    def release_memory(self) -> None:
        """Releases the memory of arrays that are mapped from files; what is read again comes from the files."""
        for array in (self.forward, self.backward, self.forward_ok, self.backward_ok):
            release_memory(array)


def compute_flow(
    frames: UInt8[np.ndarray, "time height width 3"],
    cache: Path,
    method: str = "auto",
    size: tuple[int, int] | None = None,
    report: ProgressReporter = report_nothing,
    device: str = "cpu",
) -> FlowField:
    """Computes the optical flow of a clip, or reads it from `cache`.

    Args:
        frames: RGB; may be memory-mapped, as only two frames are in memory at a time.
        cache: folder that keeps results by content; it may be emptied at any time.
        method: "auto" or "dis" (OpenCV DIS); "raft" or "raft-large" (torchvision, weights of the hub); a RAFT state
            dict (.pth, torchvision's or the original names); a folder of .flo or .npy files, one for each pair, in
            `forward/` and `backward/`. Without backward files, DIS computes the backward flow.
        size: (width, height) at which flow is computed and stored; by default the size of the frames.
        report: called after each pair of frames.
        device: the device of RAFT.

    Returns:
        The flow at `size`, memory-mapped from `cache`.

    Raises:
        UserError: unknown method, weights that cannot be had or read, files that do not fit the clip or hold NaN.
    """
    count, height, width = frames.shape[:3]
    size = size or (width, height)
    if count < 2:
        vectors, ok = np.zeros((0, size[1], size[0], 2), np.float16), np.zeros((0, size[1], size[0]), bool)
        return FlowField(vectors, vectors, ok, ok)
    key, compute_pairs = _choose_pair_source(frames, method, size, device)
    folder = Path(cache) / f"flow-{key}"
    shape = (count - 1, size[1], size[0])
    found = _open_cached(folder, shape)
    if found is not None:
        return found
    with disk_errors(folder):
        _build_cached(folder, compute_pairs(), shape, report)
    built = _open_cached(folder, shape)
    if built is None:
        raise OSError(errno.EIO, "flow written to the cache could not be read back", str(folder))
    return built


def consistency_mask(flow: Vectors, reverse: Vectors) -> Bool[np.ndarray, "height width"]:
    """Finds the pixels where `flow` followed by `reverse` leads back to the start, inside the frame.

    The tolerance grows with the motion: |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5 (Sundaram et al. 2010, equation 5).

    Args:
        flow: flow from one frame to the other, in pixels.
        reverse: flow back from the other frame, in pixels.

    Returns:
        True where the flow can be trusted.

    Example:
        >>> flow = np.full((4, 6, 2), (2.0, 0.0), np.float32)
        >>> consistency_mask(flow, -flow)[0].tolist()
        [True, True, True, True, False, False]
    """
    height, width = flow.shape[:2]
    flow = np.asarray(flow, np.float32)
    if not cv2.checkRange(flow):
        flow = np.nan_to_num(flow, nan=4.0 * (width + height))
    # Plane by plane, which is many times faster than with the two numbers of a vector side by side.
    dx, dy = cv2.split(flow)
    # cv2.remap takes sample positions: j is the center of pixel j, so the frame spans [-0.5, width - 0.5].
    x = dx + np.arange(width, dtype=np.float32)
    y = dy + np.arange(height, dtype=np.float32)[:, None]
    back_dx, back_dy = (
        cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in cv2.split(np.asarray(reverse, np.float32))
    )
    gap = (dx + back_dx) ** 2 + (dy + back_dy) ** 2
    agrees = gap < 0.01 * ((dx**2 + dy**2) + (back_dx**2 + back_dy**2)) + 0.5
    return agrees & (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def resize_vectors(vectors: Vectors, size: tuple[int, int], ok: np.ndarray | None = None) -> Float[np.ndarray, "h w 2"]:
    """Resizes a flow field: dx scales with the width, dy with the height.

    Args:
        vectors: flow in pixels of its own size.
        size: the new (width, height).
        ok: the pixels with known flow; the others do not influence their neighbors.

    Returns:
        Vectors in pixels of the new size.
    """
    height, width = vectors.shape[:2]
    if size == (width, height):
        return np.array(vectors, np.float32)
    scale = np.array([size[0] / width, size[1] / height], np.float32)
    mode = cv2.INTER_AREA if size[0] * size[1] < width * height else cv2.INTER_LINEAR
    vectors = np.asarray(vectors, np.float32)
    plain = cv2.resize(vectors, size, interpolation=mode)
    if ok is not None and not ok.all():
        share = cv2.resize(ok.astype(np.float32), size, interpolation=mode)[..., None]
        known = cv2.resize(vectors * ok[..., None], size, interpolation=mode)
        plain = np.where(share > 1e-3, known / np.maximum(share, 1e-3), plain)
    return plain * scale


def resize_mask(mask: Bool[np.ndarray, "height width"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Resizes a mask to (width, height): a pixel is set where at least half of its area is set."""
    if size == mask.shape[::-1]:
        return np.array(mask)
    smaller = size[0] * size[1] < mask.shape[0] * mask.shape[1]
    mode = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(mask.astype(np.float32), size, interpolation=mode) >= 0.5


def resize_flow(flow: FlowField, size: tuple[int, int]) -> FlowField:
    """Resizes the flow of a clip; see `resize_vectors` and `resize_mask`.

    Args:
        flow: of all pairs.
        size: the new (width, height).
    """
    shape = (len(flow.forward), size[1], size[0])
    resized = FlowField(
        *(allocate_zeros((*shape, 2), np.float16) for _ in range(2)), *(allocate_zeros(shape, bool) for _ in range(2))
    )

    def resize_pair(pair: int) -> None:
        for vectors, ok, out, out_ok in (
            (flow.forward, flow.forward_ok, resized.forward, resized.forward_ok),
            (flow.backward, flow.backward_ok, resized.backward, resized.backward_ok),
        ):
            out[pair] = resize_vectors(vectors[pair], size, ok[pair])
            out_ok[pair] = resize_mask(ok[pair], size)

    for _ in map_in_threads(resize_pair, range(len(flow.forward))):
        pass
    return resized


# --- where the pairs come from -------------------------------------------------------------------------------------


def _choose_pair_source(
    frames: np.ndarray, method: str, size: tuple[int, int], device: str
) -> tuple[str, Callable[[], Iterator[Pair]]]:
    """Returns the cache key of a method, and a function that starts computing pairs. Cheap problems are raised here."""
    version = 2  # of the cache: raise it when the same input would give other numbers
    digest = hashlib.sha256(f"{version} {len(frames)} {size[0]}x{size[1]} ".encode())
    if method in ("auto", "dis"):
        digest.update(f"dis {cv2.__version__}".encode())
        _hash_frames(digest, frames)
        return digest.hexdigest()[:24], lambda: _compute_dis_pairs(frames, size)
    path = Path(method)
    if path.is_dir():
        files = list_flow_files(path, len(frames) - 1)
        for file in files.forward + files.backward:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        if not files.backward:
            _hash_frames(digest, frames)
        return digest.hexdigest()[:24], lambda: _read_file_pairs(files, frames, size)
    if method not in ("raft", "raft-large") and path.suffix not in (".pth", ".pt"):
        raise bad_input(
            f"no flow method or file called {method}",
            where="--flow",
            why="expected auto, dis, raft, raft-large, a RAFT state dict (.pth) or a folder of .flo or .npy files",
            fix="--flow dis",
        )
    from neural_fields.data.flow.raft import build_raft, compute_raft_flow, load_hub_weights, read_raft_state

    # Read before looking into the cache: changed weights must give another key.
    state = load_hub_weights(method) if method in ("raft", "raft-large") else read_raft_state(path)
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    _hash_frames(digest, frames)

    def compute_raft_pairs() -> Iterator[Pair]:
        network = build_raft(state, method, device)
        return _compute_pairs(frames, _frame_at_size, size, functools.partial(compute_raft_flow, network))

    return digest.hexdigest()[:24], compute_raft_pairs


def _hash_frames(digest: Any, frames: np.ndarray) -> None:
    digest.update(str(frames.shape).encode())
    for frame in iterate_releasing(frames):
        digest.update(np.ascontiguousarray(frame))


def _frame_at_size(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if (frame.shape[1], frame.shape[0]) == size:
        return np.ascontiguousarray(frame)
    smaller = size[0] * size[1] < frame.shape[0] * frame.shape[1]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _gray_at_size(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.cvtColor(_frame_at_size(frame, size), cv2.COLOR_RGB2GRAY)


def _compute_pairs(
    frames: np.ndarray,
    prepare: Callable[[np.ndarray, tuple[int, int]], np.ndarray],
    size: tuple[int, int],
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Iterator[Pair]:
    """Computes the flow of neighboring frames both ways; each frame is prepared once."""
    previous = prepare(frames[0], size)
    for frame in islice(iterate_releasing(frames), 1, None):
        current = prepare(frame, size)
        yield compute(previous, current), compute(current, previous), None, None
        previous = current


class _Engines(threading.local):
    """Holds an engine for each thread: it keeps its memory from one pair to the next."""

    def __init__(self) -> None:
        self.dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def _compute_dis_pairs(frames: np.ndarray, size: tuple[int, int]) -> Iterator[Pair]:
    """Computes the DIS flow of neighboring frames both ways, several pairs at once."""
    engines = _Engines()

    def compute(pair: tuple[np.ndarray, np.ndarray]) -> Pair:
        there, back = (_compute_dis_flow(*way, engine=engines.dis) for way in (pair, pair[::-1]))
        return there, back, None, None

    yield from map_in_threads(compute, pairwise(_gray_at_size(frame, size) for frame in iterate_releasing(frames)))


def _compute_dis_flow(first: np.ndarray, second: np.ndarray, engine: cv2.DISOpticalFlow | None = None) -> np.ndarray:
    """Computes DIS flow (Kroeger et al. 2016) of two gray images of any size (it needs a few patches on each side)."""
    height, width = first.shape
    if min(height, width) < 32:
        pad = [(0, max(0, 32 - height)), (0, max(0, 32 - width))]
        first, second = np.pad(first, pad, mode="edge"), np.pad(second, pad, mode="edge")
    engine = engine or _Engines().dis
    return engine.calc(first, second, None)[:height, :width]


def compute_pair_flow(
    first: UInt8[np.ndarray, "height width 3"], second: UInt8[np.ndarray, "height width 3"]
) -> tuple[Vectors, Bool[np.ndarray, "height width"]]:
    """Computes the flow from one picture to another with DIS, and the pixels where the reverse flow agrees.

    Args:
        first: RGB, 0 to 255.
        second: RGB, 0 to 255.

    Returns:
        The flow in pixels, and the mask of reliable vectors.
    """
    one, other = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second))
    there, back = _compute_dis_flow(one, other), _compute_dis_flow(other, one)
    return there, consistency_mask(there, back)


def _read_file_pairs(files: FlowFiles, frames: np.ndarray, size: tuple[int, int]) -> Iterator[Pair]:
    """Reads the user's flow; where only forward files are given, the backward flow comes from DIS."""
    for pair, path in enumerate(files.forward):
        forward, forward_known = _read_file_at_size(path, pair, size)
        if files.backward:
            backward, backward_known = _read_file_at_size(files.backward[pair], pair, size)
        else:
            backward = _compute_dis_flow(_gray_at_size(frames[pair + 1], size), _gray_at_size(frames[pair], size))
            backward_known = np.ones((size[1], size[0]), bool)
        yield forward, backward, forward_known, backward_known


def _read_file_at_size(path: Path, pair: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    vectors, known = read_user_flow(path, pair, size)
    if known.shape == (size[1], size[0]):
        return vectors, known
    return resize_vectors(vectors, size, known), resize_mask(known, size)


# --- the cache -----------------------------------------------------------------------------------------------------


def _open_cached(folder: Path, shape: tuple[int, int, int]) -> FlowField | None:
    """Opens the cached flow; None if it is not there, cut short or of another shape."""
    try:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS]
    except (OSError, ValueError, EOFError):
        return None
    right = all(array.shape[:3] == shape for array in arrays)
    return FlowField(*arrays) if right else None


def _build_cached(folder: Path, pairs: Iterable[Pair], shape: tuple[int, int, int], report: ProgressReporter) -> None:
    """Streams pairs into a folder beside the final one, then renames it: a cut run leaves nothing half done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    files: list[BinaryIO] = []
    try:
        try:
            for name in _ARRAYS:
                # Plain writes and not a memory map: on a full disk a map ends the process, a write raises OSError.
                files.append(open(part / f"{name}.npy", "wb"))  # noqa: SIM115 - closed below, with its siblings
                is_mask = name.endswith("_ok")
                descr = np.lib.format.dtype_to_descr(np.dtype(bool if is_mask else np.float16))
                header = {"descr": descr, "fortran_order": False, "shape": shape if is_mask else (*shape, 2)}
                np.lib.format.write_array_header_1_0(files[-1], header)
            for index, (forward, backward, forward_known, backward_known) in enumerate(pairs):
                # Vectors as finite float16, and masks of what is finite, known and consistent.
                forward_ok, backward_ok = consistency_mask(forward, backward), consistency_mask(backward, forward)
                for vectors, ok in ((forward, forward_ok), (backward, backward_ok)):
                    if not cv2.checkRange(vectors):
                        ok &= np.isfinite(vectors).all(-1)
                if forward_known is not None:
                    forward_ok &= forward_known
                if backward_known is not None:
                    backward_ok &= backward_known
                stored = (_clip_to_half(forward), _clip_to_half(backward), forward_ok, backward_ok)
                for file, array in zip(files, stored, strict=True):
                    file.write(array.tobytes())
                report(Progress("flow", index + 1, shape[0]))
        finally:
            for file in files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        shutil.rmtree(folder, ignore_errors=True)  # Only ever a damaged entry of this cache.
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _clip_to_half(vectors: np.ndarray) -> np.ndarray:
    limit = float(np.finfo(np.float16).max)
    if cv2.checkRange(vectors, minVal=-limit, maxVal=limit):
        return vectors.astype(np.float16)
    return np.nan_to_num(np.clip(vectors, -limit, limit), nan=0.0).astype(np.float16)

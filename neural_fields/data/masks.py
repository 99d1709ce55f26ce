"""Layer masks: which pixels of which frame belong to which object, from the user's files or from motion.

Layers go front to back; the background is what no mask claims and is never listed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from neural_fields.data.flow import FlowField, resize_mask
from neural_fields.data.memory import zeros
from neural_fields.data.motion import segment_motion
from neural_fields.errors import bad_input

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".gif")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
ASPECT_SLACK = 0.01  # Relative. Working sizes are rounded to whole pixels.


@dataclass(frozen=True)
class LayerMasks:
    """Names (front to back, without the background) and one mask per name and frame.

    No names means one layer: everything is background.
    """

    names: tuple[str, ...]
    masks: Bool[np.ndarray, "layers time height width"]


def default_names(count: int) -> tuple[str, ...]:
    """What unnamed mask layers are called: "foreground", or "foreground1", "foreground2", ... front to back."""
    return ("foreground",) if count == 1 else tuple(f"foreground{index + 1}" for index in range(count))


def load_masks(
    specs: Sequence[str],
    frame_count: int,
    size: tuple[int, int],
    frames: range | None = None,
    source_size: tuple[int, int] | None = None,
) -> LayerMasks:
    """Reads one mask layer per spec and checks that it fits the clip.

    Args:
        specs: "[NAME=]PATH", front first. PATH is a folder of images in natural order, a video, or a .npy array
            [time, height, width]. White, a palette index above 0, or 1 is the object.
        frame_count: frames of the whole clip.
        size: (width, height) that the masks are brought to.
        frames: the frames of the clip in use. Masks for the whole clip are cut to them.
        source_size: the clip's own (width, height), where `size` has another aspect.

    Raises:
        UserError: missing path, other count or aspect than the clip, inverted or empty masks, bad names.
    """
    chosen = range(frame_count) if frames is None else frames
    fallback = default_names(len(specs))
    pairs = [_split_spec(spec, name) for spec, name in zip(specs, fallback, strict=True)]
    names = tuple(name for name, _ in pairs)
    _check_names(names)
    out = zeros((len(pairs), len(chosen), size[1], size[0]), bool)
    for layer, (_, path) in enumerate(pairs):
        source = _open_masks(path)
        indices = _matching_frames(source, frame_count, chosen)
        for slot, (index, mask) in enumerate(zip(indices, source.read(indices), strict=True)):
            out[layer, slot] = _fit(mask, source.labels[index], path, size, source_size)
        _check_content(out[layer], path)
    return LayerMasks(names, out)


def mask_iou(a: Bool[np.ndarray, "*shape"], b: Bool[np.ndarray, "*shape"]) -> float:
    """Intersection over union of two masks (any shape, 0 to 1); two empty masks agree: 1."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def auto_masks(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    progress: Callable[[int, int], None] | None = None,
) -> LayerMasks:
    """One layer "foreground": what moves against the dominant homography (see `motion.py`).

    No names when nothing clearly moves on its own: fit one layer then, and say so.
    """
    found = segment_motion(frames, flow, progress)
    if found is None:
        return LayerMasks((), np.zeros((0, *frames.shape[:3]), bool))
    return LayerMasks(default_names(1), found[None])


# --- names ---------------------------------------------------------------------------------------------------------


def _split_spec(spec: str, fallback: str) -> tuple[str, Path]:
    name, equals, rest = spec.partition("=")
    if equals and "/" not in name and "\\" not in name and not Path(spec).exists():
        return name, Path(rest)
    return fallback, Path(spec)


def _check_names(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if not NAME.fullmatch(name):
            raise bad_input(
                f'"{name}" cannot name a layer',
                where="--masks",
                why="a name has letters, digits, - and _ only: it becomes a file name",
                fix="--masks car=PATH",
            )
        if name == "background":
            raise bad_input(
                'a mask layer cannot be called "background"',
                where="--masks",
                why="the background is what no mask claims; give masks for the objects in front of it",
                fix="--masks foreground=PATH",
            )
        if name in names[:index]:
            raise bad_input(f'two mask layers are called "{name}"', where="--masks", fix="give each layer its own name")


# --- sources -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Masks on disk, read one after the other. `labels` name each of them in messages."""

    path: Path
    labels: tuple[str, ...]
    read: Callable[[range], Iterator[np.ndarray]]


def _open_masks(path: Path) -> _Source:
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
        return _image_source(path, files)
    if not path.exists():
        raise bad_input(
            f"no mask folder or file {path}", where="--masks", fix="--masks auto finds what moves by itself"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _image_source(path, [path])
    if path.suffix.lower() == ".npy":
        return _array_source(path)
    return _video_source(path)


def _natural(path: Path) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _image_source(path: Path, files: list[Path]) -> _Source:
    if not files:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise bad_input(f"{path} holds no mask images", where=str(path), why=f"looked for files ending in {suffixes}")
    return _Source(
        path, tuple(file.name for file in files), lambda indices: (_read_image(files[index]) for index in indices)
    )


def _read_image(path: Path) -> np.ndarray:
    """One mask image as bool: palette index above 0, or the lighter half of the range, or 1 where 1 is the most."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == "P" and image.getpalette() is not None and not any((image.getpalette() or [])[:3]):
                return np.asarray(image) > 0
            if image.mode in ("RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "PA"):
                rgba = np.asarray(image.convert("RGBA"), np.float32)
                values = rgba[..., :3].max(-1) * (rgba[..., 3] / 255)
            else:
                values = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as problem:
        raise bad_input(f"{path.name} cannot be read: {problem}", where=str(path), fix="save this mask again") from None
    return _to_mask(values, exact=image.format not in ("JPEG", "WEBP"))


def _to_mask(values: np.ndarray, exact: bool = True) -> np.ndarray:
    """The lighter half of the range; where 1 is the most and the file keeps numbers exactly, 1 is white."""
    if values.dtype == bool:
        return values
    most = float(values.max(initial=0))
    half = 0.5 if most <= 1 and exact else 128 if most <= 255 else 32768
    return values >= half


def _array_source(path: Path) -> _Source:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise bad_input(
            f"{path.name} cannot be read: {problem}", where=str(path), fix="write it with numpy.save"
        ) from None
    if values.ndim != 3 or values.dtype.kind not in "buif":
        shape = "x".join(map(str, values.shape))
        raise bad_input(f"{path.name} has shape {shape}", where=str(path), why="expected time x height x width numbers")
    labels = tuple(f"{path.name}[{index}]" for index in range(len(values)))
    return _Source(path, labels, lambda indices: (_to_mask(np.asarray(values[index])) for index in indices))


def _video_source(path: Path) -> _Source:
    from neural_fields.data import video

    facts = video.probe(path)
    labels = tuple(f"frame {index} of {path.name}" for index in range(facts.frame_count))

    def read(indices: range) -> Iterator[np.ndarray]:
        # Lossy video: white is not quite white, so only the threshold counts.
        for frame in video.source_frames(facts, indices):
            yield frame.max(-1) >= 128

    return _Source(path, labels, read)


# --- checks --------------------------------------------------------------------------------------------------------


def _matching_frames(source: _Source, frame_count: int, chosen: range) -> range:
    """Which masks to take: one for each chosen frame, cut out of the whole clip's masks if that is what there is."""
    count = len(source.labels)
    if count == frame_count and chosen[-1] < count:
        return chosen
    if count == len(chosen):
        return range(count)
    wanted = len(chosen) if count < len(chosen) else frame_count
    missing = _missing(source.labels, wanted)
    detail = f"; without a mask: {missing}" if missing else ""
    more = f", or {len(chosen)} for the frames in use" if len(chosen) != frame_count else ""
    raise bad_input(
        f"{source.path} holds {count} mask{'s' * (count != 1)}, the clip has {frame_count} frames{detail}",
        where=str(source.path),
        why=f"one mask for each frame is needed: {frame_count}{more}",
        fix="add the missing masks, use --frames to fit fewer frames, or --masks auto"
        if count < wanted
        else "remove the masks that belong to no frame, or use --masks auto",
    )


def _missing(labels: Sequence[str], wanted: int) -> str:
    """Which frames have no mask, by the numbers in the file names where there are any, else the last ones."""
    numbers = [int(found[-1]) for label in labels if (found := re.findall(r"\d+", Path(label).stem))]
    if len(numbers) == len(labels) == len(set(numbers)) and numbers:
        first = 1 if min(numbers) == 1 and 0 not in numbers and max(numbers) <= wanted else min(numbers, default=0)
        first = 0 if max(numbers) < wanted and min(numbers) != 1 else first
        gone = sorted(set(range(first, first + wanted)) - set(numbers))
    else:
        gone = list(range(len(labels), wanted))
    shown = ", ".join(map(str, gone[:8]))
    return f"frames {shown}{f' and {len(gone) - 8} more' if len(gone) > 8 else ''}" if gone else ""


def _fit(mask: np.ndarray, label: str, path: Path, size: tuple[int, int], source: tuple[int, int] | None) -> np.ndarray:
    """The mask at `size`; refused when its aspect is neither that of `size` nor that of the source."""
    height, width = mask.shape
    for wide, high in (size, source or size):
        if abs(width * high / height - wide) <= max(1.0, ASPECT_SLACK * wide):
            return resize_mask(mask, size)
    expected = source or size
    raise bad_input(
        f"mask {label} is {width}x{height}, the clip is {expected[0]}x{expected[1]}",
        where=str(path),
        why="a mask may be larger or smaller than the frames, but must have their aspect",
        fix=f"save the masks at {expected[0]}x{expected[1]}",
    )


def _check_content(masks: np.ndarray, path: Path) -> None:
    """Refuses masks that are empty on every frame, and masks that are most likely inverted."""
    share = float(masks.mean())
    if share == 0:
        raise bad_input(
            f"the masks in {path} are empty on every frame",
            where=str(path),
            why="the object must be white (128 or more), 1, or a palette index above 0",
            fix="check that these are the right masks, or use --masks auto",
        )
    border = np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], axis=1)
    if share > 0.5 and float(border.mean()) > 0.9:
        raise bad_input(
            f"the masks in {path} look inverted: white covers {100 * share:.0f} % of the clip and all its borders",
            where=str(path),
            why="white is the object and black the rest",
            fix="invert the masks with any image tool, or use --masks auto",
        )

"""Layer masks: they say which pixels of each frame belong to which object. They come from files or from motion.

Layers are ordered front to back. The background is everything outside the masks, and is never listed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from neural_fields.core.errors import bad_input
from neural_fields.core.memmap import allocate_zeros
from neural_fields.data.flow.compute import resize_mask
from neural_fields.data.flow.flow_files import natural_key
from neural_fields.data.masks.layer_names import check_layer_name
from neural_fields.data.masks.mask_folder import read_mask_folder

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".gif")
ASPECT_SLACK = 0.01  # Relative. Working sizes are rounded to whole pixels.
SOFT_LEVELS = 8  # gray values between black and white, in the whole clip, from which masks are soft; fewer are labels


@dataclass(frozen=True)
class LayerMasks:
    """Holds the names of the front layers, front to back, and a mask for each of them in each frame.

    Without names there is a single layer: everything is background.

    Attributes:
        names: of the front layers.
        masks: where a layer fills at least half of a pixel.
        shares: the share of each pixel that a layer fills, 0 to 255, of masks with soft edges; None where all masks are
            hard. Layers may overlap: each gets at most what those in front leave, see `settle_front_to_back`.
    """

    names: tuple[str, ...]
    masks: Bool[np.ndarray, "layers time height width"]
    shares: UInt8[np.ndarray, "layers time height width"] | None = None


def is_soft(shares: UInt8[np.ndarray, "height width"]) -> bool:
    """Tells whether a layer fills some pixels of a frame in part.

    Example:
        >>> is_soft(np.uint8([[0, 128, 255]])), is_soft(np.uint8([[0, 0, 255]]))
        (True, False)
    """
    return bool(((shares > 0) & (shares < 255)).any())


def settle_front_to_back(
    shares: UInt8[np.ndarray, "layers height width"],
) -> tuple[UInt8[np.ndarray, "layers height width"], UInt8[np.ndarray, "layers height width"]]:
    """Computes what is visible of overlapping layers: each gets at most what those in front leave.

    Of hard masks, these are the parts that no mask in front hides. Shares that fit beside each other do not change, as
    those of two objects that meet in a pixel. The share of the front layer is never reduced, however sure the others
    are: the order of layers says who covers whom.

    Args:
        shares: of each pixel, 0 to 255, front to back.

    Returns:
        The visible shares, which add up to at most 255, and what is left of each pixel for each layer.

    Example:
        >>> visible, left = settle_front_to_back(np.uint8([[[55]], [[255]], [[100]]]))
        >>> visible.ravel().tolist(), left.ravel().tolist()
        ([55, 200, 0], [255, 200, 0])
    """
    visible, left = np.empty_like(shares), np.empty_like(shares)
    rest = np.full(shares.shape[1:], 255, np.uint8)
    for layer, share in enumerate(shares):
        left[layer] = rest
        visible[layer] = np.minimum(share, rest)
        rest = rest - visible[layer]
    return visible, left


def default_layer_names(count: int) -> tuple[str, ...]:
    """Returns names for mask layers that have none, front to back.

    Example:
        >>> default_layer_names(1), default_layer_names(2)
        (('foreground',), ('foreground1', 'foreground2'))
    """
    return ("foreground",) if count == 1 else tuple(f"foreground{index + 1}" for index in range(count))


def load_masks(
    specs: Sequence[str],
    frame_count: int,
    size: tuple[int, int],
    frames: range | None = None,
    source_size: tuple[int, int] | None = None,
) -> LayerMasks:
    """Reads the masks of the front layers and checks that they fit the clip.

    Args:
        specs: "[NAME=]PATH" for each layer, front first. PATH is a folder of images in natural order, a video, or a
            .npy array [time, height, width]. White, a palette index above 0, or 1 marks the object; gray marks pixels
            that it fills in part. A folder that `unwrap mask` wrote is a layer for each of its objects.
        frame_count: number of frames of the source.
        size: (width, height) of the result, in pixels.
        frames: numbers of the frames that are used; masks of the other frames are dropped. None uses all of them.
        source_size: (width, height) of the source, where `size` has another aspect.

    Returns:
        The masks, at `size`; with shares if at least one of them is soft.

    Raises:
        UserError: a missing path, another number of frames or another aspect than the clip, inverted or empty masks,
            or a name that cannot be used (exit 3).
    """
    chosen = range(frame_count) if frames is None else frames
    names: list[str] = []
    paths: list[Path] = []
    specs = [part for spec in specs for part in _list_objects(spec)]
    for spec, fallback in zip(specs, default_layer_names(len(specs)), strict=True):
        name, equals, rest = spec.partition("=")
        has_name = equals and "/" not in name and "\\" not in name and not Path(spec).exists()
        name, path = (name, Path(rest)) if has_name else (fallback, Path(spec))
        check_layer_name(name, where="--masks", fix="--masks car=PATH")
        if name in names:
            raise bad_input(f'two mask layers are called "{name}"', where="--masks", fix="give each layer its own name")
        names.append(name)
        paths.append(path)
    masks = allocate_zeros((len(paths), len(chosen), size[1], size[0]), bool)
    shares = allocate_zeros(masks.shape, np.uint8)
    soft = []  # the frames of each layer that are soft
    for layer, path in enumerate(paths):
        source = _open_source(path)
        indices = _match_frames(source, frame_count, chosen)
        soft.append(_read_layer(source, indices, source_size or size, masks[layer], shares[layer]))
    if not any(soft):
        return LayerMasks(tuple(names), masks)
    for layer, slots in enumerate(soft):
        for slot in set(range(len(chosen))) - slots:
            shares[layer, slot] = 255 * masks[layer, slot]
    return LayerMasks(tuple(names), masks, shares)


def _read_layer(
    source: _Source,
    indices: range,
    expected: tuple[int, int],
    out: Bool[np.ndarray, "time height width"],
    shares: UInt8[np.ndarray, "time height width"],
) -> set[int]:
    """Reads the masks of one layer into `out`, and the shares of soft ones into `shares`.

    Returns:
        The frames with shares; none where the masks have a few gray values only.

    Raises:
        UserError: another aspect than the clip, masks that are empty on every frame, or most likely inverted ones.
    """
    size, path = (out.shape[2], out.shape[1]), source.path
    levels = np.zeros(256, bool)  # the gray values of all masks
    soft: set[int] = set()
    faint: list[int] = []  # frames in which 1 is the most
    for slot, (index, picture) in enumerate(zip(indices, source.read(indices), strict=True)):
        height, width = picture.mask.shape
        fits = [abs(width * high / height - wide) <= max(1.0, ASPECT_SLACK * wide) for wide, high in (size, expected)]
        if not any(fits):
            raise bad_input(
                f"mask {source.labels[index]} is {width}x{height}, the clip is {expected[0]}x{expected[1]}",
                where=str(path),
                why="a mask may be larger or smaller than the frames, but must have their aspect",
                fix=f"save the masks at {expected[0]}x{expected[1]}",
            )
        out[slot] = resize_mask(picture.mask, size)
        if picture.share is not None:
            found = cv2.calcHist([picture.share], [0], None, [256], [0, 256]).ravel() > 0
            levels |= found
            if found[1] and not found[2:].any():
                faint.append(slot)
            if found[2:255].any():
                soft.add(slot)
                shrinks = size[0] * size[1] < width * height
                mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
                shares[slot] = cv2.resize(picture.share, size, interpolation=mode)
    if levels[2:].any():
        out[faint] = False  # 1 is not white where other frames are lighter
    covered = float(out.mean())
    if covered == 0:
        raise bad_input(
            f"the masks in {path} are empty on every frame",
            where=str(path),
            why="the object must be white (128 or more), 1, or a palette index above 0",
            fix="check that these are the right masks, or use --masks auto",
        )
    border = np.concatenate([out[:, 0], out[:, -1], out[:, :, 0], out[:, :, -1]], axis=1)
    if covered > 0.5 and float(border.mean()) > 0.9:
        raise bad_input(
            f"the masks in {path} look inverted: white covers {100 * covered:.0f} % of the clip and all its borders",
            where=str(path),
            why="white is the object and black the rest",
            fix="invert the masks with any image tool, or use --masks auto",
        )
    return soft if np.count_nonzero(levels[2:255]) >= SOFT_LEVELS else set()


def mask_iou(a: Bool[np.ndarray, "*shape"], b: Bool[np.ndarray, "*shape"]) -> float:
    """Computes the intersection over union of two masks of any shape: 0 to 1, and 1 for two empty masks.

    Example:
        >>> mask_iou(np.array([True, True, False]), np.array([True, False, False]))
        0.5
    """
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


# --- sources -------------------------------------------------------------------------------------------------------


def _list_objects(spec: str) -> list[str]:
    """Returns "NAME=PATH" for each object, front first, of a folder that `unwrap mask` wrote; otherwise the spec."""
    name, equals, rest = spec.partition("=")
    is_named = equals and not Path(spec).exists()
    path = Path(rest if is_named else spec)
    record = read_mask_folder(path) if path.is_dir() else None
    if record is None:
        return [spec]
    if not record.objects:
        fix = "unwrap mask VIDEO --object NAME --frame 0 --box x,y,width,height"
        raise bad_input(f"{path} holds no masks", where=str(path), why="no hint points at an object", fix=fix)
    if not is_named:
        return [f"{part}={path / part}" for part in record.objects]
    if len(record.objects) > 1:
        raise bad_input(
            f"--masks {spec}: one name for {len(record.objects)} objects",
            where=str(path),
            why=f"they have names already: {', '.join(record.objects)}",
            fix=f"--masks {path}",
        )
    return [f"{name}={path / record.objects[0]}"]


@dataclass(frozen=True)
class _MaskPicture:
    """A mask as it was read, and the share of each pixel where the file keeps gray values exactly."""

    mask: Bool[np.ndarray, "height width"]
    share: UInt8[np.ndarray, "height width"] | None = None


@dataclass(frozen=True)
class _Source:
    """Masks on disk, read one after the other. `labels` name each of them in messages."""

    path: Path
    labels: tuple[str, ...]
    read: Callable[[range], Iterator[_MaskPicture]]


def _open_source(path: Path) -> _Source:
    """Opens a folder of images, a single image, a .npy array or a video."""
    files = None
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)
    elif not path.exists():
        raise bad_input(
            f"no mask folder or file {path}", where="--masks", fix="--masks auto finds what moves by itself"
        )
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        files = [path]
    if files is not None:
        if not files:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            why = f"looked for files ending in {suffixes}"
            raise bad_input(f"{path} holds no mask images", where=str(path), why=why)
        labels = tuple(file.name for file in files)
        return _Source(path, labels, lambda indices: (_read_image(files[index]) for index in indices))

    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise bad_input(
                f"{path.name} cannot be read: {problem}", where=str(path), fix="write it with numpy.save"
            ) from None
        if values.ndim != 3 or values.dtype.kind not in "buif":
            shape = "x".join(map(str, values.shape))
            why = "expected time x height x width numbers"
            raise bad_input(f"{path.name} has shape {shape}", where=str(path), why=why)
        labels = tuple(f"{path.name}[{index}]" for index in range(len(values)))
        return _Source(path, labels, lambda indices: (_threshold_values(np.asarray(values[i])) for i in indices))

    from neural_fields.data.video import io

    metadata = io.probe_video(path)
    labels = tuple(f"frame {index} of {path.name}" for index in range(metadata.frame_count))

    # Lossy video: white is not quite white, so only the threshold counts.
    def read(indices: range) -> Iterator[_MaskPicture]:
        return (_MaskPicture(frame.max(-1) >= 128) for frame in io.source_frames(metadata, indices))

    return _Source(path, labels, read)


def _read_image(path: Path) -> _MaskPicture:
    """Reads one mask image: palette index above 0, or the lighter half of the range, or 1 where 1 is the most."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == "P" and image.getpalette() is not None and not any((image.getpalette() or [])[:3]):
                return _MaskPicture(np.asarray(image) > 0)
            if image.mode in ("RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "PA"):
                rgba = np.asarray(image.convert("RGBA"), np.float32)
                values = (rgba[..., :3].max(-1) * (rgba[..., 3] / 255)).astype(np.uint8)
            else:
                values = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as problem:
        raise bad_input(f"{path.name} cannot be read: {problem}", where=str(path), fix="save this mask again") from None
    return _threshold_values(values, exact=image.format not in ("JPEG", "WEBP"))


def _threshold_values(values: np.ndarray, exact: bool = True) -> _MaskPicture:
    """Finds the lighter half of the range, and the shares of white; where 1 is the most and exact, 1 is white."""
    if values.dtype == bool:
        return _MaskPicture(values)
    most = float(values.max(initial=0))
    white, half = (1, 0.5) if most <= 1 and exact else (255, 128) if most <= 255 else (65535, 32768)
    if not exact:
        return _MaskPicture(values >= half)
    if values.dtype == np.uint8:
        return _MaskPicture(values >= half, np.ascontiguousarray(values))
    step = 255 / white if white > 255 or values.dtype.kind == "f" else 1  # integers up to 1 may be a faint frame
    return _MaskPicture(values >= half, np.rint(np.nan_to_num(values).clip(0, white) * step).astype(np.uint8))


# --- checks --------------------------------------------------------------------------------------------------------


def _match_frames(source: _Source, frame_count: int, chosen: range) -> range:
    """Chooses the masks: one for each chosen frame, cut out of the whole clip's masks if that is what there is."""
    count = len(source.labels)
    if count == frame_count and chosen[-1] < count:
        return chosen
    if count == len(chosen):
        return range(count)
    wanted = len(chosen) if count < len(chosen) else frame_count

    # Name the frames without a mask, by the numbers in the file names where there are any, else the last ones.
    texts = [re.findall(r"\d+", Path(label).stem) for label in source.labels]
    numbers = [int(found[-1]) for found in texts if found]
    if len(numbers) == count == len(set(numbers)) and numbers:
        first = 1 if min(numbers) == 1 and 0 not in numbers and max(numbers) <= wanted else min(numbers)
        first = 0 if max(numbers) < wanted and min(numbers) != 1 else first
        missing = sorted(set(range(first, first + wanted)) - set(numbers))
    else:
        missing = list(range(count, wanted))
    detail = ""
    if missing:
        detail = f"; without a mask: frames {', '.join(map(str, missing[:8]))}"
        detail += f" and {len(missing) - 8} more" if len(missing) > 8 else ""

    more = f", or {len(chosen)} for the frames in use" if len(chosen) != frame_count else ""
    raise bad_input(
        f"{source.path} holds {count} mask{'s' * (count != 1)}, the clip has {frame_count} frames{detail}",
        where=str(source.path),
        why=f"one mask for each frame is needed: {frame_count}{more}",
        fix="add the missing masks, use --frames to train on fewer frames, or --masks auto"
        if count < wanted
        else "remove the masks that belong to no frame, or use --masks auto",
    )

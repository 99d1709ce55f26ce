"""Masks on disk: a folder of pictures, a picture of several pages, an array, or a video."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.prefetch import map_in_threads
from neural_fields.data.flow.flow_files import natural_key
from neural_fields.data.masks.mask_meaning import DEFAULTS as MEANING
from neural_fields.data.masks.mask_meaning import decide_meaning
from neural_fields.data.masks.mask_numbers import MatchedMasks, read_numbers
from neural_fields.data.masks.mask_pictures import (
    DAMAGED,
    PICTURE_SUFFIXES,
    PILLOW_SUFFIXES,
    MaskPicture,
    convert_image,
    load_array,
    make_color_picture,
    read_mask_picture,
    widen_booleans,
)
from neural_fields.data.masks.mask_statistics import MaskStatistics
from neural_fields.data.masks.mask_values import MaskMeaning
from neural_fields.data.video import io
from neural_fields.data.video.decode import convert_parser_errors, open_container, read_display_matrix, rotate_upright
from neural_fields.data.video.metadata import VideoMetadata

MAX_OTHERS = 32  # masks of frames that are not used, and are read to see what white is
# Codecs that keep every value. The sequences of pictures that films may hold are among them.
LOSSLESS_CODECS = ("ffv1", "png", "apng", "gif", "qtrle", "huffyuv", "ffvhuff", "utvideo", "rawvideo")
FILM_SUFFIXES = (".mov", ".mp4", ".mkv", ".webm", ".avi")
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave out the alpha of WebM


@dataclass(frozen=True)
class MaskFiles:
    """Holds the masks of one path, which may be read any number of times.

    Attributes:
        path: the folder or the file.
        count: number of pictures.
        numbers: the number in the name of each picture; None for pictures inside of one file.
        planes: objects that each picture holds beside each other, in a stack of arrays.
        read: takes indices of pictures, rising, and yields the planes of each.
    """

    path: Path
    count: int
    numbers: tuple[int, ...] | None
    planes: int
    read: Callable[[Sequence[int]], Iterator[tuple[MaskPicture, ...]]]

    def find_meaning(self, matched: MatchedMasks) -> MaskMeaning:
        """Decides what the values mean, from the pictures in use and some of the others.

        Args:
            matched: the pictures in use, and all that belong to the clip.

        Raises:
            UserError: values that are no masks, or a picture that cannot be read (exit 3).
        """
        others = sorted(set(matched.own) - set(matched.used))
        sample = {*matched.used, *others[:: max(1, len(others) // MAX_OTHERS)]}
        statistics = MaskStatistics(self.path)
        for planes in self.read(sorted(sample)):
            for picture in planes:
                statistics.add(picture)
        return decide_meaning(statistics)


def open_mask_files(path: Path, counts: Collection[int]) -> MaskFiles:
    """Opens masks and says how many there are, before any is read.

    Args:
        path: a folder or a file, which is there.
        counts: the numbers of pictures that would fit: of the frames of the clip, and of those in use.

    Raises:
        UserError: a folder without masks, names without numbers, a kind of file that is not read, or an
            array of another shape (exit 3).
    """
    if path.is_dir():
        files = _list_pictures(path)
        if len(files) > 1 or _count_pages(files[0]) == 1:
            numbers = read_numbers(files) if len(files) > 1 or re.search(r"\d", files[0].stem) else None
            return MaskFiles(
                path,
                len(files),
                numbers,
                1,
                lambda indices: map_in_threads(lambda index: (read_mask_picture(files[index]),), indices),
            )
        path = files[0]
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _open_array(path, load_array(path), counts)
    if suffix == ".exr" or (suffix in PILLOW_SUFFIXES and _count_pages(path) == 1):
        return MaskFiles(path, 1, None, 1, lambda indices: ((read_mask_picture(path),) for _ in indices))
    if suffix in PILLOW_SUFFIXES:
        pages = _list_pages(path, counts)
        return MaskFiles(path, len(pages), None, 1, lambda indices: _read_pages(path, [pages[i] for i in indices]))
    try:
        metadata = io.probe_video(path)
    except UserError as problem:
        if suffix in FILM_SUFFIXES:
            raise
        raise bad_input(
            f"{path.name} holds no masks that can be read",
            where=str(path),
            why="masks are a folder of pictures, a TIFF, GIF, PNG or WebP with several, an array, or a video",
            fix="save the masks as PNG files in a folder: 00000.png, 00001.png, ...",
        ) from problem
    return MaskFiles(path, metadata.frame_count, None, 1, lambda indices: _read_video(metadata, indices))


def _list_pictures(folder: Path) -> list[Path]:
    """Lists the pictures of a folder by the numbers in their names; hidden files and folders are none."""
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as problem:
        raise bad_input(f"the folder {folder} cannot be read", where=str(folder), why=str(problem)) from None
    files = [entry for entry in visible if entry.is_file() and entry.suffix.lower() in PICTURE_SUFFIXES]
    if files:
        return sorted(files, key=natural_key)
    why, fix = f"looked for files ending in {', '.join(PICTURE_SUFFIXES)}", ""
    inside = []  # folders with masks: those of several objects, such as `unwrap export matte` writes
    for entry in sorted(visible, key=natural_key):
        within = entry.iterdir() if entry.is_dir() else ()
        is_film = entry.is_file() and entry.suffix.lower() in FILM_SUFFIXES
        if is_film or any(file.suffix.lower() in PICTURE_SUFFIXES for file in within):
            inside.append(entry)
    if inside:
        why = "it holds " + ", ".join(entry.name for entry in inside[:8]) + (" ..." if len(inside) > 8 else "")
        if len(inside) > 2 and all(entry.name.isdigit() for entry in inside):
            why += ": a folder for each frame?"
            raise bad_input(
                f"{folder} holds no mask images",
                where=str(folder),
                why=why,
                fix="put all masks of an object into one folder: 00000.png, 00001.png, ...",
            )
        front = [entry for entry in inside if entry.stem != "background"]
        fix = "the object in front first: " + " ".join(f"--masks {entry.stem}={entry}" for entry in front[:8])
    elif visible:
        kind, count = Counter(entry.suffix.lower() for entry in visible if entry.is_file()).most_common(1)[0]
        why = f"it holds {count} {kind} file{'s' * (count != 1)}, and {why}"
    raise bad_input(f"{folder} holds no mask images", where=str(folder), why=why, fix=fix)


def _count_pages(path: Path) -> int:
    """Returns how many pictures a file holds: pages of a TIFF, frames of an animation."""
    if path.suffix.lower() not in PILLOW_SUFFIXES:
        return 1
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1))
    except DAMAGED as problem:
        raise bad_input(f"{path.name} cannot be read: {problem}", where=str(path), fix="save this mask again") from None


def _list_pages(path: Path, counts: Collection[int]) -> list[int]:
    """Lists the page of each frame: animations hold equal frames once, for longer."""
    pages = list(range(_count_pages(path)))
    if len(pages) in counts:
        return pages
    with Image.open(path) as image:
        lengths = []
        for page in pages:
            image.seek(page)
            lengths.append(float(image.info.get("duration", 0)))
    shortest = min(lengths)
    frames = [page for page in pages for _ in range(round(lengths[page] / shortest) if shortest else 1)]
    return frames if len(frames) in counts else pages


def _read_pages(path: Path, indices: Sequence[int]) -> Iterator[tuple[MaskPicture]]:
    """Reads pages of a picture file."""
    try:
        with Image.open(path) as image:
            for index in indices:
                image.seek(index)
                # A frame of a GIF may be a palette's, and the next one a color's.
                page = image if image.format != "GIF" else image.convert("RGBA")
                page.format = image.format
                yield (convert_image(page, f"{index} of {path.name}"),)
    except DAMAGED as problem:
        raise bad_input(f"{path.name} cannot be read: {problem}", where=str(path), fix="save it again") from None


def _open_array(path: Path, values: np.ndarray, counts: Collection[int]) -> MaskFiles:
    """Opens an array [time, height, width], with an axis of channels, or of objects before or after time."""
    shape = values.shape
    is_color = values.ndim == 4 and shape[-1] in (3, 4) and values.dtype == np.uint8 and shape[0] in counts
    if values.ndim == 2:
        values = values[None]
    elif values.ndim in (4, 5) and shape[-1] == 1:  # channels last
        values = values[..., 0]
    if values.ndim == 5 and 1 in values.shape[:3]:  # objects, and channels
        values = values.squeeze(axis=2 if values.shape[2] == 1 else values.shape.index(1))
    if values.ndim == 4 and not is_color:
        first, second = (values.shape[axis] in counts for axis in (0, 1))
        if 1 in values.shape[:2]:
            values = values.squeeze(axis=1 if values.shape[1] == 1 else 0)
        elif first == second:
            why = "either of the first two numbers could be that of the objects" if first else "no axis is that of time"
            words = "x".join(map(str, shape))
            fix = "save the masks of each object as an array: time x height x width"
            raise bad_input(f"{path.name} has shape {words}", where=str(path), why=why, fix=fix)
        elif first:
            values = values.swapaxes(0, 1)  # objects x time x height x width
    if values.ndim not in (3, 4):
        words, why = "x".join(map(str, shape)), "expected time x height x width numbers"
        raise bad_input(f"{path.name} has shape {words}", where=str(path), why=why)
    if values.ndim == 3 and shape[-1] in counts and shape[0] not in counts:
        words, fix = "x".join(map(str, shape)), "numpy.moveaxis(masks, -1, 0)"
        why = "time comes last; expected time x height x width"
        raise bad_input(f"{path.name} has shape {words}", where=str(path), why=why, fix=fix)
    stack = values if values.ndim == 4 and not is_color else values[None]
    if len(stack) > MEANING.max_objects:
        words, why = "x".join(map(str, shape)), f"that would be {len(stack)} objects; expected time x height x width"
        raise bad_input(f"{path.name} has shape {words}", where=str(path), why=why)

    def read(indices: Sequence[int]) -> Iterator[tuple[MaskPicture, ...]]:
        for index in indices:
            label = f"{path.name}[{index}]"
            if is_color:
                rgba = np.asarray(values[index])
                alpha = np.ascontiguousarray(rgba[..., 3]) if rgba.shape[-1] == 4 else None
                yield (make_color_picture(label, rgba[..., :3], alpha),)
            else:
                yield tuple(MaskPicture(label, widen_booleans(np.ascontiguousarray(plane[index]))) for plane in stack)

    return MaskFiles(path, stack.shape[1], None, len(stack), read)


def _read_video(metadata: VideoMetadata, indices: Sequence[int]) -> Iterator[tuple[MaskPicture]]:
    """Reads frames of a video, with their alpha where the file has any."""
    wanted, name = set(indices), Path(metadata.path).name
    is_exact = metadata.codec in LOSSLESS_CODECS
    if metadata.codec in ALPHA_DECODERS:  # in a second stream of its own
        with open_container(metadata.path) as container:
            has_alpha = container.streams.video[0].metadata.get("alpha_mode") == "1"
    else:
        has_alpha = any(component.is_alpha for component in av.VideoFormat(metadata.pixel_format).components)
    if has_alpha:
        frames: Iterator[Any] = _decode_alpha(metadata)
    else:
        start = metadata.first_number
        frames = io.source_frames(metadata, range(start, start + max(wanted) + 1))
    for index, frame in enumerate(frames):
        if index in wanted:
            alpha = np.ascontiguousarray(frame[..., 3]) if frame.shape[-1] == 4 else None
            yield (make_color_picture(f"frame {index} of {name}", frame[..., :3], alpha, is_exact),)
        if index >= max(wanted):
            return


def _decode_alpha(metadata: VideoMetadata) -> Iterator[np.ndarray]:
    """Decodes all frames of a video with alpha, upright uint8 [height, width, 4]."""
    with open_container(metadata.path) as container, convert_parser_errors(metadata.path, "decoding"):
        stream = container.streams.video[0]
        if metadata.codec in ALPHA_DECODERS:
            decoder = av.CodecContext.create(ALPHA_DECODERS[metadata.codec], "r")
            frames = (frame for packet in container.demux(stream) for frame in decoder.decode(packet))  # type: ignore[attr-defined]
        else:
            frames = container.decode(stream)
        for frame in frames:
            yield rotate_upright(frame.to_ndarray(format="rgba"), read_display_matrix(frame, metadata.path))

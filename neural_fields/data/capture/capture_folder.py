"""Scene folders: pictures with cameras, and for a person the masks, the bones and the states of the held object.

transforms.json   cameras (see `camera_files`), or a COLMAP model in sparse/0
images/           pictures, as transforms.json names them
masks/            brighter than half: the person with carried objects; named by "mask_path", or like the pictures
bones.json        transforms of the bones at every moment (see `bones_file`)
states.json       moments at which the held object changes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields.core.errors import bad_input
from neural_fields.core.files import disk_errors, flush_to_disk, make_folder, temporary_path
from neural_fields.core.memmap import allocate_zeros
from neural_fields.data.capture.bones_json import read_bones, read_states, write_bones, write_states
from neural_fields.data.capture.capture import Capture
from neural_fields.data.capture.colmap import read_colmap
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.data.capture.transforms_json import PosedImage, read_transforms, write_transforms
from neural_fields.data.flow.compute import resize_mask
from neural_fields.data.masks.layer_masks import ASPECT_SLACK
from neural_fields.data.video.image_sequence import read_image_frame, write_images
from neural_fields.data.video.metadata import check_size, parse_size
from neural_fields.data.video.picture_suffixes import PICTURE_SUFFIXES

TRANSFORMS_FILE, BONES_FILE, STATES_FILE = "transforms.json", "bones.json", "states.json"


def read_capture(folder: Path | str, size: tuple[int, int] | str | None = None) -> Capture:
    """Reads a scene folder.

    Args:
        folder: the scene folder.
        size: (width, height) to which pictures, masks and cameras are resized, or a text such as "240p"; by default the
            size of the pictures. Reduced pictures are averaged.

    Raises:
        UserError: no cameras; a picture that is missing, damaged or not of its camera's size; pictures of several
            sizes without `size`; bones that are not those of the moments; masks for some pictures only, or empty in
            all; bones without masks; switches that are not among the moments; what the readers of the files raise.
    """
    folder = Path(folder)

    # The cameras, and whether each has its picture.
    if not folder.is_dir():
        raise bad_input(f"there is no folder {folder}", fix="name the folder of a scene")
    has_transforms = (folder / TRANSFORMS_FILE).exists()
    if not has_transforms and not (folder / "sparse").is_dir() and not (folder / "colmap").is_dir():
        raise bad_input(
            "the scene has no cameras",
            where=str(folder),
            why=f"neither {TRANSFORMS_FILE} nor a COLMAP model in sparse/0 is in it",
            fix="find the cameras with COLMAP, or export them with nerfstudio's ns-process-data",
        )
    pictures = read_transforms(folder / TRANSFORMS_FILE) if has_transforms else read_colmap(folder)
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise bad_input(
            f"{len(missing)} of {len(pictures)} pictures that have cameras are missing",
            where=str(missing[0]),
            why=f"the cameras are in {folder / (TRANSFORMS_FILE if has_transforms else 'sparse')}",
            fix="put the pictures back, or take their cameras out",
        )

    motion = read_bones(folder / BONES_FILE) if (folder / BONES_FILE).exists() else None
    times = _assign_times(folder, pictures, motion)
    moments = motion.frame_count if motion is not None else max(times) + 1
    switches = read_states(folder / STATES_FILE, moments) if (folder / STATES_FILE).exists() else ()
    mask_paths = _find_masks(folder, pictures)
    if motion is not None and not mask_paths:
        raise bad_input(
            f"there is {BONES_FILE} but no mask",
            where=str(folder),
            why="without masks nothing says which pixels are the person",
            fix=f"put a mask for each picture into {folder / 'masks'}, or take {BONES_FILE} out for a still scene",
        )

    # Pictures without a camera; refused if the order of all pictures gives the moments.
    known = {path for picture in pictures for path in (picture.path, picture.mask_path)}
    unposed: list[str] = []
    for place in sorted({picture.path.parent for picture in pictures} - {folder}):
        for file in sorted(place.iterdir()):
            if file not in known and file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith("."):
                unposed.append(file.name)
    if unposed and motion is not None and pictures[0].time is None:
        raise bad_input(
            f"{len(unposed)} pictures have no camera: {', '.join(unposed[:3])}{' ...' if len(unposed) > 3 else ''}",
            where=str(folder),
            why='without "time" in transforms.json every frame of the bones needs its picture',
            fix='give the frames of transforms.json a "time", or take these pictures out',
        )
    notes: list[str] = []
    if unposed:
        notes.append(f"{len(unposed)} pictures have no camera and are left out, {unposed[0]} first")

    size = _choose_size(folder, pictures, size)
    frames = _read_frames(pictures, size, notes)
    masks = _read_masks(pictures, mask_paths, size, notes) if mask_paths else None
    cameras = tuple(picture.camera.resize(*size) for picture in pictures)
    return Capture(cameras, frames, times, masks, motion, switches, tuple(notes))


def _assign_times(folder: Path, pictures: Sequence[PosedImage], motion: SkeletonMotion | None) -> tuple[int, ...]:
    """Returns the moment that each picture shows: the one in its file, or else its place in the list."""
    if pictures[0].time is not None:
        times = tuple(picture.time or 0 for picture in pictures)
        last = max(times)
        if motion is not None and last >= motion.frame_count:
            raise bad_input(
                f"{pictures[times.index(last)].path.name} shows moment {last}, which {BONES_FILE} does not have",
                where=str(folder / BONES_FILE),
                why=f"it has {motion.frame_count} frames, 0 to {motion.frame_count - 1}",
                fix='write a frame for every "time" in transforms.json',
            )
        return times
    if motion is not None and motion.frame_count != len(pictures):
        raise bad_input(
            f"{BONES_FILE} has {motion.frame_count} frames for {len(pictures)} pictures",
            where=str(folder / BONES_FILE),
            why='without "time" in transforms.json the first picture shows the first frame, and so on',
            fix='give the frames of transforms.json a "time", or write bones for every picture',
        )
    return tuple(range(len(pictures)))


def _find_masks(folder: Path, pictures: Sequence[PosedImage]) -> list[Path]:
    """Finds the mask of each picture; returns an empty list if none has one."""
    mask_folder = folder / "masks"
    masks: dict[Path, Path] = {}  # by names without suffix
    for file in sorted(mask_folder.rglob("*")):
        if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file():
            masks[file.relative_to(mask_folder).with_suffix("")] = file
    names: list[Path] = []
    found: list[Path | None] = []
    for picture in pictures:
        name = Path(picture.path.name)  # a COLMAP model's pictures may be outside of the folder
        if picture.path.is_relative_to(folder):  # the name below images/, or whatever that folder is called
            inner = picture.path.relative_to(folder)
            name = Path(*inner.parts[1:]) if len(inner.parts) > 1 else inner
        names.append(name)
        found.append(picture.mask_path or masks.get(name.with_suffix("")) or masks.get(name))  # a.png, or a.jpg.png
    if masks and not any(found):
        why = f"looked for {names[0].with_suffix('.png')} first; there is {next(iter(masks.values())).name}"
        raise bad_input("no mask is called like a picture", where=str(mask_folder), why=why, fix="rename the masks")
    there = [path for path in found if path is not None and path.is_file()]
    if any(found) and len(there) < len(pictures):
        first = next(i for i, path in enumerate(found) if path is None or not path.is_file())
        raise bad_input(
            f"{len(pictures) - len(there)} of {len(pictures)} pictures have no mask: {pictures[first].path.name} first",
            where=str(found[first] or mask_folder),
            why="a picture without a mask does not say whether nobody is in it",
            fix="add the masks; where nobody is seen, black ones",
        )
    return there


def _choose_size(folder: Path, pictures: Sequence[PosedImage], size: tuple[int, int] | str | None) -> tuple[int, int]:
    """Returns the size of the capture: the given one, or that of all pictures."""
    sizes = Counter((picture.camera.width, picture.camera.height) for picture in pictures)
    if isinstance(size, str) and size != "source":
        return parse_size(size, *sizes.most_common(1)[0][0])
    if isinstance(size, tuple):
        check_size(*size, where=str(folder))
        return size
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(4))
        why = "all views of a scene have one size"
        raise bad_input("the pictures differ in size", where=str(folder), why=f"{listed}; {why}", fix="give a --size")
    return next(iter(sizes))


def _read_frames(
    pictures: Sequence[PosedImage], size: tuple[int, int], notes: list[str]
) -> UInt8[np.ndarray, "views height width 3"]:
    """Reads the pictures at a size. What reading them changed is added to `notes`."""
    frames = allocate_zeros((len(pictures), size[1], size[0], 3), np.uint8)
    changes: Counter[str] = Counter()
    for index, picture in enumerate(pictures):
        frame, lost = read_image_frame(picture.path)
        width, height, camera = frame.shape[1], frame.shape[0], picture.camera
        if (width, height) != (camera.width, camera.height):
            rotated = (height, width) == (camera.width, camera.height)
            raise bad_input(
                f"{picture.path.name} is {width}x{height}, its camera {camera.width}x{camera.height}",
                where=str(picture.path),
                why="the EXIF tag of the picture says portrait format, and its camera landscape"
                if rotated
                else "a camera is for one size",
                fix="find the cameras again on upright pictures"
                if rotated
                else "scale the pictures, or w, h and the lens",
            )
        if (width, height) != size:
            shrinks = size[0] * size[1] < height * width
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        frames[index] = frame
        changes.update(lost)
    notes += [f"{note} ({count} of {len(pictures)} pictures)" for note, count in changes.items()]
    return frames


def _read_masks(
    pictures: Sequence[PosedImage], paths: Sequence[Path], size: tuple[int, int], notes: list[str]
) -> Bool[np.ndarray, "views height width"]:
    """Reads the masks at a size. Those without a pixel are listed in `notes`."""
    half = 128  # of 255: a mask's brightness from which a pixel is the person
    masks = allocate_zeros((len(paths), size[1], size[0]), bool)
    for index, (picture, path) in enumerate(zip(pictures, paths, strict=True)):
        image, _ = read_image_frame(path)
        # A mask may be larger or smaller than its picture, but must have the same aspect.
        width, height = image.shape[1], image.shape[0]
        wide, high = picture.camera.width, picture.camera.height
        if abs(width * high - height * wide) > max(height, high, ASPECT_SLACK * width * high):
            raise bad_input(
                f"the mask {path.name} is {width}x{height}, its picture {wide}x{high}",
                where=str(path),
                why="a mask has the aspect of its picture",
                fix=f"save it at {wide}x{high}",
            )
        masks[index] = resize_mask(image.max(axis=2) >= half, size)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty) == len(masks):
        raise bad_input(
            "the masks are empty in all pictures",
            where=str(paths[0]),
            why=f"the person is where a mask is brighter than half ({half} of 255)",
            fix="write the masks as black and white",
        )
    if len(empty):
        names = ", ".join(pictures[index].path.name for index in empty[:3])
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        notes.append(f"nobody is in {len(empty)} of {len(masks)} masks: {names}{more}")
    return masks


# --- writing --------------------------------------------------------------------------------------------------------


def write_capture(folder: Path | str, capture: Capture) -> None:
    """Writes a scene folder, all of it or nothing; `read_capture` gives the same capture back, except for its notes.

    Raises:
        UserError: the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    check_new_folder(folder)
    with disk_errors(folder):
        make_folder(folder.parent)
        with temporary_path(folder.parent) as part:
            part.mkdir()
            write_images(part / "images", iter(capture.frames))
            if capture.masks is not None:
                grays = (np.where(mask, 255, 0).astype(np.uint8)[..., None] for mask in capture.masks)
                write_images(part / "masks", (np.repeat(gray, 3, axis=2) for gray in grays))
            pictures = []
            for index, (camera, time) in enumerate(zip(capture.cameras, capture.times, strict=True)):
                name = f"{index:05d}.png"
                mask_path = None if capture.masks is None else part / "masks" / name
                pictures.append(PosedImage(part / "images" / name, camera, mask_path, time))
            write_transforms(part / TRANSFORMS_FILE, pictures)
            if capture.motion is not None:
                write_bones(part / BONES_FILE, capture.motion)
            if capture.switches:
                write_states(part / STATES_FILE, capture.switches)
            flush_to_disk(part)
            part.replace(folder)
            flush_to_disk(folder.parent)


def check_new_folder(folder: Path) -> None:
    """Refuses a folder that a scene cannot be written to.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        why = "a scene is written into a new folder, so that no file of another one stays in it"
        raise bad_input(f"{folder} exists already", where=str(folder), why=why, fix="name a new folder")

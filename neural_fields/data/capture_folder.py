"""Scene folders: pictures with cameras, and if there is a person their masks, bones and the states of what they carry.

transforms.json   cameras (see `camera_files`), or a COLMAP model in sparse/0
images/           pictures, as transforms.json names them
masks/            brighter than half: the person and what they carry; named by "mask_path", or like the pictures
bones.json        where the bones are at every moment (see `bones_file`)
states.json       when the carried object changes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields.data.bones_file import read_bones, read_states, write_bones, write_states
from neural_fields.data.camera_files import PosedPicture, read_transforms, write_transforms
from neural_fields.data.capture import Capture
from neural_fields.data.colmap import read_colmap
from neural_fields.data.facts import check_size, parse_size
from neural_fields.data.flow import resize_mask
from neural_fields.data.images import SUFFIXES, read_frame, write_images
from neural_fields.data.masks import ASPECT_SLACK
from neural_fields.data.memory import zeros
from neural_fields.data.skeleton import Motion
from neural_fields.errors import bad_input
from neural_fields.files import disk_errors, make_folder, sync, temporary

TRANSFORMS, BONES, STATES = "transforms.json", "bones.json", "states.json"
_HALF = 128  # of 255: a mask's brightness from which a pixel is the person


def read_capture(folder: Path | str, size: tuple[int, int] | str | None = None) -> Capture:
    """The scene in a folder.

    Args:
        size: (width, height) that pictures, masks and cameras are brought to, smaller ones by averaging, or a text
            as of `--size`, such as 240p; by default that of the pictures.

    Raises:
        UserError: no cameras; a picture that is missing, damaged or not of its camera's size; pictures of several
            sizes without `size`; bones that are not those of the moments; masks for some pictures only, or empty in
            all; bones without masks; switches that are not among the moments; what the readers of the files raise.
    """
    folder = Path(folder)
    pictures = _cameras(folder)
    motion = read_bones(folder / BONES) if (folder / BONES).exists() else None
    times = _times(folder, pictures, motion)
    moments = motion.frame_count if motion is not None else max(times) + 1
    switches = read_states(folder / STATES, moments) if (folder / STATES).exists() else ()
    masked = _mask_paths(folder, pictures)
    if motion is not None and not masked:
        raise bad_input(
            f"there is {BONES} but no mask",
            where=str(folder),
            why="without masks nothing says which pixels are the person",
            fix=f"put a mask for each picture into {folder / 'masks'}, or take {BONES} out for a still scene",
        )
    notes = _without_camera(folder, pictures, motion is not None and pictures[0].time is None)
    size = _size(folder, pictures, size)
    frames = _frames(pictures, size, notes)
    masks = _masks(folder, pictures, masked, size, notes) if masked else None
    cameras = tuple(picture.camera.resized(*size) for picture in pictures)
    return Capture(cameras, frames, times, masks, motion, switches, tuple(notes))


def _cameras(folder: Path) -> list[PosedPicture]:
    """Pictures and cameras, each picture there."""
    if not folder.is_dir():
        raise bad_input(f"there is no folder {folder}", fix="name the folder of a scene")
    listed = (folder / TRANSFORMS).exists()
    if not listed and not any((folder / below).is_dir() for below in ("sparse", "colmap")):
        raise bad_input(
            "the scene has no cameras",
            where=str(folder),
            why=f"neither {TRANSFORMS} nor a COLMAP model in sparse/0 is in it",
            fix="find the cameras with COLMAP, or export them with nerfstudio's ns-process-data",
        )
    pictures = read_transforms(folder / TRANSFORMS) if listed else read_colmap(folder)
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise bad_input(
            f"{len(missing)} of {len(pictures)} pictures that have cameras are missing",
            where=str(missing[0]),
            why=f"the cameras are in {folder / (TRANSFORMS if listed else 'sparse')}",
            fix="put the pictures back, or take their cameras out",
        )
    return pictures


def _times(folder: Path, pictures: Sequence[PosedPicture], motion: Motion | None) -> tuple[int, ...]:
    """The moment that each picture shows: as its file says, else its place in the list."""
    if pictures[0].time is not None:
        times = tuple(picture.time or 0 for picture in pictures)
        last = max(times)
        if motion is not None and last >= motion.frame_count:
            raise bad_input(
                f"{pictures[times.index(last)].path.name} shows moment {last}, which {BONES} does not have",
                where=str(folder / BONES),
                why=f"it has {motion.frame_count} frames, 0 to {motion.frame_count - 1}",
                fix='write a frame for every "time" in transforms.json',
            )
        return times
    if motion is not None and motion.frame_count != len(pictures):
        raise bad_input(
            f"{BONES} has {motion.frame_count} frames for {len(pictures)} pictures",
            where=str(folder / BONES),
            why='without "time" in transforms.json the first picture shows the first frame, and so on',
            fix='give the frames of transforms.json a "time", or write bones for every picture',
        )
    return tuple(range(len(pictures)))


def _mask_paths(folder: Path, pictures: Sequence[PosedPicture]) -> list[Path]:
    """The mask of each picture; an empty list if none has one."""
    place = folder / "masks"
    beside = {file.relative_to(place).with_suffix(""): file for file in _pictures_below(place)}
    inner = [_below_images(folder, picture.path) for picture in pictures]
    named = [beside.get(name.with_suffix("")) or beside.get(name) for name in inner]  # a.png or, as COLMAP, a.jpg.png
    found = [picture.mask_path or path for picture, path in zip(pictures, named, strict=True)]
    if beside and not any(found):
        why = f"looked for {inner[0].with_suffix('.png')} first; there is {next(iter(beside.values())).name}"
        raise bad_input("no mask is called like a picture", where=str(place), why=why, fix="rename the masks")
    there = [path for path in found if path is not None and path.is_file()]
    if any(found) and len(there) < len(pictures):
        lone = next(i for i, path in enumerate(found) if path is None or not path.is_file())
        raise bad_input(
            f"{len(pictures) - len(there)} of {len(pictures)} pictures have no mask: {pictures[lone].path.name} first",
            where=str(found[lone] or place),
            why="a picture without a mask does not say whether nobody is in it",
            fix="add the masks; where nobody is seen, black ones",
        )
    return there


def _pictures_below(place: Path) -> list[Path]:
    return [file for file in sorted(place.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]


def _below_images(folder: Path, picture: Path) -> Path:
    """A picture's name below the folder images/ (or whatever it is called) of the scene."""
    try:
        inner = picture.relative_to(folder)
    except ValueError:  # a COLMAP model's pictures may lie elsewhere
        return Path(picture.name)
    return Path(*inner.parts[1:]) if len(inner.parts) > 1 else inner


def _without_camera(folder: Path, pictures: Sequence[PosedPicture], ordered: bool) -> list[str]:
    """What to say of pictures beside those with cameras; `ordered` if the order of all of them tells the moments."""
    listed = {path for picture in pictures for path in (picture.path, picture.mask_path)}
    places = {picture.path.parent for picture in pictures} - {folder}
    others = [file for place in sorted(places) for file in sorted(place.iterdir()) if file not in listed]
    lone = [file.name for file in others if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if lone and ordered:
        raise bad_input(
            f"{len(lone)} pictures have no camera: {', '.join(lone[:3])}{' ...' if len(lone) > 3 else ''}",
            where=str(folder),
            why='without "time" in transforms.json every frame of the bones needs its picture',
            fix='give the frames of transforms.json a "time", or take these pictures out',
        )
    return [f"{len(lone)} pictures have no camera and are left out, {lone[0]} first"] if lone else []


def _size(folder: Path, pictures: Sequence[PosedPicture], size: tuple[int, int] | str | None) -> tuple[int, int]:
    """The size of the capture."""
    sizes = Counter((picture.camera.width, picture.camera.height) for picture in pictures)
    if isinstance(size, str) and size != "source":
        return parse_size(size, *sizes.most_common(1)[0][0])
    if isinstance(size, tuple):
        check_size(*size, where=str(folder))
        return size
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(4))
        why = "all views of a fit have one size"
        raise bad_input("the pictures differ in size", where=str(folder), why=f"{listed}; {why}", fix="give a --size")
    return next(iter(sizes))


def _frames(
    pictures: Sequence[PosedPicture], size: tuple[int, int], notes: list[str]
) -> UInt8[np.ndarray, "views height width 3"]:
    """The pictures at a size. What reading them changed is said in `notes`."""
    frames = zeros((len(pictures), size[1], size[0], 3), np.uint8)
    said: Counter[str] = Counter()
    for index, picture in enumerate(pictures):
        frame, lost = read_frame(picture.path)
        _check_fits(picture, frame.shape[1], frame.shape[0])
        frames[index] = _resized(frame, size)
        said.update(lost)
    notes += [f"{note} ({count} of {len(pictures)} pictures)" for note, count in said.items()]
    return frames


def _check_fits(picture: PosedPicture, width: int, height: int) -> None:
    camera = picture.camera
    if (width, height) == (camera.width, camera.height):
        return
    turned = (height, width) == (camera.width, camera.height)
    raise bad_input(
        f"{picture.path.name} is {width}x{height}, its camera {camera.width}x{camera.height}",
        where=str(picture.path),
        why="the picture stands upright by its EXIF tag, its camera lies" if turned else "a camera is for one size",
        fix="find the cameras again on upright pictures" if turned else "scale the pictures, or w, h and the lens",
    )


def _check_aspect(mask: Path, size: tuple[int, int], camera: tuple[int, int]) -> None:
    """A mask may be larger or smaller than its picture, but shows as much of the scene."""
    if abs(size[0] * camera[1] - size[1] * camera[0]) > max(size[1], camera[1], ASPECT_SLACK * size[0] * camera[1]):
        raise bad_input(
            f"the mask {mask.name} is {size[0]}x{size[1]}, its picture {camera[0]}x{camera[1]}",
            where=str(mask),
            why="a mask has the aspect of its picture",
            fix=f"save it at {camera[0]}x{camera[1]}",
        )


def _resized(frame: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "rows columns 3"]:
    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    smaller = size[0] * size[1] < frame.shape[0] * frame.shape[1]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _masks(
    folder: Path, pictures: Sequence[PosedPicture], paths: Sequence[Path], size: tuple[int, int], notes: list[str]
) -> Bool[np.ndarray, "views height width"]:
    """The masks at a size. Those without a pixel are said in `notes`."""
    masks = zeros((len(paths), size[1], size[0]), bool)
    for index, (picture, path) in enumerate(zip(pictures, paths, strict=True)):
        shown, _ = read_frame(path)
        _check_aspect(path, (shown.shape[1], shown.shape[0]), (picture.camera.width, picture.camera.height))
        masks[index] = resize_mask(shown.max(axis=2) >= _HALF, size)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty) == len(masks):
        raise bad_input(
            "the masks are empty in all pictures",
            where=str(paths[0]),
            why=f"the person is where a mask is brighter than half ({_HALF} of 255)",
            fix="write the masks as black and white",
        )
    if len(empty):
        names = ", ".join(pictures[index].path.name for index in empty[:3])
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        notes.append(f"nobody is in {len(empty)} of {len(masks)} masks: {names}{more}")
    return masks


# --- writing --------------------------------------------------------------------------------------------------------


def write_capture(folder: Path | str, capture: Capture) -> None:
    """Writes a scene folder, all of it or nothing; `read_capture` gives the same capture back, but for its notes.

    Raises:
        UserError: the folder is there and not empty, or the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        why = "a scene is written into a new folder, so that no file of another one stays in it"
        raise bad_input(f"{folder} is there already", where=str(folder), why=why, fix="name a new folder")
    with disk_errors(folder):
        make_folder(folder.parent)
        with temporary(folder.parent) as part:
            part.mkdir()
            _write_parts(part, capture)
            sync(part)
            part.replace(folder)
            sync(folder.parent)


def _write_parts(folder: Path, capture: Capture) -> None:
    write_images(folder / "images", iter(capture.frames))
    if capture.masks is not None:
        write_images(folder / "masks", _white(capture.masks))
    pictures = []
    for index, (camera, time) in enumerate(zip(capture.cameras, capture.times, strict=True)):
        name = f"{index:05d}.png"
        mask = None if capture.masks is None else folder / "masks" / name
        pictures.append(PosedPicture(folder / "images" / name, camera, mask, time))
    write_transforms(folder / TRANSFORMS, pictures)
    if capture.motion is not None:
        write_bones(folder / BONES, capture.motion)
    if capture.switches:
        write_states(folder / STATES, capture.switches)


def _white(masks: Bool[np.ndarray, "views height width"]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    for mask in masks:
        yield np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=2)

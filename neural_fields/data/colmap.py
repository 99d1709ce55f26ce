"""Sparse models of COLMAP, text and binary: cameras and the pictures they took. Points are passed over.

Its rotations (quaternions w x y z) and translations take the world to the camera, whose axes are ours; so are its
pixels, with the centre of the first at (0.5, 0.5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from neural_fields.data.camera_files import PosedPicture
from neural_fields.data.cameras import Camera
from neural_fields.data.facts import check_size
from neural_fields.data.user_files import Malformed, check_finite, inside, natural, part_of, shown, words_to_numbers
from neural_fields.errors import bad_input

_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse")
# Numbers of each model in the binary form, names, and how many parameters they have.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
}
_OTHERS = {7: "FOV", 8: "SIMPLE_RADIAL_FISHEYE", 9: "RADIAL_FISHEYE", 10: "THIN_PRISM_FISHEYE"}
_COUNTS = dict(_MODELS.values())
_LONGEST_NAME = 4096  # letters, as file systems allow in a path
_UNDISTORT = "undistort the pictures with colmap image_undistorter, or fit the cameras again as OPENCV"


def read_colmap(folder: Path | str, images: Path | str | None = None) -> list[PosedPicture]:
    """The pictures and cameras of a COLMAP model, in the order of the pictures' names (2 before 10).

    Args:
        folder: of the model (cameras.bin and images.bin, or .txt), or of the project, with the model in sparse/0.
        images: where the pictures are; by default the folder "images" beside the model or above it.

    Raises:
        UserError: no model; a file that is cut off or damaged; a camera model that is not read; a picture without a
            camera, or named outside the folder of the pictures.
    """
    folder = Path(folder)
    model = _find(folder)
    place = Path(images) if images is not None else _images_of(model)
    binary = (model / "cameras.bin").is_file()
    cameras = dict(_binary_cameras(model / "cameras.bin") if binary else _text_cameras(model / "cameras.txt"))
    listed = model / ("images.bin" if binary else "images.txt")
    found: dict[Path, PosedPicture] = {}
    for name, camera, pose in _binary_images(listed) if binary else _text_images(listed):
        with part_of(listed, f"picture {shown(name)}"):
            path = inside(place, name)
            if camera not in cameras:
                raise Malformed(f"its camera {camera} is not in {model.name}/cameras{listed.suffix}")
            if path in found:
                raise Malformed("it is listed twice")
            found[path] = PosedPicture(path, cameras[camera].moved(pose))
    if not found:
        raise bad_input("the COLMAP model has no pictures", where=str(listed), fix="run colmap mapper again")
    return sorted(found.values(), key=lambda picture: natural(picture.path.as_posix()))


def _find(folder: Path) -> Path:
    for below in _FOLDERS:
        for suffix in (".bin", ".txt"):
            if all((folder / below / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
                return folder / below
    raise bad_input(
        "there is no COLMAP model",
        where=str(folder),
        why="cameras.bin and images.bin, or cameras.txt and images.txt, are looked for there and in sparse/0",
        fix="name the folder that colmap mapper wrote",
    )


def _images_of(model: Path) -> Path:
    for above in (model, *list(model.absolute().parents)[:3]):
        if (above / "images").is_dir():
            return above / "images"
    return model / "images"


def _camera(name: str, width: int, height: int, values: Sequence[float], where: str) -> Camera:
    """A camera, not placed yet, from a model's parameters."""
    check_size(width, height, where=where)
    check_finite(np.array(values), "parameters")
    focal_count = 1 if name in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL") else 2
    focal, (cx, cy), lens = values[:focal_count], values[focal_count : focal_count + 2], values[focal_count + 2 :]
    if min(focal) <= 0:
        raise Malformed(f"a focal length of {min(focal):g}")
    if name in ("SIMPLE_RADIAL", "RADIAL"):
        lens = [*lens, 0.0, 0.0, 0.0][:4]
    distortion = tuple(float(value) for value in lens)
    size = (float(focal[0]), float(focal[-1])), (float(cx), float(cy))
    fisheye = name == "OPENCV_FISHEYE"
    return Camera(width, height, *size, np.eye(4), distortion, "fisheye" if fisheye else "perspective")


def _pose(values: Sequence[float]) -> Float[np.ndarray, "4 4"]:
    """Camera to world from quaternion and translation."""
    check_finite(np.array(values), "pose")
    length = float(np.linalg.norm(values[:4]))
    if abs(length - 1) > 1e-2:
        raise Malformed(f"its quaternion has the length {length:.4g} instead of 1")
    w, x, y, z = np.array(values[:4]) / length
    back = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
            [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)],
            [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = back
    pose[:3, 3] = -back @ np.array(values[4:7])
    return pose


# --- text -----------------------------------------------------------------------------------------------------------


def _text_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    for index, line in enumerate(_lines(path)):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        with part_of(path, f"line {index + 1}", fix="write the model again with colmap model_converter"):
            if len(words) < 4:
                raise Malformed(f"{shown(line)} is no camera")
            name, count = _known(words[1])
            if len(words) != 4 + count:
                raise Malformed(f"{len(words) - 4} parameters of the model {name}, which has {count}")
            number, width, height = (_whole(word) for word in (words[0], words[2], words[3]))
            yield number, _camera(name, width, height, words_to_numbers(words[4:], "parameters").tolist(), str(path))


def _lines(path: Path) -> Iterator[str]:
    """Line by line: with its points, a model of many pictures does not fit into memory."""
    with _opened(path) as file:
        yield from (line.decode("utf-8", "replace") for line in file)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise bad_input(f"{path.name} cannot be read", where=str(path), why=str(error.strerror)) from None


def _known(name: str) -> tuple[str, int]:
    if name not in _COUNTS:
        raise Malformed(f"the camera model {shown(name)} is not read; {_UNDISTORT}")
    return name, _COUNTS[name]


def _whole(word: str) -> int:
    if not word.lstrip("-").isdecimal() or len(word) > 18:
        raise Malformed(f"{shown(word)} is not a whole number")
    return int(word)


def _text_images(path: Path) -> Iterator[tuple[str, int, Float[np.ndarray, "4 4"]]]:
    """Name, camera and pose of each picture: every second line; the one below it lists points and may be empty."""
    header = True
    for index, line in enumerate(_lines(path)):
        if line.lstrip().startswith("#") or (header and not line.strip()):
            continue
        header = not header
        if header:
            continue
        with part_of(path, f"line {index + 1}", fix="write the model again with colmap model_converter"):
            words = line.split(maxsplit=9)
            if len(words) != 10:
                raise Malformed(f"{shown(line)} is no picture")
            yield words[9].strip(), _whole(words[8]), _pose(words_to_numbers(words[1:8], "pose").tolist())


# --- binary ---------------------------------------------------------------------------------------------------------


def _take(file: BinaryIO, form: str) -> tuple:
    """The next values of a binary file, little end first."""
    size = struct.calcsize(f"<{form}")
    data = file.read(size)
    if len(data) != size:
        raise Malformed("the file is cut off")
    return struct.unpack(f"<{form}", data)


def _binary_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    with part_of(path, fix="copy it again, or write it again with colmap"), _opened(path) as file:
        for _ in range(_take(file, "Q")[0]):
            number, model, width, height = _take(file, "iiQQ")
            if model not in _MODELS:
                name = _OTHERS.get(model, f"with the number {model}")
                raise Malformed(f"the camera model {name} is not read; {_UNDISTORT}")
            name, count = _MODELS[model]
            yield number, _camera(name, width, height, _take(file, f"{count}d"), str(path))


def _binary_images(path: Path) -> Iterator[tuple[str, int, Float[np.ndarray, "4 4"]]]:
    size = path.stat().st_size
    with part_of(path, fix="copy it again, or write it again with colmap"), _opened(path) as file:
        for _ in range(_take(file, "Q")[0]):
            _, *pose, camera = _take(file, "i7di")
            name = _name(file)
            points = _take(file, "Q")[0]
            if points * 24 > size - file.tell():
                raise Malformed("the file is cut off")
            file.seek(points * 24, os.SEEK_CUR)
            with part_of(path, f"picture {shown(name)}"):
                yield name, camera, _pose(pose)


def _name(file: BinaryIO) -> str:
    letters = bytearray()
    while (letter := _take(file, "c")[0]) != b"\0":
        letters += letter
        if len(letters) > _LONGEST_NAME:
            raise Malformed("a picture's name does not end")
    return letters.decode("utf-8", "replace")

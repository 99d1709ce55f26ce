"""Sparse models of COLMAP, text and binary: cameras and the pictures they took. Points are skipped.

Its rotations (quaternions w x y z) and translations take the world to the camera. Camera axes and pixels are ours: the
center of the first pixel is at (0.5, 0.5).
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
from scipy.spatial.transform import Rotation

from neural_fields.core.errors import bad_input
from neural_fields.core.validated_input import (
    FormatError,
    check_finite,
    describe_value,
    locate_format_errors,
    natural_sort_key,
    parse_number_words,
    resolve_inside,
)
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.transforms_json import PosedImage
from neural_fields.data.video.metadata import check_size

_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse")
# Name and number of parameters of each camera model, by its number in the binary form.
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
_UNDISTORT = "undistort the pictures with colmap image_undistorter, or estimate the cameras again as OPENCV"


def read_colmap(folder: Path | str, images: Path | str | None = None) -> list[PosedImage]:
    """Reads the pictures and cameras of a COLMAP model, in the order of the pictures' names (2 before 10).

    Args:
        folder: folder of the model (cameras.bin and images.bin, or .txt), or of the project that holds the model in
            sparse/0.
        images: folder of the pictures; by default the folder "images" beside the model or above it.

    Raises:
        UserError: no model; a file that is cut off or damaged; a camera model that is not read; a picture without a
            camera, or named outside the folder of the pictures.
    """
    # The folder of the model's files: the first that has them.
    model = None
    for below in _FOLDERS:
        for suffix in (".bin", ".txt"):
            files = (Path(folder) / below / f"{name}{suffix}" for name in ("cameras", "images"))
            if model is None and all(file.is_file() for file in files):
                model = Path(folder) / below
    if model is None:
        raise bad_input(
            "there is no COLMAP model",
            where=str(Path(folder)),
            why="cameras.bin and images.bin, or cameras.txt and images.txt, are looked for there and in sparse/0",
            fix="name the folder that colmap mapper wrote",
        )
    if images is None:
        above = (model, *list(model.absolute().parents)[:3])
        place = next((each / "images" for each in above if (each / "images").is_dir()), model / "images")
    else:
        place = Path(images)
    binary = (model / "cameras.bin").is_file()
    if binary:
        listed = model / "images.bin"
        cameras, entries = dict(_read_binary_cameras(model / "cameras.bin")), _read_binary_images(listed)
    else:
        listed = model / "images.txt"
        cameras, entries = dict(_read_text_cameras(model / "cameras.txt")), _read_text_images(listed)
    found: dict[Path, PosedImage] = {}
    for name, camera, pose in entries:
        with locate_format_errors(listed, f"picture {describe_value(name)}"):
            path = resolve_inside(place, name)
            if camera not in cameras:
                raise FormatError(f"its camera {camera} is not in {model.name}/cameras{listed.suffix}")
            if path in found:
                raise FormatError("it is listed twice")
            found[path] = PosedImage(path, cameras[camera].with_pose(pose))
    if not found:
        raise bad_input("the COLMAP model has no pictures", where=str(listed), fix="run colmap mapper again")
    return sorted(found.values(), key=lambda picture: natural_sort_key(picture.path.as_posix()))


def _build_camera(name: str, width: int, height: int, values: Sequence[float], where: str) -> Camera:
    """Builds a camera without a pose from the parameters of a camera model."""
    check_size(width, height, where=where)
    check_finite(np.array(values), "parameters")
    focal_count = 1 if name in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL") else 2
    focal, (cx, cy), lens = values[:focal_count], values[focal_count : focal_count + 2], values[focal_count + 2 :]
    if min(focal) <= 0:
        raise FormatError(f"a focal length of {min(focal):g}")
    if name in ("SIMPLE_RADIAL", "RADIAL"):
        lens = [*lens, 0.0, 0.0, 0.0][:4]
    return Camera(
        width,
        height,
        (float(focal[0]), float(focal[-1])),
        (float(cx), float(cy)),
        np.eye(4),
        tuple(float(value) for value in lens),
        "fisheye" if name == "OPENCV_FISHEYE" else "perspective",
    )


def _compute_pose(values: Sequence[float]) -> Float[np.ndarray, "4 4"]:
    """Computes the pose, camera to world, from quaternion and translation of the world to the camera."""
    check_finite(np.array(values), "pose")
    length = float(np.linalg.norm(values[:4]))
    if abs(length - 1) > 1e-2:
        raise FormatError(f"its quaternion has the length {length:.4g} instead of 1")
    w, x, y, z = values[:4]
    rotation = Rotation.from_quat([x, y, z, w]).inv()  # scipy has w last, and makes the length exactly 1
    pose = np.eye(4)
    pose[:3, :3] = rotation.as_matrix()
    pose[:3, 3] = -rotation.apply(values[4:7])
    return pose


# --- text -----------------------------------------------------------------------------------------------------------


def _read_text_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    """Reads number and camera of each line."""
    for index, line in enumerate(_read_lines(path)):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        with locate_format_errors(path, f"line {index + 1}", fix="write the model again with colmap model_converter"):
            if len(words) < 4:
                raise FormatError(f"{describe_value(line)} is no camera")
            name = words[1]
            if name not in _COUNTS:
                raise FormatError(f"the camera model {describe_value(name)} is not read; {_UNDISTORT}")
            if len(words) != 4 + _COUNTS[name]:
                raise FormatError(f"{len(words) - 4} parameters of the model {name}, which has {_COUNTS[name]}")
            number, width, height = (_parse_whole(word) for word in (words[0], words[2], words[3]))
            values = parse_number_words(words[4:], "parameters").tolist()
            yield number, _build_camera(name, width, height, values, str(path))


def _read_text_images(path: Path) -> Iterator[tuple[str, int, Float[np.ndarray, "4 4"]]]:
    """Reads name, camera and pose of each picture: every second line; the next one lists points and may be empty."""
    at_points = True
    for index, line in enumerate(_read_lines(path)):
        if line.lstrip().startswith("#") or (at_points and not line.strip()):
            continue
        at_points = not at_points
        if at_points:
            continue
        with locate_format_errors(path, f"line {index + 1}", fix="write the model again with colmap model_converter"):
            words = line.split(maxsplit=9)
            if len(words) != 10:
                raise FormatError(f"{describe_value(line)} is no picture")
            pose = _compute_pose(parse_number_words(words[1:8], "pose").tolist())
            yield words[9].strip(), _parse_whole(words[8]), pose


def _read_lines(path: Path) -> Iterator[str]:
    """Reads line by line: with its points, a model of many pictures does not fit into memory."""
    with _open_file(path) as file:
        yield from (line.decode("utf-8", "replace") for line in file)


@contextmanager
def _open_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file of the model; what the disk refuses is a user error."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise bad_input(f"{path.name} cannot be read", where=str(path), why=str(error.strerror)) from None


def _parse_whole(word: str) -> int:
    """Parses a whole number."""
    if not word.lstrip("-").isdecimal() or len(word) > 18:
        raise FormatError(f"{describe_value(word)} is not a whole number")
    return int(word)


# --- binary ---------------------------------------------------------------------------------------------------------


def _read_binary_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    """Reads number and camera of each entry."""
    with locate_format_errors(path, fix="copy it again, or write it again with colmap"), _open_file(path) as file:
        for _ in range(_unpack_next(file, "Q")[0]):
            number, model, width, height = _unpack_next(file, "iiQQ")
            if model not in _MODELS:
                name = _OTHERS.get(model, f"with the number {model}")
                raise FormatError(f"the camera model {name} is not read; {_UNDISTORT}")
            name, count = _MODELS[model]
            yield number, _build_camera(name, width, height, _unpack_next(file, f"{count}d"), str(path))


def _read_binary_images(path: Path) -> Iterator[tuple[str, int, Float[np.ndarray, "4 4"]]]:
    """Reads name, camera and pose of each picture."""
    longest_name, point_bytes = 4096, 24  # letters, as file systems allow in a path
    size = path.stat().st_size
    with locate_format_errors(path, fix="copy it again, or write it again with colmap"), _open_file(path) as file:
        for _ in range(_unpack_next(file, "Q")[0]):
            _, *values, camera = _unpack_next(file, "i7di")
            letters = bytearray()
            while (letter := _unpack_next(file, "c")[0]) != b"\0":
                letters += letter
                if len(letters) > longest_name:
                    raise FormatError("a picture's name does not end")
            name = letters.decode("utf-8", "replace")
            points = _unpack_next(file, "Q")[0]
            if points * point_bytes > size - file.tell():
                raise FormatError("the file is cut off")
            file.seek(points * point_bytes, os.SEEK_CUR)
            with locate_format_errors(path, f"picture {describe_value(name)}"):
                yield name, camera, _compute_pose(values)


def _unpack_next(file: BinaryIO, form: str) -> tuple:
    """Unpacks the next values of a binary file, little end first; `form` is that of `struct`."""
    size = struct.calcsize(f"<{form}")
    data = file.read(size)
    if len(data) != size:
        raise FormatError("the file is cut off")
    return struct.unpack(f"<{form}", data)

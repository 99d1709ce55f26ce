"""transforms.json, as nerfstudio and instant-ngp write it: pictures and the cameras that took them.

Its matrices take the camera to the world. Its cameras have x right, y up and z back; ours have y down and z forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from neural_fields.core.files import write_json
from neural_fields.core.validated_input import (
    FormatError,
    describe_value,
    locate_format_errors,
    natural_sort_key,
    parse_number,
    parse_numbers,
    parse_whole_number,
    read_json_object,
    resolve_inside,
)
from neural_fields.data.capture.cameras import Camera, Lens
from neural_fields.data.capture.rigid_transforms import repair_rigid_transforms
from neural_fields.data.video.image_sequence import read_image_frame
from neural_fields.data.video.metadata import check_size
from neural_fields.data.video.picture_suffixes import PICTURE_SUFFIXES

OPENGL_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # flips y and z of the camera, in both directions
_PERSPECTIVE: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": ("k1",),
    "RADIAL": ("k1", "k2"),
    "OPENCV": ("k1", "k2", "p1", "p2", "k3"),
    "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}
_FISHEYE: dict[str, tuple[str, ...]] = {"OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}
_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order
_FOCAL = ("fl_x", "camera_angle_x", "x_fov"), ("fl_y", "camera_angle_y", "y_fov")
# Keys that belong together come from the frame if it has any of them, or else from the top of the file.
_GROUPS = (("camera_model", "is_fisheye"), ("w", "h"), ("cx", "cy"), (*_FOCAL[0], *_FOCAL[1]), _COEFFICIENTS)


@dataclass(frozen=True)
class PosedImage:
    """A picture and the camera that took it.

    Attributes:
        path: the picture; the file need not exist.
        camera: its camera with the pose.
        mask_path: its mask, where the file names one.
        time: the moment that it shows, where the file gives one.
    """

    path: Path
    camera: Camera
    mask_path: Path | None = None
    time: int | None = None


def read_transforms(path: Path | str) -> list[PosedImage]:
    """Reads the pictures and cameras of a transforms.json, in the order of the names (2 before 10).

    Size, lens and focal length may be given once for all pictures or with each frame. Where there is no size, it is
    that of the first picture; a name without suffix gets that of the picture that is there, as for the NeRF synthetic
    scenes.

    Raises:
        UserError: no such file; no frames; a picture named twice or outside the folder; a camera model that is not
            read; numbers missing, not finite, or contradicting each other; a matrix that is not rigid.
    """
    path = Path(path)
    data = read_json_object(path)
    with locate_format_errors(path, fix="name the transforms.json of a nerfstudio or instant-ngp scene"):
        frames = data.get("frames")
        if not isinstance(frames, list) or not frames:
            raise FormatError('there is no list "frames" with a picture in it')

    @cache
    def read_default_size() -> tuple[int, int]:
        first, _ = read_image_frame(_add_suffix(resolve_inside(path.parent, frames[0].get("file_path"))))
        return first.shape[1], first.shape[0]

    found: dict[Path, PosedImage] = {}
    for index, frame in enumerate(frames):
        name = frame.get("file_path") if isinstance(frame, dict) else None
        with locate_format_errors(path, f"frame {index} ({describe_value(name)})"):
            if not isinstance(frame, dict):
                raise FormatError(f"{describe_value(frame)} is not an object")
            picture = _parse_frame(path.parent, data, frame, read_default_size)
            if picture.path in found:
                raise FormatError("another frame has the same picture")
            found[picture.path] = picture
    has_time = [picture.time is not None for picture in found.values()]
    with locate_format_errors(path, fix="give every frame a time, or none"):
        if any(has_time) and not all(has_time):
            raise FormatError(f'frame {has_time.index(False)} has no "time", others have one')
    return sorted(found.values(), key=lambda picture: natural_sort_key(picture.path.as_posix()))


def _parse_frame(
    folder: Path, data: dict[str, Any], frame: dict[str, Any], read_default_size: Callable[[], tuple[int, int]]
) -> PosedImage:
    """Parses a frame as a posed picture.

    Args:
        folder: folder of the file.
        data: the whole file.
        frame: the entry to parse.
        read_default_size: gives width and height where the file has none.
    """
    path = _add_suffix(resolve_inside(folder, frame.get("file_path")))
    mask, time = frame.get("mask_path"), frame.get("time")
    if time is not None and (type(time) is not int or time < 0):
        raise FormatError(f'"time" is {describe_value(time)}; the number of a moment was expected, counted from 0')
    lens: dict[str, Any] = {}
    for group in _GROUPS:
        source = frame if any(frame.get(key) is not None for key in group) else data
        lens.update({key: source[key] for key in group if source.get(key) is not None})

    # The pose, with our axes.
    matrix = frame.get("transform_matrix")
    if isinstance(matrix, list) and len(matrix) == 3:
        matrix = [*matrix, [0, 0, 0, 1]]
    try:
        pose = repair_rigid_transforms(parse_numbers(matrix, 4, 4)[None])[0] @ OPENGL_FLIP
    except FormatError as problem:
        raise FormatError(f"its transform_matrix cannot be used: {problem}") from None

    if ("w" in lens) != ("h" in lens):
        raise FormatError("it has one of w and h without the other")
    width, height = (
        (parse_whole_number(lens["w"], "w"), parse_whole_number(lens["h"], "h")) if "w" in lens else read_default_size()
    )
    check_size(width, height, where=str(path))

    # The lens model and its distortion coefficients in OpenCV's order; none where the file has none.
    fisheye = lens.get("is_fisheye") is True
    model = str(lens.get("camera_model", "OPENCV_FISHEYE" if fisheye else "OPENCV")).upper()
    if fisheye and model == "OPENCV":
        model = "OPENCV_FISHEYE"
    known = {**_PERSPECTIVE, **_FISHEYE}
    if model not in known:
        raise FormatError(
            f"the camera model {describe_value(lens['camera_model'])} is not read; those are {', '.join(known)}"
        )
    given = {key: parse_number(lens[key]) for key in _COEFFICIENTS if key in lens}
    strange = [key for key, value in given.items() if value and key not in known[model]]
    if strange:
        raise FormatError(f"{strange[0]} is {given[strange[0]]:g}, which the camera model {model} does not have")
    used = [key for key in known[model] if key in given]
    projection: Lens = "fisheye" if model in _FISHEYE else "perspective"
    if projection == "fisheye":
        stored = tuple(known[model]) if used else ()
    else:
        count = 8 if {"k4", "k5", "k6"} & set(used) else 5 if "k3" in used else 4 if used else 0
        stored = tuple(_COEFFICIENTS[:count])
    distortion = tuple(given.get(key, 0.0) for key in stored)

    focal = _parse_focal_lengths(lens, width, height)
    center = parse_number(lens.get("cx", width / 2)), parse_number(lens.get("cy", height / 2))
    camera = Camera(width, height, focal, center, pose, distortion, projection)
    return PosedImage(path, camera, None if mask is None else resolve_inside(folder, mask), time)


def _add_suffix(path: Path) -> Path:
    """Adds the suffix of an existing picture, if the path has none."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return path
    for suffix in (".png", *sorted(PICTURE_SUFFIXES)):
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return candidate
    return path


def _parse_focal_lengths(lens: dict[str, Any], width: int, height: int) -> tuple[float, float]:
    """Parses focal lengths or angles of view, as focal lengths in pixels; one that is given holds for both axes."""
    found: list[float | None] = []
    for (length, radians, degrees), side in zip(_FOCAL, (width, height), strict=True):
        if length in lens:
            focal = parse_number(lens[length])
            if focal <= 0:
                raise FormatError(f"{length} is {describe_value(lens[length])}, a focal length is above 0")
            found.append(focal)
        elif radians in lens or degrees in lens:
            key, unit = (radians, 1.0) if radians in lens else (degrees, math.pi / 180)
            angle = parse_number(lens[key]) * unit
            if not 0 < angle < math.pi:
                raise FormatError(
                    f"{key} is {describe_value(lens[key])}, an angle of view is between 0 and 180 degrees"
                )
            found.append(side / 2 / math.tan(angle / 2))
        else:
            found.append(None)
    x, y = found[0] or found[1], found[1] or found[0]
    if x is None or y is None:
        raise FormatError("there is no focal length: neither fl_x nor camera_angle_x")
    return x, y


def write_transforms(path: Path | str, pictures: Sequence[PosedImage]) -> None:
    """Writes a transforms.json, atomically; `read_transforms` gives the same cameras back, to the last digit.

    A lens whose denominator (k4, k5, k6) is 0 is written as OPENCV.

    Raises:
        ValueError: a picture or mask that is not below the file's folder, or a lens that the format does not have.
    """
    path = Path(path)

    # Size and lens of each camera under the keys of the file.
    lenses: list[dict[str, Any]] = []
    for picture in pictures:
        camera = picture.camera
        (fx, fy), (cx, cy) = camera.focal, camera.center
        keys = {"w": camera.width, "h": camera.height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
        count = len(camera.distortion)
        if camera.lens == "perspective" and count == 8 and not any(camera.distortion[5:]):
            count = 5  # nerfstudio reads OPENCV with k3, and no FULL_OPENCV
        if count not in ((0, 4) if camera.lens == "fisheye" else (0, 4, 5, 8)):
            raise ValueError(
                f"a {camera.lens} lens with {count} distortion coefficients has no camera model in this format"
            )
        model = "FULL_OPENCV" if count == 8 else "OPENCV" if count else "PINHOLE"
        if camera.lens == "fisheye":
            model = "OPENCV_FISHEYE"
        names = _FISHEYE.get(model, _COEFFICIENTS)[:count]
        lenses.append({"camera_model": model, **keys, **dict(zip(names, camera.distortion[:count], strict=True))})

    shared = lenses[0] if lenses and all(lens == lenses[0] for lens in lenses) else {}
    frames = []
    for picture, lens in zip(pictures, lenses, strict=True):
        frame: dict[str, Any] = {"file_path": picture.path.relative_to(path.parent).as_posix()}
        if picture.mask_path is not None:
            frame["mask_path"] = picture.mask_path.relative_to(path.parent).as_posix()
        if picture.time is not None:
            frame["time"] = picture.time
        frame["transform_matrix"] = (picture.camera.pose @ OPENGL_FLIP).tolist()
        frames.append(frame if shared else {**frame, **lens})
    write_json(path, {**shared, "frames": frames})

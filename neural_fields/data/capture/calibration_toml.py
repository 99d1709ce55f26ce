"""Calibrations of several fixed cameras as TOML tables, as Pose2Sim and anipose write them.

A table has `size` (width, height), `matrix`, `distortions`, `rotation` (axis times angle) and `translation`; the last
two take the world to the camera. As in OpenCV, the center of pixel (0, 0) is at (0, 0).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from neural_fields.core.errors import bad_input
from neural_fields.core.validated_input import (
    FormatError,
    describe_value,
    locate_format_errors,
    parse_numbers,
    parse_whole_number,
    read_text,
)
from neural_fields.data.capture.cameras import Camera, Lens
from neural_fields.data.video.metadata import check_size

_NEEDED = ("size", "matrix", "distortions", "rotation", "translation")


def read_calibration(path: Path | str) -> dict[str, Camera]:
    """Reads the cameras of a calibration file by their names, in its order.

    Raises:
        UserError: not TOML; no camera in it; numbers missing, not finite, or not those of a lens; a size whose width
            and height are swapped.
    """
    path = Path(path)
    max_bytes = 4 << 20
    try:
        data = tomllib.loads(read_text(path, max_bytes))
    except RecursionError:
        raise bad_input(f"{path.name} is nested too deeply", where=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise bad_input(f"{path.name} is not TOML", where=str(path), why=str(error)) from None
    cameras: dict[str, Camera] = {}
    for title, table in data.items():
        if not isinstance(table, dict) or not {"matrix", "rotation", "translation"} & table.keys():
            continue
        name = table.get("name", title)
        with locate_format_errors(path, f"camera {describe_value(name)}"):
            if not isinstance(name, str) or name in cameras:
                raise FormatError("another camera has this name" if name in cameras else "the name is not text")
            cameras[name] = _parse_camera(table, str(path))
    if not cameras:
        raise bad_input(
            f"{path.name} is not a calibration",
            where=str(path),
            why=f"no table in it has {', '.join(_NEEDED)}",
            fix="name the Calib_*.toml of a Pose2Sim session",
        )
    return cameras


def _parse_camera(table: dict[str, Any], where: str) -> Camera:
    """Parses the table of a camera."""
    missing = [key for key in _NEEDED if key not in table]
    if missing:
        raise FormatError(f"there is no {missing[0]}")
    width, height = (parse_whole_number(value, "size") for value in parse_numbers(table["size"], 2).tolist())
    check_size(width, height, where=where)
    matrix = parse_numbers(table["matrix"], 3, 3)
    skewed = np.any(matrix[(0, 1, 2, 2), (1, 0, 0, 1)] != 0) or matrix[2, 2] != 1
    if skewed or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise FormatError("its matrix is not that of a lens: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx and fy above 0")
    center = matrix[:2, 2] + 0.5

    # Width and height are swapped if the lens's center is near the picture's only when they change places.
    off_center = 0.1  # share of the picture
    distance = np.abs(center / (width, height) - 0.5).max()
    swapped_distance = np.abs(center / (height, width) - 0.5).max()
    if distance > off_center and swapped_distance < off_center / 2:
        raise FormatError(f"its size is {width} x {height}, but its matrix is for {height} x {width}: swap the numbers")

    listed = table["distortions"]
    fisheye = table.get("fisheye") is True
    allowed = (0, 4) if fisheye else (0, 4, 5, 8)
    if not isinstance(listed, list) or len(listed) not in allowed:
        raise FormatError(
            f"distortions are {describe_value(listed)}; {' or '.join(map(str, allowed))} numbers were expected"
        )
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(parse_numbers(table["rotation"], 3)).inv().as_matrix()
    pose[:3, 3] = -pose[:3, :3] @ parse_numbers(table["translation"], 3)
    distortion = tuple(parse_numbers(listed, len(listed)).tolist())
    focal = float(matrix[0, 0]), float(matrix[1, 1])
    lens: Lens = "fisheye" if fisheye else "perspective"
    return Camera(width, height, focal, (float(center[0]), float(center[1])), pose, distortion, lens)

"""Camera files: every format gives the camera it means, and what cannot be used is refused with a sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from neural_fields.core.errors import UserError
from neural_fields.data.capture.calibration_toml import read_calibration
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.colmap import read_colmap
from neural_fields.data.capture.transforms_json import PosedImage, read_transforms, write_transforms
from neural_fields.data.capture.trc_joints import read_trc

POINTS = np.random.default_rng(0).uniform(-0.8, 0.8, (40, 3)) + np.array([0, 0, 4])  # in front of a camera
TURN = Rotation.from_rotvec([0.3, -0.5, 0.2])
SHIFT = np.array([0.4, -0.2, 0.6])
WORLD = TURN.inv().apply(POINTS - SHIFT)  # the same points in a world that TURN and SHIFT take to the camera


def fields(picture: PosedImage) -> tuple:
    camera = picture.camera
    return (
        *(picture.path, picture.mask_path, picture.time, camera.width, camera.height, camera.focal, camera.center),
        *(camera.distortion, camera.lens, camera.pose.tolist()),
    )


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def frame(name: str = "images/a.png", **more: Any) -> dict[str, Any]:
    return {"file_path": name, "transform_matrix": np.eye(4).tolist(), **more}


def scene(**more: Any) -> dict[str, Any]:
    return {"w": 64, "h": 48, "fl_x": 50.0, "frames": [frame()], **more}


# --- transforms.json ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lens", "distortion"),
    [
        ("perspective", ()),
        ("perspective", (0.1, -0.02, 1e-3, -2e-3)),
        ("perspective", (0.1, -0.02, 1e-3, -2e-3, 0.3)),
        ("perspective", (0.1, -0.02, 1e-3, -2e-3, 0.3, 0.1, 0.2, 0.3)),
        ("fisheye", ()),
        ("fisheye", (0.01, 0.02, -0.03, 1 / 3)),
    ],
)
def test_transforms_are_read_back_to_the_last_digit(tmp_path: Path, lens: Any, distortion: tuple) -> None:
    pictures = []
    for index in range(12):
        pose = compute_look_at_pose(
            np.array([np.cos(index), 0.3, np.sin(index)]) * 3.3, np.zeros(3), np.array([0, 1.0, 0])
        )
        camera = Camera(64, 48, (50 + index / 3 * (index > 5), 51.1), (31.7, 24.3), pose, distortion, lens)
        path, mask = tmp_path / f"images/{index}.png", tmp_path / f"masks/{index}.png" if index % 2 else None
        pictures.append(PosedImage(path, camera, mask, index // 2))
    write_transforms(tmp_path / "transforms.json", pictures)
    assert [fields(p) for p in read_transforms(tmp_path / "transforms.json")] == [fields(p) for p in pictures]


def test_a_camera_of_transforms_looks_along_its_own_minus_z_with_y_up(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[2, 3] = 5
    data = {"w": 64, "h": 48, "fl_x": 50, "frames": [frame(transform_matrix=matrix.tolist())]}
    camera = read_transforms(write(tmp_path / "transforms.json", data))[0].camera
    pixels, depth, seen = camera.project_points(np.array([[0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 9]]))
    assert np.allclose(pixels[:3], [[32, 24], [42, 24], [32, 14]])
    assert np.allclose(depth, [5, 5, 5, -4]) and seen.tolist() == [True, True, True, False]


def test_a_synthetic_scene_without_sizes_and_suffixes_is_read(tmp_path: Path) -> None:
    for index in (2, 10):
        Image.new("RGB", (40, 30)).save(tmp_path / f"r_{index}.png")
    frames = [frame("./r_10"), frame("./r_2", rotation=0.3)]
    found = read_transforms(write(tmp_path / "t.json", {"camera_angle_x": np.pi / 2, "frames": frames}))
    assert [picture.path.name for picture in found] == ["r_2.png", "r_10.png"]
    camera = found[0].camera
    assert (camera.width, camera.height) == (40, 30) and np.allclose(camera.focal, 20)
    assert camera.center == (20, 15) and camera.distortion == ()


def test_a_frame_has_the_last_word_on_its_lens(tmp_path: Path) -> None:
    own = frame("b.png", w=100, h=80, camera_angle_x=np.pi / 2, k1=0.2, time=3)
    top = {"w": 64, "h": 48, "fl_x": 50, "fl_y": 40, "cx": 30, "cy": 20, "k1": 0.1, "k2": 0, "p1": 0, "p2": 0}
    first, second = read_transforms(write(tmp_path / "t.json", {**top, "frames": [frame("a.png", time=0), own]}))
    assert (first.camera.focal, first.camera.distortion, first.time) == ((50, 40), (0.1, 0, 0, 0), 0)
    assert np.allclose(second.camera.focal, 50) and second.camera.width == 100 and second.time == 3
    assert second.camera.distortion == (0.2, 0, 0, 0)


@pytest.mark.parametrize(
    ("keys", "lens", "distortion"),
    [
        ({"is_fisheye": True, "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4, "p1": 0}, "fisheye", (0.1, 0.2, 0.3, 0.4)),
        ({"is_fisheye": False, "k1": 0.1, "k3": 0.3, "k4": 0, "p1": 0.2}, "perspective", (0.1, 0, 0.2, 0, 0.3)),
        ({"camera_model": "SIMPLE_RADIAL", "k1": 0.1}, "perspective", (0.1, 0, 0, 0)),
        ({"camera_model": "PINHOLE", "k1": 0.0}, "perspective", ()),
    ],
)
def test_lens_models_of_both_programs_are_read(tmp_path: Path, keys: dict, lens: str, distortion: tuple) -> None:
    camera = read_transforms(write(tmp_path / "t.json", scene(**keys)))[0].camera
    assert (camera.lens, camera.distortion) == (lens, distortion)


def test_a_matrix_with_three_digits_is_mended_and_one_with_more_is_left_alone(tmp_path: Path) -> None:
    exact = np.eye(4)
    exact[:3, :3] = TURN.as_matrix()
    frames = [frame("a.png", transform_matrix=exact.tolist()), frame("b.png", transform_matrix=exact.round(3).tolist())]
    first, second = (p.camera.pose[:3, :3] for p in read_transforms(write(tmp_path / "t.json", scene(frames=frames))))
    assert np.array_equal(first, TURN.as_matrix() * (1, -1, -1))
    assert np.allclose(second.T @ second, np.eye(3), atol=1e-12) and np.allclose(first, second, atol=1e-3)


def scaled(by: Any) -> list[list[float]]:
    matrix = np.eye(4)
    matrix[:3, :3] *= by
    return matrix.tolist()


TIMED = [frame("a.png", time=0), frame("b.png")]
SKEW = [[1, 0.3, 0, 0], [0, 0.954, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
BAD_SCENES = {
    "no frames": (scene(frames=[]), "a picture in it"),
    "a scaled camera": (scene(frames=[frame(transform_matrix=scaled(2))]), "frame 0 ('images/a.png'): .* scales"),
    "a mirrored camera": (scene(frames=[frame(transform_matrix=scaled([1, 1, -1]))]), "left-handed"),
    "a skewed camera": (scene(frames=[frame(transform_matrix=SKEW)]), "skews"),
    "a row missing": (scene(frames=[frame(transform_matrix=scaled(1)[:2])]), "4 x 4 numbers were expected"),
    "text for a number": (scene(frames=[frame(transform_matrix=[["1"] * 4] * 4)]), "'1' is not a number"),
    "another last row": (scene(frames=[frame(transform_matrix=[*scaled(1)[:3], [0, 0, 1, 1]])]), "0 0 0 1"),
    "the same picture twice": (scene(frames=[frame(), frame("./images//a.png")]), "the same picture"),
    "some times": (scene(frames=TIMED), 'frame 1 has no "time"'),
    "a share of time": (scene(frames=[frame(time=0.25)]), "0.25; the number of a moment"),
    "a negative time": (scene(frames=[frame(time=-1)]), "-1; the number of a moment"),
    "no focal length": ({"w": 64, "h": 48, "frames": [frame()]}, "no focal length"),
    "a negative focal length": (scene(fl_x=-3), "above 0"),
    "too wide an angle": ({"w": 64, "h": 48, "camera_angle_x": 4, "frames": [frame()]}, "180 degrees"),
    "a huge number": (scene(fl_x=10**400), "not a finite number"),
    "a bomb of a size": (scene(w=10**6, h=10**6), "1000000x1000000"),
    "half a pixel": (scene(w=64.5), "not a whole number"),
    "half a size": (scene(w=None), "one of w and h"),
    "an unknown model": (scene(camera_model="EQUIRECTANGULAR"), "EQUIRECTANGULAR' is not read"),
    "a contradiction": (scene(camera_model="PINHOLE", k1=0.2), "k1 is 0.2, which the camera model PINHOLE"),
    "a frame that is none": (scene(frames=[7]), "7 is not an object"),
    "an absolute path": (scene(frames=[frame("/etc/passwd")]), "not a path inside the folder"),
    "a drive": (scene(frames=[frame("C:/a.png")]), "not a path inside the folder"),
    "a way out": (scene(frames=[frame("images/../../a.png")]), "leads out of the folder"),
    "a way out backwards": (scene(frames=[frame("..\\a.png")]), "leads out of the folder"),
    "a mask outside": (scene(frames=[frame(mask_path="../m.png")]), "leads out of the folder"),
    "no name": (scene(frames=[frame(None)]), "not the name of a file"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_SCENES)
def test_transforms_that_cannot_be_used_are_refused_by_name(tmp_path: Path, case: str) -> None:
    data, words = BAD_SCENES[case]
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")) as error:
        read_transforms(write(tmp_path / "transforms.json", data))
    assert "transforms.json" in str(error.value) or "pixels" in error.value.what


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"frames": [NaN]}', "NaN"),
        ("{", "not JSON"),
        ("[]", "an object with names"),
        ("\udcff", "not text"),
        (None, "cannot be read"),
    ],
)
def test_hostile_json_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "t.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=words):
        read_transforms(tmp_path / "t.json")


# --- COLMAP ---------------------------------------------------------------------------------------------------------

MODELS: dict[str, tuple[int, list[float]]] = {
    "SIMPLE_PINHOLE": (0, [400, 310, 250]),
    "PINHOLE": (1, [400, 410, 310, 250]),
    "SIMPLE_RADIAL": (2, [400, 310, 250, 0.1]),
    "RADIAL": (3, [400, 310, 250, 0.1, -0.05]),
    "OPENCV": (4, [400, 410, 310, 250, 0.1, -0.05, 1e-3, 2e-3]),
    "OPENCV_FISHEYE": (5, [400, 410, 310, 250, 0.1, -0.05, 1e-2, 2e-3]),
    "FULL_OPENCV": (6, [400, 410, 310, 250, 0.1, -0.05, 1e-3, 2e-3, 0.02, 0.01, 0.03, 0.04]),
}


def colmap_formula(name: str, values: list[float]) -> np.ndarray:
    """Where POINTS are seen, by the formulas of COLMAP's camera models."""
    single = name in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
    numbers = [values[0], *values] if single else values
    (fx, fy, cx, cy), k = numbers[:4], numbers[4:]
    x, y = (POINTS[:, :2] / POINTS[:, 2:]).T
    r2 = x * x + y * y
    if name == "OPENCV_FISHEYE":
        r = np.sqrt(r2)
        angle = np.arctan(r)
        u, v = np.array([x, y]) * (angle * (1 + sum(c * angle ** (2 * n + 2) for n, c in enumerate(k))) / r)
    else:
        radial_two, others = [*k[:2], 0, 0][:2], [*k[2:], *[0] * 6][:6]
        (k1, k2), (p1, p2, k3, k4, k5, k6) = radial_two, others
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        v = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    return np.stack([fx * u + cx, fy * v + cy], axis=1)


def write_text_model(folder: Path, cameras: dict[int, tuple[str, list]], images: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    x, y, z, w = TURN.as_quat()
    lines = ["# Camera list", *(f"{n} {m} 640 480 {' '.join(map(str, v))}" for n, (m, v) in cameras.items())]
    (folder / "cameras.txt").write_text("\n".join(lines))
    pose = " ".join(f"{value!r}" for value in [float(v) for v in (w, x, y, z, *SHIFT)])
    lines = [
        f"{n} {pose} {camera} {name}\n{'1.0 2.0 -1 ' * (n % 3)}" for n, (name, camera) in enumerate(images.items())
    ]
    (folder / "images.txt").write_text("# Image list\n#   POINTS2D[]\n" + "\n".join(lines) + "\n")


def write_binary_model(folder: Path, cameras: dict[int, tuple[int, list]], images: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    x, y, z, w = TURN.as_quat()
    data = struct.pack("<Q", len(cameras))
    for number, (model, values) in cameras.items():
        data += struct.pack(f"<iiQQ{len(values)}d", number, model, 640, 480, *values)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(images))
    for number, (name, camera) in enumerate(images.items()):
        data += struct.pack("<i7di", number, w, x, y, z, *SHIFT, camera) + name.encode() + b"\0"
        data += struct.pack("<Q", number % 3) + struct.pack("<ddq", 1.0, 2.0, -1) * (number % 3)
    (folder / "images.bin").write_bytes(data)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_colmap_model_sees_points_where_its_formula_says(tmp_path: Path, name: str, binary: bool) -> None:
    number, values = MODELS[name]
    images = {"a_10.jpg": 4, "a_2.jpg": 4, "with space.jpg": 4}
    if binary:
        write_binary_model(tmp_path / "sparse/0", {4: (number, values)}, images)
    else:
        write_text_model(tmp_path / "sparse/0", {4: (name, values)}, images)
    found = read_colmap(tmp_path, images=tmp_path / "pictures")
    assert [picture.path for picture in found] == [
        tmp_path / "pictures" / name for name in ("a_2.jpg", "a_10.jpg", "with space.jpg")
    ]
    for picture in found:
        pixels, depth, _ = picture.camera.project_points(WORLD)
        assert np.allclose(pixels, colmap_formula(name, values), atol=1e-6) and np.allclose(depth, POINTS[:, 2])


@pytest.mark.parametrize("name", MODELS)
def test_what_a_pixel_looks_at_is_seen_in_that_pixel(tmp_path: Path, name: str) -> None:
    write_text_model(tmp_path, {1: (name, MODELS[name][1])}, {"a.jpg": 1})
    camera = read_colmap(tmp_path)[0].camera
    pixels, _, _ = camera.project_points(WORLD)
    points = camera.position + camera.compute_ray_directions(pixels) * 3
    assert np.allclose(camera.project_points(points)[0], pixels, atol=0.05)


def damaged_model(folder: Path, cameras: bytes | None = None, images: str | None = None) -> None:
    write_text_model(folder, {1: ("PINHOLE", MODELS["PINHOLE"][1])}, {"a.jpg": 1})
    if cameras is not None:
        (folder / "cameras.txt").write_bytes(cameras)
    if images is not None:
        (folder / "images.txt").write_text(images)


GOOD = "1 1 0 0 0 0 0 0"
BAD_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "none": (lambda folder: None, "no COLMAP model"),
    "model": (lambda f: damaged_model(f, b"1 FOV 640 480 1 2 3 4 5"), "'FOV' is not read"),
    "count": (lambda f: damaged_model(f, b"1 PINHOLE 640 480 1 2 3"), "3 parameters of the model PINHOLE"),
    "nan": (lambda f: damaged_model(f, b"1 PINHOLE 640 480 nan 2 3 4"), "nan is not a finite number"),
    "size": (lambda f: damaged_model(f, b"1 PINHOLE 0 480 1 2 3 4"), "0x480 pixels"),
    "focal": (lambda f: damaged_model(f, b"1 PINHOLE 640 480 0 2 3 4"), "focal length of 0"),
    "camera": (lambda f: damaged_model(f, images=f"{GOOD} 7 a.jpg\n\n"), "its camera 7 is not in"),
    "out": (lambda f: damaged_model(f, images=f"{GOOD} 1 ../a.jpg\n\n"), "leads out of the folder"),
    "absolute": (lambda f: damaged_model(f, images=f"{GOOD} 1 /a.jpg\n\n"), "not a path inside"),
    "turn": (lambda f: damaged_model(f, images="1 2 0 0 0 0 0 0 1 a.jpg\n\n"), "quaternion has the length 2"),
    "short": (lambda f: damaged_model(f, images="1 1 0 0 0\n\n"), "is no picture"),
    "twice": (lambda f: damaged_model(f, images=f"{GOOD} 1 a.jpg\n\n{GOOD} 1 a.jpg\n\n"), "listed twice"),
    "empty": (lambda f: damaged_model(f, images="# nothing\n"), "has no pictures"),
    "number": (lambda f: write_binary_model(f, {1: (7, [1.0] * 5)}, {"a.jpg": 1}), "camera model FOV is not read"),
    "other": (lambda f: write_binary_model(f, {1: (99, [1.0] * 5)}, {"a.jpg": 1}), "with the number 99"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_colmap_model_that_cannot_be_used_is_refused(tmp_path: Path, case: str) -> None:
    make, words = BAD_MODELS[case]
    make(tmp_path)
    with pytest.raises(UserError, match=words):
        read_colmap(tmp_path)


def test_a_binary_model_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_binary_model(tmp_path, {1: (4, MODELS["OPENCV"][1])}, {"a.jpg": 1, "b.jpg": 1, "c.jpg": 1})
    for name in ("cameras.bin", "images.bin"):
        whole = (tmp_path / name).read_bytes()
        for size in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(UserError, match="cut off"):
                read_colmap(tmp_path)
        (tmp_path / name).write_bytes(whole)
    assert len(read_colmap(tmp_path)) == 3


# --- calibrations ---------------------------------------------------------------------------------------------------

TABLE = """
[cam]
name = "left"
size = [{size}]
matrix = [[500.0, 0.0, 270.0], [0.0, 510.0, 480.0], [0.0, 0.0, {one}]]
distortions = [{distortions}]
rotation = [0.3, -0.5, 0.2]
translation = [0.4, -0.2, {z}]
fisheye = {fisheye}
[metadata]
error = 0.0
"""
VALUES = {"size": "540.0, 960.0", "distortions": "0.1, -0.05, 1e-3, 2e-3", "one": 1, "z": 0.6, "fisheye": "false"}


def calibration(path: Path, **changed: Any) -> Path:
    path.write_text(TABLE.format(**{**VALUES, **changed}))
    return path


@pytest.mark.parametrize("fisheye", [False, True])
def test_a_calibration_sees_points_where_opencv_does_and_half_a_pixel_on(tmp_path: Path, fisheye: bool) -> None:
    camera = read_calibration(calibration(tmp_path / "c.toml", fisheye=str(fisheye).lower()))["left"]
    matrix, lens = np.array([[500.0, 0, 270], [0, 510, 480], [0, 0, 1]]), np.array([0.1, -0.05, 1e-3, 2e-3])
    project = cv2.fisheye.projectPoints if fisheye else cv2.projectPoints
    expected, _ = project(WORLD[:, None], np.array([0.3, -0.5, 0.2]), SHIFT, matrix, lens)
    assert np.allclose(camera.project_points(WORLD)[0], expected[:, 0] + 0.5, atol=1e-9)
    assert (camera.width, camera.height) == (540, 960)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": "960.0, 540.0"}, "size is 960 x 540, but its matrix is for 540 x 960"),
        ({"distortions": "0.1, 0.2, 0.3"}, "4 or 5 or 8 numbers"),
        ({"fisheye": "true", "distortions": "0.1, 0.2, 0.3, 0.4, 0.5"}, "0 or 4 numbers"),
        ({"one": 2}, "not that of a lens"),
        ({"z": "nan"}, "not a finite number"),
        ({"z": "]"}, "not TOML"),
    ],
)
def test_a_calibration_that_is_none_is_refused(tmp_path: Path, changed: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_calibration(calibration(tmp_path / "c.toml", **changed))


def test_another_toml_is_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(UserError, match="is not a calibration"):
        read_calibration(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("a = " + "[" * 50_000)
    with pytest.raises(UserError):
        read_calibration(tmp_path / "c.toml")


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_a_damaged_calibration_is_read_or_refused(tmp_path_factory: Any, at: int, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    data = bytearray(TABLE.format(**VALUES).encode())
    data[at % len(data) : at % len(data) + len(junk)] = junk
    path.write_bytes(data)
    try:
        read_calibration(path)
    except UserError as error:
        assert "damaged.toml" in str(error)


def test_recorded_joints_are_seen_on_the_body_in_three_calibrated_videos(shared_data: Path) -> None:
    home = shared_data / "pose2sim-balancing"
    cameras = read_calibration(home / "Calib_qualisys.toml")
    track = read_trc(next(home.glob("pose-3d/*filt_butterworth.trc")), axes="zxy")
    assert list(cameras) == ["cam_01", "cam_02", "cam_03", "cam_04"]
    for number in (1, 2, 3):
        off: list[float] = []
        for t in range(0, 100, 5):
            people = json.loads((home / f"pose/cam0{number}_json/cam0{number}.{t:04d}.json").read_text())["people"]
            points = np.concatenate([np.reshape(one["pose_keypoints_2d"], (-1, 3)) for one in people])
            points = points[points[:, 2] > 0.1, :2] + 0.5
            pixels, _, seen = cameras[f"cam_0{number}"].project_points(track.positions[t])
            assert seen.all()
            off += np.linalg.norm(pixels[:, None] - points[None], axis=2).min(axis=1).tolist()
        assert np.median(off) < 20

"""Scene folders: what is written is read back, everything is brought to one size, what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from neural_fields.core.errors import UserError
from neural_fields.data.capture.bones_json import read_bones, write_bones, write_states
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.capture import Capture
from neural_fields.data.capture.capture_folder import read_capture, write_capture
from neural_fields.data.capture.skeleton import NO_PARENT, SkeletonMotion, build_skeleton, compose_transforms

COUNT, SIZE = 12, (48, 32)


def small_capture() -> Capture:
    """Twelve views of six moments."""
    random = np.random.default_rng(0)
    cameras = []
    for index in range(COUNT):
        pose = compute_look_at_pose(
            np.array([4 * np.cos(index / 3), 1, 4 * np.sin(index / 3)]), np.zeros(3), np.array([0, 1.0, 0])
        )
        cameras.append(Camera(*SIZE, (40 + index / 7, 41.0), (24.1, 15.8), pose, (0.01, 0.02, 1e-3, 0.0)))
    skeleton, _ = build_skeleton(
        ("hips", "head", "cup"), (NO_PARENT, 0, 0), np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0.0]]), [2]
    )
    angles = np.linspace(0, 1, COUNT // 2)
    turns = [[cv2.Rodrigues(np.array([0, angle * b, 0]))[0] for b in (1, 2, 3)] for angle in angles]
    motion = SkeletonMotion(
        skeleton, np.array([compose_transforms(skeleton, np.array(t), np.ones((3, 3))) for t in turns])
    )
    frames = random.integers(0, 255, (COUNT, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    masks = np.zeros((COUNT, SIZE[1], SIZE[0]), bool)
    masks[:, 8:20, 10:30] = True
    return Capture(tuple(cameras), frames, tuple(t // 2 for t in range(COUNT)), masks, motion, (2, 4))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_capture(tmp_path / "scene", small_capture())
    return tmp_path / "scene"


def edited(scene: Path, change: Callable[[dict], object]) -> None:
    data = json.loads((scene / "transforms.json").read_text())
    change(data)
    (scene / "transforms.json").write_text(json.dumps(data))


def without_times(scene: Path) -> None:
    edited(scene, lambda data: [frame.pop("time") for frame in data["frames"]])


def camera_values(capture: Capture) -> list:
    plain = [replace(camera, pose=np.eye(4)) for camera in capture.cameras]
    return [str(plain), np.array([camera.pose for camera in capture.cameras]).tolist()]


def test_a_capture_is_read_back_as_it_was_written(scene: Path) -> None:
    capture, found = small_capture(), read_capture(scene)
    assert camera_values(found) == camera_values(capture)
    assert np.array_equal(found.frames, capture.frames)
    assert found.masks is not None and capture.masks is not None and np.array_equal(found.masks, capture.masks)
    assert (found.times, found.switches, found.notes) == (capture.times, capture.switches, ())
    assert found.motion is not None and capture.motion is not None
    assert np.array_equal(found.motion.transforms, capture.motion.transforms)
    assert found.motion.skeleton.object_joints == (2,) and found.state_count == 3 and found.size == SIZE
    assert sorted(file.name for file in scene.iterdir()) == [
        "bones.json", "images", "masks", "states.json", "transforms.json",
    ]  # fmt: skip


def test_a_still_scene_needs_cameras_and_pictures_only(tmp_path: Path) -> None:
    capture = replace(small_capture(), masks=None, motion=None, switches=(), times=tuple(range(COUNT)))
    (tmp_path / "still").mkdir()
    write_capture(tmp_path / "still", capture)
    without_times(tmp_path / "still")
    found = read_capture(tmp_path / "still")
    assert found.masks is None and found.motion is None and found.times == tuple(range(COUNT))


def test_nothing_is_written_into_a_folder_that_holds_something(scene: Path) -> None:
    before = sorted(scene.rglob("*"))
    with pytest.raises(UserError, match="exists already"):
        write_capture(scene, small_capture())
    assert sorted(scene.rglob("*")) == before and [file.name for file in scene.parent.iterdir()] == ["scene"]


def test_a_smaller_capture_averages_pictures_and_sees_points_at_the_same_share(scene: Path) -> None:
    whole, half = read_capture(scene), read_capture(scene, size=(24, 16))
    means = whole.frames.reshape(COUNT, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    assert np.abs(half.frames - means).max() <= 0.5 + 1e-9
    assert half.masks is not None and np.array_equal(half.masks[:, 4:10, 5:15], np.ones((COUNT, 6, 10), bool))
    assert half.masks.sum() == COUNT * 60
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    for large, small in zip(whole.cameras, half.cameras, strict=True):
        assert (small.width, small.height) == (24, 16)
        assert np.allclose(large.project_points(points)[0] / 2, small.project_points(points)[0])
    assert read_capture(scene, size=(60, 50)).frames.shape == (COUNT, 50, 60, 3)


def test_without_times_the_moments_are_the_names_in_order(scene: Path) -> None:
    without_times(scene)
    motion = read_bones(scene / "bones.json")
    write_bones(scene / "bones.json", SkeletonMotion(motion.skeleton, np.repeat(motion.transforms, 2, axis=0)))
    edited(scene, lambda data: data["frames"].reverse())
    found = read_capture(scene)
    assert found.times == tuple(range(COUNT)) and np.array_equal(found.frames, small_capture().frames)


def test_masks_are_found_by_the_pictures_names(scene: Path) -> None:
    edited(scene, lambda data: [frame.pop("mask_path") for frame in data["frames"]])
    (scene / "masks/00003.png").rename(scene / "masks/00003.png.png")  # as COLMAP calls them
    shown = np.asarray(Image.open(scene / "masks/00005.png"))
    Image.fromarray(shown).resize((96, 64), Image.Resampling.NEAREST).save(scene / "masks/00005.png")
    found = read_capture(scene)
    wanted = small_capture().masks
    assert found.masks is not None and wanted is not None and np.array_equal(found.masks, wanted)


def test_empty_masks_and_pictures_without_cameras_are_said(scene: Path) -> None:
    for name in ("00002", "00007"):
        Image.new("L", SIZE).save(scene / f"masks/{name}.png")
    edited(scene, lambda data: data["frames"].pop(4))
    found = read_capture(scene)
    assert found.view_count == COUNT - 1 and found.masks is not None
    assert found.notes == (
        "1 pictures have no camera and are left out, 00004.png first",
        "nobody is in 2 of 11 masks: 00002.png, 00007.png",
    )


def test_a_colmap_model_gives_the_cameras_where_there_is_no_transforms_json(tmp_path: Path) -> None:
    (tmp_path / "sparse/0").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "sparse/0/cameras.txt").write_text("1 SIMPLE_PINHOLE 48 32 40 24 16\n")
    lines = [f"{n} 1 0 0 0 0 0 {n} 1 frame{n}.png\n\n" for n in (9, 10)]
    (tmp_path / "sparse/0/images.txt").write_text("".join(lines))
    for n in (9, 10):
        Image.new("RGB", SIZE, (n, 0, 0)).save(tmp_path / f"images/frame{n}.png")
    found = read_capture(tmp_path)
    assert found.frames[:, 0, 0, 0].tolist() == [9, 10]
    assert [camera.position.tolist() for camera in found.cameras] == [[0, 0, -9], [0, 0, -10]]


def blacken(scene: Path) -> None:
    for mask in (scene / "masks").iterdir():
        Image.new("L", SIZE).save(mask)


def unmask(scene: Path) -> None:
    edited(scene, lambda data: [frame.pop("mask_path") for frame in data["frames"]])
    for mask in (scene / "masks").iterdir():
        mask.unlink()


def rename_masks(scene: Path) -> None:
    edited(scene, lambda data: [frame.pop("mask_path") for frame in data["frames"]])
    for mask in (scene / "masks").iterdir():
        mask.rename(mask.with_name(f"mask_{mask.name}"))


def unlisted(scene: Path) -> None:
    """Bones for the listed pictures, in whose order another one was before."""
    without_times(scene)
    edited(scene, lambda data: data["frames"].pop(3))
    motion = read_bones(scene / "bones.json")
    index = np.arange(COUNT - 1) // 2
    write_bones(scene / "bones.json", SkeletonMotion(motion.skeleton, motion.transforms[index]))


def two_sizes(scene: Path) -> None:
    edited(scene, lambda data: data["frames"][2].update(w=32, h=48))
    Image.new("RGB", (32, 48)).save(scene / "images/00002.png")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no cameras": (lambda s: (s / "transforms.json").unlink(), "the scene has no cameras"),
    "no picture": (lambda s: (s / "images/00003.png").unlink(), "1 of 12 pictures that have cameras are missing"),
    "damaged picture": (lambda s: (s / "images/00003.png").write_bytes(b"\x89PNG"), r"00003\.png is not a picture"),
    "other picture": (
        lambda s: Image.new("RGB", (40, 32)).save(s / "images/00003.png"),
        r"00003\.png is 40x32, its camera 48x32",
    ),
    "two sizes": (two_sizes, r"48x32 \(11\), 32x48 \(1\)"),
    "bones short": (lambda s: edited(s, lambda d: d["frames"][3].update(time=6)), "shows moment 6, which bones.json"),
    "bones long": (without_times, "bones.json has 6 frames for 12 pictures"),
    "camera missing": (unlisted, r"1 pictures have no camera: 00003\.png"),
    "no masks": (unmask, "there is bones.json but no mask"),
    "other masks": (rename_masks, "no mask is called like a picture"),
    "a mask missing": (lambda s: (s / "masks/00004.png").unlink(), r"1 of 12 pictures have no mask: 00004\.png"),
    "black masks": (blacken, "the masks are empty in all pictures"),
    "other mask": (
        lambda s: Image.new("L", (32, 32)).save(s / "masks/00004.png"),
        r"the mask 00004\.png is 32x32, its picture 48x32",
    ),
    "late switch": (lambda s: write_states(s / "states.json", (2, 6)), "a switch at 6 in states.json, beyond the end"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_scene_that_does_not_fit_together_is_refused(scene: Path, case: str) -> None:
    change, words = BAD[case]
    change(scene)
    with pytest.raises(UserError, match=words) as error:
        read_capture(scene)
    assert str(scene) in str(error.value)


def test_a_picture_turned_by_its_tag_is_told_from_its_camera(scene: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(small_capture().frames[3]).save(scene / "images/00003.png", exif=exif)
    with pytest.raises(UserError, match="EXIF tag of the picture says portrait"):
        read_capture(scene)


def test_no_folder_is_no_scene(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        read_capture(tmp_path / "nowhere")

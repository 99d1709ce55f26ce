"""From videos to a scene folder: which camera filmed what, masks against a known scene, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from editors.cli.main import main
from neural_fields.core.errors import UserError
from neural_fields.data.capture import build, pose_estimation
from neural_fields.data.capture.background_subtraction import (
    BodyViews,
    find_trunk_joints,
    learn_background,
    segment_person,
)
from neural_fields.data.capture.bones_json import write_bones, write_states
from neural_fields.data.capture.build import build_capture
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.capture_folder import read_capture
from neural_fields.data.capture.options import CaptureBuildOptions
from neural_fields.data.capture.pose_estimation import PoseNetwork
from neural_fields.data.capture.pose_landmarks import (
    LANDMARK_SKELETON,
    LANDMARKS,
    PersonDetection,
    compute_skeleton_joints,
    triangulate_landmarks,
)
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.data.capture.transforms_json import PosedImage, write_transforms
from neural_fields.data.masks.layer_masks import mask_iou
from neural_fields.data.synthetic import walking_person
from neural_fields.data.synthetic.scene import make_scene
from neural_fields.data.video.image_sequence import write_images

pytestmark = pytest.mark.slow

SIZE = 120, 160
COUNT = 8
UP = np.array([0.0, 0.0, 1.0])


def camera(angle: float = 0.0, size: tuple[int, int] = SIZE) -> Camera:
    place = np.array([3.2 * np.sin(angle), -3.2 * np.cos(angle), 1.6])
    pose = compute_look_at_pose(place, np.array([0.0, 0.0, 0.9]), UP)
    return Camera(*size, (float(size[1]), float(size[1])), (size[0] / 2, size[1] / 2), pose)


def walked(moments: list[int]) -> SkeletonMotion:
    whole = walking_person.make_walk(40)
    return replace(whole, transforms=whole.transforms[moments])


@cache
def filmed(moments: tuple[int, ...], angles: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with a little noise, and true masks; one moment and one place of the camera a picture."""
    cameras = [camera(angle) for angle in angles]
    scene = make_scene(walked(list(moments)), cameras)
    views = [scene.compute_view(place, time) for time, place in enumerate(cameras)]
    noise = np.random.default_rng(0).normal(0, 2.5, (len(views), SIZE[1], SIZE[0], 3))
    frames = np.stack([view.rgb * 255 for view in views]) + noise
    return frames.round().clip(0, 255).astype(np.uint8), np.stack([view.mask for view in views])


MOVING = tuple(range(0, 40, 5))
STILL = (0.3,) * COUNT


def overlap(masks: np.ndarray | None, truth: np.ndarray) -> float:
    assert masks is not None
    return float(np.mean([mask_iou(a, b) for a, b in zip(masks, truth, strict=True)]))


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moments", "angles", "least"),
    [
        (MOVING, STILL, 0.85),  # the walker uncovers the room
        ((0, 0, 0, 0, 1, 1, 1, 1), STILL, 0.8),  # the median of all frames would be the walker
        (MOVING, tuple(np.linspace(-0.8, 0.8, COUNT)), 0.75),  # a moving camera: there is no median
    ],
)
def test_bones_give_masks_that_agree_with_the_truth(
    moments: tuple[int, ...], angles: tuple[float, ...], least: float
) -> None:
    frames, truth = filmed(moments, angles)
    body = BodyViews(tuple(camera(angle) for angle in angles), walked(list(moments)))
    assert overlap(segment_person(frames, body, still=len(set(angles)) == 1), truth) > least


def test_without_bones_what_differs_from_a_still_background_is_the_person() -> None:
    frames = np.random.default_rng(1).normal(120, 2, (12, 60, 80, 3))
    truth = np.zeros((12, 60, 80), bool)
    for index in range(12):
        truth[index, 20:50, 6 * index : 6 * index + 8] = True
    frames[truth] += 60
    found = segment_person(frames.round().astype(np.uint8), None, still=True)
    assert overlap(found, truth) > 0.95
    assert segment_person(frames[:1].repeat(5, axis=0).round().astype(np.uint8), None, still=True) is None


def test_a_few_pixels_are_no_person() -> None:
    frames = np.random.default_rng(1).normal(120, 2, (6, 120, 160, 3))
    frames[3, 50:53, 70:73] += 90
    assert segment_person(frames.round().astype(np.uint8), None, still=True) is None


def test_the_background_is_learnt_where_the_person_is_not() -> None:
    behind = np.random.default_rng(2).integers(0, 200, (20, 30, 3))
    frames = np.repeat(behind[None], 10, axis=0)
    frames[:7, 5:15, 10:20] = 255  # in most frames the person stands here
    frames[:, 0:3, 0:3] = 255  # and always here

    def covered(index: int) -> np.ndarray:
        return (frames[index] == 255).all(axis=-1)

    found = learn_background(frames.astype(np.uint8), covered)
    assert np.array_equal(~found.known, np.pad(np.ones((3, 3), bool), ((0, 17), (0, 27))))
    assert np.array_equal(found.color[found.known], behind[found.known].astype(np.float32))


def test_the_trunk_is_what_two_limbs_leave_from_and_hands_with_fingers_are_none() -> None:
    skeleton = walking_person.make_person_skeleton()
    assert {skeleton.names[joint] for joint in find_trunk_joints(skeleton)} == {"pelvis", "spine", "chest"}


# --- scenes ---------------------------------------------------------------------------------------------------------


def write_calibration(path: Path, cameras: dict[str, Camera]) -> Path:
    """A calibration as Pose2Sim writes it, whose first pixel has its center at 0."""
    lines = []
    for name, seen in cameras.items():
        turn = seen.pose[:3, :3].T
        matrix = seen.intrinsic_matrix - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        lines += [f"[{name}]", f'name = "{name}"', f"size = [{seen.width}.0, {seen.height}.0]"]
        lines += [f"matrix = {matrix.tolist()}", "distortions = [0.0, 0.0, 0.0, 0.0]"]
        lines += [f"rotation = {cv2.Rodrigues(turn)[0].ravel().tolist()}"]
        lines += [f"translation = {(-turn @ seen.position).tolist()}"]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def films(tmp_path: Path) -> SimpleNamespace:
    """Two synchronised videos of a walker, their calibration with one camera too many, and the bones."""
    angles = {"cam_01": -0.4, "cam_02": 0.3, "cam_03": 1.0}
    videos = []
    for name in ("cam01", "cam02"):
        videos.append(tmp_path / name)
        write_images(videos[-1], iter(filmed(MOVING, (angles[f"cam_{name[3:]}"],) * COUNT)[0]))
    cameras = {name: camera(angle) for name, angle in angles.items()}
    write_bones(tmp_path / "bones.json", walked(list(MOVING)))
    return SimpleNamespace(
        videos=videos,
        cameras=cameras,
        calibration=write_calibration(tmp_path / "rig.toml", cameras),
        bones=tmp_path / "bones.json",
        out=tmp_path / "scene",
    )


def test_videos_that_were_filmed_together_become_one_scene(films: SimpleNamespace, tmp_path: Path) -> None:
    write_states(tmp_path / "changes.json", [1, 3, 5])
    options = CaptureBuildOptions(
        films.calibration, films.bones, frames="2:8:2", size="80x100", states=tmp_path / "changes.json"
    )
    built = build_capture(films.out, films.videos, options)
    scene = read_capture(films.out)
    assert built.views == scene.view_count == 6 and built.size == scene.size == (80, 100)
    assert scene.times == (0, 1, 2) * 2 and scene.switches == (1, 2)  # of frames 2, 4 and 6
    assert scene.motion is not None and scene.masks is not None
    assert np.allclose(scene.motion.transforms, walked(list(MOVING)).transforms[2:8:2])
    for view, name in ((0, "cam_01"), (5, "cam_02")):
        wanted = films.cameras[name].resize(80, 100)
        assert np.allclose(scene.cameras[view].pose, wanted.pose, atol=1e-6)
        assert np.allclose(scene.cameras[view].center + scene.cameras[view].focal, wanted.center + wanted.focal)
    truth = filmed(MOVING, (0.3,) * COUNT)[1][2:8:2].astype(np.uint8)
    shrunk = np.stack([cv2.resize(mask, (80, 100), interpolation=cv2.INTER_AREA) for mask in truth]) > 0
    assert overlap(scene.masks[3:], shrunk) > 0.75
    assert "cam02 was filmed by camera cam_02 (by its name)" in built.notes
    assert any("1 of 3 switches" in note for note in built.notes)


def test_the_command_makes_a_scene_and_says_what_comes_next(
    films: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    words = ["capture", str(films.out), *map(str, films.videos), "--cameras", str(films.calibration)]
    assert main([*words, "--bones", str(films.bones), "--frames", "0:3"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(films.out)
    assert "6 views of 3 moments, 120x160" in said.err and "--config hosnerf" in said.err
    assert main([*words, "--masks", "none"]) == 3  # it exists already
    assert f"error: {films.out} exists already" in capsys.readouterr().err


def test_masks_can_be_given_one_path_a_video_or_left_out(films: SimpleNamespace, tmp_path: Path) -> None:
    truth = filmed(MOVING, (0.3,) * COUNT)[1]
    np.save(tmp_path / "mask.npy", truth)
    given = (str(tmp_path / "mask.npy"),) * 2
    options = CaptureBuildOptions(films.calibration, films.bones, masks=given, frames="0:4")
    build_capture(films.out, films.videos, options)
    masks = read_capture(films.out).masks
    assert masks is not None and np.array_equal(masks[4:], truth[:4])
    build_capture(
        tmp_path / "bare", films.videos, CaptureBuildOptions(films.calibration, masks=("none",), frames="0:4")
    )
    bare = read_capture(tmp_path / "bare")
    assert bare.masks is None and bare.motion is None


def pictures(tmp_path: Path, names: list[str]) -> Path:
    """A transforms.json of a camera on its way."""
    way = np.linspace(-0.8, 0.8, len(names))
    posed = [PosedImage(tmp_path / "images" / name, camera(at)) for name, at in zip(names, way, strict=True)]
    write_transforms(tmp_path / "transforms.json", posed)
    return tmp_path / "transforms.json"


def test_frames_that_the_cameras_leave_out_are_left_out_of_the_scene(films: SimpleNamespace, tmp_path: Path) -> None:
    found = pictures(tmp_path, [f"frame_{number:05d}.png" for number in (1, 2, 4, 5, 8)])
    built = build_capture(films.out, films.videos[:1], CaptureBuildOptions(found, films.bones))
    scene = read_capture(films.out)
    assert scene.times == (0, 1, 3, 4, 7)
    assert scene.motion is not None and scene.motion.frame_count == COUNT
    assert np.allclose(scene.cameras[2].pose, camera(0.0).pose)
    assert any("3 of 8 frames of cam01 have no camera" in note for note in built.notes)


def refused(films: SimpleNamespace, **changes: object) -> UserError:
    given = {"videos": films.videos, "cameras": films.calibration, "bones": films.bones, **changes}
    videos = given.pop("videos")
    with pytest.raises(UserError) as caught:
        build_capture(films.out, videos, CaptureBuildOptions(**given))
    assert not films.out.exists()
    return caught.value


def test_cameras_that_do_not_belong_to_the_videos_are_refused(films: SimpleNamespace, tmp_path: Path) -> None:
    stranger = tmp_path / "north"
    films.videos[0].rename(stranger)
    error = refused(films, videos=[stranger, films.videos[1]])
    assert "2 videos and 3 cameras" in error.what and "cam_03" in error.why
    lying = {name: camera(0.3, (SIZE[1], SIZE[0])) for name in ("cam_01", "cam_02")}
    error = refused(films, videos=[films.videos[1]], cameras=write_calibration(tmp_path / "lying.toml", lying))
    assert error.what == "frame 0 of cam02 is 120x160, its camera 160x120" and "portrait" in error.why
    every_third = pictures(tmp_path, ["1.png", "2.png", "3.png"])
    assert refused(films, videos=[films.videos[1]], cameras=every_third).fix.endswith("--frames 0:8:3")
    assert "no cameras" in refused(films, videos=films.videos[1:], cameras=tmp_path / "nowhere.json").what


def test_cameras_without_a_name_in_common_go_by_order_and_that_is_said(films: SimpleNamespace, tmp_path: Path) -> None:
    two = {name: films.cameras[key] for name, key in (("left", "cam_01"), ("right", "cam_02"))}
    options = CaptureBuildOptions(write_calibration(tmp_path / "two.toml", two), films.bones, frames="0:2")
    built = build_capture(films.out, films.videos, options)
    assert "cam02 was filmed by camera right (by order: no names agree)" in built.notes


def test_videos_and_bones_of_other_lengths_or_places_are_refused(films: SimpleNamespace, tmp_path: Path) -> None:
    (films.videos[1] / "00007.png").unlink()
    error = refused(films)
    assert error.what == "cam02 has 7 frames, cam01 has 8" and "frame 7" in error.why and "0:7" in error.fix
    write_bones(tmp_path / "short.json", walked([0, 1, 2]))
    error = refused(films, videos=films.videos[:1], bones=tmp_path / "short.json")
    assert "short.json has 3 frames, the videos have 8" in error.what
    away = walked(list(MOVING))
    away.transforms[..., :3, 3] *= 100
    write_bones(tmp_path / "away.json", away)
    error = refused(films, videos=films.videos[:1], bones=tmp_path / "away.json")
    assert "of the bones' joints are in the pictures" in error.what and "--joints-scale" in error.fix
    assert "no masks" in refused(films, videos=films.videos[:1], masks=("none",)).what
    assert "--masks" in refused(films, videos=films.videos[:1], masks=("a", "b")).what


# --- pose networks --------------------------------------------------------------------------------------------------


def body_points(moments: int) -> np.ndarray:
    points = np.random.default_rng(3).uniform((-0.3, -0.2, 0.1), (0.3, 0.2, 1.7), (1, len(LANDMARKS), 3))
    return points + np.linspace(0, 0.2, moments)[:, None, None]


def sighting(seen: Camera, points: np.ndarray) -> PersonDetection:
    return PersonDetection(seen.project_points(points)[0], np.ones(len(points)), np.zeros((len(points), 3)), None)


def test_points_are_found_although_a_camera_swaps_left_and_right_and_loses_one() -> None:
    cameras, points = [camera(angle) for angle in (-0.8, 0.1, 0.9)], body_points(6)
    detections = [[sighting(seen, places) for places in points] for seen in cameras]
    mirrored = [LANDMARKS.index(name.replace("left", "#").replace("right", "left").replace("#", "right"))
                for name in LANDMARKS]  # fmt: skip
    for moment in (2, 3):
        detections[1][moment] = sighting(cameras[1], points[moment][mirrored])
    detections[2][4].pixels[0] += 40  # the nose, far off
    hidden = detections[0][5].visibility, detections[1][5].visibility
    for visible in hidden:
        visible[LANDMARKS.index("left_knee")] = 0.4  # seen well by one camera only
    views: list[list[tuple[Camera, PersonDetection | None]]] = [
        [(seen, detection) for detection in row] for seen, row in zip(cameras, detections, strict=True)
    ]
    views[2][1] = (cameras[2], None)
    found = triangulate_landmarks(views)
    wrong = np.linalg.norm(found.points - points, axis=2)
    assert found.filled_count == 1 and found.median_error_px < 1e-6
    assert wrong[2:4].max() < 1e-9  # away from the ends a median of five keeps a steady motion
    assert np.linalg.norm(compute_skeleton_joints(found.points)[3, 0] - points[3, 23:25].mean(axis=0)) < 1e-9


def triangulate(cameras: list[Camera], detections: list[list[PersonDetection]]) -> np.ndarray:
    return triangulate_landmarks(
        [[(seen, detection) for detection in row] for seen, row in zip(cameras, detections, strict=True)]
    ).points


def test_a_camera_that_is_far_off_the_others_point_does_not_count() -> None:
    cameras, points = [camera(angle) for angle in (-0.8, 0.1, 0.9)], body_points(1)
    detections = [[sighting(seen, points[0])] for seen in cameras]
    detections[2][0].pixels[0] += 40
    assert np.allclose(triangulate(cameras, detections), points, atol=1e-9)


def test_a_jump_for_two_moments_is_no_movement() -> None:
    cameras, points = [camera(angle) for angle in (-0.8, 0.1)], body_points(1).repeat(7, axis=0)
    seen_points = points.copy()
    seen_points[3:5, 0] += 0.3
    detections = [[sighting(seen, places) for places in seen_points] for seen in cameras]
    assert np.allclose(triangulate(cameras, detections), points, atol=1e-9)


def test_of_several_people_the_largest_that_is_likely_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, logits = np.zeros((1, 2254, 12)), np.full((1, 2254, 1), -10.0)
    for guess, (logit, reach) in enumerate([(3.0, 10.0), (2.0, 30.0), (0.5, 60.0)]):
        logits[0, guess], boxes[0, guess, 6] = logit, reach  # from the hips to the edge point
    monkeypatch.setattr(pose_estimation, "_run_network", lambda *given: (boxes, logits))
    crop = PoseNetwork()._detect_person(np.zeros((224, 224, 3), np.uint8))
    assert crop is not None and crop.side == pytest.approx(2 * 1.25 * 30)
    boxes[:] = 0  # the network finds both points at the same place
    crop = PoseNetwork()._detect_person(np.zeros((224, 224, 3), np.uint8))
    assert crop is not None and crop.side > 8


class OnePerson:
    """Stands for the networks: sees the walker's bones where they are."""

    def forget_person(self) -> None:
        self.at = -1

    def find_person(self, frame: np.ndarray) -> PersonDetection:
        self.at += 1
        mask = np.zeros(frame.shape[:2], bool)
        mask[40:120, 50:70] = True
        return PersonDetection(np.full((33, 2), 60.0), np.ones(33), np.zeros((33, 3)), mask)


def test_one_camera_gives_landmarks_and_masks_but_no_bones(
    films: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.PoseNetwork, "load", lambda folder: OnePerson())
    options = CaptureBuildOptions(films.calibration, pose_model=Path("networks"), frames="0:3")
    built = build_capture(films.out, films.videos[:1], options)
    scene = read_capture(films.out)
    assert scene.motion is None and scene.masks is not None and scene.masks.sum() == 3 * 80 * 20
    assert any("one camera sees where joints are" in note for note in built.notes)
    written = json.loads((films.out / "landmarks.json").read_text())
    assert written["landmarks"] == list(LANDMARKS) and len(written["videos"][0]["frames"]) == 3
    assert written["videos"][0]["frames"][2]["points"][0] == [60.0, 60.0, 1.0]


def test_two_cameras_give_bones(films: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    points = body_points(3)
    shown = iter([sighting(films.cameras[name], places) for name in ("cam_01", "cam_02") for places in points])
    network = SimpleNamespace(forget_person=lambda: None, find_person=lambda frame: next(shown))
    monkeypatch.setattr(build.PoseNetwork, "load", lambda folder: network)
    options = CaptureBuildOptions(films.calibration, pose_model=Path("networks"), frames="0:3", size="source")
    build_capture(films.out, films.videos, options)
    motion = read_capture(films.out).motion
    assert motion is not None and motion.skeleton.names == LANDMARK_SKELETON[0]
    assert np.allclose(motion.compute_joint_positions(1), compute_skeleton_joints(points)[1], atol=1e-6)


def test_networks_that_cannot_run_are_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no pose networks"):
        PoseNetwork.load(tmp_path)
    (tmp_path / "selfie_segmentation.tflite").write_bytes(b"nothing")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(UserError) as caught:
        PoseNetwork.load(tmp_path)
    assert "LiteRT" in caught.value.what and "'.[pose]'" in caught.value.fix


def test_networks_see_a_running_man(shared_weights: Path, shared_data: Path) -> None:
    pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is not installed: the extra `pose`")
    network = PoseNetwork.load(shared_weights / "mediapipe")
    clip = shared_data / "davis-parkour"
    for number in (40, 41):
        frame = cv2.imread(str(clip / "frames" / f"{number:05d}.jpg"))[..., ::-1]
        truth = cv2.imread(str(clip / "masks" / f"{number:05d}.png"), cv2.IMREAD_GRAYSCALE) > 127
        seen = network.find_person(np.ascontiguousarray(frame))
        assert seen is not None and seen.mask is not None and mask_iou(seen.mask, truth) > 0.9
        columns, rows = seen.pixels[[11, 12, 23, 24]].round().astype(int).T  # shoulders and hips
        assert truth[rows, columns].all()


def test_joints_of_a_real_recording_lie_in_its_masks(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "pose2sim-balancing"
    joints = folder / "pose-3d" / "S00_P00_T01_BalancingTrial_0-100_filt_butterworth.trc"
    options = CaptureBuildOptions(
        folder / "Calib_qualisys.toml", joints=joints, joints_axes="zxy", frames="0:40:10", size="120p"
    )
    build_capture(tmp_path / "scene", [folder / "videos" / "cam02.mp4"], options)
    scene = read_capture(tmp_path / "scene")
    assert scene.motion is not None and scene.masks is not None
    limbs = [i for i, name in enumerate(scene.motion.skeleton.names) if name[1:] in ("Knee", "Elbow", "Shoulder")]
    for view, seen in enumerate(scene.cameras):
        columns, rows = seen.project_points(scene.motion.compute_joint_positions(view)[limbs])[0].astype(int).T
        assert scene.masks[view][rows, columns].mean() > 0.8
        assert 0.02 < scene.masks[view].mean() < 0.12

"""Bones from files and from joints: motions come back, joints stay where they were seen, bad files are named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from neural_fields.core.errors import UserError
from neural_fields.data.capture.bones_json import read_bones, read_states, write_bones, write_states
from neural_fields.data.capture.bvh import read_bvh
from neural_fields.data.capture.rigid_transforms import fit_rotations, parse_axes
from neural_fields.data.capture.skeleton import (
    NO_PARENT,
    SkeletonMotion,
    build_skeleton,
    compose_transforms,
    compute_local_pose,
)
from neural_fields.data.capture.smpl import SMPL_JOINTS, compute_smpl_motion, motion_from_axis_angles, read_smpl
from neural_fields.data.capture.trc_joints import (
    JointTrack,
    add_object_bones,
    fit_body_motion,
    fit_motion_to_joints,
    read_trc,
)

NAMES = ("hips", "chest", "arm", "hand", "leg")
PARENTS = (NO_PARENT, 0, 1, 2, 0)
REST = np.array([[0, 1, 0], [0, 1.5, 0], [0.3, 1.5, 0], [0.6, 1.5, 0.1], [0.1, 0.5, 0.0]])


def random_motion(frames: int = 4, seed: int = 0) -> SkeletonMotion:
    random = np.random.default_rng(seed)
    skeleton, _ = build_skeleton(NAMES, PARENTS, REST, (3,))
    shifts = np.zeros((len(NAMES), 3))
    poses = []
    for _ in range(frames):
        shifts[0] = random.normal(size=3)
        poses.append(compose_transforms(skeleton, Rotation.random(len(NAMES), random).as_matrix(), shifts))
    return SkeletonMotion(skeleton, np.array(poses))


def places(motion: SkeletonMotion) -> np.ndarray:
    return np.array([motion.compute_joint_positions(frame) for frame in range(motion.frame_count)])


# --- bones.json and states.json -------------------------------------------------------------------------------------


def test_bones_are_read_back_to_the_last_digit(tmp_path: Path) -> None:
    motion = random_motion()
    write_bones(tmp_path / "bones.json", motion)
    found = read_bones(tmp_path / "bones.json")
    assert (found.skeleton.names, found.skeleton.parents, found.skeleton.object_joints) == (NAMES, PARENTS, (3,))
    assert np.array_equal(found.skeleton.rest_positions, REST) and np.array_equal(found.transforms, motion.transforms)


def test_joints_in_any_order_are_put_behind_their_parents(tmp_path: Path) -> None:
    motion = random_motion()
    write_bones(tmp_path / "bones.json", motion)
    data = json.loads((tmp_path / "bones.json").read_text())
    data["joints"].reverse()
    for frame in data["frames"]:
        frame["transforms"] = [np.reshape(row, (4, 4)).tolist() for row in reversed(frame["transforms"])]
    (tmp_path / "bones.json").write_text(json.dumps(data))
    found = read_bones(tmp_path / "bones.json")
    assert all(parent < bone for bone, parent in enumerate(found.skeleton.parents))
    same = [found.skeleton.names.index(name) for name in NAMES]
    assert np.array_equal(found.transforms[:, same], motion.transforms)
    assert [found.skeleton.names[found.skeleton.parents[bone]] for bone in same[1:]] == ["hips", "chest", "arm", "hips"]
    assert found.skeleton.object_joints == (same[3],)


BAD_BONES: dict[str, tuple[dict[str, Any], str]] = {
    "schema": ({"schema": 2}, '"schema" is 2; this version reads 1'),
    "no joints": ({"joints": []}, "there is no joint"),
    "twice": ({"joints.4.name": "hand"}, "two joints are called 'hand'"),
    "nameless": ({"joints.1.name": ""}, "joint 1 has no name"),
    "unknown parent": ({"joints.2.parent": "shoulder"}, "the parent of the joint 'arm' is 'shoulder', which is no"),
    "circle": ({"joints.0.parent": "hand"}, "go round in a circle"),
    "own parent": ({"joints.0.parent": "hips"}, "go round in a circle"),
    "zero length": ({"joints.2.rest": [0, 1.5, 0]}, "the joint 'arm' is at rest where its parent 'chest' is"),
    "rest": ({"joints.2.rest": [0, 1]}, "'arm': 3 numbers were expected"),
    "no frames": ({"frames": []}, '"frames" is not a list'),
    "a joint short": ({"frames.1.transforms": [np.eye(4).tolist()] * 4}, "frame 1: 4 transforms for 5 joints"),
    "a scale": ({"frames.2.transforms.3": (np.diag([2.0, 2, 2, 1])).tolist()}, "frame 2: joint 'hand': .* scales"),
    "a mirror": (
        {"frames.2.transforms.3": (np.diag([-1.0, 1, 1, 1])).tolist()},
        "frame 2: joint 'hand': .*left-handed",
    ),
    "text": ({"frames.0.transforms.1": ["0"] * 16}, "frame 0: joint 'chest': '0' is not a number"),
    "nothing": ({"frames.3": None}, 'frame 3: it has no list "transforms"'),
}


@pytest.mark.parametrize("case", BAD_BONES)
def test_bones_that_cannot_be_used_are_refused_by_frame_and_joint(tmp_path: Path, case: str) -> None:
    write_bones(tmp_path / "bones.json", random_motion())
    data = json.loads((tmp_path / "bones.json").read_text())
    for key, value in BAD_BONES[case][0].items():
        *way, last = [int(step) if step.isdigit() else step for step in key.split(".")]
        place = data
        for step in way:
            place = place[step]
        place[last] = value
    (tmp_path / "bones.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=BAD_BONES[case][1]) as error:
        read_bones(tmp_path / "bones.json")
    assert str(tmp_path / "bones.json") in str(error.value)


def test_states_are_read_back_and_those_out_of_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "states.json"
    write_states(path, (3, 9))
    assert read_states(path, 10) == (3, 9)
    cases = [((9, 3), "do not rise: 9, 3"), ((3, 3), "do not rise"), ((-2, 3), "at -2"), ((0,), "at 0")]
    for switches, words in [*cases, ((4, 10), "beyond the end")]:
        write_states(path, switches)
        with pytest.raises(UserError, match=words):
            read_states(path, 10)
    for text in ('{"schema": 1}', '{"schema": 1, "switches": [1.5]}', '{"schema": 1, "switches": [true]}'):
        path.write_text(text)
        with pytest.raises(UserError, match="not a list of whole numbers"):
            read_states(path)


# --- rotations ------------------------------------------------------------------------------------------------------


def test_one_arrow_is_followed_without_twist_and_several_exactly() -> None:
    random = np.random.default_rng(1)
    one, other = random.normal(size=(2, 30, 1, 3))
    turn = fit_rotations(one, other)
    unit = other / np.linalg.norm(other, axis=2, keepdims=True)
    assert np.allclose(
        np.einsum("tij,tpj->tpi", turn, one) / np.linalg.norm(one, axis=2, keepdims=True), unit, atol=1e-5
    )
    axis = Rotation.from_matrix(turn).as_rotvec()
    assert np.abs(np.einsum("ti,tpi->tp", axis, one)).max() < 1e-4  # the smallest turn is about an axis across
    several, true = random.normal(size=(30, 4, 3)), Rotation.random(30, random).as_matrix()
    assert np.allclose(fit_rotations(several, np.einsum("tij,tpj->tpi", true, several)), true, atol=1e-5)
    assert np.allclose(fit_rotations(np.zeros((2, 0, 3)), np.zeros((2, 0, 3))), np.eye(3))


def test_axes_are_named_by_letters() -> None:
    assert (parse_axes("zxy") @ (1, 2, 3)).tolist() == [3, 1, 2]
    assert (parse_axes("x-zy") @ (1, 2, 3)).tolist() == [1, -3, 2]
    for wrong in ("xzy", "xy", "xxz", "x--zy", "-xyz", "abc", ""):
        with pytest.raises(ValueError, match="axes are three of"):
            parse_axes(wrong)


# --- BVH ------------------------------------------------------------------------------------------------------------

BVH = """HIERARCHY
ROOT Hips
{{
  OFFSET 5 90 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Thumb base
  {{
    OFFSET 0 0 0
    CHANNELS 3 {order}
    JOINT Arm
    {{
      OFFSET 10 0 0
      CHANNELS 1 Yrotation
      End Site
      {{
        OFFSET 4 0 0
      }}
    }}
  }}
}}
MOTION
Frames: 3
Frame Time: 0.04
0 0 0 0 0 0 0 0 0 0
1 2 3 90 0 0 0 0 0 0
1 2 3 90 40 10 {angles} 70
"""


def bvh(path: Path, order: str = "Zrotation Yrotation Xrotation", angles: str = "20 30 50", text: str = BVH) -> Path:
    path.write_text(text.format(order=order, angles=angles))
    return path


def turned(letters: str, *degrees: float) -> np.ndarray:
    angles = degrees if len(letters) > 1 else degrees[0]
    return Rotation.from_euler(letters, angles, degrees=True).as_matrix()


@pytest.mark.parametrize("letters", ["ZYX", "XYZ", "YZX"])
def test_bvh_angles_turn_in_the_order_of_their_channels(tmp_path: Path, letters: str) -> None:
    order = " ".join(f"{letter}rotation" for letter in letters)
    motion = read_bvh(bvh(tmp_path / "a.bvh", order), end_sites=True)
    assert motion.skeleton.names == ("Hips", "Arm", "Arm_end")  # the thumb's base lies on the hips
    assert motion.skeleton.parents == (NO_PARENT, 0, 1)
    assert motion.skeleton.rest_positions.tolist() == [[5, 90, 0], [15, 90, 0], [19, 90, 0]]
    hips, base, arm = turned("ZXY", 90, 40, 10), turned(letters, 20, 30, 50), turned("Y", 70)
    second, third = np.array([1, 2, 3]) + hips @ base @ (10, 0, 0), hips @ base @ arm @ (4, 0, 0)
    assert np.allclose(motion.compute_joint_positions(2), [[1, 2, 3], second, second + third])
    assert np.allclose(motion.compute_joint_positions(1), [[1, 2, 3], [1, 12, 3], [1, 16, 3]])
    assert np.allclose(motion.transforms[2, 0, :3, :3], hips)
    assert np.allclose(motion.transforms[2, 1:, :3, :3], hips @ base @ arm)


def test_bvh_units_axes_and_frames_are_chosen(tmp_path: Path) -> None:
    path = bvh(tmp_path / "a.bvh")
    whole, part = read_bvh(path), read_bvh(path, frames=range(0, 3, 2), scale=0.01, axes="zxy")
    assert part.frame_count == 2 and part.skeleton.bone_count == 2
    assert np.allclose(part.compute_joint_positions(1), 0.01 * whole.compute_joint_positions(2)[:, [2, 0, 1]])
    assert np.allclose(part.skeleton.rest_positions, 0.01 * whole.skeleton.rest_positions[:, [2, 0, 1]])
    for frames in (range(2, 5), range(0), range(-1, 2)):
        with pytest.raises(UserError, match="it holds 3 frames, 0 to 2"):
            read_bvh(path, frames=frames)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("HIERARCHY", "MOTIONS", "does not begin with HIERARCHY"),
        ("Frames: 3", "Frames: 4", "announces 4 frames and has 3"),
        ("Frames: 3", "", "no MOTION"),
        ("0 0 0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0 0", "frame 0 has 9 numbers for 10 channels"),
        ("1 2 3 90 0", "1 nan 3 90 0", "frame 1: nan is not a finite number"),
        ("1 2 3 90 0", "1 b 3 90 0", "frame 1: could not convert"),
        ("Yrotation\n      End", "Wrotation\n      End", "the channels of Arm: 'Wrotation'"),
        ("CHANNELS 1 ", "CHANNELS 9 ", "the channels of Arm"),
        ("OFFSET 10 0 0", "OFFSET 10 0 x", "the offset of Arm"),
        ("JOINT Arm", "JOINT Hips", "two joints are called 'Hips'"),
        ("JOINT Arm", "ROOT Arm", "ROOT Arm is at a wrong place"),
        ("  }}\n}}\n", "  }}\n", "hierarchy is cut off"),
        ("JOINT Arm", "LIMB Arm", "'LIMB' in the block of Thumb base"),
    ],
)
def test_a_bvh_file_that_is_damaged_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert BVH.count(old) >= 1
    with pytest.raises(UserError, match=words):
        read_bvh(bvh(tmp_path / "a.bvh", text=BVH.replace(old, new, 1)), end_sites=True)


def test_a_bvh_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = bvh(tmp_path / "a.bvh").read_text().rstrip()
    for size in range(0, len(whole) - 2, 3):
        (tmp_path / "a.bvh").write_text(whole[:size])
        with pytest.raises(UserError, match=r"a\.bvh"):
            read_bvh(tmp_path / "a.bvh")


def test_recorded_walks_keep_their_bones_and_stand_on_the_ground(shared_data: Path) -> None:
    for name, joints, ends in (("AV_8Walk_Meredith_HVHA_Rep1", 21, 26), ("aitviewer-sample", 23, 28)):
        motion = read_bvh(shared_data / f"mocap-bvh/{name}.bvh", frames=range(0, 1000, 40))
        assert (motion.skeleton.bone_count, motion.frame_count) == (joints, 25)
        seen = places(motion)
        for bone, parent in enumerate(motion.skeleton.parents[1:], 1):
            lengths = np.linalg.norm(seen[:, bone] - seen[:, parent], axis=1)
            assert np.allclose(
                lengths, np.linalg.norm(motion.skeleton.rest_positions[bone] - motion.skeleton.rest_positions[parent])
            )
        high = seen[..., 1]
        assert np.all(high.min(axis=1) > -1) and np.all(high.min(axis=1) < 0.05 * np.ptp(high))
        assert read_bvh(shared_data / f"mocap-bvh/{name}.bvh", end_sites=True).skeleton.bone_count == ends


# --- joints ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_bones_through_joints_carry_them_where_they_are_seen(seed: int) -> None:
    seen = np.random.default_rng(seed).normal(size=(5, 5, 3))  # lengths change too, as tracked ones do
    motion = fit_motion_to_joints(NAMES, PARENTS, seen)
    assert np.allclose(places(motion), seen, atol=1e-9)
    turns = motion.transforms[..., :3, :3]
    assert np.allclose(turns @ turns.swapaxes(-1, -2), np.eye(3)) and np.allclose(np.linalg.det(turns), 1)
    for bone, child in ((1, 2), (2, 3)):  # with one child a bone points at it
        rest = motion.skeleton.rest_positions[child] - motion.skeleton.rest_positions[bone]
        shown = seen[:, child] - seen[:, bone]
        along = np.einsum("tij,j,ti->t", turns[:, bone], rest, shown)
        assert np.allclose(along, np.linalg.norm(rest) * np.linalg.norm(shown, axis=1), rtol=1e-6)
    assert np.array_equal(turns[:, 3], turns[:, 2])  # a last bone turns with its parent


def test_a_body_that_moves_as_one_has_one_rotation() -> None:
    turns, shifts = Rotation.random(6, np.random.default_rng(0)).as_matrix(), np.arange(18.0).reshape(6, 3)
    motion = fit_motion_to_joints(NAMES, PARENTS, np.einsum("tij,bj->tbi", turns, REST) + shifts[:, None], rest_frame=2)
    assert np.allclose(motion.transforms[..., :3, :3], (turns @ turns[2].T)[:, None], atol=1e-5)
    lengths = [np.linalg.norm(REST[b] - REST[p]) for b, p in enumerate(PARENTS) if p != NO_PARENT]
    found = [
        np.linalg.norm(motion.skeleton.rest_positions[b] - motion.skeleton.rest_positions[p])
        for b, p in enumerate(PARENTS)
        if b
    ]
    assert np.allclose(found, lengths)


def test_a_swing_of_one_joint_turns_its_bone_alone() -> None:
    angles = np.radians([0, 20, 40])
    seen = np.tile(REST, (3, 1, 1))
    swing = Rotation.from_rotvec(angles[:, None] * (0, 0, 1)).as_matrix()
    seen[:, 3] = REST[2] + np.einsum("tij,j->ti", swing, REST[3] - REST[2])
    motion = fit_motion_to_joints(NAMES, PARENTS, seen, rest_frame=0)
    local = np.array([compute_local_pose(motion.skeleton, frame)[0] for frame in motion.transforms])
    assert np.allclose(local[:, [0, 1, 4]], np.eye(3), atol=1e-5)
    assert np.all(Rotation.from_matrix(local[:, 2]).magnitude() <= angles + 1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda seen: seen.__setitem__((2, 3), np.nan), "the joint 'hand' in frame 2"),
        (lambda seen: seen.__setitem__((slice(None), 2), seen[:, 1]), "'arm' is at rest where its parent"),
    ],
)
def test_joints_that_make_no_bones_are_refused(change: Any, words: str) -> None:
    seen = np.random.default_rng(0).normal(size=(4, 5, 3))
    change(seen)
    with pytest.raises(ValueError, match=words):
        fit_motion_to_joints(NAMES, PARENTS, seen)


def test_an_object_hangs_beyond_the_hand_and_moves_with_it() -> None:
    motion = random_motion()
    held = add_object_bones(motion, ["hand"])
    assert held.skeleton.names[-1] == "hand_object" and held.skeleton.parents[-1] == 3
    assert held.skeleton.object_joints == (3, 5)
    seen = places(held)
    assert np.allclose(held.skeleton.rest_positions[5], 2 * REST[3] - REST[2])
    assert np.allclose(np.linalg.norm(seen[:, 5] - seen[:, 3], axis=1), np.linalg.norm(REST[3] - REST[2]))
    assert np.array_equal(held.transforms[:, 5], motion.transforms[:, 3])
    further = add_object_bones(motion, ["hand"], ["chest"])
    assert np.allclose(further.skeleton.rest_positions[5], 2 * REST[3] - REST[1])
    for wrong in (["thumb"], ["hips"]):
        with pytest.raises(ValueError, match=wrong[0]):
            add_object_bones(motion, wrong)


HEAD = (
    "PathFileType\t4\t(X/Y/Z)\ta.trc\nDataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\n{rate}\t60\t{count}\t2\tm\n"
)
HEAD += "Frame#\tTime\tRHip\t\t\tLHip\t\t\n\t\tX1\tY1\tZ1\tX2\tY2\tZ2\n\n"
ROWS = "1\t0.0\t1\t2\t3\t4\t5\t6\n2\t0.1\t\t\t\t5\t6\t7\n3\t0.2\t3\t4\t5\t6\t7\t{last}\n"


def trc(path: Path, rate: str = "60", count: str = "3", last: str = "8") -> Path:
    path.write_text((HEAD + ROWS).format(rate=rate, count=count, last=last))
    return path


def test_joints_of_a_trc_file_are_turned_to_the_world_and_gaps_are_filled(tmp_path: Path) -> None:
    track = read_trc(trc(tmp_path / "a.trc"), axes="zxy", scale=10.0)
    assert (track.names, track.frame_rate, track.filled_count) == (("RHip", "LHip"), 60, 1)
    assert track.positions[:, 0].tolist() == [[30, 10, 20], [40, 20, 30], [50, 30, 40]]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"count": "4"}, "announces 4 frames and has 3"),
        ({"count": "nan"}, "nan frames"),
        ({"rate": "x"}, "DataRate, NumFrames or NumMarkers"),
        ({"last": ""}, None),
        ({"last": "inf"}, "line 9: inf is not a finite number"),
        ({"last": "8\t9"}, "line 9 has 7 coordinates"),
    ],
)
def test_a_trc_file_that_is_damaged_is_refused(tmp_path: Path, changed: dict, words: str | None) -> None:
    path = trc(tmp_path / "a.trc", **changed)
    if words is None:
        assert read_trc(path).filled_count == 2
        return
    with pytest.raises(UserError, match=words):
        read_trc(path)


def test_a_body_of_recorded_joints_stands_where_they_are(shared_data: Path) -> None:
    track = read_trc(next((shared_data / "pose2sim-balancing").glob("pose-3d/*filt_butterworth.trc")), axes="zxy")
    motion = fit_body_motion(track)
    own = [motion.skeleton.names.index(name) for name in track.names]
    assert motion.skeleton.bone_count == 22 and np.allclose(places(motion)[:, own], track.positions)
    turns = motion.transforms[..., :3, :3]
    cosine = (np.einsum("tbij,tbij->tb", turns[1:], turns[:-1]) - 1) / 2
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 30  # nothing flips between two frames
    with pytest.raises(ValueError, match="RAnkle has no parent: RKnee is missing"):
        few = [track.names.index(name) for name in ("RHip", "LHip", "RAnkle")]
        fit_body_motion(JointTrack(("RHip", "LHip", "RAnkle"), track.positions[:, few], 60.0))


# --- SMPL -----------------------------------------------------------------------------------------------------------


class TinyBody:
    """What the package smplx makes of a model file, as far as it is asked: 24 joints in a chain."""

    def __init__(self, path: str, num_betas: int, batch_size: int) -> None:
        if "SMPL_" not in path:
            raise AssertionError("wrong kind")
        self.parents = torch.arange(24) - 1

    def __call__(self, betas: torch.Tensor) -> Any:
        joints = torch.arange(1.0, 25)[:, None] * torch.tensor([0.1, 0.02, 0.0]) * (1 + betas.sum())
        return SimpleNamespace(joints=torch.cat([joints, torch.zeros(20, 3)])[None])


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    values = {"poses": random.normal(size=(3, 72)) / 3, "trans": random.normal(size=(3, 3)), "betas": np.full(10, 0.1)}
    np.savez(tmp_path / "poses.npz", allow_pickle=False, **values, gender=np.array("neutral"))
    return tmp_path / "poses.npz"


def test_axis_angles_turn_joints_along_the_chain() -> None:
    random = np.random.default_rng(0)
    turns, shift = random.normal(size=(6, 5, 3)), random.normal(size=(6, 3))
    motion = motion_from_axis_angles(NAMES, PARENTS, REST, turns, shift)
    for t in range(6):
        local = Rotation.from_rotvec(turns[t]).as_matrix()
        chest = REST[0] + shift[t] + local[0] @ (REST[1] - REST[0])
        arm = chest + local[0] @ local[1] @ (REST[2] - REST[1])
        hand = arm + local[0] @ local[1] @ local[2] @ (REST[3] - REST[2])
        leg = REST[0] + shift[t] + local[0] @ (REST[4] - REST[0])
        assert np.allclose(motion.compute_joint_positions(t), [REST[0] + shift[t], chest, arm, hand, leg])
        assert np.allclose(motion.transforms[t, 3, :3, :3], local[0] @ local[1] @ local[2] @ local[3])


def test_smpl_parameters_move_the_users_model(poses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smplx", SimpleNamespace(SMPL=TinyBody))
    model = poses.with_name("SMPL_NEUTRAL.pkl")
    model.touch()
    motion = compute_smpl_motion(read_smpl(poses), model)
    assert motion.skeleton.names == SMPL_JOINTS and motion.skeleton.parents == tuple(range(-1, 23))
    assert np.allclose(
        motion.skeleton.rest_positions[:, 0], 0.2 * np.arange(1, 25)
    )  # the betas' sum, 1, doubles the body
    with np.load(poses) as given:
        assert np.allclose(motion.compute_joint_positions(2)[0], motion.skeleton.rest_positions[0] + given["trans"][2])
        root = Rotation.from_rotvec(given["poses"][2, :3]).as_matrix()
    assert np.allclose(motion.transforms[2, 0, :3, :3], root)
    as_json = poses.with_suffix(".json")
    with np.load(poses) as given:
        split = {"global_orient": given["poses"][:, :3], "body_pose": given["poses"][:, 3:], "transl": given["trans"]}
        as_json.write_text(json.dumps({key: v.tolist() for key, v in {**split, "betas": given["betas"]}.items()}))
    assert np.allclose(compute_smpl_motion(read_smpl(as_json), model).transforms, motion.transforms)


def test_without_the_package_or_the_model_one_sentence_says_what_to_do(
    poses: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "smplx", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[human\]'"):
        compute_smpl_motion(read_smpl(poses), poses.with_suffix(".pkl"))
    monkeypatch.setitem(sys.modules, "smplx", SimpleNamespace(SMPL=TinyBody))
    with pytest.raises(UserError, match="register with the makers"):
        compute_smpl_motion(read_smpl(poses), poses.with_name("SMPL_NEUTRAL.pkl"))
    with pytest.raises(UserError, match="AssertionError: wrong kind"):
        compute_smpl_motion(read_smpl(poses), shutil.copy(poses, poses.with_suffix(".pkl")))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"poses": np.zeros((3, 70))}, "72 or 156 or 165"),
        ({"poses": np.zeros((0, 72))}, "72 or 156 or 165"),
        ({"poses": np.full((3, 72), np.nan)}, "nan is not a finite"),
        ({"poses": np.array([{}])}, "cannot be read"),
        ({"poses": np.zeros((3, 72)), "trans": np.zeros((2, 3))}, "for 3 frames"),
        ({"betas": np.zeros(10)}, "no global_orient"),
    ],
)
def test_smpl_parameters_that_do_not_go_together_are_refused(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError, match=words):
        read_smpl(tmp_path / "p.npz")
    (tmp_path / "q.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read"):
        read_smpl(tmp_path / "q.npz")

"""Rotations of files: what the readers give is what the formulas of the formats give, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from neural_fields.data.capture.bvh import read_bvh
from neural_fields.data.capture.calibration_toml import read_calibration
from neural_fields.data.capture.colmap import read_colmap
from neural_fields.data.capture.rigid_transforms import fit_rotations, repair_rigid_transforms
from neural_fields.data.capture.skeleton import NO_PARENT
from neural_fields.data.capture.smpl import motion_from_axis_angles

vectors = st.lists(st.floats(-8, 8), min_size=3, max_size=3)


def rodrigues(vector: list[float]) -> np.ndarray:
    """The rotation around a vector by its length."""
    angle = math.sqrt(sum(value**2 for value in vector))
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    first = math.sin(angle) / angle if angle > 1e-8 else 1.0
    second = 2 * (math.sin(angle / 2) / angle) ** 2 if angle > 1e-8 else 0.5
    return np.eye(3) + first * cross + second * cross @ cross


def rotate_around(axis: int, degrees: float) -> np.ndarray:
    """The right-handed rotation around x, y or z."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    one, two = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[one, two], [one, two]] = cosine
    matrix[two, one], matrix[one, two] = sine, -sine
    return matrix


@given(vectors)
def test_axis_angles_of_smpl_are_rotations_around_their_vectors(vector: list[float]) -> None:
    motion = motion_from_axis_angles(
        ("root", "arm"), (NO_PARENT, 0), np.eye(3)[:2], np.array([[vector, vector]]), np.zeros((1, 3))
    )
    turn = rodrigues(vector)
    assert np.abs(motion.transforms[0, 0, :3, :3] - turn).max() < 1e-12
    assert np.abs(motion.transforms[0, 1, :3, :3] - turn @ turn).max() < 1e-12


@given(vectors)
def test_a_rotation_of_calibration_toml_takes_the_world_to_the_camera(
    tmp_path_factory: pytest.TempPathFactory, vector: list[float]
) -> None:
    path = tmp_path_factory.mktemp("cameras") / "calibration.toml"
    path.write_text(
        "[cam]\nsize = [64, 48]\nmatrix = [[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]]\ndistortions = []\n"
        f"rotation = {vector}\ntranslation = [1.0, 2.0, 3.0]\n"
    )
    (camera,) = read_calibration(path).values()
    assert np.abs(camera.pose[:3, :3] - rodrigues(vector).T).max() < 1e-12
    assert np.abs(camera.position + rodrigues(vector).T @ (1, 2, 3)).max() < 1e-11


@given(st.permutations("XYZ"), st.lists(st.floats(-400, 400), min_size=3, max_size=3))
def test_angles_of_a_bvh_file_apply_in_its_own_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], angles: list[float]
) -> None:
    path = tmp_path_factory.mktemp("motion") / "walk.bvh"
    channels = " ".join(f"{axis}rotation" for axis in order)
    path.write_text(
        f"HIERARCHY\nROOT hips {{ OFFSET 1 2 3 CHANNELS 3 {channels} End Site {{ OFFSET 0 1 0 }} }}\n"
        f"MOTION\nFrames: 2\nFrame Time: 0.04\n0 0 0\n{' '.join(map(repr, angles))}\n"
    )
    one, two, three = (rotate_around("XYZ".index(axis), angle) for axis, angle in zip(order, angles, strict=True))
    assert np.abs(read_bvh(path).transforms[1, 0, :3, :3] - one @ two @ three).max() < 1e-12


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda values: np.linalg.norm(values) > 0.1))
def test_quaternions_of_colmap_begin_with_w_and_take_the_world_to_the_camera(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("model")
    w, x, y, z = np.array(values) / np.linalg.norm(values)
    to_camera = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    written = " ".join(repr(1.005 * float(value)) for value in (w, x, y, z))  # rounding of a file: made 1 again
    (folder / "cameras.txt").write_text("1 PINHOLE 64 48 50 50 32 24\n")
    (folder / "images.txt").write_text(f"1 {written} 1 2 3 1 a.jpg\n\n")
    (picture,) = read_colmap(folder)
    assert np.abs(picture.camera.pose[:3, :3] - to_camera.T).max() < 1e-12
    assert np.abs(picture.camera.position + to_camera.T @ (1, 2, 3)).max() < 1e-11


@given(st.integers(0, 2**32 - 1))
def test_the_fit_to_several_arrows_is_the_one_of_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    before = random.normal(size=(1, 5, 3))
    after = before @ Rotation.random(None, random).as_matrix() + 0.1 * random.normal(size=before.shape)
    wanted = Rotation.align_vectors(after[0], before[0])[0].as_matrix()
    assert np.abs(fit_rotations(before, after)[0] - wanted).max() < 1e-5  # what the pull to the identity moves


@given(st.integers(0, 2**32 - 1))
def test_a_rounded_rotation_becomes_the_nearest_exact_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(None, random).as_matrix().round(3)
    repaired = repair_rigid_transforms(matrix[None])[0, :3, :3]
    assert np.abs(repaired.T @ repaired - np.eye(3)).max() < 1e-12 and np.linalg.det(repaired) > 0
    stretch = repaired.T @ matrix[:3, :3]  # the polar decomposition: what is left is symmetric
    assert np.abs(stretch - stretch.T).max() < 1e-12

"""Bones as a body: their bumps, the skinning volume, both ways through it, poses and their correction."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neural_fields.core.errors import UserError
from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton, compose_transforms, compute_local_pose
from neural_fields.data.synthetic.walking_person import make_person_skeleton, make_walk
from neural_fields.volume.pose import Kinematics, PoseRefiner, axis_angle_to_matrix
from neural_fields.volume.rays import Rays
from neural_fields.volume.skinning import DEFAULTS, BonePairs, SkinningVolume, compute_bone_bumps, invert_rigid

ARM = Skeleton(("shoulder", "elbow", "hand"), (NO_PARENT, 0, 1), np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]))
WALKER = make_person_skeleton()


def poses(skeleton: Skeleton, count: int = 3, size: float = 0.5) -> torch.Tensor:
    """Random bones."""
    rng = np.random.default_rng(7)
    turns = rng.normal(0, size, (count, skeleton.bone_count, 3))
    rotations = np.array([[cv2.Rodrigues(turn)[0] for turn in moment] for moment in turns])
    shifts = rng.normal(0, 0.05, (count, skeleton.bone_count, 3))
    placed = [compose_transforms(skeleton, *pose) for pose in zip(rotations, shifts, strict=True)]
    return torch.tensor(np.stack(placed), dtype=torch.float32)


def trained(skeleton: Skeleton, side: int = 24) -> SkinningVolume:
    """A volume with numbers in its learnt part."""
    torch.manual_seed(0)
    skinning = SkinningVolume(skeleton, side)
    torch.nn.init.normal_(skinning.learnt, std=0.5)
    return skinning


def points_in(skinning: SkinningVolume, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.lerp(skinning.low, skinning.high, torch.rand(count, 3, generator=generator))


def rays_towards(points: torch.Tensor, time: torch.Tensor) -> Rays:
    origin = torch.tensor([3.0, -4.0, 2.0]).expand_as(points)
    return Rays(origin, F.normalize(points - origin, dim=1), time)


def test_weights_add_up_to_one_with_and_without_what_is_learnt() -> None:
    skinning = trained(WALKER)
    for volume in (skinning.prior, skinning.compute_weights()):
        assert torch.allclose(volume.sum(dim=0), torch.ones(()), atol=1e-5)
        assert volume.min() >= 0
    assert torch.allclose(SkinningVolume(WALKER, 24).compute_weights(), SkinningVolume(WALKER, 24).prior, atol=1e-6)


def test_two_bones_in_a_row_are_each_one_half_at_their_joint() -> None:
    bumps = compute_bone_bumps(ARM)
    away = np.einsum("gij,gj->gi", bumps.shape, ARM.rest_positions[1] - bumps.center)
    assert np.allclose(np.exp(-np.square(away).sum(axis=1))[:2], 0.5, atol=1e-3)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_skeleton_in_another_unit_has_the_same_volume(scale: float) -> None:
    scaled = SkinningVolume(replace(WALKER, rest_positions=WALKER.rest_positions * scale), 24)
    assert torch.allclose(scaled.prior, SkinningVolume(WALKER, 24).prior, atol=1e-4)
    assert torch.allclose(
        scaled.high - scaled.low, scale * (SkinningVolume(WALKER, 24).high - SkinningVolume(WALKER, 24).low)
    )


def test_sizes_of_an_adult_are_the_papers() -> None:
    bumps = compute_bone_bumps(WALKER)
    width = {
        WALKER.names[bone]: np.sort(0.5 / np.linalg.eigvalsh(s))
        for bone, s in zip(bumps.bone, bumps.shape, strict=True)
    }
    span = np.ptp(WALKER.rest_positions[:-1], axis=0).max() / 1.6
    assert np.allclose(width["object"], 0.06 * span) and np.allclose(width["head"], 0.06 * span)
    assert np.allclose(width["pelvis"], np.array([0.03, 0.03, 0.06]) * span)  # towards a hip, the last of its children


def test_a_radius_that_is_given_is_taken() -> None:
    bumps = compute_bone_bumps(ARM, {"elbow": 0.2, "hand": 0.3})
    assert np.allclose(np.sort(0.5 / np.linalg.eigvalsh(bumps.shape[1]))[:2], 0.2)
    assert np.allclose(0.5 / np.linalg.eigvalsh(bumps.shape[2]), 0.3)


@pytest.mark.parametrize(
    ("skeleton", "radii", "said"),
    [
        (ARM, {"foot": 0.1}, "foot"),
        (ARM, {"hand": 0.0}, "hand"),
        (Skeleton(("one",), (NO_PARENT,), np.zeros((1, 3))), {}, "without a length"),
    ],
)
def test_radii_that_mean_nothing_are_refused(skeleton: Skeleton, radii: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compute_bone_bumps(skeleton, radii)


def test_weights_are_zero_outside_the_box_and_beyond_the_reach_of_a_bone() -> None:
    skinning = trained(ARM)
    far = torch.tensor([[50.0, 0, 0], [1.0, 3.0, 0.0]])
    none = torch.zeros(2, dtype=torch.int64)
    skinned = skinning.skin_backward(
        skinning.compute_weights(), skinning.pair_points(far, none, torch.eye(4).expand(1, 3, 4, 4))
    )
    assert (skinned.likelihood == 0).all() and (skinned.points == 0).all()
    outside = BonePairs(
        torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), skinning.high[None] + 0.1, 1
    )
    assert skinning.skin_backward(torch.ones_like(skinning.prior), outside).likelihood == 0


def test_the_inverse_of_rigid_bones_is_their_inverse() -> None:
    bones = poses(WALKER)
    assert torch.allclose(invert_rigid(bones) @ bones, torch.eye(4), atol=1e-5)


def test_a_body_that_moves_as_one_goes_back_exactly() -> None:
    skinning, rest = trained(WALKER), points_in(trained(WALKER), 400)
    move = poses(ARM, 1, 1.0)[0, 2]
    world = rest @ move[:3, :3].T + move[:3, 3]
    bones, moment = move.expand(1, WALKER.bone_count, 4, 4), torch.zeros(len(rest), dtype=torch.int64)
    weights = skinning.compute_weights()
    skinned = skinning.skin_backward(weights, skinning.pair_points(world, moment, invert_rigid(bones)))
    sure = skinned.likelihood > DEFAULTS.min_weight_sum
    assert sure.sum() > 100
    assert torch.allclose(skinned.points[sure], rest[sure], atol=1e-4)
    again = skinning.skin_forward(weights, skinned.points[sure], moment[sure], bones)
    assert torch.allclose(again.points, world[sure], atol=1e-4)
    assert torch.allclose(again.likelihood, skinned.likelihood[sure], atol=1e-3)


def test_back_and_forth_inside_one_bone_is_where_one_was() -> None:
    skinning, bones = trained(WALKER), poses(WALKER)
    held = WALKER.object_joints[0]
    middle = torch.tensor(WALKER.rest_positions[held] - (0.1, 0, 0), dtype=torch.float32)
    rest = middle + 0.03 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    alone = (skinning.bump_distances(rest) <= DEFAULTS.reach).sum(dim=1) == 1
    moment = torch.arange(60) % 3
    placed = bones[moment, held]
    world = (placed[:, :3, :3] @ rest[..., None])[..., 0] + placed[:, :3, 3]
    pairs = skinning.pair_points(world, moment, invert_rigid(bones))
    alone &= torch.bincount(pairs.point, minlength=60) == 1
    assert alone.sum() > 20
    back = skinning.skin_backward(skinning.compute_weights(), pairs).points
    assert torch.allclose(back[alone], rest[alone], atol=1e-5)
    forth = skinning.skin_forward(skinning.compute_weights(), back, moment, bones).points
    assert torch.allclose(forth[alone], world[alone], atol=1e-5)


def test_backward_skinning_is_the_papers_formula_bone_by_bone() -> None:
    skinning, bones = trained(WALKER), poses(WALKER)
    weights, moment = skinning.compute_weights(), torch.arange(300) % 3
    world = (points_in(skinning, 300)[:, None] @ bones[moment, 0, :3, :3].mT)[:, 0] + bones[moment, 0, :3, 3]
    skinned = skinning.skin_backward(weights, skinning.pair_points(world, moment, invert_rigid(bones)))
    total, likelihood = torch.zeros(300, 3), torch.zeros(300)
    for bone in range(WALKER.bone_count):
        placed = torch.linalg.inv(bones[moment, bone])
        place = (placed[:, :3, :3] @ world[..., None])[..., 0] + placed[:, :3, 3]
        at = ((place - skinning.low) / (skinning.high - skinning.low) * 2 - 1).view(1, 1, 1, -1, 3)
        say = F.grid_sample(weights[None, bone : bone + 1], at, padding_mode="zeros", align_corners=True).view(-1)
        own = [index for index, owner in enumerate(compute_bone_bumps(WALKER).bone) if owner == bone]
        say = say * (skinning.bump_distances(place)[:, own] <= DEFAULTS.reach).any(dim=1)
        total, likelihood = total + say[:, None] * place, likelihood + say
    assert (likelihood > 0.1).sum() > 20
    assert torch.allclose(skinned.likelihood, likelihood, atol=1e-4)
    assert torch.allclose(skinned.points, total / likelihood.clamp_min(DEFAULTS.min_weight_sum)[:, None], atol=1e-3)


@pytest.mark.slow
def test_what_rays_cross_is_what_points_on_them_say() -> None:
    skinning, bones = SkinningVolume(WALKER, 24), poses(WALKER)
    to_rest, time = invert_rigid(bones), torch.arange(60) % 3
    turns, moves = bones[time, torch.arange(60) % WALKER.bone_count].split([3, 1], dim=-1)
    joints = torch.tensor(WALKER.rest_positions, dtype=torch.float32)[torch.arange(60) % WALKER.bone_count]
    target = (turns[:, :3] @ joints[..., None] + moves[:, :3])[..., 0]
    rays = rays_towards(target + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), time)
    reached = skinning.intersect_reach(rays, to_rest)
    steps = torch.linspace(0, 9, 3001)
    pairs = skinning.pair_points(
        rays.points_at(steps.expand(60, -1)).view(-1, 3), time.repeat_interleave(3001), to_rest
    )
    near = torch.zeros(60 * 3001, dtype=torch.bool).index_fill(0, pairs.point, True).view(60, -1)
    assert (near.any(dim=1)).sum() > 20
    assert torch.allclose(reached.total_length, near.sum(dim=1) * 9 / 3000, atol=0.02)
    hit = reached.total_length > 0.1
    depth = reached.distances_at(((torch.arange(16) + 0.5) / 16).expand(60, 16))
    assert (depth.diff(dim=1)[hit] > 0).all()
    assert near.gather(1, (depth * 3000 / 9).round().long().clamp(0, 3000))[hit].float().mean() > 0.98
    on_rays = skinning.pair_ray_samples(rays, depth, reached, to_rest)
    pairs = skinning.pair_points(rays.points_at(depth).view(-1, 3), time.repeat_interleave(16), to_rest)
    weights = trained(WALKER).compute_weights()
    one, two = (skinning.skin_backward(weights, found) for found in (on_rays, pairs))
    same = (one.points - two.points).norm(dim=1) < 1e-3  # but for samples at the very end of a bone
    assert same.float().mean() > 0.99
    assert ((one.likelihood - two.likelihood).abs() < 1e-3).float().mean() > 0.99


def test_poses_are_those_of_the_skeleton_module() -> None:
    bones, kinematics = poses(WALKER), Kinematics(WALKER)
    rotations, shifts = kinematics.to_local(bones)
    for moment, placed in enumerate(bones.double().numpy()):
        wanted = compute_local_pose(WALKER, placed)
        assert np.allclose(rotations[moment], wanted[0], atol=1e-5)
        assert np.allclose(shifts[moment], wanted[1], atol=1e-5)
    assert torch.allclose(kinematics.from_local(rotations, shifts), bones, atol=1e-5)


def test_turns_are_those_of_rodrigues_and_have_a_slope_at_zero() -> None:
    vectors = torch.tensor([[0.3, -0.2, 0.9], [3.0, 0.4, -0.1], [1e-4, 0.0, 0.0]])
    wanted = np.stack([cv2.Rodrigues(vector.double().numpy())[0] for vector in vectors])
    assert np.allclose(axis_angle_to_matrix(vectors), wanted, atol=1e-5)
    none = torch.zeros(3, requires_grad=True)
    assert torch.equal(axis_angle_to_matrix(none), torch.eye(3))
    axis_angle_to_matrix(none)[2, 1].backward()
    assert none.grad is not None and torch.allclose(none.grad, torch.tensor([1.0, 0, 0]))


def test_corrections_change_nothing_at_the_start_and_never_the_root() -> None:
    bones = torch.tensor(make_walk(4).transforms, dtype=torch.float32)
    torch.manual_seed(0)
    refiner = PoseRefiner(Kinematics(WALKER), span=2.0)
    refined, size = refiner(bones)
    assert torch.allclose(refined, bones, atol=2e-4) and size < 1e-7
    for parameter in refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    refined, size = refiner(bones)
    root = WALKER.parents.index(NO_PARENT)
    assert torch.allclose(refined[:, root], bones[:, root], atol=1e-6)
    assert not torch.allclose(refined[:, 3], bones[:, 3], atol=1e-3) and size > 1e-4
    assert torch.allclose(refined[..., :3, :3] @ refined[..., :3, :3].mT, torch.eye(3), atol=1e-4)


def test_a_moment_of_the_training_has_a_correction_of_its_own() -> None:
    bones, rest = poses(WALKER), torch.eye(4).expand(1, WALKER.bone_count, 4, 4)
    refiner = PoseRefiner(Kinematics(WALKER), 2.0, poses=bones)
    torch.nn.init.normal_(refiner.moments, std=0.1)
    whole, _ = refiner(bones)
    mixed, _ = refiner(torch.cat([bones[2:], rest, bones[:1]]))
    assert torch.allclose(mixed[[0, 2]], whole[[2, 0]], atol=1e-5)
    assert torch.allclose(mixed[1], rest[0], atol=1e-3)
    assert not torch.allclose(whole[0], bones[0], atol=1e-2)


def test_the_code_of_the_rest_pose_is_zero_and_does_not_know_where_the_body_stands() -> None:
    kinematics, bones = Kinematics(WALKER), poses(WALKER)
    assert kinematics.encode_pose(torch.eye(4).expand(1, WALKER.bone_count, 4, 4)).abs().max() == 0
    moved = poses(ARM, 1, 1.0)[0, 0] @ bones
    assert torch.allclose(kinematics.encode_pose(moved), kinematics.encode_pose(bones), atol=1e-5)
    assert kinematics.encode_pose(bones).shape == (3, kinematics.code_size)

"""The person's field on bones, and its losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neural_fields.core.errors import UserError
from neural_fields.data.capture.capture import Capture, find_object_state
from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton, SkeletonMotion
from neural_fields.data.synthetic.scene import SyntheticScene, make_walking_scene
from neural_fields.data.synthetic.walking_person import make_person_skeleton
from neural_fields.nn.adam import Adam
from neural_fields.volume import human_losses
from neural_fields.volume.background_losses import color_loss
from neural_fields.volume.color_edit import ColorPaint
from neural_fields.volume.flow_rays import flow_rays
from neural_fields.volume.human import PersonConfig, PersonModel, PersonSamples, check_cameras_outside, hann_window
from neural_fields.volume.rays import Rays, RenderedRays, ViewRays, camera_rays, render_samples
from neural_fields.volume.skinning import invert_rigid
from neural_fields.volume.visual_hull import carve_prior

SMALL = PersonConfig(n_levels=4, log2_table=12, finest=48, width=16, samples=12, voxels=20)
BALL = Skeleton(("ball",), (NO_PARENT,), np.zeros((1, 3)))


@pytest.fixture(scope="module")
def truth() -> SyntheticScene:
    return make_walking_scene(count=8, size=(48, 36), switches=(4,))


@pytest.fixture(scope="module")
def capture(truth: SyntheticScene) -> Capture:
    return truth.capture


def bones_of(capture: Capture) -> torch.Tensor:
    assert capture.motion is not None
    return torch.tensor(capture.motion.transforms, dtype=torch.float32)


def states_of(capture: Capture, rays: Rays) -> torch.Tensor:
    return torch.tensor([find_object_state(capture.switches, time) for time in rays.time.tolist()])


def person(poses: np.ndarray | None = None) -> PersonModel:
    """One whose networks are no longer at their start."""
    torch.manual_seed(0)
    human = PersonModel(make_person_skeleton(), 2, SMALL, poses=poses)
    torch.nn.init.normal_(human.field.grid.params, std=0.5)
    torch.nn.init.normal_(human.skinning.learnt, std=0.3)
    return human


def look(human: PersonModel, rays: Rays, bones: torch.Tensor, state: int = 0, opened: float = 0.0) -> RenderedRays:
    marched, _ = human.march_rays(rays, bones, torch.full((len(rays),), state), offset_share=opened)
    return render_samples(marched)


def test_bones_and_camera_that_move_together_see_the_same(capture: Capture) -> None:
    human, bones, camera = person(), bones_of(capture), capture.cameras[0]
    move = np.eye(4)
    move[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    move[:3, 3] = (5.0, -2.0, 1.0)
    with torch.no_grad():
        still = look(human, camera_rays(camera), bones, opened=1.0)
        moved = torch.tensor(move, dtype=torch.float32) @ bones
        other = look(human, camera_rays(camera.with_pose(move @ camera.pose)), moved, opened=1.0)
    assert still.opacity.max() > 0.5
    assert (still.color - other.color).abs().mean() < 1e-3
    assert torch.allclose(still.depth, other.depth, atol=0.05)


def test_there_is_nothing_beyond_the_reach_of_the_bones(capture: Capture) -> None:
    human, bones = person(), bones_of(capture)
    rays = camera_rays(capture.cameras[3], time=3)
    marched, carried = human.march_rays(rays, bones, states_of(capture, rays), torch.Generator().manual_seed(0))
    missed = human.skinning.intersect_reach(rays, invert_rigid(bones)).total_length == 0
    assert missed.any() and (~missed).any()
    assert not marched.density[missed].any() and not marched.inside[missed].any()
    assert (render_samples(marched).opacity[missed] == 0).all()
    assert marched.inside.sum() == len(carried.ray)
    assert (marched.density[~marched.inside] == 0).all() and (marched.depth.diff(dim=1) >= 0).all()
    world = rays.points_at(marched.depth).view(-1, 3)[carried.slot]
    assert torch.allclose(world, carried.world, atol=1e-5)
    pairs = human.skinning.pair_points(world, carried.moment, invert_rigid(bones))
    skinned = human.skinning.skin_backward(human.skinning.compute_weights(), pairs)
    assert ((skinned.points - carried.rest).norm(dim=1) < 1e-3).float().mean() > 0.99


def test_a_state_is_its_code_and_nothing_else(capture: Capture) -> None:
    human, bones, rays = person(), bones_of(capture), camera_rays(capture.cameras[0])
    one, two = (look(human, rays, bones, state) for state in (0, 1))
    assert not torch.allclose(one.color, two.color, atol=1e-3)
    with torch.no_grad():
        human.field.states[1] = human.field.states[0]
    assert torch.equal(look(human, rays, bones, 1).color, one.color)


def test_paint_changes_colors_and_no_density(capture: Capture) -> None:
    human, bones, rays = person(), bones_of(capture), camera_rays(capture.cameras[0])
    before = look(human, rays, bones)
    human.field.paint = ColorPaint()
    assert torch.allclose(look(human, rays, bones).color, before.color, atol=1e-6)
    torch.nn.init.constant_(human.field.paint.grid.params, 1.0)
    after = look(human, rays, bones)
    assert torch.equal(after.opacity, before.opacity)
    assert after.color.sum() > before.color.sum()


def test_offsets_begin_at_nothing_and_come_in_frequency_by_frequency(capture: Capture) -> None:
    human, bones, rays = person(), bones_of(capture), camera_rays(capture.cameras[0])
    state = states_of(capture, rays)
    assert human.march_rays(rays, bones, state, offset_share=0.0)[1].offset is None
    offset = human.march_rays(rays, bones, state, offset_share=1.0)[1].offset
    assert offset is not None and offset.norm(dim=1).max() < 1e-3
    assert hann_window(4, 0.0).tolist() == [0] * 4 and hann_window(4, 1.0).tolist() == [1] * 4
    assert torch.allclose(hann_window(4, 0.375), torch.tensor([1.0, 0.5, 0, 0]))


def test_every_part_learns_from_the_losses(capture: Capture) -> None:
    bones = bones_of(capture)
    human = person(poses=bones.double().numpy())
    bones, size = human.refine_poses(bones)
    rays = camera_rays(capture.cameras[5], time=5)
    marched, carried = human.march_rays(rays, bones, states_of(capture, rays), offset_share=0.7)
    shown = render_samples(marched)
    assert capture.masks is not None
    mask = torch.tensor(capture.masks[5]).view(-1)
    rgb = torch.tensor(capture.frames[5]).view(-1, 3) / 255
    seen = replace(rays, time=torch.full_like(rays.time, 4))
    behind = torch.rand(3)
    target = torch.where(mask[:, None], rgb, behind)
    loss = color_loss(before(shown, behind), target) + human_losses.mask_loss(shown.opacity, mask)
    loss = loss + human_losses.flow_loss(human.skinning, carried, shown.weights, seen, mask, bones, 40.0)
    loss = loss + human_losses.cycle_loss(human.skinning, carried, bones, human.offset.span)
    (loss + size + human_losses.offset_loss(carried, human.offset.span)).backward()
    for name, parameter in human.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_camera_inside_the_person_is_named(capture: Capture) -> None:
    check_cameras_outside(capture)
    assert capture.motion is not None
    inside = capture.cameras[2].pose.copy()
    inside[:3, 3] = capture.motion.compute_joint_positions(2)[0]
    cameras = (*capture.cameras[:2], capture.cameras[2].with_pose(inside), *capture.cameras[3:])
    with pytest.raises(UserError, match="view 2"):
        check_cameras_outside(replace(capture, cameras=cameras))
    check_cameras_outside(replace(capture, cameras=cameras, motion=None))


def rigid_ball(shift: tuple[float, float, float]) -> tuple[PersonModel, torch.Tensor]:
    """One bone at two moments, and a person of it."""
    torch.manual_seed(0)
    moved = torch.eye(4).repeat(2, 1, 1, 1)
    moved[1, 0, :3, 3] = torch.tensor(shift)
    return PersonModel(BALL, 1, SMALL, radii={"ball": 0.2}), moved


def rays_down(time: int) -> Rays:
    generator = torch.Generator().manual_seed(0)
    target = 0.1 * torch.randn(50, 3, generator=generator)
    origin = torch.tensor([0.0, 0.0, 2.0]).expand(50, 3)
    return Rays(origin, F.normalize(target - origin, dim=1), torch.full((50,), time))


def test_flow_to_the_moment_it_leads_to_costs_nothing_and_elsewhere_what_it_misses() -> None:
    shift = (0.0, 0.3, 0.0)
    human, bones = rigid_ball(shift)
    rays, valid = rays_down(1), torch.ones(50, dtype=torch.bool)
    rays = replace(rays, origin=rays.origin + torch.tensor(shift))
    with torch.no_grad():
        marched, carried = human.march_rays(rays, bones, torch.zeros(50, dtype=torch.int64))
        weights = render_samples(marched).weights
    there = replace(rays_down(0))  # the ball was at its rest place, the same rays saw it from the same side
    arguments = (human.skinning, carried, weights)
    exact = human_losses.flow_loss(*arguments, there, valid, bones, 100.0)
    assert exact < 1e-2
    two_back = human_losses.flow_loss(*arguments, replace(there, time=there.time + 1), valid, bones, 100.0)
    depth = (carried.world - rays.origin[carried.ray]).norm(dim=1)
    wanted = (weights.view(-1)[carried.slot] * 100 * 0.3 / depth).sum() / 50
    assert two_back == pytest.approx(float(wanted), rel=0.1)
    assert human_losses.flow_loss(*arguments, there, ~valid, bones, 100.0) == 0


def test_one_bone_there_and_back_costs_nothing() -> None:
    human, bones = rigid_ball((0.1, 0.2, 0.3))
    _, carried = human.march_rays(rays_down(1), bones, torch.zeros(50, dtype=torch.int64))
    assert len(carried.ray) and human_losses.cycle_loss(human.skinning, carried, bones, 1.0) < 1e-10
    missed = replace(rays_down(0), direction=-rays_down(0).direction)
    _, nothing = human.march_rays(missed, bones, torch.zeros(50, dtype=torch.int64))
    assert not len(nothing.ray) and human_losses.cycle_loss(human.skinning, nothing, bones, 1.0) == 0


def test_flow_rays_lead_where_the_flow_says(truth: SyntheticScene, capture: Capture) -> None:
    views = truth.training_views
    flow = truth.compute_flow(views[3], views[2])
    rays = flow_rays(capture.cameras[3], capture.cameras[2], flow.pixels, 2)
    seen = flow.visible & views[3].mask
    bone, rest = views[3].bone[seen], views[3].rest[seen]
    placed = views[2].transforms[bone]
    points = np.einsum("nij,nj->ni", placed[:, :3, :3], rest) + placed[:, :3, 3]
    towards = points - rays.origin[seen.ravel()].numpy()
    assert np.allclose(towards / np.linalg.norm(towards, axis=1)[:, None], rays.direction[seen.ravel()], atol=1e-4)
    assert (rays.time == 2).all()


def before(shown: RenderedRays, behind: torch.Tensor) -> torch.Tensor:
    """What is seen where one color is behind it."""
    return shown.composite_over(behind.expand_as(shown.color))


def test_losses_are_zero_where_the_picture_is_right() -> None:
    mask = torch.tensor([True, True, False])
    rgb, behind = torch.rand(3, 3), torch.rand(3)
    opacity = mask.float()
    exact = RenderedRays(rgb * opacity[:, None], opacity, opacity, opacity[:, None])
    target = torch.where(mask[:, None], rgb, behind)
    assert color_loss(before(exact, behind), target) == 0
    assert human_losses.mask_loss(opacity, mask) < 1e-3 < human_losses.mask_loss(1 - opacity, mask)
    wrong = replace(exact, opacity=torch.ones(3))
    assert color_loss(before(wrong, behind), target) == pytest.approx(float((behind**2).sum() / 9), rel=1e-4)


def test_masks_carve_each_bone_to_where_somebody_was_seen(truth: SyntheticScene, capture: Capture) -> None:
    human = PersonModel(make_person_skeleton(), 2, replace(SMALL, voxels=40))
    before = human.skinning.prior.clone()
    carve_prior(human.skinning, capture)
    after = human.skinning.prior
    assert torch.allclose(after.sum(dim=0), torch.ones(()), atol=1e-5)
    assert (after[:-1].sum() < 0.7 * before[:-1].sum()) and ((after[:-1] > 0) == (before[:-1] > 0)).all()
    names = make_person_skeleton().names
    for name in ("chest", "left_hip", "object"):  # what is there stays, the air beside it goes
        bone = names.index(name)
        kept = after[bone] / before[bone].clamp_min(1e-9)
        assert kept[before[bone] > 0.8 * before[bone].max()].mean() > 0.8
        assert kept[(before[bone] > 0) & (before[bone] < 0.1)].mean() < 0.7


def test_masks_that_say_nothing_carve_nothing(capture: Capture) -> None:
    human = PersonModel(make_person_skeleton(), 2, SMALL)
    before = human.skinning.prior.clone()
    assert capture.masks is not None
    carve_prior(human.skinning, replace(capture, masks=np.ones_like(capture.masks)))
    assert torch.allclose(human.skinning.prior, before, atol=5e-3)
    carve_prior(human.skinning, replace(capture, masks=None))
    assert torch.allclose(human.skinning.prior, before, atol=5e-3)


@pytest.mark.slow
def test_a_few_steps_teach_a_person_that_can_be_posed_anew(truth: SyntheticScene, capture: Capture) -> None:
    torch.manual_seed(0)
    human, generator = PersonModel(make_person_skeleton(), 2, PersonConfig(samples=16, voxels=32)), torch.Generator()
    carve_prior(human.skinning, capture)
    bones, masks = bones_of(capture), torch.tensor(capture.masks).flatten()
    frames, views = torch.tensor(capture.frames).view(-1, 3) / 255, ViewRays(capture.cameras, capture.times)
    every = torch.arange(len(masks))
    rays = views(every // (36 * 48), every % (36 * 48))
    close = (human.skinning.intersect_reach(rays, invert_rigid(bones)).total_length > 0).nonzero()[:, 0]
    assert masks[close].sum() == masks.sum()
    adam = Adam([{"params": list(human.parameters()), "lr": 2e-2}])
    for _ in range(70):
        pick = close[torch.randint(len(close), (400,), generator=generator)]
        marched, _ = human.march_rays(rays[pick], bones, states_of(capture, rays[pick]), generator, offset_share=0.0)
        shown = render_samples(marched)
        behind = torch.rand(3, generator=generator)
        loss = color_loss(before(shown, behind), torch.where(masks[pick][:, None], frames[pick], behind))
        adam.zero_grad()
        (loss + 0.05 * human_losses.mask_loss(shown.opacity, masks[pick])).backward()
        adam.step()
    camera, anew = capture.cameras[1], truth.make_unseen_pose()
    for pose, least, most in ((truth.motion.transforms[1], 0.75, 0.5), (anew, 0.6, 0.7)):
        other = truth.compute_view(camera, 1, pose, background=False)
        with torch.no_grad():
            seen = look(human, camera_rays(camera), torch.tensor(pose, dtype=torch.float32)[None])
        there = seen.opacity.view(36, 48).numpy() > 0.5
        assert np.sum(there & other.mask) > least * np.sum(there | other.mask)
        error = (seen.color.view(36, 48, 3).numpy() - other.rgb)[other.mask]
        assert np.square(error).mean() < most * other.rgb[other.mask].var(axis=0).mean()


def test_a_person_of_one_bone_has_no_pose_to_correct() -> None:
    human, bones = rigid_ball((0.0, 0.0, 0.1))
    refined, size = human.refine_poses(bones)
    assert torch.equal(refined, bones) and size == 0
    assert isinstance(human.march_rays(rays_down(0), bones, torch.zeros(50, dtype=torch.int64))[1], PersonSamples)
    assert SkeletonMotion(BALL, bones.double().numpy()).frame_count == 2

"""The background field: its losses, its samples, its states, and a room that is learnt in seconds."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.capture import Capture, find_object_state
from neural_fields.data.synthetic.scene import make_scene, make_walking_scene, place_orbit_cameras
from neural_fields.data.synthetic.walking_person import make_walk
from neural_fields.nn.adam import Adam
from neural_fields.volume.background import (
    BackgroundConfig,
    BackgroundField,
    SceneBounds,
    find_blocked_views,
    find_scene_bounds,
)
from neural_fields.volume.background_losses import clearance_loss, distortion_loss, interlevel_loss
from neural_fields.volume.loss import SceneLossInputs
from neural_fields.volume.loss_table import SCENE_LOSSES, VolumeLossWeights, compute_scene_losses
from neural_fields.volume.proposal import ProposalGrid, annealing_exponent, distance_to_spacing, spacing_to_distance
from neural_fields.volume.ray_batches import RayBatch
from neural_fields.volume.rays import Rays, RenderedRays, ViewRays, camera_rays, render_samples
from neural_fields.volume.scene import Moments, Scene
from neural_fields.volume.stages import render_background

pytestmark = pytest.mark.slow

SMALL = BackgroundConfig(n_levels=4, log2_table=10, finest=64, proposal_resolution=32)
FRAME = SceneBounds((1.0, -2.0, 0.5), 3.0)


def look(field: BackgroundField, some: Rays, state: torch.Tensor) -> tuple[torch.Tensor, RenderedRays]:
    """Colors along rays as pictures have them, and what they are made of."""
    marched, _ = field.march_rays(some, state, min_weight=1e-3)
    shown = render_samples(marched)
    return shown.composite_over(field.render_sky(some, state)), shown


def rays(count: int, seed: int = 0) -> Rays:
    made = torch.Generator().manual_seed(seed)
    origin = torch.tensor(FRAME.center) + torch.randn(count, 3, generator=made)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=made), dim=1)
    return Rays(origin, direction, torch.zeros(count, dtype=torch.int64))


def states(count: int, state: int = 0) -> Tensor:
    return torch.full((count,), state)


def fog(density: float) -> BackgroundField:
    """A field with one density, for a unit of the scene's radius, and no structure."""
    field = BackgroundField(FRAME, config=replace(SMALL, samples=400, proposed=400))
    with torch.no_grad():
        field.geometry.weight.zero_()
        field.geometry.bias.fill_(math.log(density) + 1)
        field.proposal.raw.fill_(math.log(density))
    return field


def histogram(seed: int, stretches: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    edges = torch.rand(6, stretches + 1, generator=made).sort(dim=1).values
    weights = torch.rand(6, stretches, generator=made)
    return edges, weights / weights.sum(dim=1, keepdim=True) * 0.9


@given(st.integers(0, 1000), st.integers(2, 9))
def test_distortion_is_the_double_sum_of_the_paper(seed: int, stretches: int) -> None:
    edges, weights = histogram(seed, stretches)
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    pairs = weights[:, :, None] * weights[:, None] * (middle[:, :, None] - middle[:, None]).abs()
    wanted = pairs.sum(dim=(1, 2)) + (weights**2 * edges.diff(dim=1)).sum(dim=1) / 3
    torch.testing.assert_close(distortion_loss(edges, weights), wanted.mean())


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_interlevel_counts_weight_beyond_that_of_all_proposals_it_touches(seed: int, own: int, proposed: int) -> None:
    edges, weights = histogram(seed, own)
    other, bounds = histogram(seed + 1, proposed)
    total = 0.0
    for ray in range(6):
        for i in range(own):
            touched = (other[ray, 1:] > edges[ray, i]) & (other[ray, :-1] < edges[ray, i + 1])
            excess = (weights[ray, i] - bounds[ray][touched].sum()).clamp_min(0)
            total += float(excess**2 / (weights[ray, i] + 1e-7)) / 6
    assert interlevel_loss(edges, weights, other, bounds).item() == pytest.approx(total, abs=1e-5)


def test_a_proposal_that_encloses_the_field_costs_nothing_and_only_it_learns() -> None:
    edges, weights = histogram(0, 5)
    assert interlevel_loss(edges, weights, edges, weights).item() == pytest.approx(0, abs=1e-9)
    low, field = (weights * 0.5).requires_grad_(), weights.clone().requires_grad_()
    interlevel_loss(edges, field, edges, low).backward()
    assert field.grad is None
    assert low.grad is not None
    assert low.grad.max() < 0


def test_places_along_rays_are_distances_up_to_one_and_disparities_beyond() -> None:
    distance = torch.cat([torch.linspace(0, 1, 20), torch.logspace(0, 3, 20)])
    torch.testing.assert_close(spacing_to_distance(distance_to_spacing(distance)), distance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distance_to_spacing(torch.tensor([0.5, 1, 2, 1e9])), torch.tensor([0.25, 0.5, 0.75, 1]))
    assert annealing_exponent(0.0) == 0
    assert annealing_exponent(1.0) == 1
    assert 0.5 < annealing_exponent(0.2) < annealing_exponent(0.5) < 1


def test_samples_gather_where_the_proposal_has_a_wall() -> None:
    proposal = ProposalGrid(64)
    with torch.no_grad():  # a wall between x = 0.4 and 0.6, the grid's last axis
        proposal.raw.fill_(-9.0)
        proposal.raw[..., 38:42] = 9.0
    straight = Rays(torch.zeros(7, 3), torch.tensor([[1.0, 0, 0]]).expand(7, 3), torch.zeros(7, dtype=torch.int64))
    found = proposal.divide_rays(straight, (0.01, 100.0), (64, 16), 1.0, torch.Generator().manual_seed(0))
    distance = spacing_to_distance(found.edges)
    assert (found.edges.diff(dim=1) >= 0).all()
    assert distance.min() >= 0.0099
    near_wall = ((distance > 0.3) & (distance < 0.7)).float().mean()
    assert near_wall > 0.8
    even = proposal.divide_rays(straight, (0.01, 100.0), (64, 16), 0.0, None)
    torch.testing.assert_close(even.edges.diff(dim=1), even.edges.diff(dim=1)[:1, :1].expand(7, 16))


@pytest.mark.parametrize("density", [0.5, 4.0])
def test_even_fog_has_its_closed_form_in_units_of_the_world(density: float) -> None:
    field, some = fog(density), rays(30)
    shown = render_samples(field.march_rays(some, states(30))[0])
    near = field.config.near * FRAME.radius
    torch.testing.assert_close(shown.opacity, torch.ones(30), atol=1e-3, rtol=0)
    torch.testing.assert_close(shown.depth, torch.full((30,), near + FRAME.radius / density), rtol=0.03, atol=0)
    points = some.points_at(torch.rand(30, 1) * 9)[:, 0]
    torch.testing.assert_close(field.density_at(points, states(30)), torch.full((30,), density / FRAME.radius))


def test_a_scene_in_another_unit_looks_the_same() -> None:
    torch.manual_seed(0)
    field = BackgroundField(FRAME, config=SMALL)
    with torch.no_grad():
        field.grid.params.uniform_(-1, 1)
    small = BackgroundField(SceneBounds((100.0, -200.0, 50.0), 300.0), config=SMALL)
    here = {name: value for name, value in small.state_dict().items() if name in ("center", "radius")}
    small.load_state_dict(field.state_dict() | here)
    meters = rays(40)
    centimeters = Rays(meters.origin * 100, meters.direction, meters.time)
    (color, shown), (other_color, other) = look(field, meters, states(40)), look(small, centimeters, states(40))
    torch.testing.assert_close(color, other_color, atol=1e-3, rtol=0)
    torch.testing.assert_close(shown.depth * 100, other.depth, rtol=1e-2, atol=0)


def test_rays_that_hit_nothing_show_the_sky_and_every_state_has_its_own() -> None:
    field, some = fog(1e-9), rays(20)
    field.config = replace(field.config, samples=16)
    with torch.no_grad():
        field.codes = torch.nn.Parameter(torch.randn(2, 64))
        field.sky_color.bias.copy_(torch.tensor([2.0, 0, -2]))
    color, shown = look(field, some, states(20))
    assert shown.opacity.max() < 1e-5
    torch.testing.assert_close(color, field.render_sky(some, states(20)), atol=1e-5, rtol=0)
    assert (field.render_sky(some, states(20)) - field.render_sky(some, states(20, 1))).abs().max() > 0.01


def test_leaving_out_what_is_hardly_seen_hardly_shows() -> None:
    torch.manual_seed(1)
    field = BackgroundField(FRAME, config=SMALL)
    with torch.no_grad():
        field.geometry.weight.mul_(30)
        field.grid.params.uniform_(-1, 1)
    some = rays(60)
    whole = render_samples(field.march_rays(some, states(60))[0]).color
    quick = render_samples(field.march_rays(some, states(60), min_weight=1e-3)[0]).color
    assert 0 < (whole - quick).abs().max() < SMALL.samples * 1e-3


def test_the_ball_of_a_scene_holds_all_cameras_and_joints_and_moves_with_them() -> None:
    scene = make_walking_scene(5, (8, 6))
    capture = Capture(scene.cameras, np.zeros((5, 6, 8, 3), np.uint8), scene.times, motion=scene.motion)
    frame = find_scene_bounds(capture)
    places = [camera.position for camera in scene.cameras] + list(
        np.concatenate([*map(scene.motion.compute_joint_positions, range(5))])
    )
    far = np.linalg.norm(np.stack(places) - frame.center, axis=1)
    assert far.max() == pytest.approx(frame.radius)
    shift = np.eye(4)
    shift[:3, 3] = 7
    moved = [camera.with_pose(shift @ camera.pose) for camera in scene.cameras]
    alone = find_scene_bounds(replace(capture, motion=None))
    other = find_scene_bounds(replace(capture, motion=None, cameras=tuple(moved)))
    np.testing.assert_allclose(np.subtract(other.center, alone.center), 7)
    assert other.radius == pytest.approx(alone.radius)
    assert find_scene_bounds(replace(capture, motion=None, cameras=scene.cameras[:1], times=(0,))).radius == 1


def test_a_view_from_inside_something_is_found_and_clearance_empties_its_near_plane() -> None:
    pose = compute_look_at_pose(np.array(FRAME.center), np.array([5.0, 0, 0]), np.array([0.0, 0, 1]))
    camera = Camera(8, 6, (8.0, 8.0), (4.0, 3.0), pose)
    assert find_blocked_views(fog(0.3), [camera, camera], [0, 0]) == []
    field = fog(100.0)
    assert find_blocked_views(field, [camera], [0]) == [0]
    made = torch.Generator().manual_seed(0)
    before = clearance_loss(field, camera_rays(camera), states(48), made)
    assert before.item() == pytest.approx(1 - math.exp(-100 * field.config.near), abs=1e-4)
    before.backward()
    assert field.geometry.bias.grad is not None
    assert field.geometry.bias.grad[0] > 0  # a step against it thins the fog


def test_a_box_can_be_there_in_one_state_only() -> None:
    torch.manual_seed(0)
    made = torch.Generator().manual_seed(0)
    field = BackgroundField(FRAME, states=2, config=SMALL)
    optimizer = Adam(field.parameter_groups())

    def wrong(points: Tensor, state: Tensor) -> Tensor:
        """How far the light that a short way takes away is from all in the box and in the ground, else none."""
        full = (points[:, 2] < 0) | ((points - 1).abs().amax(dim=1) < 0.6) & (state == 1)
        passed = torch.exp(-0.3 * field.density_at(points * FRAME.radius + field.center, state))
        return 1 - passed - full.float()

    for _ in range(200):
        points, state = torch.rand(1500, 3, generator=made) * 4 - 2, torch.randint(2, (1500,), generator=made)
        optimizer.zero_grad()
        wrong(points, state).square().mean().backward()
        optimizer.step()
    box = torch.rand(500, 3, generator=made) + 0.5
    for number in (0, 1):  # a field without states is wrong by a half in the mean of both
        assert wrong(box, states(500, number)).abs().mean() < 0.1


def background_losses(
    field: BackgroundField,
    some: Rays,
    state: Tensor,
    color: Tensor,
    progress: float,
    generator: torch.Generator,
    weights: VolumeLossWeights | None = None,
) -> dict[str, Tensor]:
    """The losses of a step of the background's stage."""
    nobody, no_index = torch.zeros_like(state, dtype=torch.bool), torch.zeros_like(state)
    rendering = render_background(field, some, state, progress, generator)
    batch = RayBatch(some, color, nobody, no_index)
    inputs = SceneLossInputs(Scene(field, None), batch, state, color, rendering, "background", progress, generator)
    return compute_scene_losses(weights or VolumeLossWeights(), inputs)


def test_every_loss_of_a_scene_has_a_weight_of_its_name() -> None:
    assert {loss.name for loss in SCENE_LOSSES} == {field.name for field in fields(VolumeLossWeights)}


def test_losses_follow_their_weights_and_those_of_weight_zero_are_not_computed() -> None:
    torch.manual_seed(0)
    field, some = BackgroundField(FRAME, states=1, config=SMALL), rays(20)

    def losses(weights: VolumeLossWeights) -> dict[str, float]:
        made = torch.Generator().manual_seed(0)
        found = background_losses(field, some, states(20), torch.full((20, 3), 0.2), 0.5, made, weights)
        return {name: float(value.detach()) for name, value in found.items()}

    plain = losses(VolumeLossWeights())
    assert list(plain) == ["color", "interlevel", "distortion", "opacity", "clearance"]
    doubled = losses(VolumeLossWeights(opacity=0.06, interlevel=0.0, color=2.0))
    assert list(doubled) == ["color", "distortion", "opacity", "clearance"]
    assert doubled["opacity"] == pytest.approx(2 * plain["opacity"]) and doubled["color"] == 2 * plain["color"]
    assert doubled["clearance"] == plain["clearance"] > 0


def fitted(capture: Capture, shape: BackgroundConfig, steps: int) -> BackgroundField:
    torch.manual_seed(0)
    made = torch.Generator().manual_seed(0)
    field = BackgroundField(find_scene_bounds(capture), capture.state_count, shape)
    views = ViewRays(capture.cameras, capture.times)
    state = torch.tensor([find_object_state(capture.switches, time) for time in capture.times])
    colors = torch.tensor(capture.frames).flatten(1, 2).float() / 255
    free = np.ones(capture.frames.shape[:3], bool) if capture.masks is None else ~capture.masks
    view, pixel = torch.tensor(free).flatten(1).nonzero().T
    optimizer = Adam(field.parameter_groups())
    for step in range(steps):
        pick = torch.randint(len(view), (384,), generator=made)
        batch, seen = views(view[pick], pixel[pick]), view[pick]
        found = background_losses(field, batch, state[seen], colors[seen, pixel[pick]], step / steps, made)
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optimizer.rate_factor = min(1, (step + 1) / 20) * 0.1 ** (step / steps)
        optimizer.step()
    return field


def test_a_room_is_learnt_behind_the_person_and_seen_from_elsewhere() -> None:
    motion = make_walk(10)
    scene = make_scene(motion, place_orbit_cameras(motion, (64, 48), arc=50.0), switches=(5,))
    shape = replace(BackgroundConfig(), finest=96, n_levels=6, log2_table=14, proposed=32, samples=10)
    field = fitted(scene.capture, shape, 160)
    truth = scene.compute_view(scene.place_holdout_camera(4, angle=10.0), 4, person=False)
    moments = Moments.from_motion(motion, scene.switches)
    found = Scene(field, None).render_view(truth.camera, 4, moments, chunk=1000)
    assert -10 * np.log10(np.mean((found.color.numpy() - truth.rgb) ** 2)) > 25
    assert np.median(np.abs(found.depth.numpy() - truth.depth)) < 0.2
    assert find_blocked_views(field, scene.cameras, [0] * 5 + [1] * 5) == []


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    torch.manual_seed(0)
    field, some = BackgroundField(FRAME, states=2, config=SMALL), rays(50)
    color, shown = look(field, some, states(50, 1))
    there = Rays(some.origin.cuda(), some.direction.cuda(), some.time.cuda())
    other, seen = look(field.cuda(), there, states(50, 1).cuda())
    torch.testing.assert_close(other.cpu(), color, atol=1e-2, rtol=0)
    torch.testing.assert_close(seen.opacity.cpu(), shown.opacity, atol=1e-2, rtol=0)
    made = torch.Generator("cuda").manual_seed(0)
    found = background_losses(field, there, states(50).cuda(), other, 0.5, made)
    torch.stack(list(found.values())).sum().backward()

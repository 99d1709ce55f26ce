"""The synthetic scene is what it says: hits in closed form, and views, depth, masks and flow that agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.skeleton import Skeleton, SkeletonMotion
from neural_fields.data.synthetic.primitives import (
    Cuboid,
    Ellipsoid,
    Primitive,
    RoundCone,
    Wall,
    find_rays_through_ball,
)
from neural_fields.data.synthetic.scene import (
    WORLD_BONE,
    SyntheticScene,
    TrueView,
    make_scene,
    make_walking_scene,
    place_orbit_cameras,
)
from neural_fields.data.synthetic.walking_person import (
    fit_into_room,
    make_arms_up_pose,
    make_person_skeleton,
    make_walk,
)

UP = np.array([0.0, 0.0, 1.0])
SIZE = (64, 48)
LIMB = RoundCone((0.1, 0.0, -0.5), (0.3, 0.2, 0.6), (0.35, 0.15))


@pytest.fixture(scope="module")
def scene() -> SyntheticScene:
    """A clip of eight moments; a pixel's color is that of its center."""
    return replace(make_walking_scene(count=8, size=SIZE, switches=(3, 6)), supersample=1)


@pytest.fixture(scope="module")
def views(scene: SyntheticScene) -> tuple[TrueView, ...]:
    return scene.training_views


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def towards(origin: np.ndarray, count: int = 600) -> np.ndarray:
    """Unit directions from `origin` to points around the shapes at the origin of space."""
    return unit(np.random.default_rng(0).uniform(-1.2, 1.2, (count, 3)) - origin)


def centers() -> np.ndarray:
    """Pixel positions of all centers, row by row."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    return np.stack([x.ravel(), y.ravel()], axis=1)


def world(view: TrueView) -> np.ndarray:
    """The points seen, from the depth along the rays."""
    return view.camera.position + view.depth.reshape(-1, 1) * view.camera.compute_ray_directions(centers())


def test_a_ball_a_capsule_and_a_box_are_hit_where_geometry_says() -> None:
    ahead = np.array([[0.0, 1.0, 0.0]])
    start = np.array([0.0, -5.0, 0.0])
    assert Ellipsoid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).intersect_rays(start, ahead)[0] == pytest.approx(4)
    assert Ellipsoid((0.0, 1.0, 0.0), (1.0, 3.0, 1.0)).intersect_rays(start, ahead)[0] == pytest.approx(3)
    capsule = RoundCone((-1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.25, 0.25))
    assert capsule.intersect_rays(start, ahead)[0] == pytest.approx(4.75)
    assert capsule.intersect_rays(np.array([-5.0, 0.0, 0.0]), np.array([[1.0, 0.0, 0.0]]))[0] == pytest.approx(3.75)
    assert Cuboid((0.0, 0.0, 0.0), (1.0, 0.5, 1.0)).intersect_rays(start, ahead)[0] == pytest.approx(4.5)
    assert Wall((0.0, 3.0, 0.0), (0.0, -1.0, 0.0)).intersect_rays(start, ahead)[0] == pytest.approx(8)
    assert np.isinf(Wall((0.0, 3.0, 0.0), (0.0, 1.0, 0.0)).intersect_rays(start, ahead)[0])  # from behind
    for shape in (capsule, Ellipsoid((2.0, 0.0, 0.0), (1.0, 1.0, 1.0)), Cuboid((0.0, 0.0, 2.0), (1.0, 0.5, 1.0))):
        assert np.isinf(shape.intersect_rays(start, -ahead)[0])


@pytest.mark.parametrize("radii", [(0.35, 0.15), (0.15, 0.35), (0.2, 0.2)])
def test_a_limb_is_hit_where_the_balls_along_it_are(radii: tuple[float, float]) -> None:
    limb, origin = replace(LIMB, radii=radii), np.array([1.0, -3.0, 0.4])
    directions = towards(origin)
    slow = np.full(len(directions), np.inf)
    for share in np.linspace(0, 1, 801):
        place = tuple(((1 - share) * np.array(limb.start) + share * np.array(limb.end)).tolist())
        radius = float((1 - share) * radii[0] + share * radii[1])
        slow = np.minimum(slow, Ellipsoid(place, (radius,) * 3).intersect_rays(origin, directions))
    fast = limb.intersect_rays(origin, directions)
    assert 0.1 < np.isfinite(fast).mean() < 0.9
    assert np.all(fast <= slow + 1e-9)  # the balls are some of those that make the limb
    both = np.isfinite(slow) & np.isfinite(fast)
    assert np.mean(np.isfinite(fast) != np.isfinite(slow)) < 0.003
    assert np.median(slow[both] - fast[both]) < 1e-6 and np.quantile(slow[both] - fast[both], 0.99) < 1e-3


@pytest.mark.parametrize(
    "shape", [LIMB, Ellipsoid((0.1, 0.2, 0.0), (0.3, 0.5, 0.7)), Cuboid((0.0, 0.1, 0.0), (0.4,) * 3)]
)
def test_normals_stand_on_the_surface_and_the_ball_holds_the_shape(shape: Primitive) -> None:
    origin = np.array([1.0, -3.0, 0.4])
    directions = towards(origin)
    distance = shape.intersect_rays(origin, directions)
    seen = np.flatnonzero(np.isfinite(distance))
    points = origin + distance[seen, None] * directions[seen]
    normals = shape.compute_normals(points)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    assert np.all(np.sum(normals * directions[seen], axis=1) < 1e-6)  # they face who sees them
    outside = points + 1e-3 * normals
    back = np.array(
        [shape.intersect_rays(point, -normal[None])[0] for point, normal in zip(outside, normals, strict=True)]
    )
    np.testing.assert_allclose(back, 1e-3, atol=1e-5)  # straight down, the surface is as far as we went up
    center, radius = shape.bounding_ball()
    assert set(seen) <= set(find_rays_through_ball(origin, directions, np.array(center), radius))


def test_depth_leads_to_the_surface_and_its_rest_point(scene: SyntheticScene, views: tuple[TrueView, ...]) -> None:
    for view in (
        views[1],
        scene.compute_view(scene.place_holdout_camera(4), 4),
        scene.compute_view(scene.cameras[2], 2, scene.make_unseen_pose()),
    ):
        points, bones = world(view), view.bone.ravel()
        placed = view.transforms[bones]
        moved = np.einsum("nij,nj->ni", placed[:, :3, :3], view.rest.reshape(-1, 3)) + placed[:, :3, 3]
        at_rest = np.where((bones == WORLD_BONE)[:, None], view.rest.reshape(-1, 3), moved)
        np.testing.assert_allclose(at_rest, points, atol=1e-9)
        pixels, z_depth, inside = view.camera.project_points(points)
        np.testing.assert_allclose(pixels, centers(), atol=1e-6)
        np.testing.assert_allclose(z_depth, view.z_depth.ravel(), atol=1e-9)
        assert inside.all() and np.all(np.isfinite(view.depth))


def test_a_point_of_the_body_keeps_its_color_at_all_moments_and_in_all_views(
    scene: SyntheticScene, views: tuple[TrueView, ...]
) -> None:
    carriers = [surface.bone for surface in scene.body]
    single = [surface for surface in scene.body if carriers.count(surface.bone) == 1]
    for view in (*views[:3], scene.compute_view(scene.cameras[7], 0, scene.make_unseen_pose())):
        for surface in single:
            seen = view.bone == surface.bone
            if seen.any():
                np.testing.assert_allclose(view.rgb[seen], surface.paint(view.rest[seen]), atol=1e-6)
        assert np.unique(view.bone[view.mask]).size >= 10  # most bones are seen


@pytest.mark.slow
def test_flow_ends_where_the_other_view_sees_the_same_point(scene: SyntheticScene, views: tuple[TrueView, ...]) -> None:
    """Looked at through one pixel around the end of the flow, the other view shows the point, or what hides it."""
    rng = np.random.default_rng(0)
    for first, second in ((views[0], views[1]), (views[1], scene.compute_view(scene.place_holdout_camera(1), 1))):
        flow = scene.compute_flow(first, second)
        assert 0.4 < flow.visible.mean() < 1
        body, visible = first.mask.ravel(), flow.visible.ravel()
        ends = centers() + flow.pixels.reshape(-1, 2)
        inside = np.all((ends > 0) & (ends < SIZE), axis=1)
        for picked, shown in ((body & visible, True), (~body & visible, True), (inside & ~visible, False)):
            for pixel in rng.choice(np.flatnonzero(picked), 6, replace=False):
                end = _through_one_pixel(scene, second, ends[pixel])
                error = np.linalg.norm(end.rest[0, 0] - first.rest.reshape(-1, 3)[pixel])
                same = end.bone[0, 0] == first.bone.ravel()[pixel] and error < 1e-4
                assert same == shown


def _through_one_pixel(scene: SyntheticScene, view: TrueView, place: np.ndarray) -> TrueView:
    x, y = np.array(view.camera.center) - place + 0.5
    camera = replace(view.camera, width=1, height=1, center=(float(x), float(y)))
    return scene.compute_view(camera, view.time, view.transforms)


def test_flow_to_the_same_view_is_nothing_and_static_ground_follows_the_camera_alone(
    scene: SyntheticScene, views: tuple[TrueView, ...]
) -> None:
    still = scene.compute_flow(views[2], views[2])
    assert still.visible.all() and np.abs(still.pixels).max() < 1e-6
    flow = scene.compute_flow(views[2], views[4])
    ground = ~views[2].mask
    pixels, _, inside = views[4].camera.project_points(world(views[2]))
    np.testing.assert_allclose(
        (centers() + flow.pixels.reshape(-1, 2))[ground.ravel()], pixels[ground.ravel()], atol=1e-6
    )
    assert not flow.visible.ravel()[~inside & ground.ravel()].any()
    assert not flow.visible[views[2].object_mask].any()  # it has become another thing in between
    hidden = scene.compute_flow(scene.compute_view(views[2].camera, 2, person=False), views[2])
    np.testing.assert_array_equal(hidden.visible, ~views[2].mask)


def test_masks_say_where_the_person_is_seen(scene: SyntheticScene, views: tuple[TrueView, ...]) -> None:
    for view in views[::3]:
        empty = scene.compute_view(view.camera, view.time, person=False)
        alone = scene.compute_view(view.camera, view.time, background=False)
        np.testing.assert_array_equal(view.rgb[~view.mask], empty.rgb[~view.mask])
        np.testing.assert_array_equal(view.rgb[view.mask], alone.rgb[view.mask])
        np.testing.assert_array_equal(view.mask, view.depth < empty.depth)
        np.testing.assert_array_equal(view.mask, np.isfinite(alone.depth))
        assert not empty.mask.any() and not alone.rgb[~alone.mask].any()
        assert np.all(view.mask[view.object_mask]) and view.object_mask.sum() > 10
        assert 0.03 < view.mask.mean() < 0.3
    capture = scene.capture
    np.testing.assert_array_equal(capture.masks, [view.mask for view in views])
    assert capture.size == SIZE and capture.view_count == 8 and capture.state_count == 3


def test_pixels_are_means_of_their_parts(scene: SyntheticScene) -> None:
    camera = scene.cameras[1]
    whole = replace(scene, supersample=4).compute_view(camera, 1)
    fine = scene.compute_view(camera.resize(4 * SIZE[0], 4 * SIZE[1]), 1)
    parts = fine.rgb.reshape(SIZE[1], 4, SIZE[0], 4, 3).mean((1, 3))
    np.testing.assert_allclose(whole.rgb, parts, atol=1e-5)
    np.testing.assert_allclose(whole.cover, fine.mask.reshape(SIZE[1], 4, SIZE[0], 4).mean((1, 3)), atol=1e-6)
    held = fine.object_mask.reshape(SIZE[1], 4, SIZE[0], 4).mean((1, 3))
    np.testing.assert_allclose(whole.object_cover, held, atol=1e-6)
    alone = replace(scene, supersample=4).compute_view(camera, 1, background=False)
    empty = replace(scene, supersample=4).compute_view(camera, 1, person=False)
    over = alone.rgb + (1 - alone.cover[..., None]) * empty.rgb
    inner = (alone.cover == 0) | (alone.cover == 1)
    np.testing.assert_allclose(over[inner], whole.rgb[inner], atol=1e-5)
    assert np.abs(over - whole.rgb).max() < 0.2  # at outlines the parts of a pixel differ


def test_the_object_changes_at_its_moments_and_at_no_other(scene: SyntheticScene) -> None:
    camera, pose = scene.cameras[0], scene.motion.transforms[0]
    looks = [scene.compute_view(camera, time, pose, background=False) for time in range(8)]
    changed = [time for time in range(1, 8) if np.abs(looks[time].rgb - looks[time - 1].rgb).max() > 0]
    assert changed == [3, 6]
    for time in changed:
        assert not np.array_equal(looks[time].object_mask, looks[time - 1].object_mask)
        elsewhere = ~looks[time].object_mask & ~looks[time - 1].object_mask
        np.testing.assert_array_equal(looks[time].rgb[elsewhere], looks[time - 1].rgb[elsewhere])


def test_cameras_go_around_the_person_and_a_held_out_view_is_far_from_all() -> None:
    scene = make_walking_scene(count=24, size=SIZE)
    places = np.stack([camera.position for camera in scene.cameras])
    angles = np.unwrap(np.arctan2(places[:, 1], places[:, 0]))
    assert np.ptp(np.rad2deg(angles)) > 200 and np.ptp(places[:, 2]) > 0.5
    body = [np.arctan2(*scene.motion.transforms[time, 0, :2, 0][::-1]) for time in range(24)]
    assert np.ptp(np.unwrap(np.array(angles) - np.unwrap(body))) > 2 * np.pi  # seen from all sides
    for time in (0, 7, 12, 23):
        camera = scene.place_holdout_camera(time)
        target = np.array([*scene.motion.compute_joint_positions(time)[0, :2], 0.93])
        cosine = unit(camera.position - target) @ unit(scene.cameras[time].position - target)
        assert cosine < np.cos(np.deg2rad(20)) and np.linalg.norm(places - camera.position, axis=1).min() > 0.15
        assert camera.project_points(scene.motion.compute_joint_positions(time))[2].all()


@pytest.mark.slow
def test_the_room_behind_a_held_out_view_is_one_that_training_views_show() -> None:
    scene = replace(make_walking_scene(count=12, size=(32, 24)), supersample=1)
    for time in (0, 11):
        view = scene.compute_view(scene.place_holdout_camera(time), time, person=False)
        known = np.any([scene.compute_flow(view, other).visible for other in scene.training_views], axis=0)
        assert known.mean() > 0.9


def test_the_walker_stands_on_the_ground_and_moves_every_limb() -> None:
    motion = make_walk(24)
    joints = np.stack([motion.compute_joint_positions(time) for time in range(24)])
    feet = [motion.skeleton.names.index(name) for name in ("left_foot", "right_foot")]
    np.testing.assert_allclose(joints[:, feet, 2].min(axis=1), 0.09, atol=1e-9)
    local = np.einsum("tbji,tcjk->tbcik", motion.transforms[..., :3, :3], motion.transforms[:, :1, :3, :3])[:, :, 0]
    for name in ("left_shoulder", "right_elbow", "left_hip", "right_knee", "object"):
        turned = local[:, motion.skeleton.names.index(name)]
        assert np.arccos(np.clip((np.einsum("tij,ij->t", turned, turned[0]) - 1) / 2, -1, 1)).max() > 0.1
    steps = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
    assert steps.max() < 0.5
    for transforms in (make_arms_up_pose(), motion.transforms[5]):
        turn = transforms[:, :3, :3]
        np.testing.assert_allclose(turn @ turn.transpose(0, 2, 1), np.tile(np.eye(3), (18, 1, 1)), atol=1e-9)
        np.testing.assert_allclose(np.linalg.det(turn), 1)


def test_the_new_pose_is_far_from_every_moment_of_the_clip(scene: SyntheticScene) -> None:
    motion = SkeletonMotion(
        scene.motion.skeleton, np.concatenate([scene.motion.transforms, scene.make_unseen_pose()[None]])
    )
    hand = motion.skeleton.names.index("left_hand")
    heights = [motion.compute_joint_positions(time)[hand, 2] for time in range(motion.frame_count)]
    assert heights[-1] > max(heights[:-1]) + 0.5


def test_any_skeleton_can_walk_through_the_room() -> None:
    """A motion in centimeters, far away, of other names: brought into the room and dressed."""
    own = make_walk(6)
    names = tuple(f"joint {index}" for index in range(own.skeleton.bone_count))
    skeleton = Skeleton(names, own.skeleton.parents, 100 * own.skeleton.rest_positions, own.skeleton.object_joints)
    transforms = own.transforms.copy()
    transforms[..., :3, 3] = 100 * transforms[..., :3, 3] + (700.0, -300.0, 40.0)
    motion = fit_into_room(SkeletonMotion(skeleton, transforms), height=1.5)
    joints = np.stack([motion.compute_joint_positions(time) for time in range(6)])
    assert np.median(np.ptp(joints[:, :-1, 2], axis=1)) == pytest.approx(1.5)
    assert joints[..., 2].min() > 0 and np.abs(joints[:, 0, :2]).max() <= 0.8 + 1e-9
    scene = make_scene(motion, place_orbit_cameras(motion, SIZE)[:2], times=(0, 4), switches=(2,))
    assert all(0.03 < view.mask.mean() < 0.3 and view.object_mask.any() for view in scene.training_views)
    with pytest.raises(ValueError, match="walking person"):
        scene.make_unseen_pose()
    with pytest.raises(ValueError, match="2 cameras need as many times"):
        make_scene(motion, place_orbit_cameras(motion, SIZE)[:2], times=(0, 6))


def test_light_falls_on_the_room_and_on_the_person_only_if_asked() -> None:
    plain = replace(make_walking_scene(count=2, size=SIZE), supersample=1)
    lit = replace(plain, lit_person=True)
    first, second = plain.compute_view(plain.cameras[0], 0), lit.compute_view(plain.cameras[0], 0)
    np.testing.assert_array_equal(first.rgb[~first.mask], second.rgb[~first.mask])
    assert np.all(second.rgb[first.mask] <= first.rgb[first.mask] + 1e-6)
    assert np.ptp((second.rgb.sum(-1) / np.maximum(first.rgb.sum(-1), 1e-6))[first.mask]) > 0.1


def test_seeds_change_colors_and_nothing_else() -> None:
    camera = Camera(
        *SIZE,
        (54.0, 54.0),
        (32.0, 24.0),
        compute_look_at_pose(np.array([0.0, -2.9, 1.3]), np.array([0.0, 0.0, 0.9]), UP),
    )
    first, again, other = (
        make_walking_scene(count=2, size=SIZE, seed=seed).compute_view(camera, 1) for seed in (0, 0, 5)
    )
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.depth, other.depth)
    for region in (first.mask, ~first.mask):
        assert np.abs(first.rgb - other.rgb)[region].mean() > 0.03
    assert make_person_skeleton().object_joints == (17,)

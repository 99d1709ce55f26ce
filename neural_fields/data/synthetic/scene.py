"""A synthetic 3D scene with ground truth: a person walks through a painted room and holds an object that changes.

Every picture is ray cast from closed forms, so depth, masks, flow, uncovered background, other cameras, other moments
and other poses are exact. Surfaces of the person are painted in the rest space of their bones: a point of the body
keeps its color in every pose. Meters, z up; the ground is z = 0 and the room is centerd on the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.capture import Capture, find_object_state
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.data.synthetic import walking_person
from neural_fields.data.synthetic.primitives import Primitive, Vector, find_rays_through_ball
from neural_fields.data.synthetic.procedural_colors import Paint
from neural_fields.data.synthetic.room import UP, make_room_parts

WORLD_BONE = -1  # the bone of static surfaces

__all__ = [
    "BoneSurface",
    "SyntheticScene",
    "TrueView",
    "ViewFlow",
    "make_scene",
    "make_walking_scene",
    "place_orbit_cameras",
]


@dataclass(frozen=True)
class BoneSurface:
    """A painted shape, and the bone whose rest space both are given in; `WORLD` for static surfaces."""

    shape: Primitive
    paint: Paint
    bone: int = WORLD_BONE


@dataclass(frozen=True, eq=False)
class TrueView:
    """The truth of a view. `rgb`, `cover` and `object_cover` are means over a pixel, all else is of its center.

    Attributes:
        camera, time: of the view.
        transforms: transforms of the bones, rest to world.
        person, background: whether the view contains the person with the object, and the room.
        rgb: colors in [0, 1]; black where nothing is hit.
        cover, object_cover: share of the pixel that the person (with the object), or the object, covers.
        mask, object_mask: whether the pixel's center shows them.
        depth: distance along the unit ray of the center; infinite where nothing is hit.
        z_depth: the same along the camera's z.
        bone: bone of the visible surface; `WORLD` for the room and where nothing is hit.
        rest: the visible point in the rest space of its bone; in the world for the room; 0 where nothing is hit.
        normal: outward unit normals in the world; 0 where nothing is hit.
    """

    camera: Camera
    time: int
    transforms: Float[ndarray, "bones 4 4"]
    person: bool
    background: bool
    rgb: Float[ndarray, "h w 3"]
    cover: Float[ndarray, "h w"]
    object_cover: Float[ndarray, "h w"]
    mask: Bool[ndarray, "h w"]
    object_mask: Bool[ndarray, "h w"]
    depth: Float[ndarray, "h w"]
    z_depth: Float[ndarray, "h w"]
    bone: Int[ndarray, "h w"]
    rest: Float[ndarray, "h w 3"]
    normal: Float[ndarray, "h w 3"]


@dataclass(frozen=True, eq=False)
class ViewFlow:
    """The flow of the surface points of one view to another.

    Attributes:
        pixels: displacement of each pixel's center, in pixels of the other view; 0 where nothing is hit.
        visible: whether the other view shows the same point: in its picture, with nothing in front of it.
    """

    pixels: Float[ndarray, "h w 2"]
    visible: Bool[ndarray, "h w"]


@dataclass(frozen=True, eq=False)
class SyntheticScene:
    """The scene and its ground truth.

    Attributes:
        motion: the bones at every moment.
        cameras, times: of the training views.
        switches: moments from which the object is in its next state.
        room, body: surfaces that do not change.
        objects: the surfaces of the held object, one group a state.
        supersample: a pixel's color is the mean over `supersample`^2 points.
        lit_person: whether the world's light falls on the person too; otherwise its colors are those of its paint.
    """

    motion: SkeletonMotion
    cameras: tuple[Camera, ...]
    times: tuple[int, ...]
    switches: tuple[int, ...]
    room: tuple[BoneSurface, ...]
    body: tuple[BoneSurface, ...]
    objects: tuple[tuple[BoneSurface, ...], ...]
    supersample: int = 2
    lit_person: bool = False

    @cached_property
    def training_views(self) -> tuple[TrueView, ...]:
        """Computes the truth of every training view."""
        return tuple(self.compute_view(camera, time) for camera, time in zip(self.cameras, self.times, strict=True))

    @cached_property
    def capture(self) -> Capture:
        """Returns the data for training."""
        frames = np.stack([np.round(view.rgb * 255).astype(np.uint8) for view in self.training_views])
        masks = np.stack([view.mask for view in self.training_views])
        return Capture(self.cameras, frames, self.times, masks, self.motion, self.switches)

    def compute_view(
        self,
        camera: Camera,
        time: int,
        motion_transforms: Float[ndarray, "bones 4 4"] | None = None,
        person: bool = True,
        background: bool = True,
    ) -> TrueView:
        """Computes the truth of a view.

        Args:
            camera: camera of the view.
            time: moment of the motion, which also sets the state of the held object.
            motion_transforms: another pose, as transforms from rest to world; None: the pose of the moment.
            person: whether the view contains the person with the held object.
            background: whether the view contains the room.
        """
        transforms = self.motion.transforms[time] if motion_transforms is None else motion_transforms
        surfaces = self._select_surfaces(time, person, background)
        rgb, cover, object_cover = self._render_means(camera, surfaces, transforms)
        directions = camera.compute_ray_directions(_make_pixel_positions(camera, 1))
        depth, which = _cast_rays(surfaces, transforms, camera.position, directions)
        rest, normal, bone = np.zeros((len(depth), 3)), np.zeros((len(depth), 3)), np.full(len(depth), WORLD_BONE)
        for index, rays in _group_by_surface(which):
            surface = surfaces[index]
            rotation, translation = _find_pose(surface, transforms)
            bone[rays] = surface.bone
            rest[rays] = (camera.position + depth[rays, None] * directions[rays] - translation) @ rotation
            normal[rays] = surface.shape.compute_normals(rest[rays]) @ rotation.T
        shape = (camera.height, camera.width)
        z_depth = depth * (directions @ camera.pose[:3, 2])
        return TrueView(
            camera,
            time,
            transforms,
            person,
            background,
            rgb=rgb.reshape(*shape, 3).astype(np.float32),
            cover=cover.reshape(shape).astype(np.float32),
            object_cover=object_cover.reshape(shape).astype(np.float32),
            mask=(bone != WORLD_BONE).reshape(shape),
            object_mask=np.isin(bone, self.motion.skeleton.object_joints).reshape(shape),
            depth=depth.reshape(shape),
            z_depth=z_depth.reshape(shape),
            bone=bone.reshape(shape),
            rest=rest.reshape(*shape, 3),
            normal=normal.reshape(*shape, 3),
        )

    def compute_flow(self, first: TrueView, second: TrueView) -> ViewFlow:
        """Computes the flow from one view to another; moments, poses and cameras may differ."""
        shape, camera = first.mask.shape, second.camera
        bone, rest = first.bone.ravel(), first.rest.reshape(-1, 3)
        transforms = second.transforms[np.where(bone == WORLD_BONE, 0, bone)]
        moved = np.einsum("nij,nj->ni", transforms[:, :3, :3], rest) + transforms[:, :3, 3]
        points = np.where((bone == WORLD_BONE)[:, None], rest, moved)
        projected, _, inside = camera.project_points(points)
        exists = np.isfinite(first.depth).ravel() & np.where(bone == WORLD_BONE, second.background, second.person)
        same = find_object_state(self.switches, first.time) == find_object_state(self.switches, second.time)
        exists &= same | ~np.isin(bone, self.motion.skeleton.object_joints)  # an object of another state is gone
        away = points - camera.position
        distance = np.linalg.norm(away, axis=1)
        surfaces = self._select_surfaces(second.time, second.person, second.background)
        hit, _ = _cast_rays(surfaces, second.transforms, camera.position, away / np.maximum(distance, 1e-9)[:, None])
        visible = exists & inside & (hit > distance - 1e-5)
        moves = projected - _make_pixel_positions(first.camera, 1)
        pixels = np.where(np.isfinite(first.depth).ravel()[:, None], moves, 0)
        return ViewFlow(pixels.reshape(*shape, 2), visible.reshape(shape))

    def place_holdout_camera(self, time: int, angle: float = 30.0) -> Camera:
        """Computes a viewpoint that no training view of the moment has: further around the person, and higher.

        It is closer to the middle of the clip, so that other views show the room behind the person.

        Args:
            time: moment of a training view.
            angle: degrees around the person, away from the training view.
        """
        rise = 0.4  # meters
        index = self.times.index(time)
        camera, target = self.cameras[index], _compute_target(self.motion, time)
        last = len(self.cameras) - 1
        other = self.cameras[min(index + 1, last) if index < last / 2 else max(index - 1, 0)]
        away, beside = camera.position - target, other.position - target
        side = -1.0 if away[0] * beside[1] < away[1] * beside[0] else 1.0
        position = target + walking_person.make_rotation(UP, side * np.deg2rad(angle)) @ away + (0.0, 0.0, rise)
        return camera.with_pose(compute_look_at_pose(position, target, np.asarray(UP)))

    def make_unseen_pose(self) -> Float[ndarray, "bones 4 4"]:
        """Computes the transforms of a pose that the clip does not have: the person throws up the arms.

        Raises:
            ValueError: the scene's skeleton is not that of the walking person.
        """
        if self.motion.skeleton.names != walking_person.make_person_skeleton().names:
            raise ValueError("only the walking person has such a pose; give view() transforms of your skeleton")
        return walking_person.make_arms_up_pose()

    def _select_surfaces(self, time: int, person: bool, background: bool) -> tuple[BoneSurface, ...]:
        """Returns the surfaces of a moment."""
        held = self.objects[find_object_state(self.switches, time)] if self.objects else ()
        return (self.room if background else ()) + (self.body + held if person else ())

    def _render_means(
        self, camera: Camera, surfaces: tuple[BoneSurface, ...], transforms: Float[ndarray, "bones 4 4"]
    ) -> tuple[Float[ndarray, "n 3"], Float[ndarray, " n"], Float[ndarray, " n"]]:
        """Renders means over the pixels: color, cover of the person, cover of the object."""
        sun: Vector = (0.36, -0.48, 0.8)  # direction of the light
        shade = 0.72  # brightness of a surface that faces away from it
        directions = camera.compute_ray_directions(_make_pixel_positions(camera, self.supersample))
        colors, bones = np.zeros((len(directions), 3)), np.full(len(directions), WORLD_BONE)
        depth, which = _cast_rays(surfaces, transforms, camera.position, directions)
        for index, rays in _group_by_surface(which):
            surface = surfaces[index]
            rotation, translation = _find_pose(surface, transforms)
            points = (camera.position + depth[rays, None] * directions[rays] - translation) @ rotation
            bones[rays] = surface.bone
            colors[rays] = surface.paint(points)
            if surface.bone == WORLD_BONE or self.lit_person:  # soft light, never dark
                normals = surface.shape.compute_normals(points) @ rotation.T
                light = shade + (1 - shade) * (0.5 + 0.5 * normals @ np.asarray(sun)) ** 2
                colors[rays] *= light[:, None]
        inner = (-1, self.supersample**2)
        person, held = bones != WORLD_BONE, np.isin(bones, self.motion.skeleton.object_joints)
        return (
            colors.reshape(*inner, 3).mean(1),
            person.reshape(inner).mean(1),
            held.reshape(inner).mean(1),
        )


def make_walking_scene(
    count: int = 40,
    size: tuple[int, int] = (128, 96),
    switches: tuple[int, ...] = (20,),
    seed: int = 0,
) -> SyntheticScene:
    """Makes the standard scene: a person walks on a small circle, a camera on an arc around them, one view a moment.

    Args:
        count: number of moments and of views.
        size: (width, height) of the pictures in pixels.
        switches: moments at which the held object changes: a blue ball, an orange box, a green roll, a ball again.
        seed: changes the colors of person and room.
    """
    motion = walking_person.make_walk(count)
    return make_scene(motion, place_orbit_cameras(motion, size), switches=switches, seed=seed)


def make_scene(
    motion: SkeletonMotion,
    cameras: Sequence[Camera],
    times: Sequence[int] | None = None,
    switches: tuple[int, ...] = (),
    seed: int = 0,
) -> SyntheticScene:
    """Makes a scene in which any body moves; `fit_into_room` brings a motion of other units or places into it.

    Args:
        motion: in meters, z up; joints that are objects of its skeleton carry the held object.
        cameras: one for each view.
        times: the moment that each camera shows; None for one view a moment, in order.
        switches: moments at which the object enters its next state.
        seed: changes the colors of person and room.

    Raises:
        ValueError: not one time a camera, or a time that the motion does not have.
    """
    times = tuple(range(len(cameras))) if times is None else tuple(times)
    if len(times) != len(cameras) or not all(0 <= time < motion.frame_count for time in times):
        raise ValueError(f"{len(cameras)} cameras need as many times within {motion.frame_count} moments")
    skeleton, object_radius = motion.skeleton, 0.15  # meters
    is_walker = skeleton.names == walking_person.make_person_skeleton().names
    parts = walking_person.make_person_parts(seed) if is_walker else walking_person.make_skeleton_parts(skeleton, seed)
    room = tuple(BoneSurface(shape, paint) for shape, paint in make_room_parts(seed))
    body = tuple(BoneSurface(shape, paint, skeleton.names.index(name)) for name, shape, paint in parts)
    objects = []
    for state in range(len(switches) + 1):
        surfaces = []
        for bone in skeleton.object_joints:
            surfaces.append(
                BoneSurface(
                    *walking_person.make_held_object(skeleton.rest_positions[bone], state, object_radius, seed), bone
                )
            )
        objects.append(tuple(surfaces))
    return SyntheticScene(motion, tuple(cameras), times, switches, room, body, tuple(objects))


def place_orbit_cameras(
    motion: SkeletonMotion,
    size: tuple[int, int] = (128, 96),
    arc: float = 230.0,
) -> tuple[Camera, ...]:
    """Makes one camera a moment on an arc around the middle of the room, looking at the person.

    Args:
        motion: motion of the person.
        size: (width, height) in pixels.
        arc: degrees from the first camera to the last one.

    Returns:
        One camera for each moment.
    """
    radius = 2.9  # meters
    heights = (0.9, 1.9)  # meters, between which the camera goes up and down one and a half times
    width, height = size
    cameras = []
    for time in range(motion.frame_count):
        share = time / max(motion.frame_count - 1, 1)
        angle = np.deg2rad(arc * share - 70)
        rise = np.mean(heights) + np.ptp(heights) / 2 * np.sin(3 * np.pi * share + 0.5)
        position = np.array([radius * np.cos(angle), radius * np.sin(angle), rise])
        pose = compute_look_at_pose(position, _compute_target(motion, time), np.asarray(UP))
        focal = 1.13 * height
        cameras.append(Camera(width, height, (focal, focal), (width / 2, height / 2), pose))
    return tuple(cameras)


def _compute_target(motion: SkeletonMotion, time: int) -> Float[ndarray, "3"]:
    """Computes the point that the cameras look at: at half the height of the person."""
    return np.array([*motion.compute_joint_positions(time)[0, :2], 0.93])


def _make_pixel_positions(camera: Camera, fine: int) -> Float[ndarray, "n 2"]:
    """Computes pixel positions: the centers of `fine` x `fine` parts of every pixel, those of one pixel together."""
    inner = (np.arange(fine) + 0.5) / fine
    rows, columns = np.arange(camera.height)[:, None, None, None], np.arange(camera.width)[:, None, None]
    y, x = np.broadcast_arrays(rows + inner[:, None], columns + inner)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _find_pose(
    surface: BoneSurface, transforms: Float[ndarray, "bones 4 4"]
) -> tuple[Float[ndarray, "3 3"], Float[ndarray, "3"]]:
    """Returns rotation and translation from the surface's space to the world."""
    if surface.bone == WORLD_BONE:
        return np.eye(3), np.zeros(3)
    return transforms[surface.bone, :3, :3], transforms[surface.bone, :3, 3]


def _cast_rays(
    surfaces: tuple[BoneSurface, ...],
    transforms: Float[ndarray, "bones 4 4"],
    origin: Float[ndarray, "3"],
    directions: Float[ndarray, "n 3"],
) -> tuple[Float[ndarray, " n"], Int[ndarray, " n"]]:
    """Casts unit rays: the distance to the first hit and the index of its surface; infinity and -1 for nothing."""
    chunk = 1 << 16  # rays at once
    distance, which = np.full(len(directions), np.inf), np.full(len(directions), -1)
    for start in range(0, len(directions), chunk):
        part = slice(start, start + chunk)
        for index, surface in enumerate(surfaces):
            rotation, translation = _find_pose(surface, transforms)
            center, radius = surface.shape.bounding_ball()
            near = find_rays_through_ball(origin, directions[part], rotation @ np.asarray(center) + translation, radius)
            found = surface.shape.intersect_rays((origin - translation) @ rotation, directions[part][near] @ rotation)
            near, found = start + near[found < distance[part][near]], found[found < distance[part][near]]
            distance[near], which[near] = found, index
    return distance, which


def _group_by_surface(which: Int[ndarray, " n"]) -> list[tuple[int, Int[ndarray, " k"]]]:
    """Returns the index of every surface that is hit, and the indices of the rays that hit it."""
    return [(int(index), np.flatnonzero(which == index)) for index in np.unique(which[which >= 0])]

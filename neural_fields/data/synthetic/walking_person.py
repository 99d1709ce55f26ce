"""The person of the synthetic scene: a skeleton of 18 bones, its surfaces, its walk, and a pose outside of the walk.

Meters, z up. At rest the person stands with arms held out, faces -y, and has its left at +x. It holds an object in the
right hand; the object has a bone of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial.transform import Rotation

from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton, SkeletonMotion, compose_transforms
from neural_fields.data.synthetic.primitives import Cuboid, Ellipsoid, Primitive, RoundCone, Vector
from neural_fields.data.synthetic.procedural_colors import (
    Bands,
    Checks,
    Clouds,
    FlatColor,
    Paint,
    SplitPaint,
    Spots,
    hue_to_rgb,
)

ANKLE = 0.09  # height of the foot joint over the ground
FRONT: Vector = (0.0, -1.0, 0.0)
UP: Vector = (0.0, 0.0, 1.0)
SKIN: Vector = (0.86, 0.66, 0.52)

BodyPart = tuple[str, Primitive, Paint]  # name of its bone; both are given at rest

_JOINTS: tuple[tuple[str, str | None, Vector], ...] = (
    ("pelvis", None, (0.0, 0.0, 0.95)),
    ("spine", "pelvis", (0.0, 0.0, 1.08)),
    ("chest", "spine", (0.0, 0.0, 1.26)),
    ("neck", "chest", (0.0, 0.0, 1.47)),
    ("head", "neck", (0.0, 0.0, 1.55)),
    ("left_shoulder", "chest", (0.19, 0.0, 1.41)),
    ("left_elbow", "left_shoulder", (0.46, 0.0, 1.41)),
    ("left_hand", "left_elbow", (0.71, 0.0, 1.41)),
    ("right_shoulder", "chest", (-0.19, 0.0, 1.41)),
    ("right_elbow", "right_shoulder", (-0.46, 0.0, 1.41)),
    ("right_hand", "right_elbow", (-0.71, 0.0, 1.41)),
    ("left_hip", "pelvis", (0.1, 0.0, 0.92)),
    ("left_knee", "left_hip", (0.11, 0.0, 0.5)),
    ("left_foot", "left_knee", (0.11, 0.0, ANKLE)),
    ("right_hip", "pelvis", (-0.1, 0.0, 0.92)),
    ("right_knee", "right_hip", (-0.11, 0.0, 0.5)),
    ("right_foot", "right_knee", (-0.11, 0.0, ANKLE)),
    ("object", "right_hand", (-0.93, 0.0, 1.41)),
)
_NAMES = tuple(name for name, _, _ in _JOINTS)


def make_rotation(axis: Vector, angle: float) -> Float[ndarray, "3 3"]:
    """Computes the rotation by `angle` radians about a unit axis."""
    return Rotation.from_rotvec(np.asarray(axis, np.float64) * angle).as_matrix()


def make_person_skeleton() -> Skeleton:
    """Makes the skeleton of the person; the last bone is the object's."""
    parents = tuple(NO_PARENT if parent is None else _NAMES.index(parent) for _, parent, _ in _JOINTS)
    return Skeleton(_NAMES, parents, np.array([place for _, _, place in _JOINTS]), object_joints=(len(_NAMES) - 1,))


def make_walk(count: int) -> SkeletonMotion:
    """Makes a walk of four steps over `count` moments, to the right on a circle around the origin."""
    turn, steps, circle = -200.0, 4.0, 0.5  # degrees from the first moment to the last; steps in all; meters
    skeleton = make_person_skeleton()
    share = np.arange(count) / max(count - 1, 1)
    aside, upright, ahead = (1.0, 0.0, 0.0), UP, (0.0, 1.0, 0.0)
    transforms = []
    for moment in share:
        phase, angle = np.pi * steps * moment, np.deg2rad(turn) * moment
        swing, lift = np.sin(phase), np.cos(phase)
        turns = {
            "pelvis": make_rotation(upright, angle + 0.08 * swing),
            "spine": make_rotation(upright, -0.08 * swing) @ make_rotation(aside, -0.04),
            "chest": make_rotation(upright, -0.1 * swing),
            "head": make_rotation(upright, 0.12 * np.sin(0.5 * phase)),
            "left_shoulder": make_rotation(aside, 0.5 * swing) @ make_rotation(ahead, 1.25),
            "left_elbow": make_rotation(upright, -0.4 + 0.25 * swing),
            "right_shoulder": make_rotation(upright, -0.6)
            @ make_rotation(aside, -0.12 * swing)
            @ make_rotation(ahead, -1.1),
            "right_elbow": make_rotation(upright, 1.1 + 0.12 * lift),
            "left_hip": make_rotation(aside, -0.45 * swing),
            "left_knee": make_rotation(aside, 0.12 + 0.6 * (0.5 + 0.5 * lift) ** 2),
            "left_foot": make_rotation(aside, 0.2 * swing - 0.1),
            "right_hip": make_rotation(aside, 0.45 * swing),
            "right_knee": make_rotation(aside, 0.12 + 0.6 * (0.5 - 0.5 * lift) ** 2),
            "right_foot": make_rotation(aside, -0.2 * swing - 0.1),
            "object": make_rotation(ahead, 0.25 * lift) @ make_rotation(aside, 0.3 * swing),
        }
        # The person faces (sin, -cos) of its angle, along the tangent of the circle; the object swings.
        place = (circle * float(np.cos(angle)), circle * float(np.sin(angle)))
        transforms.append(_stand_on_ground(skeleton, turns, place, 0.015 * float(swing)))
    return SkeletonMotion(skeleton, np.stack(transforms))


def make_arms_up_pose() -> Float[ndarray, "bones 4 4"]:
    """Computes the transforms of a pose that no walk has: arms up, one knee raised, trunk leaning, head turned."""
    turns = {
        "pelvis": make_rotation(UP, 0.5),
        "spine": make_rotation((0.0, 1.0, 0.0), 0.12),
        "head": make_rotation(UP, -0.5),
        "left_shoulder": make_rotation((0.0, 1.0, 0.0), -0.75),
        "left_elbow": make_rotation((0.0, 1.0, 0.0), -0.5),
        "right_shoulder": make_rotation((0.0, 1.0, 0.0), 0.2),
        "right_elbow": make_rotation(UP, 0.5) @ make_rotation((0.0, 1.0, 0.0), 0.6),
        "left_hip": make_rotation((1.0, 0.0, 0.0), -0.9) @ make_rotation((0.0, 1.0, 0.0), -0.25),
        "left_knee": make_rotation((1.0, 0.0, 0.0), 1.2),
        "right_hip": make_rotation((0.0, 1.0, 0.0), 0.12),
    }
    return _stand_on_ground(make_person_skeleton(), turns, (0.0, 0.0), 0.0)


def fit_into_room(motion: SkeletonMotion, height: float = 1.7) -> SkeletonMotion:
    """Scales and moves a motion of any unit and place into the room: meters, feet on the ground, around the middle.

    Args:
        motion: any motion with z up.
        height: height of the joints of the standing body in meters (median over the moments).
    """
    reach = 0.8  # largest distance of the root from the middle in meters; a longer path is shortened, and feet slide
    body = [bone for bone in range(motion.skeleton.bone_count) if bone not in motion.skeleton.object_joints]
    joints = np.stack([motion.compute_joint_positions(time)[body] for time in range(motion.frame_count)])
    scale = height / float(np.median(np.ptp(joints[..., 2], axis=1)))
    roots = scale * joints[:, 0]
    middle = (roots.min(0) + roots.max(0)) / 2
    shorter = min(1.0, reach / max(float(np.linalg.norm((roots - middle)[:, :2], axis=1).max()), 1e-9))
    shift = (shorter - 1) * (roots - middle) - middle
    shift[:, 2] = ANKLE / 2 - scale * joints[..., 2].min()
    transforms = motion.transforms.copy()
    transforms[..., :3, 3] = scale * transforms[..., :3, 3] + shift[:, None]
    return SkeletonMotion(replace(motion.skeleton, rest_positions=scale * motion.skeleton.rest_positions), transforms)


def make_person_parts(seed: int) -> list[BodyPart]:
    """Makes the surfaces of the person's bones at rest, without the object. `seed` changes colors and clouds."""
    wardrobe = _Wardrobe(np.random.default_rng(seed).uniform() if seed else 0.0, seed)

    # A face in front; hair behind and on top.
    dark, lips = (0.1, 0.08, 0.1), (0.75, 0.2, 0.2)
    eyes = ((0.042, -0.115, 1.665), 0.026, dark), ((-0.042, -0.115, 1.665), 0.026, dark)
    face = Spots(FlatColor(SKIN), (*eyes, ((0.0, -0.12, 1.575), 0.032, lips)))
    hair = Bands(FlatColor((0.25, 0.12, 0.05)), FlatColor((0.5, 0.28, 0.1)), (0.8, 0.6, 0.0), 0.09)
    head = SplitPaint(face, hair, (0.0, -0.8, -0.6), at=-0.985)

    # The trunk: the shirt's front is banded and its back has a badge.
    across, spin = (1.0, 0.0, 0.0), wardrobe.spin
    shirt_back = Spots(
        FlatColor(hue_to_rgb(0.62 + spin, 0.7, 0.6)),
        (((0.0, 0.12, 1.34), 0.085, hue_to_rgb(0.15 + spin, 0.8, 0.95)), ((0.0, 0.11, 1.12), 0.05, (0.95, 0.95, 0.95))),
    )
    shirt = SplitPaint(wardrobe.make_cloth(0.0, 0.1, UP, 0.15), shirt_back, FRONT)
    legs = wardrobe.make_cloth(0.33, 0.3, across, 0.2)
    trousers = SplitPaint(legs, FlatColor(hue_to_rgb(0.36 + spin, 0.6, 0.4)), FRONT)
    parts: list[BodyPart] = [
        ("pelvis", Ellipsoid((0.0, 0.0, 0.965), (0.175, 0.12, 0.13)), trousers),
        ("spine", Ellipsoid((0.0, 0.0, 1.12), (0.16, 0.11, 0.15)), shirt),
        ("chest", Ellipsoid((0.0, 0.0, 1.3), (0.2, 0.125, 0.19)), shirt),
        ("head", Ellipsoid((0.0, -0.01, 1.64), (0.095, 0.115, 0.135)), head),
        ("neck", RoundCone((0.0, 0.01, 1.45), (0.0, 0.0, 1.56), (0.058, 0.052)), FlatColor(SKIN)),
    ]

    # Sleeve, forearm and hand, then thigh, shin and shoe of either side.
    for name, side, first in (("left", 1.0, 0.05), ("right", -1.0, 0.48)):
        sleeve = wardrobe.make_cloth(first, first + 0.1, across, 0.15)
        lower = wardrobe.make_cloth(first + 0.2, first + 0.12, across, 0.14)
        x = 0.11 * side
        thigh = wardrobe.make_cloth(first + 0.28, first + 0.4, UP, 0.18)
        shin = wardrobe.make_cloth(first + 0.65, first + 0.6, UP, 0.16)
        shoe = SplitPaint(
            FlatColor(hue_to_rgb(first + 0.9, 0.9, 0.75)), FlatColor((0.15, 0.13, 0.13)), UP, at=0.045, width=0.02
        )
        parts += [
            (f"{name}_shoulder", RoundCone((0.18 * side, 0.0, 1.4), (0.46 * side, 0.0, 1.41), (0.066, 0.048)), sleeve),
            (f"{name}_elbow", RoundCone((0.46 * side, 0.0, 1.41), (0.71 * side, 0.0, 1.41), (0.047, 0.036)), lower),
            (f"{name}_hand", Ellipsoid((0.77 * side, 0.0, 1.41), (0.085, 0.04, 0.05)), FlatColor(SKIN)),
            (f"{name}_hip", RoundCone((0.1 * side, 0.0, 0.91), (x, 0.0, 0.5), (0.09, 0.062)), thigh),
            (f"{name}_knee", RoundCone((x, 0.0, 0.5), (x, 0.0, 0.1), (0.062, 0.044)), shin),
            (f"{name}_foot", RoundCone((x, 0.025, 0.052), (x, -0.15, 0.04), (0.052, 0.04)), shoe),
        ]
    return parts


@dataclass(frozen=True)
class _Wardrobe:
    """The cloths of the person; `spin` is added to their places on the color circle, in turns."""

    spin: float
    seed: int

    def make_cloth(self, first: float, second: float, along: Vector, period: float) -> Paint:
        """Makes a cloth with bands of two hues.

        Args:
            first: hue of the even bands in turns, 0 to 1.
            second: hue of the odd bands in turns, 0 to 1.
            along: direction across the bands.
            period: meters from a band to the next one of its hue.
        """
        bands = Bands(
            FlatColor(hue_to_rgb(first + self.spin, 0.7, 0.72)),
            FlatColor(hue_to_rgb(second + self.spin, 0.4, 0.92)),
            along,
            period,
        )
        return Clouds(bands, 0.08, 0.2, self.seed + int(100 * first))


def make_skeleton_parts(skeleton: Skeleton, seed: int) -> list[BodyPart]:
    """Makes surfaces for any skeleton: a banded limb from every joint to each of its children, a ball at the ends.

    The bones from the root to the topmost end (the head, z up) are a thick trunk; sizes are relative to the body's.
    """
    body = [bone for bone in range(skeleton.bone_count) if bone not in skeleton.object_joints]
    size = float(np.ptp(skeleton.rest_positions[body], axis=0).max())
    ends = [bone for bone in body if not set(skeleton.find_children(bone)) - set(skeleton.object_joints)]
    top = max(ends, key=lambda bone: float(skeleton.rest_positions[bone, 2]))
    trunk, bone = set(), top
    while bone != NO_PARENT:
        trunk.add(bone)
        bone = skeleton.parents[bone]
    parts: list[BodyPart] = []
    for order, bone in enumerate(body):
        start = _to_vector(skeleton.rest_positions[bone])
        for child in sorted(set(skeleton.find_children(bone)) - set(skeleton.object_joints)):
            away = skeleton.rest_positions[child] - skeleton.rest_positions[bone]
            length, wide = float(np.linalg.norm(away)), 0.065 if {bone, child} <= trunk else 0.032
            if length > 1e-3 * size:
                limb = RoundCone(start, _to_vector(skeleton.rest_positions[child]), (wide * size,) * 2)
                parts.append((skeleton.names[bone], limb, _paint_bands(order, start, away / length, size, seed)))
        if bone in ends:
            ball = Ellipsoid(start, ((0.07 if bone == top else 0.03) * size,) * 3)
            parts.append((skeleton.names[bone], ball, _paint_bands(order, start, np.asarray(UP), size, seed)))
    return parts


def _paint_bands(order: int, start: Vector, along: Float[ndarray, "3"], size: float, seed: int) -> Paint:
    """Paints bands across a limb, with other colors in front than behind; `order` chooses the hues."""
    across = np.cross(np.cross(along, FRONT if abs(along[1]) < 0.9 else UP), along)
    sides: list[Paint] = []
    for angle in (0.382 * order + 0.11 * seed, 0.382 * order + 0.11 * seed + 0.5):
        pair = FlatColor(hue_to_rgb(angle, 0.7, 0.72)), FlatColor(hue_to_rgb(angle + 0.1, 0.4, 0.92))
        sides.append(Clouds(Bands(*pair, _to_vector(along), 0.09 * size), 0.08, 0.1 * size, seed + order))
    facing = across / np.linalg.norm(across)
    return SplitPaint(sides[0], sides[1], _to_vector(facing), float(facing @ start), 0.02 * size)


def make_held_object(place: Float[ndarray, "3"], state: int, size: float, seed: int) -> tuple[Primitive, Paint]:
    """Makes the held object in one of its states: a blue ball, an orange box, a green roll, and these again.

    Args:
        place: position of the object's joint at rest.
        state: index of the state, from 0.
        size: radius of the ball in meters.
        seed: seed of the clouds in its paint.

    Returns:
        The shape and its paint.
    """
    middle = _to_vector(place)
    if state % 3 == 0:
        ball = Bands(FlatColor((0.1, 0.25, 0.85)), FlatColor((0.75, 0.9, 1.0)), (0.6, 0.0, 0.8), 0.9 * size)
        return Ellipsoid(middle, (size,) * 3), Clouds(ball, 0.05, 2 * size, seed + 31)
    if state % 3 == 1:
        box = Checks(FlatColor((0.95, 0.5, 0.05)), FlatColor((0.6, 0.1, 0.05)), (1.7 * size, 1.7 * size, 1.7 * size))
        return Cuboid(middle, (0.95 * size, 0.75 * size, 1.1 * size)), Clouds(box, 0.05, 2 * size, seed + 32)
    roll = Bands(FlatColor((0.15, 0.65, 0.2)), FlatColor((0.95, 0.95, 0.4)), UP, 0.9 * size)
    low, high = (middle[0], middle[1], middle[2] - 1.2 * size), (middle[0], middle[1], middle[2] + 1.2 * size)
    return RoundCone(low, high, (0.6 * size, 0.6 * size)), roll


def _stand_on_ground(
    skeleton: Skeleton, turns: dict[str, Float[ndarray, "3 3"]], place: tuple[float, float], swing: float
) -> Float[ndarray, "bones 4 4"]:
    """Computes the transforms of a pose whose lower foot stands on the ground at `place`."""
    rotations = np.stack([turns.get(name, np.eye(3)) for name in skeleton.names])
    shifts = np.zeros((skeleton.bone_count, 3))
    shifts[0] = (*place, 0.0)
    shifts[skeleton.names.index("object")] = (0.0, 0.0, swing)
    transforms = compose_transforms(skeleton, rotations, shifts)
    feet = [skeleton.names.index(name) for name in ("left_foot", "right_foot")]
    heights = [transforms[foot, 2, :3] @ skeleton.rest_positions[foot] + transforms[foot, 2, 3] for foot in feet]
    transforms[:, 2, 3] += ANKLE - min(heights)
    return transforms


def _to_vector(values: Float[ndarray, "3"]) -> Vector:
    """Converts an array to a tuple."""
    x, y, z = values.tolist()
    return x, y, z

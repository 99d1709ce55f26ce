"""Samples the poses in which a person is rendered during an edit: the reference's, the video's, and random ones.

DynVideo-E (Liu et al., 2024) mixes the three so that the result looks right in every pose. It draws random poses from a
body model; here they are interpolated, joint by joint, between two poses of the capture, with some noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from neural_fields.data.capture.skeleton import NO_PARENT, SkeletonMotion, compose_transforms, compute_local_pose

PoseKind = Literal["reference", "source", "random"]


@dataclass(frozen=True)
class Pose:
    """Describes a pose to render.

    Attributes:
        kind: where the pose comes from.
        transforms: a matrix per bone, from rest to world.
        time: the moment that gives the state of the carried object.
    """

    kind: PoseKind
    transforms: Float[np.ndarray, "bones 4 4"]
    time: int


@dataclass(frozen=True)
class PoseSampler:
    """Draws random poses.

    Attributes:
        motion: the moving skeleton of the capture.
        shares: probability of each kind of pose, in the order of `PoseKind`; they add up to 1.
        reference: the moment of the reference; only used if its share is above 0.
    """

    motion: SkeletonMotion
    shares: tuple[float, float, float]
    reference: int = 0

    def __call__(self, random: np.random.Generator) -> Pose:
        """Draws a pose of a random kind."""
        kind: PoseKind = get_args(PoseKind)[int(random.choice(3, p=self.shares))]
        if kind == "reference":
            return Pose(kind, self.motion.transforms[self.reference], self.reference)
        time = int(random.integers(self.motion.frame_count))
        if kind == "source":
            return Pose(kind, self.motion.transforms[time], time)
        other = int(random.integers(self.motion.frame_count))
        return Pose(kind, interpolate_poses(self.motion, time, other, float(random.random()), random), time)


def interpolate_poses(
    motion: SkeletonMotion,
    first: int,
    second: int,
    share: float,
    random: np.random.Generator,
    noise_radians: float | None = None,
) -> Float[np.ndarray, "bones 4 4"]:
    """Interpolates the poses of two moments, each joint along its shortest rotation, and adds noise.

    The body stays where it is at the first moment: roots do not move. Carried objects stay in place in the hand.

    Args:
        motion: the moving skeleton of the capture.
        first: the first moment, an index into the frames of the motion.
        second: the second moment.
        share: position between the two, in [0, 1].
        random: random generator of the noise.
        noise_radians: standard deviation in radians of a random rotation of every joint; by default 8 degrees.

    Returns:
        A matrix per bone, from rest to world.
    """
    noise_radians = np.deg2rad(8.0) if noise_radians is None else noise_radians
    skeleton = motion.skeleton
    rotations, translations = compute_local_pose(skeleton, motion.transforms[first])
    other_rotations, other_translations = compute_local_pose(skeleton, motion.transforms[second])
    free = []  # the joints that random poses rotate
    for joint, parent in enumerate(skeleton.parents):
        if parent != NO_PARENT and joint not in skeleton.object_joints:
            free.append(joint)
    if not free:
        return motion.transforms[first]
    way = Rotation.from_matrix(rotations[free].transpose(0, 2, 1) @ other_rotations[free]).as_rotvec()
    noise = Rotation.from_rotvec(noise_radians * random.standard_normal((len(free), 3))).as_matrix()
    made, moved = rotations.copy(), translations.copy()
    made[free] = rotations[free] @ Rotation.from_rotvec(share * way).as_matrix() @ noise
    moved[free] = (1 - share) * translations[free] + share * other_translations[free]
    return compose_transforms(skeleton, made, moved)

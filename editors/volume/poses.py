"""Poses in which a person is looked at while they are edited: the reference's, the video's, and poses of no frame.

DynVideo-E (Liu et al., 2024) mixes the three so that what is painted fits every pose. Where it takes random poses of a
body model, these come from the capture itself: between two of its poses, joint by joint, and a little beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from neural_fields.data.rigid import from_axis_angle
from neural_fields.data.skeleton import ROOT, Motion, Skeleton, from_local, local_rotations

Kind = Literal["reference", "source", "random"]
ASIDE = np.deg2rad(8.0)  # standard deviation by which joints leave the way between two poses


@dataclass(frozen=True)
class Pose:
    """A pose to look at.

    Attributes:
        transforms: bones, rest to world.
        time: the moment whose state the carried object is in.
    """

    kind: Kind
    transforms: Float[np.ndarray, "bones 4 4"]
    time: int


@dataclass(frozen=True)
class PoseSampler:
    """Draws poses.

    Attributes:
        shares: how often each kind comes, in the order of `Kind`; they add up to 1.
        reference: the moment of the reference; only needed where its share is above 0.
    """

    motion: Motion
    shares: tuple[float, float, float]
    reference: int = 0

    def __call__(self, random: np.random.Generator) -> Pose:
        """A pose of a random kind."""
        kind: Kind = get_args(Kind)[int(random.choice(3, p=self.shares))]
        if kind == "reference":
            return Pose(kind, self.motion.transforms[self.reference], self.reference)
        time = int(random.integers(self.motion.frame_count))
        if kind == "source":
            return Pose(kind, self.motion.transforms[time], time)
        other = int(random.integers(self.motion.frame_count))
        return Pose(kind, between(self.motion, time, other, float(random.random()), random), time)


def between(
    motion: Motion, first: int, second: int, share: float, random: np.random.Generator, aside: float = ASIDE
) -> Float[np.ndarray, "bones 4 4"]:
    """A pose on the way from one moment to another, each joint turned on its own shortest way, and a little beside it.

    The body stands where it stood at the first moment: roots do not move. Carried objects stay in place at their hand.

    Args:
        share: of the way, in [0, 1].
        aside: standard deviation in radians of a random turn of every joint.
    """
    skeleton = motion.skeleton
    turns, shifts = local_rotations(skeleton, motion.transforms[first])
    others, other_shifts = local_rotations(skeleton, motion.transforms[second])
    free = _free(skeleton)
    if not free:
        return motion.transforms[first]
    way = Rotation.from_matrix(turns[free].transpose(0, 2, 1) @ others[free]).as_rotvec()
    noise = from_axis_angle(aside * random.standard_normal((len(free), 3)))
    made, moved = turns.copy(), shifts.copy()
    made[free] = turns[free] @ from_axis_angle(share * way) @ noise
    moved[free] = (1 - share) * shifts[free] + share * other_shifts[free]
    return from_local(skeleton, made, moved)


def _free(skeleton: Skeleton) -> list[int]:
    """The joints that random poses turn."""
    return [joint for joint, parent in enumerate(skeleton.parents) if parent != ROOT and joint not in skeleton.objects]

"""Skeletons: rest joints, parents, and the transform of every bone in every frame. All importers return these.

Bone b moves what is attached to joint b: `transforms[t, b]` takes points of the rest pose to the world of frame t.
A body needs nothing else: no body model and no file that is bound to a license.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

NO_PARENT = -1  # the parent of a joint that has none


@dataclass(frozen=True)
class Skeleton:
    """The joints of a body in its rest pose.

    Attributes:
        names: names of the joints.
        parents: index of each joint's parent, before it in the list; `ROOT` for none.
        rest_positions: joint positions in the rest pose, in world units.
        object_joints: indices of the joints of held objects, which move freely relative to their parent.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    rest_positions: Float[np.ndarray, "bones 3"]
    object_joints: tuple[int, ...] = ()

    @property
    def bone_count(self) -> int:
        """The number of bones, one for each joint."""
        return len(self.names)

    def find_children(self, joint: int) -> list[int]:
        """Finds the indices of the joints whose parent is `joint`, in rising order."""
        return [index for index, parent in enumerate(self.parents) if parent == joint]


@dataclass(frozen=True)
class SkeletonMotion:
    """A skeleton and the transforms of its bones over time."""

    skeleton: Skeleton
    transforms: Float[np.ndarray, "frames bones 4 4"]  # rest to world, rigid

    @property
    def frame_count(self) -> int:
        """The number of frames."""
        return len(self.transforms)

    def compute_joint_positions(self, frame: int) -> Float[np.ndarray, "bones 3"]:
        """Computes the positions of the joints in the world of a frame."""
        transforms = self.transforms[frame]
        return np.einsum("bij,bj->bi", transforms[:, :3, :3], self.skeleton.rest_positions) + transforms[:, :3, 3]


def build_skeleton(
    names: Sequence[str],
    parents: Sequence[int],
    rest: Shaped[np.ndarray, "bones 3"],
    object_joints: Sequence[int] = (),
) -> tuple[Skeleton, list[int]]:
    """Builds a skeleton from joints in any order.

    Args:
        names: names of the joints.
        parents: index of each joint's parent; `ROOT` for none.
        rest: joint positions in the rest pose.
        object_joints: indices of the joints of held objects.

    Returns:
        The skeleton, whose bones come after their parents, and the index of the given joint that each bone is.

    Raises:
        ValueError: no joint, a name twice, parents in a circle, or a joint where its parent is (a bone of no length).
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise ValueError(f"two joints are called {twice[0]!r}" if twice else "there is no joint")
    # Keep the order of the joints, but put no joint before its parent.
    order: list[int] = []
    ordered = {NO_PARENT}
    for start in range(len(parents)):
        chain: list[int] = []
        joint = start
        while joint not in ordered:
            if len(chain) > len(parents):
                raise ValueError(f"the parents of {names[start]!r} go round in a circle")
            chain.append(joint)
            joint = parents[joint]
        order += reversed(chain)
        ordered.update(chain)
    bone_of = {joint: bone for bone, joint in enumerate(order)} | {NO_PARENT: NO_PARENT}

    extent = float(np.ptp(np.asarray(rest, np.float64), axis=0).max(initial=0))
    for joint, parent in enumerate(parents):
        if parent != NO_PARENT and np.linalg.norm(rest[joint] - rest[parent]) <= 1e-6 * extent:
            raise ValueError(f"the joint {names[joint]!r} is at rest where its parent {names[parent]!r} is")
    skeleton = Skeleton(
        tuple(names[joint] for joint in order),
        tuple(bone_of[parents[joint]] for joint in order),
        np.asarray(rest, np.float64)[order],
        tuple(sorted(bone_of[joint] for joint in object_joints)),
    )
    return skeleton, order


def compute_local_pose(
    skeleton: Skeleton, transforms: Float[np.ndarray, "bones 4 4"]
) -> tuple[Float[np.ndarray, "bones 3 3"], Float[np.ndarray, "bones 3"]]:
    """Computes the pose of a frame: the rotation of each joint relative to its parent, and its translation.

    `from_local` is the inverse: it gives the transforms back exactly.

    Args:
        skeleton: the joints at rest.
        transforms: transforms of the bones in one frame, rest to world.

    Returns:
        Rotations, and translations relative to the place that the parent gives the joint (of a root: its position).
    """
    rotations, translations = np.empty((skeleton.bone_count, 3, 3)), np.zeros((skeleton.bone_count, 3))
    for bone, parent in enumerate(skeleton.parents):
        position = transforms[bone, :3, :3] @ skeleton.rest_positions[bone] + transforms[bone, :3, 3]
        if parent == NO_PARENT:
            rotations[bone], translations[bone] = transforms[bone, :3, :3], position
            continue
        rotations[bone] = transforms[parent, :3, :3].T @ transforms[bone, :3, :3]
        at_parent = transforms[parent, :3, :3] @ skeleton.rest_positions[bone] + transforms[parent, :3, 3]
        translations[bone] = transforms[parent, :3, :3].T @ (position - at_parent)
    return rotations, translations


def compose_transforms(
    skeleton: Skeleton, rotations: Float[np.ndarray, "bones 3 3"], translations: Float[np.ndarray, "bones 3"]
) -> Float[np.ndarray, "bones 4 4"]:
    """Computes the bone transforms of a pose by forward kinematics along the parents.

    Args:
        skeleton: the joints at rest.
        rotations: rotation of each joint relative to its parent.
        translations: translations: of a root its position in the world; of the others relative to their place at the
            parent.

    Returns:
        Transforms of the bones, rest to world.
    """
    transforms = np.tile(np.eye(4), (skeleton.bone_count, 1, 1))
    for bone, parent in enumerate(skeleton.parents):
        if parent == NO_PARENT:
            rotation, position = rotations[bone], translations[bone]
        else:
            above = transforms[parent]
            rotation = above[:3, :3] @ rotations[bone]
            position = above[:3, :3] @ (skeleton.rest_positions[bone] + translations[bone]) + above[:3, 3]
        transforms[bone, :3, :3] = rotation
        transforms[bone, :3, 3] = position - rotation @ skeleton.rest_positions[bone]
    return transforms

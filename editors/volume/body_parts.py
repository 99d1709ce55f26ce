"""Derives the parts of a body from its skeleton: a limb is a chain of bones with a free end, the trunk is the rest.

DynVideo-E refines parts of the body in zoomed pictures, and takes the parts from a body model. Here captures differ in
the names and numbers of joints, but the tree of bones always has this structure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton
from neural_fields.volume.skinning import compute_bone_bumps

TRUNK = "trunk"


def find_body_parts(skeleton: Skeleton) -> dict[str, tuple[int, ...]]:
    """Finds the joints of every part of a body.

    Args:
        skeleton: the skeleton.

    Returns:
        Indices of joints by part: limbs are named after their last joint, carried objects after theirs; the rest is the
        trunk.
    """
    body = [joint for joint in range(skeleton.bone_count) if joint not in skeleton.object_joints]
    below = {joint: [child for child in skeleton.find_children(joint) if child in body] for joint in body}
    parts = {}
    for last in (joint for joint in body if not below[joint]):
        chain = [last]
        # A joint in the middle of a limb leads to one joint alone, and is no root of the body.
        while (parent := skeleton.parents[chain[0]]) in below:
            if len(below[parent]) != 1 or skeleton.parents[parent] == NO_PARENT:
                break
            chain.insert(0, parent)
        parts[skeleton.names[last]] = tuple(chain)
    named = {joint for chain in parts.values() for joint in chain}
    trunk = tuple(joint for joint in body if joint not in named)
    objects = {skeleton.names[joint]: (joint,) for joint in skeleton.object_joints}
    return parts | ({TRUNK: trunk} if trunk else {}) | objects


def body_outline(
    skeleton: Skeleton, transforms: Float[np.ndarray, "bones 4 4"], joints: Sequence[int] | None = None
) -> Float[np.ndarray, "points 3"]:
    """Computes points around the body, or some of its bones, in a pose: the tips of ellipsoids around the bones.

    Args:
        skeleton: the skeleton at rest.
        transforms: a matrix per bone, from rest to world.
        joints: indices of the bones to use; by default all.

    Returns:
        Points in world units.
    """
    bumps = compute_bone_bumps(skeleton)
    wanted = set(range(skeleton.bone_count) if joints is None else joints)
    tips = []
    for bone, center, shape in zip(bumps.bone, bumps.center, bumps.shape, strict=True):
        if bone in wanted:
            _, sizes, axes = np.linalg.svd(shape)
            reach = axes / sizes[:, None]
            rest = np.concatenate([center + reach, center - reach])
            tips.append(rest @ transforms[bone, :3, :3].T + transforms[bone, :3, 3])
    return np.concatenate(tips)

"""Parts of a body, from its bones alone: a limb is a chain of bones that ends in nothing, the trunk is what is left.

DynVideo-E refines parts of the body in zoomed pictures. It knows them from a body model; names and numbers of joints
differ between captures, the way they hang together does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from neural_fields.data.skeleton import ROOT, Skeleton
from neural_fields.volume.body import bone_bumps

TRUNK = "trunk"


def body_parts(skeleton: Skeleton) -> dict[str, tuple[int, ...]]:
    """The joints of every part: limbs by the name of their last joint, carried objects by theirs, and the trunk."""
    body = [joint for joint in range(skeleton.count) if joint not in skeleton.objects]
    below = {joint: [child for child in skeleton.children(joint) if child in body] for joint in body}
    parts = {}
    for last in (joint for joint in body if not below[joint]):
        chain = [last]
        while (parent := skeleton.parents[chain[0]]) in below and _goes_on(skeleton, parent, below[parent]):
            chain.insert(0, parent)
        parts[skeleton.names[last]] = tuple(chain)
    named = {joint for chain in parts.values() for joint in chain}
    trunk = tuple(joint for joint in body if joint not in named)
    objects = {skeleton.names[joint]: (joint,) for joint in skeleton.objects}
    return parts | ({TRUNK: trunk} if trunk else {}) | objects


def outline(
    skeleton: Skeleton, transforms: Float[np.ndarray, "bones 4 4"], joints: Sequence[int] | None = None
) -> Float[np.ndarray, "points 3"]:
    """Points of the world that hold the body, or some of its bones, in a pose: the tips of ellipsoids around bones."""
    bumps = bone_bumps(skeleton)
    wanted = set(range(skeleton.count) if joints is None else joints)
    tips = []
    for bone, centre, shape in zip(bumps.bone, bumps.centre, bumps.shape, strict=True):
        if bone in wanted:
            _, sizes, axes = np.linalg.svd(shape)
            reach = axes / sizes[:, None]
            rest = np.concatenate([centre + reach, centre - reach])
            tips.append(rest @ transforms[bone, :3, :3].T + transforms[bone, :3, 3])
    return np.concatenate(tips)


def _goes_on(skeleton: Skeleton, joint: int, children: Sequence[int]) -> bool:
    """Whether a joint is in the middle of a limb: it leads to one joint alone, and is no root of the body."""
    return len(children) == 1 and skeleton.parents[joint] != ROOT

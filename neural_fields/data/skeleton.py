"""Bones: rest joints, parents, and where every bone is in every frame. Importers for other files make these.

A bone b carries what is attached to joint b: `transforms[t, b]` takes points of the rest pose to the world of frame t.
Nothing else about a body is needed: no body model, no licence-bound file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

ROOT = -1  # the parent of a joint that has none


@dataclass(frozen=True)
class Skeleton:
    """A body at rest.

    Attributes:
        names: of the joints.
        parents: index of each joint's parent, before it in the list; `ROOT` for none.
        rest: joint positions in the rest pose, in world units.
        objects: joints that carry something held in a hand: they move freely against their parent.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    rest: Float[np.ndarray, "bones 3"]
    objects: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.names)

    def children(self, joint: int) -> list[int]:
        return [index for index, parent in enumerate(self.parents) if parent == joint]


@dataclass(frozen=True)
class Motion:
    """A skeleton and its bones' places over time."""

    skeleton: Skeleton
    transforms: Float[np.ndarray, "frames bones 4 4"]  # rest to world, rigid

    @property
    def frame_count(self) -> int:
        return len(self.transforms)

    def joints(self, frame: int) -> Float[np.ndarray, "bones 3"]:
        """Joint positions in the world of a frame."""
        placed = self.transforms[frame]
        return np.einsum("bij,bj->bi", placed[:, :3, :3], self.skeleton.rest) + placed[:, :3, 3]


def build_skeleton(
    names: Sequence[str],
    parents: Sequence[int],
    rest: Shaped[np.ndarray, "bones 3"],
    objects: Sequence[int] = (),
) -> tuple[Skeleton, list[int]]:
    """A skeleton from joints in any order, and which joint of that order each of its bones is.

    Raises:
        ValueError: no joint, a name twice, parents in a circle, or a joint where its parent is (a bone of no length).
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise ValueError(f"two joints are called {twice[0]!r}" if twice else "there is no joint")
    order = _parents_first(names, parents)
    place = {joint: index for index, joint in enumerate(order)} | {ROOT: ROOT}
    extent = float(np.ptp(np.asarray(rest, np.float64), axis=0).max(initial=0))
    for joint, parent in enumerate(parents):
        if parent != ROOT and np.linalg.norm(rest[joint] - rest[parent]) <= 1e-6 * extent:
            raise ValueError(f"the joint {names[joint]!r} is at rest where its parent {names[parent]!r} is")
    skeleton = Skeleton(
        tuple(names[joint] for joint in order),
        tuple(place[parents[joint]] for joint in order),
        np.asarray(rest, np.float64)[order],
        tuple(sorted(place[joint] for joint in objects)),
    )
    return skeleton, order


def _parents_first(names: Sequence[str], parents: Sequence[int]) -> list[int]:
    """The joints in their order, but none before its parent."""
    order: list[int] = []
    placed = {ROOT}
    for start in range(len(parents)):
        chain: list[int] = []
        joint = start
        while joint not in placed:
            if len(chain) > len(parents):
                raise ValueError(f"the parents of {names[start]!r} go round in a circle")
            chain.append(joint)
            joint = parents[joint]
        order += reversed(chain)
        placed.update(chain)
    return order


def local_rotations(
    skeleton: Skeleton, transforms: Float[np.ndarray, "bones 4 4"]
) -> tuple[Float[np.ndarray, "bones 3 3"], Float[np.ndarray, "bones 3"]]:
    """What turns each joint against its parent, and how far it has moved from where its parent has it at rest.

    Together they are a pose: `from_local` gives the transforms back exactly.
    """
    rotations, shifts = np.empty((skeleton.count, 3, 3)), np.zeros((skeleton.count, 3))
    for bone, parent in enumerate(skeleton.parents):
        place = transforms[bone, :3, :3] @ skeleton.rest[bone] + transforms[bone, :3, 3]
        if parent == ROOT:
            rotations[bone], shifts[bone] = transforms[bone, :3, :3], place
            continue
        rotations[bone] = transforms[parent, :3, :3].T @ transforms[bone, :3, :3]
        carried = transforms[parent, :3, :3] @ skeleton.rest[bone] + transforms[parent, :3, 3]
        shifts[bone] = transforms[parent, :3, :3].T @ (place - carried)
    return rotations, shifts


def from_local(
    skeleton: Skeleton, rotations: Float[np.ndarray, "bones 3 3"], shifts: Float[np.ndarray, "bones 3"]
) -> Float[np.ndarray, "bones 4 4"]:
    """Bone transforms of a pose: forward kinematics along the parents.

    Args:
        shifts: of a root its place in the world; of the others how far they leave their place at the parent.
    """
    transforms = np.tile(np.eye(4), (skeleton.count, 1, 1))
    for bone, parent in enumerate(skeleton.parents):
        if parent == ROOT:
            turn, place = rotations[bone], shifts[bone]
        else:
            above = transforms[parent]
            turn = above[:3, :3] @ rotations[bone]
            place = above[:3, :3] @ (skeleton.rest[bone] + shifts[bone]) + above[:3, 3]
        transforms[bone, :3, :3] = turn
        transforms[bone, :3, 3] = place - turn @ skeleton.rest[bone]
    return transforms

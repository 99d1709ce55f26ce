"""BVH recordings: a hierarchy of joint offsets, then the values of its channels in every frame.

Angles are in degrees and apply in the order in which a joint lists them, each around an axis that those before it have
rotated. Position channels give a joint's position relative to its parent, instead of its offset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from neural_fields.core.errors import bad_input
from neural_fields.core.validated_input import (
    MAX_FILE_BYTES,
    FormatError,
    describe_value,
    locate_format_errors,
    parse_number_words,
    read_text,
)
from neural_fields.data.capture.rigid_transforms import parse_axes
from neural_fields.data.capture.skeleton import NO_PARENT, SkeletonMotion, build_skeleton

_CHANNELS = {f"{axis}{kind}".lower(): (kind, "XYZ".index(axis)) for axis in "XYZ" for kind in ("position", "rotation")}


@dataclass
class _Joint:
    """The block of a joint in the file."""

    name: str
    parent: int
    end: bool = False  # an end site: where its parent's bone ends
    offset: Float[np.ndarray, "3"] = field(default_factory=lambda: np.zeros(3))
    channels: list[tuple[str, int]] = field(default_factory=list)


def read_bvh(
    path: Path | str,
    frames: range | None = None,
    scale: float = 1.0,
    axes: str = "xyz",
    end_sites: bool = False,
) -> SkeletonMotion:
    """Reads the recording of a BVH file. At rest all angles are zero and the joints stand at their offsets.

    A joint at the position of its parent (an offset of zero, as at the root of a thumb) is not a separate bone: it is
    left out, and its children become children of its parent that still move as in the file.

    Args:
        path: the file.
        frames: which frames to take; all by default.
        scale: world units for one of the file's: 0.01 for a file in centimeters and a world in meters.
        axes: the world's axes in those of the file, see `parse_axes`; BVH is mostly y up.
        end_sites: keep the ends of the last bones as joints called NAME_end, which move with their parents.

    Raises:
        UserError: not a BVH file, damaged, or without the frames that were asked for.
    """
    path = Path(path)
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"a scale is above 0, not {scale}")
    to_world = parse_axes(axes)
    hierarchy, *rest = re.split(r"^\s*MOTION\b", read_text(path, MAX_FILE_BYTES), maxsplit=1, flags=re.MULTILINE)
    with locate_format_errors(path, fix="export the recording again as BVH"):
        joints = _parse_hierarchy(hierarchy)

        # The values of every frame.
        lines = [line for line in "".join(rest).splitlines() if line.strip()]
        heads = [line.partition(":") for line in lines[:2]]
        if [head[0].strip() for head in heads] != ["Frames", "Frame Time"] or not heads[0][2].strip().isdecimal():
            raise FormatError("there is no MOTION with its number of frames and frame time")
        count = int(heads[0][2][:20])
        if len(lines) - 2 != count or not count:
            raise FormatError(f"it announces {count} frames and has {len(lines) - 2}")
        width = sum(len(joint.channels) for joint in joints)
        values = np.empty((count, width))
        for index, line in enumerate(lines[2:]):
            words = line.split()
            if len(words) != width:
                raise FormatError(f"frame {index} has {len(words)} numbers for {width} channels")
            values[index] = parse_number_words(words, f"frame {index}")
    chosen = range(len(values)) if frames is None else frames
    if not chosen or min(chosen[0], chosen[-1]) < 0 or max(chosen[0], chosen[-1]) >= len(values):
        why = f"it holds {len(values)} frames, 0 to {len(values) - 1}"
        raise bad_input(f"{path.name} has no frames {chosen.start}:{chosen.stop}", where=str(path), why=why)

    # The rotation and position of every joint, in the file's axes and units.
    values = values[list(chosen)]
    rotations, positions = np.empty((len(joints), len(values), 3, 3)), np.empty((len(joints), len(values), 3))
    channel = 0
    for index, joint in enumerate(joints):
        rotation, position = np.tile(np.eye(3), (len(values), 1, 1)), np.tile(joint.offset, (len(values), 1))
        for kind, axis in joint.channels:
            if kind == "position":
                position[:, axis] = values[:, channel]
            else:
                rotation = rotation @ Rotation.from_euler("xyz"[axis], values[:, [channel]], degrees=True).as_matrix()
            channel += 1
        if joint.parent != NO_PARENT:
            above = rotations[joint.parent]
            rotation, position = above @ rotation, (above @ position[..., None])[..., 0] + positions[joint.parent]
        rotations[index], positions[index] = rotation, position
    with locate_format_errors(path):
        return _build_motion(
            joints, to_world @ rotations @ to_world.T, scale * positions @ to_world.T, scale, to_world, end_sites
        )


def _parse_hierarchy(text: str) -> list[_Joint]:
    """Parses the joints in the order of the file, which is also that of their channels."""
    words = text.split()
    if not words or words[0] != "HIERARCHY":
        raise FormatError("it does not begin with HIERARCHY")
    joints: list[_Joint] = []
    open_blocks: list[int] = []
    at = 1
    while at < len(words):
        word = words[at]
        if word in ("ROOT", "JOINT", "End"):
            try:
                brace = words.index("{", at)
            except ValueError:
                raise FormatError(f"the block of {' '.join(words[at : at + 2])} does not open") from None
            if (word == "ROOT") == bool(open_blocks):
                raise FormatError(f"{' '.join(words[at:brace])[:60]} is at a wrong place")
            parent = open_blocks[-1] if open_blocks else NO_PARENT
            name = f"{joints[parent].name}_end" if word == "End" else " ".join(words[at + 1 : brace])
            joints.append(_Joint(name, parent, word == "End"))
            open_blocks.append(len(joints) - 1)
            at = brace + 1
        elif not open_blocks:
            raise FormatError(f"{describe_value(word)} where a ROOT was expected")
        elif word == "}":
            open_blocks.pop()
            at += 1
        elif word == "OFFSET":
            joint = joints[open_blocks[-1]]
            joint.offset = parse_number_words(words[at + 1 : at + 4], f"the offset of {joint.name}")
            if len(joint.offset) != 3:
                raise FormatError(f"the offset of {joint.name} is cut off")
            at += 4
        elif word == "CHANNELS":
            joint = joints[open_blocks[-1]]
            count = int(words[at + 1]) if words[at + 1 : at + 2] and words[at + 1].isdecimal() else 0
            names = words[at + 2 : at + 2 + count]
            unknown = [name for name in names if name.lower() not in _CHANNELS]
            if unknown or not 0 < len(names) == count <= 6:
                raise FormatError(
                    f"the channels of {joint.name}: {describe_value(unknown[0]) if unknown else 'not 1 to 6 names'}"
                )
            joint.channels = [_CHANNELS[name.lower()] for name in names]
            at += 2 + count
        else:
            raise FormatError(f"{describe_value(word)} in the block of {joints[open_blocks[-1]].name}")
    if open_blocks or not joints:
        raise FormatError("its hierarchy is cut off" if joints else "it has no joint")
    return joints


def _build_motion(
    joints: list[_Joint],
    rotations: Float[np.ndarray, "joints frames 3 3"],
    positions: Float[np.ndarray, "joints frames 3"],
    scale: float,
    to_world: Float[np.ndarray, "3 3"],
    end_sites: bool,
) -> SkeletonMotion:
    """Builds the bones of the joints that have a length, in world axes and units.

    Args:
        joints: the joints of the file.
        rotations: rotations of the joints in the world.
        positions: positions of the joints in the world, in its units.
        scale: world units for one of the file's.
        to_world: the file's axes to those of the world.
        end_sites: whether end sites become joints.
    """
    # A joint at the position of its parent (up to rounding) is no bone: its children become children of its parent.
    shortest = 1e-6 * max(float(np.linalg.norm(joint.offset)) for joint in joints)
    rest: list[np.ndarray] = []
    bone_of: list[int] = []  # for each joint its bone, or that of its nearest ancestor
    kept: list[int] = []
    parents: list[int] = []
    for index, joint in enumerate(joints):
        above = joint.parent
        rest.append(joint.offset if above == NO_PARENT else rest[above] + joint.offset)
        parent = NO_PARENT if above == NO_PARENT else bone_of[above]
        touches = parent != NO_PARENT and float(np.linalg.norm(rest[index] - rest[kept[parent]])) <= shortest
        if touches or (joint.end and not end_sites):
            bone_of.append(parent)
            continue
        bone_of.append(len(kept))
        kept.append(index)
        parents.append(parent)

    names = [joints[joint].name for joint in kept]
    rest_positions = scale * np.array([rest[joint] for joint in kept]) @ to_world.T
    try:
        skeleton, order = build_skeleton(names, parents, rest_positions)
    except ValueError as problem:
        raise FormatError(str(problem)) from None
    source = np.array(kept)[order]
    transforms = np.tile(np.eye(4), (rotations.shape[1], len(kept), 1, 1))
    transforms[..., :3, :3] = rotations[source].swapaxes(0, 1)
    rotated_rest = np.einsum("bfij,bj->bfi", rotations[source], skeleton.rest_positions)
    transforms[..., :3, 3] = (positions[source] - rotated_rest).swapaxes(0, 1)
    return SkeletonMotion(skeleton, transforms)

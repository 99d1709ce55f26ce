"""bones.json and states.json: our own files for the transforms of the bones and the changes of the held object.

bones.json: {"schema": 1, "joints": [{"name", "parent": name or null, "rest": [x, y, z], "object": true}, ...],
"frames": [{"transforms": [16 numbers row by row, or 4 rows of 4, for each joint]}, ...]}; transforms take the rest pose
to the world. states.json: {"schema": 1, "switches": [12, 30]}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, write_json, write_synced
from neural_fields.core.validated_input import (
    FormatError,
    describe_value,
    locate_format_errors,
    parse_numbers,
    read_json_object,
)
from neural_fields.data.capture.rigid_transforms import NotRigidError, repair_rigid_transforms
from neural_fields.data.capture.skeleton import NO_PARENT, SkeletonMotion, build_skeleton

_SCHEMA = 1


def read_bones(path: Path | str) -> SkeletonMotion:
    """Reads the bones of a bones.json; joints keep its order, except that children come after their parents.

    Raises:
        UserError: not such a file; a parent that is no joint or its own ancestor; a bone of no length; a frame that
            does not give one rigid transform for each joint.
    """
    path = Path(path)
    data = read_json_object(path, _SCHEMA)
    with locate_format_errors(path, fix="give every joint a name, a parent (or null) and a distinct rest position"):
        joints = data.get("joints")
        if not isinstance(joints, list) or not all(isinstance(joint, dict) for joint in joints):
            raise FormatError('"joints" is not a list of objects')
        names, rest = [], np.empty((len(joints), 3))
        for index, joint in enumerate(joints):
            if not isinstance(joint.get("name"), str) or not joint["name"]:
                raise FormatError(f"joint {index} has no name")
            names.append(joint["name"])
            try:
                rest[index] = parse_numbers(joint.get("rest"), 3)
            except FormatError as problem:
                name = describe_value(joint["name"])
                raise FormatError(f"the place at rest of the joint {name}: {problem}") from None
        parents = []
        for joint in joints:
            parent = joint.get("parent")
            if parent is not None and parent not in names:
                child = describe_value(joint["name"])
                raise FormatError(f"the parent of the joint {child} is {describe_value(parent)}, which is no joint")
            parents.append(NO_PARENT if parent is None else names.index(parent))
        objects = [index for index, joint in enumerate(joints) if joint.get("object") is True]
        try:
            skeleton, order = build_skeleton(names, parents, rest, objects)  # and the joint that each bone is
        except ValueError as problem:
            raise FormatError(str(problem)) from None
    frames = data.get("frames")
    with locate_format_errors(path):
        if not isinstance(frames, list) or not frames:
            raise FormatError('"frames" is not a list with at least one frame')
    names = [skeleton.names[order.index(joint)] for joint in range(len(order))]  # as the file has them
    transforms = np.empty((len(frames), skeleton.bone_count, 4, 4))
    for index, frame in enumerate(frames):
        with locate_format_errors(
            path, f"frame {index}", fix="write one rotation and translation, rest to world, for each joint"
        ):
            listed = frame.get("transforms") if isinstance(frame, dict) else None
            if not isinstance(listed, list):
                raise FormatError('it has no list "transforms"')
            if len(listed) != len(names):
                raise FormatError(f"{len(listed)} transforms for {len(names)} joints")
            matrices = np.empty((len(names), 4, 4))  # in the order of the file's joints
            for joint, (name, entry) in enumerate(zip(names, listed, strict=True)):
                flat = isinstance(entry, list) and len(entry) == 16
                try:
                    matrices[joint] = parse_numbers(entry, 16).reshape(4, 4) if flat else parse_numbers(entry, 4, 4)
                except FormatError as problem:
                    raise FormatError(f"joint {describe_value(name)}: {problem}") from None
            try:
                transforms[index] = repair_rigid_transforms(matrices)[order]
            except NotRigidError as problem:
                raise FormatError(f"joint {describe_value(names[problem.index])}: {problem}") from None
    return SkeletonMotion(skeleton, transforms)


def write_bones(path: Path | str, motion: SkeletonMotion) -> None:
    """Writes a bones.json, atomically; `read_bones` gives the same motion back, to the last digit."""
    skeleton = motion.skeleton
    joints = []
    for index, (name, parent) in enumerate(zip(skeleton.names, skeleton.parents, strict=True)):
        joint = {"name": name, "parent": None if parent == NO_PARENT else skeleton.names[parent]}
        held = {"object": True} if index in skeleton.object_joints else {}
        joints.append({**joint, "rest": skeleton.rest_positions[index].tolist(), **held})
    frames = [{"transforms": frame.reshape(-1, 16).tolist()} for frame in np.asarray(motion.transforms)]
    data = {"schema": _SCHEMA, "joints": joints, "frames": frames}
    with atomic_write(path) as part:
        write_synced(part, json.dumps(data, allow_nan=False).encode() + b"\n")


def read_states(path: Path | str, moments: int | None = None) -> tuple[int, ...]:
    """Reads the moments of a states.json at which the held object enters its next state.

    Args:
        path: the file.
        moments: number of moments of the scene; None skips the check against it.

    Returns:
        The moments, rising; state k begins at number k - 1 of them.

    Raises:
        UserError: not such a file; switches that do not rise, or one before moment 1 or beyond the end.
    """
    path = Path(path)
    data = read_json_object(path, _SCHEMA)
    with locate_format_errors(path):
        switches = data.get("switches")
        if not isinstance(switches, list) or not all(type(switch) is int for switch in switches):
            raise FormatError('"switches" is not a list of whole numbers')
    fix = "list the moments in rising order, each once"
    for before, after in pairwise(switches):
        if after <= before:
            raise bad_input(f"the switches of {path.name} do not rise: {before}, {after}", where=str(path), fix=fix)
    if switches and switches[0] < 1:
        why = "moments are counted from 0, and the first state begins at 0"
        raise bad_input(f"a switch at {switches[0]} in {path.name}", where=str(path), why=why, fix=fix)
    if switches and moments is not None and switches[-1] >= moments:
        why = f"there are {moments} moments, 0 to {moments - 1}"
        raise bad_input(f"a switch at {switches[-1]} in {path.name}, beyond the end", where=str(path), why=why)
    return tuple(switches)


def write_states(path: Path | str, switches: Sequence[int]) -> None:
    """Writes a states.json, atomically."""
    write_json(path, {"schema": _SCHEMA, "switches": [int(switch) for switch in switches]})

"""BVH recordings as bones: a hierarchy of offsets, then numbers for its channels in every frame.

Angles are in degrees and turn in the order in which a joint lists them, each around an axis that those before it have
turned. Position channels give a joint's place against its parent, instead of its offset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from neural_fields.data.rigid import about, axes_matrix
from neural_fields.data.skeleton import ROOT, Motion, build_skeleton
from neural_fields.data.user_files import LIMIT, Malformed, part_of, read_text, shown, words_to_numbers
from neural_fields.errors import bad_input

_CHANNELS = {f"{axis}{kind}".lower(): (kind, "XYZ".index(axis)) for axis in "XYZ" for kind in ("position", "rotation")}
_TOUCHING = 1e-6  # offsets below this share of the longest one count as none


@dataclass
class _Joint:
    """A joint as its block in the file describes it."""

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
) -> Motion:
    """The recording in a BVH file. At rest all angles are zero and the joints stand as their offsets say.

    A joint that lies on its parent (an offset of zero, as at the root of a thumb) is no bone of its own: it is left
    out, and what hangs on it hangs on its parent and still moves as the file says.

    Args:
        frames: which frames to take; all by default.
        scale: world units for one of the file's: 0.01 for a file in centimetres and a world in metres.
        axes: how the world's axes lie in the file, see `axes_matrix`; BVH is mostly y up.
        end_sites: keep the ends of the last bones as joints called NAME_end, which move with their parents.

    Raises:
        UserError: not a BVH file, damaged, or without the frames that were asked for.
    """
    path = Path(path)
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"a scale is above 0, not {scale}")
    turn = axes_matrix(axes)
    hierarchy, *rest = re.split(r"^\s*MOTION\b", read_text(path, LIMIT), maxsplit=1, flags=re.MULTILINE)
    with part_of(path, fix="export the recording again as BVH"):
        joints = _hierarchy(hierarchy)
        values = _numbers("".join(rest), sum(len(joint.channels) for joint in joints))
    chosen = range(len(values)) if frames is None else frames
    if not chosen or min(chosen[0], chosen[-1]) < 0 or max(chosen[0], chosen[-1]) >= len(values):
        why = f"it holds {len(values)} frames, 0 to {len(values) - 1}"
        raise bad_input(f"{path.name} has no frames {chosen.start}:{chosen.stop}", where=str(path), why=why)
    turns, places = _kinematics(joints, values[list(chosen)])
    with part_of(path):
        return _motion(joints, turn @ turns @ turn.T, scale * places @ turn.T, scale, turn, end_sites)


def _hierarchy(text: str) -> list[_Joint]:
    """The joints in the order of the file, which is also that of their channels."""
    words = text.split()
    if not words or words[0] != "HIERARCHY":
        raise Malformed("it does not begin with HIERARCHY")
    joints: list[_Joint] = []
    open_blocks: list[int] = []
    at = 1
    while at < len(words):
        word = words[at]
        if word in ("ROOT", "JOINT", "End"):
            try:
                brace = words.index("{", at)
            except ValueError:
                raise Malformed(f"the block of {' '.join(words[at : at + 2])} does not open") from None
            if (word == "ROOT") == bool(open_blocks):
                raise Malformed(f"{' '.join(words[at:brace])[:60]} is at a wrong place")
            parent = open_blocks[-1] if open_blocks else ROOT
            name = f"{joints[parent].name}_end" if word == "End" else " ".join(words[at + 1 : brace])
            joints.append(_Joint(name, parent, word == "End"))
            open_blocks.append(len(joints) - 1)
            at = brace + 1
        elif not open_blocks:
            raise Malformed(f"{shown(word)} where a ROOT was expected")
        elif word == "}":
            open_blocks.pop()
            at += 1
        else:
            at = _fill(joints[open_blocks[-1]], words, at)
    if open_blocks or not joints:
        raise Malformed("its hierarchy is cut off" if joints else "it has no joint")
    return joints


def _fill(joint: _Joint, words: list[str], at: int) -> int:
    """Reads OFFSET or CHANNELS of a joint; gives where the next word is."""
    if words[at] == "OFFSET":
        joint.offset = words_to_numbers(words[at + 1 : at + 4], f"the offset of {joint.name}")
        if len(joint.offset) != 3:
            raise Malformed(f"the offset of {joint.name} is cut off")
        return at + 4
    if words[at] != "CHANNELS":
        raise Malformed(f"{shown(words[at])} in the block of {joint.name}")
    count = int(words[at + 1]) if words[at + 1 : at + 2] and words[at + 1].isdecimal() else 0
    names = words[at + 2 : at + 2 + count]
    unknown = [name for name in names if name.lower() not in _CHANNELS]
    if unknown or not 0 < len(names) == count <= 6:
        raise Malformed(f"the channels of {joint.name}: {shown(unknown[0]) if unknown else 'not 1 to 6 names'}")
    joint.channels = [_CHANNELS[name.lower()] for name in names]
    return at + 2 + count


def _numbers(text: str, width: int) -> Float[np.ndarray, "frames channels"]:
    """The numbers of every frame."""
    lines = [line for line in text.splitlines() if line.strip()]
    heads = [line.partition(":") for line in lines[:2]]
    if [head[0].strip() for head in heads] != ["Frames", "Frame Time"] or not heads[0][2].strip().isdecimal():
        raise Malformed("there is no MOTION with its number of frames and frame time")
    count = int(heads[0][2][:20])
    if len(lines) - 2 != count or not count:
        raise Malformed(f"it announces {count} frames and has {len(lines) - 2}")
    values = np.empty((count, width))
    for index, line in enumerate(lines[2:]):
        words = line.split()
        if len(words) != width:
            raise Malformed(f"frame {index} has {len(words)} numbers for {width} channels")
        values[index] = words_to_numbers(words, f"frame {index}")
    return values


def _kinematics(
    joints: list[_Joint], values: Float[np.ndarray, "frames channels"]
) -> tuple[Float[np.ndarray, "joints frames 3 3"], Float[np.ndarray, "joints frames 3"]]:
    """How every joint is turned, and where it is, in the file's axes and units."""
    turns, places = np.empty((len(joints), len(values), 3, 3)), np.empty((len(joints), len(values), 3))
    at = 0
    for index, joint in enumerate(joints):
        turn, place = np.tile(np.eye(3), (len(values), 1, 1)), np.tile(joint.offset, (len(values), 1))
        for kind, axis in joint.channels:
            if kind == "position":
                place[:, axis] = values[:, at]
            else:
                turn = turn @ about(axis, np.radians(values[:, at]))
            at += 1
        if joint.parent != ROOT:
            above = turns[joint.parent]
            turn, place = above @ turn, (above @ place[..., None])[..., 0] + places[joint.parent]
        turns[index], places[index] = turn, place
    return turns, places


def _motion(
    joints: list[_Joint],
    turns: Float[np.ndarray, "joints frames 3 3"],
    places: Float[np.ndarray, "joints frames 3"],
    scale: float,
    axes: Float[np.ndarray, "3 3"],
    end_sites: bool,
) -> Motion:
    """Bones of the joints that have a length, in world axes and units."""
    longest = max(float(np.linalg.norm(joint.offset)) for joint in joints)
    kept, parents, rest = _bones(joints, _TOUCHING * longest, end_sites)
    places_at_rest = scale * np.array(rest) @ axes.T
    try:
        skeleton, order = build_skeleton([joints[joint].name for joint in kept], parents, places_at_rest)
    except ValueError as problem:
        raise Malformed(str(problem)) from None
    source = np.array(kept)[order]
    transforms = np.tile(np.eye(4), (turns.shape[1], len(kept), 1, 1))
    transforms[..., :3, :3] = turns[source].swapaxes(0, 1)
    carried = np.einsum("bfij,bj->bfi", turns[source], skeleton.rest)
    transforms[..., :3, 3] = (places[source] - carried).swapaxes(0, 1)
    return Motion(skeleton, transforms)


def _bones(
    joints: list[_Joint], shortest: float, end_sites: bool
) -> tuple[list[int], list[int], list[Float[np.ndarray, "3"]]]:
    """The joints that become bones, their parents among those, and their places at rest."""
    rest: list[np.ndarray] = []
    stands_for: list[int] = []  # for each joint the bone that it is, or hangs on
    kept: list[int] = []
    parents: list[int] = []
    for index, joint in enumerate(joints):
        above = joint.parent
        rest.append(joint.offset if above == ROOT else rest[above] + joint.offset)
        parent = ROOT if above == ROOT else stands_for[above]
        touches = parent != ROOT and float(np.linalg.norm(rest[index] - rest[kept[parent]])) <= shortest
        if touches or (joint.end and not end_sites):
            stands_for.append(parent)
            continue
        stands_for.append(len(kept))
        kept.append(index)
        parents.append(parent)
    return kept, parents, [rest[index] for index in kept]

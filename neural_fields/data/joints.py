"""Tracked 3D joints as bones: TRC files, rigid bones through joints, and bones of things held in a hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from neural_fields.data.rigid import axes_matrix, turn_between
from neural_fields.data.skeleton import ROOT, Motion, Skeleton, build_skeleton
from neural_fields.data.user_files import LIMIT, Malformed, part_of, read_text, shown, words_to_numbers

# What the joints of OpenPose's BODY_25, as Pose2Sim names them, hang on.
BODY_25 = {
    **dict.fromkeys(("RHip", "LHip", "Neck"), "Hip"),
    **dict.fromkeys(("Head", "RShoulder", "LShoulder"), "Neck"),
    "Nose": "Head",
    **{f"{s}{joint}": f"{s}{on}" for s in "RL" for joint, on in pairwise(("Wrist", "Elbow", "Shoulder"))},
    **{f"{s}{joint}": f"{s}{on}" for s in "RL" for joint, on in pairwise(("Ankle", "Knee", "Hip"))},
    **{f"{s}{joint}": f"{s}Ankle" for s in "RL" for joint in ("BigToe", "SmallToe", "Heel")},
}


@dataclass(frozen=True)
class JointTrack:
    """Joints followed over time.

    Attributes:
        rate: frames a second.
        filled: how many places the file leaves out, filled in from the frames around them.
    """

    names: tuple[str, ...]
    positions: Float[np.ndarray, "frames joints 3"]
    rate: float
    filled: int = 0


# --- files ----------------------------------------------------------------------------------------------------------


def read_trc(path: Path | str, axes: str = "xyz", scale: float = 1.0) -> JointTrack:
    """The joints in a TRC file. A place that is left out is filled in linearly in time.

    Args:
        axes: how the world's axes lie in the file, see `axes_matrix`: "zxy" for a file with y up from Pose2Sim and a
            calibration with z up.
        scale: world units for one of the file's: 0.001 for millimetres in a world in metres.

    Raises:
        UserError: not a TRC file, cut off, or with a joint that is in no frame.
    """
    path, turn = Path(path), axes_matrix(axes)
    lines = read_text(path, LIMIT).splitlines()
    with part_of(path, fix="export the joints again as TRC"):
        names, rate, count = _header(lines)
        rows = [(number, line) for number, line in enumerate(lines[5:], 6) if line.strip()]
        if len(rows) != count:
            raise Malformed(f"it announces {count} frames and has {len(rows)}")
        values = np.array([_row(line, number, len(names)) for number, line in rows]).reshape(count, len(names), 3)
        filled, gaps = _fill(values, names)
    return JointTrack(names, scale * filled @ turn.T, rate, gaps)


def _header(lines: list[str]) -> tuple[tuple[str, ...], float, int]:
    """Names of the joints, frames a second, and the number of frames."""
    if len(lines) < 6 or not lines[0].startswith("PathFileType"):
        raise Malformed("it is not a TRC file: that begins with PathFileType and has five lines before its frames")
    facts = dict(zip(lines[1].split(), lines[2].split(), strict=False))
    try:
        rate, count, markers = (float(facts[key]) for key in ("DataRate", "NumFrames", "NumMarkers"))
    except (KeyError, ValueError):
        raise Malformed("DataRate, NumFrames or NumMarkers is missing in its second and third line") from None
    names = tuple(name.strip() for name in lines[3].split("\t")[2:] if name.strip())
    if len(names) != markers or not names:
        raise Malformed(f"it announces {markers:g} markers and names {len(names)}")
    if not 0 < rate < math.inf or not 1 <= count < LIMIT:
        raise Malformed(f"{count:g} frames at {rate:g} a second")
    return names, rate, int(count)


def _row(line: str, number: int, joints: int) -> Float[np.ndarray, " numbers"]:
    """The places in a line; NaN for those left out."""
    cells = [cell.strip() for cell in line.split("\t")][2:]
    if len(cells) < 3 * joints or any(cells[3 * joints :]):
        raise Malformed(f"line {number} has {len(cells)} coordinates for {joints} joints")
    cells = cells[: 3 * joints]
    gone = np.array([cell.lower() in ("", "nan") for cell in cells])
    values = np.full(len(cells), np.nan)
    values[~gone] = words_to_numbers([cell for cell, out in zip(cells, gone, strict=True) if not out], f"line {number}")
    return values


def _fill(
    values: Float[np.ndarray, "frames joints 3"], names: Sequence[str]
) -> tuple[Float[np.ndarray, "frames joints 3"], int]:
    """The places with none left out, and how many were."""
    gone = np.isnan(values).any(axis=2)
    time = np.arange(len(values))
    for joint in np.flatnonzero(gone.any(axis=0)):
        there = ~gone[:, joint]
        if not there.any():
            raise Malformed(f"the joint {shown(names[int(joint)])} is in no frame; take it out of the file")
        for axis in range(3):
            values[:, joint, axis] = np.interp(time, time[there], values[there, joint, axis])
    return values, int(gone.sum())


# --- bones ----------------------------------------------------------------------------------------------------------


def body_motion(track: JointTrack) -> Motion:
    """The bones of a body whose joints have the names of BODY_25; others are left out.

    Where there is no joint "Hip", the root, it is put between the two hips.

    Raises:
        ValueError: a joint is there without the one it hangs on.
    """
    names, places = list(track.names), track.positions
    if "Hip" not in names:
        if not {"RHip", "LHip"} <= set(names):
            raise ValueError("neither a joint Hip nor both of RHip and LHip")
        middle = (places[:, names.index("RHip")] + places[:, names.index("LHip")]) / 2
        names, places = [*names, "Hip"], np.concatenate([places, middle[:, None]], axis=1)
    body = [name for name in names if name == "Hip" or name in BODY_25]
    lone = [name for name in body if name != "Hip" and BODY_25[name] not in body]
    if lone:
        raise ValueError(f"the joint {lone[0]} is there without {BODY_25[lone[0]]}, which it hangs on")
    parents = [ROOT if name == "Hip" else body.index(BODY_25[name]) for name in body]
    return motion_from_joints(body, parents, places[:, [names.index(name) for name in body]])


def motion_from_joints(
    names: Sequence[str],
    parents: Sequence[int],
    positions: Float[np.ndarray, "frames joints 3"],
    rest_frame: int | None = None,
) -> Motion:
    """Bones that carry the joints exactly where they are in every frame.

    At rest a bone has its mean length and the direction it has in one frame. A bone turns from its parent's rotation by
    what its joint's children ask for: with one child the smallest turn that points at it, so without a twist that no
    joint shows; with several the turn that fits all best; with none it turns with its parent.

    Args:
        parents: index of each joint's parent, in any order; `ROOT` for none.
        rest_frame: whose directions the rest pose has; by default the frame in which the joints are most spread out.

    Raises:
        ValueError: as `build_skeleton`, or a place that is not finite.
    """
    if not np.isfinite(positions).all():
        frame, joint = np.argwhere(~np.isfinite(positions).all(axis=2))[0]
        raise ValueError(f"the place of the joint {names[joint]!r} in frame {frame} is not finite")
    steps = [ROOT if parent == ROOT else int(parent) for parent in parents]
    chosen = _most_spread(positions) if rest_frame is None else rest_frame
    skeleton, order = build_skeleton(names, steps, _rest(positions, steps, names, chosen))
    places = positions[:, order]
    transforms = np.tile(np.eye(4), (len(places), skeleton.count, 1, 1))
    for bone, parent in enumerate(skeleton.parents):
        above = transforms[:, parent, :3, :3] if parent != ROOT else np.tile(np.eye(3), (len(places), 1, 1))
        children = skeleton.children(bone)
        before = np.einsum("tij,cj->tci", above, skeleton.rest[children] - skeleton.rest[bone])
        turn = turn_between(before, places[:, children] - places[:, [bone]]) @ above
        transforms[:, bone, :3, :3] = turn
        transforms[:, bone, :3, 3] = places[:, bone] - turn @ skeleton.rest[bone]
    return Motion(skeleton, transforms)


def _most_spread(positions: Float[np.ndarray, "frames joints 3"]) -> int:
    """The frame in which the joints are farthest from one another: limbs away from the body."""
    apart = [float(np.linalg.norm(frame[:, None] - frame[None], axis=-1).sum()) for frame in positions]
    return int(np.argmax(apart))


def _rest(
    positions: Float[np.ndarray, "frames joints 3"], parents: Sequence[int], names: Sequence[str], frame: int
) -> Float[np.ndarray, "joints 3"]:
    """Joints at rest: mean lengths along the directions of one frame, starting from where the root is in it."""
    rest = np.full(positions.shape[1:], np.nan)
    _, order = build_skeleton(names, parents, np.arange(len(names))[:, None] * np.ones(3))  # of the parents alone
    for joint in order:
        parent = parents[joint]
        if parent == ROOT:
            rest[joint] = positions[frame, joint]
            continue
        arrows = positions[:, joint] - positions[:, parent]
        lengths = np.linalg.norm(arrows, axis=1)
        direction = arrows[frame] if lengths[frame] > 0 else arrows[int(lengths.argmax())]
        rest[joint] = rest[parent] + direction * (lengths.mean() / max(float(np.linalg.norm(direction)), 1e-30))
    return rest


def object_bones(motion: Motion, hands: Sequence[str], elbows: Sequence[str] = ()) -> Motion:
    """The motion with a bone more for each hand that carries something: "<hand>_object", moving with the hand.

    Its joint lies beyond the hand, as far as the elbow lies before it, as HOSNeRF places them (its section 3.2).

    Args:
        hands: names of joints.
        elbows: the joint that stands for each one's elbow; by default the hand's parent. For the hand joints of SMPL,
            which hang on wrists, it is the wrist's parent.

    Raises:
        ValueError: a name that is no joint, or a hand without a parent.
    """
    skeleton = motion.skeleton
    names, parents, rest = list(skeleton.names), list(skeleton.parents), skeleton.rest
    transforms, objects = motion.transforms, list(skeleton.objects)
    for index, hand in enumerate(hands):
        own = _joint(skeleton, hand)
        before = _joint(skeleton, elbows[index]) if elbows else skeleton.parents[own]
        if before in (ROOT, own):
            raise ValueError(f"the joint {hand!r} has no elbow before it")
        objects.append(len(names))
        names.append(f"{hand}_object")
        parents.append(own)
        rest = np.concatenate([rest, [2 * skeleton.rest[own] - skeleton.rest[before]]])
        transforms = np.concatenate([transforms, transforms[:, [own]]], axis=1)
    grown, _ = build_skeleton(names, parents, rest, objects)
    return Motion(grown, transforms)


def _joint(skeleton: Skeleton, name: str) -> int:
    if name not in skeleton.names:
        raise ValueError(f"no joint is called {name!r}; there are {', '.join(skeleton.names)}")
    return skeleton.names.index(name)

"""Tracked 3D joints: reads TRC files, fits rigid bones to joints, and adds bones of objects held in a hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from neural_fields.core.validated_input import (
    MAX_FILE_BYTES,
    FormatError,
    describe_value,
    locate_format_errors,
    parse_number_words,
    read_text,
)
from neural_fields.data.capture.rigid_transforms import fit_rotations, parse_axes
from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton, SkeletonMotion, build_skeleton

# The parents of the joints of OpenPose's BODY_25, under the names of Pose2Sim.
BODY_25_PARENTS = {
    **dict.fromkeys(("RHip", "LHip", "Neck"), "Hip"),
    **dict.fromkeys(("Head", "RShoulder", "LShoulder"), "Neck"),
    "Nose": "Head",
    **{f"{s}{joint}": f"{s}{on}" for s in "RL" for joint, on in pairwise(("Wrist", "Elbow", "Shoulder"))},
    **{f"{s}{joint}": f"{s}{on}" for s in "RL" for joint, on in pairwise(("Ankle", "Knee", "Hip"))},
    **{f"{s}{joint}": f"{s}Ankle" for s in "RL" for joint in ("BigToe", "SmallToe", "Heel")},
}


@dataclass(frozen=True)
class JointTrack:
    """The positions of joints over time.

    Attributes:
        frame_rate: frames a second.
        filled_count: number of positions that the file leaves out, interpolated from the frames around them.
    """

    names: tuple[str, ...]
    positions: Float[np.ndarray, "frames joints 3"]
    frame_rate: float
    filled_count: int = 0


# --- files ----------------------------------------------------------------------------------------------------------


def read_trc(path: Path | str, axes: str = "xyz", scale: float = 1.0) -> JointTrack:
    """Reads the joints of a TRC file. A position that is left out is interpolated linearly in time.

    Args:
        path: the file.
        axes: the world's axes in those of the file, see `parse_axes`: "zxy" for a file with y up from Pose2Sim and a
            calibration with z up.
        scale: world units per unit of the file: 0.001 for millimeters in a world in meters.

    Raises:
        UserError: not a TRC file, cut off, or with a joint that is in no frame.
    """
    path, to_world = Path(path), parse_axes(axes)
    lines = read_text(path, MAX_FILE_BYTES).splitlines()
    with locate_format_errors(path, fix="export the joints again as TRC"):
        # The header: names of the joints, frames a second, and the number of frames.
        if len(lines) < 6 or not lines[0].startswith("PathFileType"):
            raise FormatError(
                "it is not a TRC file: that begins with PathFileType and has five lines before its frames"
            )
        header = dict(zip(lines[1].split(), lines[2].split(), strict=False))
        try:
            rate, count, markers = (float(header[key]) for key in ("DataRate", "NumFrames", "NumMarkers"))
        except (KeyError, ValueError):
            raise FormatError("DataRate, NumFrames or NumMarkers is missing in its second and third line") from None
        names = tuple(name.strip() for name in lines[3].split("\t")[2:] if name.strip())
        if len(names) != markers or not names:
            raise FormatError(f"it announces {markers:g} markers and names {len(names)}")
        if not 0 < rate < math.inf or not 1 <= count < MAX_FILE_BYTES:
            raise FormatError(f"{count:g} frames at {rate:g} a second")

        rows = [(number, line) for number, line in enumerate(lines[5:], 6) if line.strip()]
        if len(rows) != int(count):
            raise FormatError(f"it announces {int(count)} frames and has {len(rows)}")

        # The coordinates of every line; NaN for those left out.
        width = 3 * len(names)
        values = np.full((len(rows), width), np.nan)
        for row, (number, line) in zip(values, rows, strict=True):
            cells = [cell.strip() for cell in line.split("\t")][2:]
            if len(cells) < width or any(cells[width:]):
                raise FormatError(f"line {number} has {len(cells)} coordinates for {len(names)} joints")
            given = np.array([cell.lower() not in ("", "nan") for cell in cells[:width]])
            words = [cell for cell, is_given in zip(cells[:width], given, strict=True) if is_given]
            row[given] = parse_number_words(words, f"line {number}")
        positions = values.reshape(len(rows), len(names), 3)

        # Positions that are left out.
        gone = np.isnan(positions).any(axis=2)
        time = np.arange(len(positions))
        for joint in np.flatnonzero(gone.any(axis=0)):
            there = ~gone[:, joint]
            if not there.any():
                raise FormatError(
                    f"the joint {describe_value(names[int(joint)])} is in no frame; take it out of the file"
                )
            for axis in range(3):
                positions[:, joint, axis] = np.interp(time, time[there], positions[there, joint, axis])
    return JointTrack(names, scale * positions @ to_world.T, rate, int(gone.sum()))


# --- bones ----------------------------------------------------------------------------------------------------------


def fit_body_motion(track: JointTrack) -> SkeletonMotion:
    """Fits bones to a body whose joints have the names of BODY_25; other joints are left out.

    Where there is no joint "Hip", the root, it is put between the two hips.

    Raises:
        ValueError: the file has a joint without its parent.
    """
    names, positions = list(track.names), track.positions
    if "Hip" not in names:
        if not {"RHip", "LHip"} <= set(names):
            raise ValueError("neither a joint Hip nor both of RHip and LHip")
        middle = (positions[:, names.index("RHip")] + positions[:, names.index("LHip")]) / 2
        names, positions = [*names, "Hip"], np.concatenate([positions, middle[:, None]], axis=1)
    body = [name for name in names if name == "Hip" or name in BODY_25_PARENTS]
    orphans = [name for name in body if name != "Hip" and BODY_25_PARENTS[name] not in body]
    if orphans:
        raise ValueError(f"the joint {orphans[0]} has no parent: {BODY_25_PARENTS[orphans[0]]} is missing")
    parents = [NO_PARENT if name == "Hip" else body.index(BODY_25_PARENTS[name]) for name in body]
    return fit_motion_to_joints(body, parents, positions[:, [names.index(name) for name in body]])


def fit_motion_to_joints(
    names: Sequence[str],
    parents: Sequence[int],
    positions: Float[np.ndarray, "frames joints 3"],
    rest_frame: int | None = None,
) -> SkeletonMotion:
    """Fits rigid bones that put the joints exactly where they are in every frame.

    At rest a bone has its mean length and the direction that it has in one frame. A bone's rotation starts from that of
    its parent and follows the children of its joint: with one child it is the smallest rotation that points at it, so
    without a twist that no joint shows; with several it fits them by least squares; with none it is the parent's.

    Args:
        names: names of the joints.
        parents: index of each joint's parent, in any order; `ROOT` for none.
        positions: positions of the joints in the world.
        rest_frame: the frame whose directions the rest pose has; by default the one in which the joints are most spread
            out.

    Raises:
        ValueError: as `build_skeleton`, or a place that is not finite.
    """
    if not np.isfinite(positions).all():
        frame, joint = np.argwhere(~np.isfinite(positions).all(axis=2))[0]
        raise ValueError(f"the place of the joint {names[joint]!r} in frame {frame} is not finite")
    parents = [int(parent) for parent in parents]
    if rest_frame is None:  # the frame in which the joints are farthest from one another: limbs away from the body
        spreads = [float(np.linalg.norm(frame[:, None] - frame[None], axis=-1).sum()) for frame in positions]
        rest_frame = int(np.argmax(spreads))

    # Joints at rest: mean lengths along the directions of one frame, starting from the root's position in it.
    rest = np.full(positions.shape[1:], np.nan)
    _, order = build_skeleton(names, parents, np.arange(len(names))[:, None] * np.ones(3))  # of the parents alone
    for joint in order:
        parent = parents[joint]
        if parent == NO_PARENT:
            rest[joint] = positions[rest_frame, joint]
            continue
        vectors = positions[:, joint] - positions[:, parent]
        lengths = np.linalg.norm(vectors, axis=1)
        direction = vectors[rest_frame] if lengths[rest_frame] > 0 else vectors[int(lengths.argmax())]
        rest[joint] = rest[parent] + direction * (lengths.mean() / max(float(np.linalg.norm(direction)), 1e-30))
    skeleton, order = build_skeleton(names, parents, rest)

    # Transforms, parents first.
    positions = positions[:, order]
    transforms = np.tile(np.eye(4), (len(positions), skeleton.bone_count, 1, 1))
    for bone, parent in enumerate(skeleton.parents):
        above = transforms[:, parent, :3, :3] if parent != NO_PARENT else np.tile(np.eye(3), (len(positions), 1, 1))
        children = skeleton.find_children(bone)
        before = np.einsum("tij,cj->tci", above, skeleton.rest_positions[children] - skeleton.rest_positions[bone])
        rotation = fit_rotations(before, positions[:, children] - positions[:, [bone]]) @ above
        transforms[:, bone, :3, :3] = rotation
        transforms[:, bone, :3, 3] = positions[:, bone] - rotation @ skeleton.rest_positions[bone]
    return SkeletonMotion(skeleton, transforms)


def add_object_bones(motion: SkeletonMotion, hands: Sequence[str], elbows: Sequence[str] = ()) -> SkeletonMotion:
    """Adds a bone for each hand that holds something: "<hand>_object", which moves with the hand.

    Its joint is beyond the hand, as far as the elbow is before it, as in HOSNeRF (its section 3.2).

    Args:
        motion: the motion of the body.
        hands: names of the joints of the hands.
        elbows: the joint that counts as each one's elbow; by default the hand's parent. For the hand joints of SMPL,
            whose parents are wrists, it is the wrist's parent.

    Returns:
        The motion with the added bones, which are marked as objects of the skeleton.

    Raises:
        ValueError: a name that is no joint, or a hand without a parent.
    """
    skeleton = motion.skeleton
    names, parents, rest = list(skeleton.names), list(skeleton.parents), skeleton.rest_positions
    transforms, objects = motion.transforms, list(skeleton.object_joints)
    for index, hand in enumerate(hands):
        hand_joint = _find_joint(skeleton, hand)
        elbow = _find_joint(skeleton, elbows[index]) if elbows else skeleton.parents[hand_joint]
        if elbow in (NO_PARENT, hand_joint):
            raise ValueError(f"the joint {hand!r} has no elbow before it")
        objects.append(len(names))
        names.append(f"{hand}_object")
        parents.append(hand_joint)
        rest = np.concatenate([rest, [2 * skeleton.rest_positions[hand_joint] - skeleton.rest_positions[elbow]]])
        transforms = np.concatenate([transforms, transforms[:, [hand_joint]]], axis=1)
    extended, _ = build_skeleton(names, parents, rest, objects)
    return SkeletonMotion(extended, transforms)


def _find_joint(skeleton: Skeleton, name: str) -> int:
    """Returns the index of a joint by its name."""
    if name not in skeleton.names:
        raise ValueError(f"no joint is called {name!r}; there are {', '.join(skeleton.names)}")
    return skeleton.names.index(name)

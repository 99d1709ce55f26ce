"""SMPL parameters as bones, with a body model of the user's own: its files are bound to a license and not part of this.

All 24 joints of SMPL are taken; of SMPL-H and SMPL-X the 22 of the body, without fingers and face. The package `smplx`
reads the model file, which may be a pickle: name only one that came from the model's makers.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from neural_fields.core.errors import bad_input
from neural_fields.core.validated_input import (
    MAX_FILE_BYTES,
    FormatError,
    check_finite,
    locate_format_errors,
    read_json_object,
)
from neural_fields.data.capture.skeleton import NO_PARENT, SkeletonMotion, build_skeleton, compose_transforms

SMPL_JOINTS = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand",
    "right_hand",
)  # fmt: skip
# Class in the package smplx and number of joints that are taken, by the length of a frame's pose in the file.
_KINDS = {72: ("SMPL", 24), 156: ("SMPLH", 22), 165: ("SMPLX", 22)}


@dataclass(frozen=True)
class SmplPoses:
    """The parameters of a body over time, as a tracker or a data set gives them.

    Attributes:
        kind: class of the body model in the package smplx.
        rotations: rotation of each joint relative to its parent, as axis times angle in radians.
        translation: added to the body after its rotation around its root.
        betas: parameters of the body's shape.
    """

    kind: str
    rotations: Float[np.ndarray, "frames joints 3"]
    translation: Float[np.ndarray, "frames 3"]
    betas: Float[np.ndarray, " count"]


def read_smpl(path: Path | str) -> SmplPoses:
    """Reads the parameters of an .npz or a .json file, under the names of AMASS or of smplx.

    These are poses [frames, 72, 156 or 165], or global_orient and body_pose; trans or transl [frames, 3]; and betas,
    one set for all frames, or one for each frame, whose mean is taken.

    Raises:
        UserError: no such file, not readable as such, or arrays that do not go together.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        found = read_json_object(path)
    else:
        # The arrays of an .npz that are of use, none larger unpacked than a file may be.
        keys = "poses", "global_orient", "body_pose", "trans", "transl", "betas"
        try:
            with zipfile.ZipFile(path) as packed:
                largest = max((entry.file_size for entry in packed.infolist()), default=0)
            if largest > MAX_FILE_BYTES:
                raise bad_input(
                    f"{path.name} holds an array of {largest} bytes", where=str(path), why=f"at most {MAX_FILE_BYTES}"
                )
            with np.load(path, allow_pickle=False) as arrays:
                found = {key: arrays[key] for key in keys if key in arrays}
        except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            fix = "name an .npz with poses, trans and betas, or a .json"
            raise bad_input(f"{path.name} cannot be read", where=str(path), why=str(error), fix=fix) from None
    with locate_format_errors(path, fix="write poses, trans and betas with numpy.savez"):
        if "poses" in found:
            turns = _parse_array(found, "poses")
        else:  # the length of the body's pose decides which model it is
            root, body = (_parse_array(found, key) for key in ("global_orient", "body_pose"))
            if not len(root) or len(root) != len(body):
                raise FormatError(f"global_orient has {len(root)} frames, body_pose {len(body)}")
            root, body = root.reshape(len(root), -1), body.reshape(len(body), -1)
            if root.shape[1] + body.shape[1] == 66:  # SMPL-X without hands and face
                body = np.concatenate([body, np.zeros((len(body), 165 - 66))], axis=1)
            turns = np.concatenate([root, body], axis=1)
        count = len(turns)
        if turns.size // max(count, 1) not in _KINDS or not count:
            raise FormatError(
                f"poses have the shape {turns.shape}; frames x {' or '.join(map(str, _KINDS))} was expected"
            )
        kind, joints = _KINDS[turns.size // count]
        key = next((key for key in ("trans", "transl") if key in found), None)
        translation = np.zeros((count, 3)) if key is None else _parse_array(found, key)
        if translation.shape != (count, 3):
            raise FormatError(f"{key} has the shape {translation.shape} for {count} frames")
        betas = _parse_array(found, "betas") if "betas" in found else np.zeros(10)
        betas = betas.mean(axis=0) if betas.ndim == 2 and len(betas) else betas
        if betas.ndim != 1:
            raise FormatError(f"betas have the shape {betas.shape}")
    return SmplPoses(kind, turns.reshape(count, -1, 3)[:, :joints], translation, betas)


def _parse_array(found: Mapping[str, Any], key: str) -> Float[np.ndarray, "..."]:
    """Parses the array of a key; its numbers are finite."""
    try:
        values = np.asarray(found[key], np.float64)
    except KeyError:
        raise FormatError(f"there is no {key}") from None
    except (ValueError, TypeError, OverflowError):
        raise FormatError(f"{key} are not numbers in even rows") from None
    if values.ndim == 0:
        raise FormatError(f"{key} is no list")
    check_finite(values, key)
    return values


def compute_smpl_motion(poses: SmplPoses, model: Path | str) -> SkeletonMotion:
    """Computes the bones of a body from its SMPL parameters.

    Args:
        poses: shape, rotations and translation, by frame.
        model: file of the body model as its makers distribute it: SMPL_NEUTRAL.pkl, SMPLX_NEUTRAL.npz, ...; or an
            SMPL model whose arrays were saved as .npz, which needs no package.

    Raises:
        UserError: the package smplx is not installed; no such model file; one that is not of the poses' kind.
    """
    model = Path(model)
    count = poses.rotations.shape[1]
    if poses.kind == "SMPL" and model.suffix.lower() == ".npz" and model.is_file():  # smplx reads pickles of SMPL only
        rest, parents = read_smpl_joints(model, poses.betas)
        return motion_from_axis_angles(SMPL_JOINTS, parents, rest, poses.rotations, poses.translation)
    try:
        import smplx
    except ImportError:
        raise bad_input(
            "SMPL parameters need the package smplx",
            why="it is not installed",
            fix="pip install -e '.[human]' in the folder of Unwrap, or give the bones as bones.json, BVH or TRC",
        ) from None
    if not model.is_file():
        raise bad_input(
            "there is no SMPL model file",
            where=str(model),
            why="the model's license does not let others hand it on",
            fix="register with the makers of the model, download it, and name the file",
        )
    options: dict[str, Any] = {"num_betas": len(poses.betas), "batch_size": 1}
    if poses.kind != "SMPL":
        options |= {"use_pca": False, "flat_hand_mean": True, "ext": model.suffix.lstrip(".")}
    # The border around a foreign reader: wrong and damaged model files make it raise whatever comes first.
    try:
        import torch

        body = getattr(smplx, poses.kind)(str(model), **options)
        with torch.no_grad():
            joints = body(betas=torch.as_tensor(poses.betas, dtype=torch.float32)[None]).joints[0]
        parents = [int(parent) for parent in body.parents]
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        fix = f"name a model file of the kind {poses.kind} whose arrays are those of numpy"
        raise bad_input("the SMPL model file cannot be used", where=str(model), why=why, fix=fix) from error
    parents = [NO_PARENT if parent < 0 else parent for parent in parents[:count]]
    rest = joints.double().numpy()[:count]
    return motion_from_axis_angles(SMPL_JOINTS[:count], parents, rest, poses.rotations, poses.translation)


def read_smpl_joints(
    model: Path, betas: Float[np.ndarray, " count"]
) -> tuple[Float[np.ndarray, "joints 3"], list[int]]:
    """Reads the joints of a body at rest from an SMPL model in an .npz (Loper et al., SMPL, 2015, eq. 8 and 10).

    Args:
        model: the file, with the arrays v_template, shapedirs, J_regressor and kintree_table of SMPL's makers.
        betas: the body's shape; what the model does not have of it must be 0.

    Returns:
        Positions of the 24 joints, and the index of each joint's parent.

    Raises:
        UserError: not the arrays of an SMPL model.
    """
    fix = "numpy.savez of the arrays of SMPL_NEUTRAL.pkl, J_regressor as a plain array; or name the .pkl itself"
    try:
        with np.load(model, allow_pickle=False) as found:
            names = ("v_template", "shapedirs", "J_regressor", "kintree_table")
            template, shapes, regressor, tree = (np.asarray(found[name], np.float64) for name in names)
        used = min(len(betas), shapes.shape[2])
        if betas[used:].any():
            raise ValueError(f"the model has {shapes.shape[2]} parameters of shape, and the poses {len(betas)}")
        rest = regressor @ (template + shapes[..., :used] @ betas[:used])
        if rest.shape != (24, 3) or tree.shape != (2, 24) or not np.isfinite(rest).all():
            raise ValueError(f"it has joints of the shape {rest.shape}; an SMPL model has 24")
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise bad_input("the SMPL model file cannot be used", where=str(model), why=why, fix=fix) from error
    return rest, [NO_PARENT, *tree[0, 1:].astype(int).tolist()]


def motion_from_axis_angles(
    names: Sequence[str],
    parents: Sequence[int],
    rest: Float[np.ndarray, "joints 3"],
    rotations: Float[np.ndarray, "frames joints 3"],
    translation: Float[np.ndarray, "frames 3"],
) -> SkeletonMotion:
    """Computes bones from joints at rest and their rotations relative to their parents.

    Args:
        names: names of the joints.
        parents: index of each joint's parent; `ROOT` for none.
        rest: joint positions in the rest pose, in world units.
        rotations: relative to the parent, as axis times angle in radians.
        translation: translation of the root, from its position at rest, in world units.

    Raises:
        ValueError: as `build_skeleton`.
    """
    skeleton, order = build_skeleton(names, parents, rest)
    matrices = Rotation.from_rotvec(rotations[:, order].reshape(-1, 3)).as_matrix().reshape(*rotations.shape, 3)
    transforms = np.empty((len(rotations), skeleton.bone_count, 4, 4))
    is_root = (np.array(skeleton.parents) == NO_PARENT)[:, None]
    for frame in range(len(translation)):
        translations = np.where(is_root, skeleton.rest_positions + translation[frame], 0.0)
        transforms[frame] = compose_transforms(skeleton, matrices[frame], translations)
    return SkeletonMotion(skeleton, transforms)

"""Checkpoints of a training: folders whose manifest holds the SHA-256 of their files, so that damage is always noticed.

A checkpoint is written beside the others under a temporary name, flushed to the disk and then renamed; old ones are
removed last. Loading skips damaged ones and says so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import (
    DESKTOP_FILES,
    DamagedFileError,
    describe_read_error,
    disk_errors,
    flush_to_disk,
    make_folder,
    name_in_utf8,
    read_limited,
    remove_stale_temporaries,
    require_disk_space,
    sha256_file,
    temporary_path,
    to_plain_values,
    write_pieces,
    write_synced,
)
from neural_fields.core.version import __version__
from neural_fields.runs.run import RUN_SCHEMA, Run

Arrays = Mapping[str, Any]  # of torch tensors or numpy arrays, neither of which is imported for a type's sake

_NAME = re.compile(r"([0-9]{6,})(?:-([0-9]+))?")
_FILES = ("model.safetensors", "state.safetensors", "manifest.json")
_DAMAGE_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
_TYPE_NAMES = {  # of torch and numpy, and of safetensors
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a training, verified against its manifest."""

    step: int
    model: dict[str, Any]  # tensors by name
    state: dict[str, Any]  # tensors by name: the optimizer's moments, and what else resuming needs
    metadata: dict[str, Any]  # JSON values that the caller gave
    path: Path
    warnings: tuple[str, ...]  # newer checkpoints that were skipped, and why


def save_checkpoint(run: Run, step: int, model: Arrays, state: Arrays, metadata: Mapping[str, Any]) -> Path:
    """Saves a checkpoint so that at every moment, even in a power cut, the previous or the new one is whole.

    The two newest checkpoints stay: the newest may be the one that the disk has damaged. Of the checkpoints of later
    steps, damaged ones are removed and whole ones stay (and remain the latest).

    Args:
        run: the run that is trained.
        step: steps done so far.
        model: parameters and buffers as tensors or numpy arrays by name; shared and strided ones are stored as separate
            plain ones.
        state: moments of the optimizer and what else resuming needs, in the same form.
        metadata: JSON values (thread count, versions, seconds trained, ...); non-finite numbers become null.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: NO_ROOM if it does not fit, BAD_INPUT where writing is not allowed. Earlier ones are untouched.
    """
    if step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    folder = run.checkpoints
    arrays = dict(zip(_FILES, (model, state), strict=False))
    sizes = {
        name: len(_encode_header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())
        for name, tensors in arrays.items()
    }
    # As long as the real one, and made before anything is written: metadata that is no JSON is a mistake of ours.
    manifest = _encode_manifest(step, {name: (size, "0" * 64) for name, size in sizes.items()}, metadata)
    needed = sum(sizes.values()) + len(manifest)
    with disk_errors(folder, needed):
        make_folder(folder)
        remove_stale_temporaries(folder)
        require_disk_space(folder, needed)
        with temporary_path(folder) as temp:
            os.mkdir(temp)
            written = {name: write_pieces(temp / name, _encode_tensors(tensors)) for name, tensors in arrays.items()}
            write_synced(temp / _FILES[2], _encode_manifest(step, written, metadata))
            flush_to_disk(temp)
            # 000500, or 000500-2 and so on where that step was saved before: a folder cannot be replaced in one move.
            revision = max((past for saved, past, _ in _list_checkpoints(folder) if saved == step), default=0) + 1
            while os.path.lexists(final := folder / (f"{step:06d}" + (f"-{revision}" if revision > 1 else ""))):
                revision += 1
            os.rename(temp, final)
        flush_to_disk(folder)

        # Remove our own checkpoints except the latest two up to the new one, and damaged ones of later steps.
        found = [(saved, path) for saved, _, path in _list_checkpoints(folder)]
        position = [path for _, path in found].index(final)
        doomed = [path for _, path in found[: max(0, position - 1)]]
        for saved, path in found[position + 1 :]:  # skipped when this run was resumed; a whole one is somebody's work
            try:
                _verify_checkpoint(path, saved)
            except DamagedFileError:
                doomed.append(path)
        _remove_checkpoints(doomed)
    return final


def _remove_checkpoints(doomed: Sequence[Path]) -> None:
    """Removes folders of checkpoints that hold nothing else."""
    for path in doomed:
        if {entry.name for entry in path.iterdir()} <= {*_FILES, *DESKTOP_FILES}:
            # Renamed first: a half-removed checkpoint never has a checkpoint's name.
            with temporary_path(path.parent) as temp:
                os.rename(path, temp)


def remove_older_checkpoints(run: Run, remove: bool = True) -> list[Path]:
    """Removes all checkpoints before the newest one, if that one is whole: a finished training needs no other.

    Args:
        run: a run whose training is finished.
        remove: whether to remove them; otherwise they are only listed.

    Returns:
        The folders of the checkpoints that are removed.
    """
    found = _list_checkpoints(run.checkpoints)
    if len(found) < 2:
        return []
    try:
        _verify_checkpoint(found[-1][2], found[-1][0])
    except DamagedFileError:
        return []
    older = [path for _, _, path in found[:-1]]
    if remove:
        with disk_errors(run.checkpoints):
            _remove_checkpoints(older)
    return older


def load_latest_checkpoint(run: Run, framework: Literal["torch", "numpy"] = "torch") -> Checkpoint | None:
    """Loads the newest checkpoint, by step, whose bytes are those that were saved; None if the run has none.

    Safe while another process saves. Damaged ones are skipped and named in `warnings`.

    Raises:
        UserError: DAMAGED_RUN if there are checkpoints and all are damaged, BAD_INPUT if they may not be read.
    """
    names: list[str] = []
    skipped: list[str] = []
    for _ in range(5):  # a writer may remove the one that we are about to read; then look again
        found = _list_checkpoints(run.checkpoints)
        names, skipped = [path.name for _, _, path in found], []
        for step, _, path in reversed(found):
            try:
                metadata = _verify_checkpoint(path, step)
                model, state = (_read_tensors(path / name, framework) for name in _FILES[:2])
            except DamagedFileError as damage:
                if path.exists():
                    skipped.append(f"checkpoint {path.name} is damaged ({damage})")
                continue
            warnings = tuple(f"{text}: {path.name} is used instead" for text in skipped)
            return Checkpoint(step, model, state, metadata, path, warnings)
        if names == [path.name for _, _, path in _list_checkpoints(run.checkpoints)]:
            break
    if not names:
        return None
    fix = f"mv {run.checkpoints} {run.path / 'checkpoints-damaged'} and run unwrap train again: pictures and edits stay"
    what = f"no checkpoint of {run.path} can be used"
    raise UserError(ExitCode.DAMAGED_RUN, what, where=str(run.checkpoints), why="; ".join(skipped), fix=fix)


def require_checkpoint(run: Run, fix: str) -> Checkpoint:
    """Loads the newest good checkpoint of a run that is only read.

    Args:
        run: the run.
        fix: the command that continues the training, for the message.

    Raises:
        UserError: no checkpoint yet, or all are damaged.
    """
    checkpoint = load_latest_checkpoint(run)
    if checkpoint is None:
        raise UserError(
            ExitCode.DAMAGED_RUN,
            f"{run.path} has no checkpoint",
            where=str(run.checkpoints),
            why="the training was stopped before its first checkpoint",
            fix=fix,
        )
    return checkpoint


def _encode_manifest(step: int, written: Mapping[str, tuple[int, str]], metadata: Mapping[str, Any]) -> bytes:
    """Returns the JSON of a manifest: size and SHA-256 of each file, and a checksum of the manifest itself."""
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in written.items()}
    manifest = {
        "schema": RUN_SCHEMA,
        "version": __version__,
        "step": step,
        "files": files,
        "facts": to_plain_values(metadata),
    }
    return json.dumps({**manifest, "check": _hash_manifest(manifest)}, indent=2, allow_nan=False).encode() + b"\n"


def _hash_manifest(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a manifest's content, so that a flipped bit in its step or metadata is noticed as well."""
    rest = {key: value for key, value in manifest.items() if key != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _verify_checkpoint(path: Path, step: int) -> dict[str, Any]:
    """Returns the metadata of one checkpoint; raises `DamagedFileError` if a byte of it is not what was saved."""
    try:
        manifest = json.loads(read_limited(path / _FILES[2]))
        if manifest["check"] != _hash_manifest(manifest) or manifest["step"] != step:
            raise DamagedFileError("manifest.json is not as it was saved")
        for name in _FILES[:2]:
            file, expected = path / name, manifest["files"][name]
            size = file.stat().st_size
            if size != expected["bytes"]:
                raise DamagedFileError(f"{file.name} has {size} bytes, expected {expected['bytes']}")
            if sha256_file(file) != expected["sha256"]:
                raise DamagedFileError(f"{file.name} has the wrong SHA-256")
        return dict(manifest["facts"])
    except OSError as error:
        if error.errno in _DAMAGE_ERRORS:
            raise DamagedFileError(describe_read_error(error)) from error
        raise bad_input(f"cannot read the checkpoint {path}", why=describe_read_error(error).lower()) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"manifest.json: {error}") from error  # not JSON, or JSON of another form


def _list_checkpoints(folder: Path) -> list[tuple[int, int, Path]]:
    """Lists (step, revision, path) of each folder that is named like a checkpoint, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and match[1] == f"{int(match[1]):06d}" and path.is_dir() and not path.is_symlink():
            found.append((int(match[1]), int(match[2] or 1), path))
    return sorted(found)


# --- tensors, one at a time -----------------------------------------------------------------------------------------


def _encode_tensors(arrays: Arrays) -> Iterator[bytes | memoryview]:
    """Yields the bytes of a safetensors file: beside the model itself no more than one tensor is held in memory.

    The library's own `save` returns all bytes at once and refuses tensors that share memory. Tensors are written row
    by row and copied only if they are strided or on a GPU.
    """
    import numpy as np

    yield _encode_header(arrays)
    for name in _storage_order(arrays):
        array = arrays[name]
        if isinstance(array, np.ndarray):
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        else:
            import torch

            yield array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _encode_header(arrays: Arrays) -> bytes:
    """Returns the length and the JSON of names, types, shapes and offsets, padded with spaces to align the tensors."""
    entries, start = {}, 0
    for name in _storage_order(arrays):
        array = arrays[name]
        type_name = str(array.dtype).removeprefix("torch.")
        if type_name not in _TYPE_NAMES:
            raise ValueError(f"a checkpoint holds no tensors of type {type_name}")
        end = start + array.nbytes
        entries[name] = {
            "dtype": _TYPE_NAMES[type_name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _storage_order(arrays: Arrays) -> list[str]:
    """Sorts names by the width of their numbers, wide first: every tensor starts at a multiple of that width."""
    return sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))


def _read_tensors(path: Path, framework: str) -> dict[str, Any]:
    """Reads a safetensors file; raises `DamagedFileError` where it is none."""
    from safetensors import SafetensorError

    try:
        with name_in_utf8(path) as readable:
            if framework == "numpy":
                from safetensors.numpy import load_file

                return load_file(readable)
            from safetensors.torch import load_file as load_tensors

            return load_tensors(readable)
    except (SafetensorError, OSError) as error:  # OSError: removed by another process since it was verified
        raise DamagedFileError(f"{path.name} is not a safetensors file: {error}") from error

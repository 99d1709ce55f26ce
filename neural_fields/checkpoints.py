"""Checkpoints of a fit: folders whose manifest holds the SHA-256 of their files, so that damage is always noticed.

A checkpoint is written beside the others under a temporary name, flushed to the disk and then renamed; the previous one
goes last. Loading passes over what is damaged and says so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neural_fields import __version__
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import (
    DESKTOP_LITTER,
    JSON_LIMIT,
    Damage,
    clean_litter,
    disk_errors,
    make_folder,
    plain,
    read_limited,
    reason,
    require_room,
    sha256_file,
    sync,
    temporary,
    write_pieces,
    write_synced,
)
from neural_fields.run import SCHEMA, Run

Arrays = Mapping[str, Any]  # of torch tensors or numpy arrays, neither of which is imported for a type's sake

_NAME = re.compile(r"([0-9]{6,})(?:-([0-9]+))?")
_FILES = ("model.safetensors", "state.safetensors", "manifest.json")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
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
    """One saved moment of a fit, verified against its manifest."""

    step: int
    model: dict[str, Any]  # name -> tensor
    state: dict[str, Any]  # name -> tensor: optimiser moments and what else resuming needs
    facts: dict[str, Any]  # whatever JSON the caller gave
    path: Path
    warnings: tuple[str, ...]  # newer checkpoints that were passed over, and why


def save_checkpoint(run: Run, step: int, model: Arrays, state: Arrays, facts: Mapping[str, Any], keep: int = 2) -> Path:
    """Saves a checkpoint so that at every moment, a power cut included, the previous or the new one is whole.

    Of the checkpoints of later steps, damaged ones are removed and whole ones stay (and remain the latest).

    Args:
        model, state: tensors or numpy arrays by name; shared and strided ones are stored as separate plain ones.
        facts: JSON values (thread count, versions, seconds trained, ...); non-finite numbers become null.
        keep: how many checkpoints stay, at least 2: the newest may be the one that the disk has damaged.

    Raises:
        UserError: NO_ROOM if it does not fit, BAD_INPUT where writing is not allowed. Earlier ones are untouched.
    """
    if step < 0 or keep < 2:
        raise ValueError(f"step must be 0 or more and keep 2 or more, got step={step} and keep={keep}")
    folder = run.checkpoints
    arrays = dict(zip(_FILES, (model, state), strict=False))
    sizes = {name: _size(tensors) for name, tensors in arrays.items()}
    # As long as the real one, and made before anything is written: facts that are no JSON are a mistake of ours.
    manifest = _manifest(step, {name: (size, "0" * 64) for name, size in sizes.items()}, facts)
    needed = sum(sizes.values()) + len(manifest)
    with disk_errors(folder, needed):
        make_folder(folder)
        clean_litter(folder)
        require_room(folder, needed)
        with temporary(folder) as temp:
            os.mkdir(temp)
            written = {name: write_pieces(temp / name, _pieces(tensors)) for name, tensors in arrays.items()}
            write_synced(temp / _FILES[2], _manifest(step, written, facts))
            sync(temp)
            final = _free_name(folder, step)
            os.rename(temp, final)
        sync(folder)
        _prune(folder, final, keep)
    return final


def load_latest_checkpoint(run: Run, framework: Literal["torch", "numpy"] = "torch") -> Checkpoint | None:
    """The newest checkpoint, by step, whose bytes are those that were saved; None if the run has none.

    Safe while another process saves. Damaged ones are passed over and named in `warnings`.

    Raises:
        UserError: DAMAGED_RUN if there are checkpoints and all are damaged, BAD_INPUT if they may not be read.
    """
    names: list[str] = []
    passed_over: list[str] = []
    for _ in range(5):  # a writer may prune what we are about to read; then look again
        found = _checkpoints(run.checkpoints)
        names, passed_over = [path.name for _, _, path in found], []
        for step, _, path in reversed(found):
            try:
                facts = _verified(path, step)
                model, state = (_read_tensors(path / name, framework) for name in _FILES[:2])
            except Damage as damage:
                if path.exists():
                    passed_over.append(f"checkpoint {path.name} is damaged ({damage})")
                continue
            warnings = tuple(f"{text}: {path.name} is used instead" for text in passed_over)
            return Checkpoint(step, model, state, facts, path, warnings)
        if names == [path.name for _, _, path in _checkpoints(run.checkpoints)]:
            break
    if not names:
        return None
    fix = f"mv {run.checkpoints} {run.path / 'checkpoints-damaged'} and run unwrap train again: pictures and edits stay"
    what = f"no checkpoint of {run.path} can be used"
    raise UserError(ExitCode.DAMAGED_RUN, what, where=str(run.checkpoints), why="; ".join(passed_over), fix=fix)


def require_checkpoint(run: Run, fix: str) -> Checkpoint:
    """The newest good checkpoint of a run that is to be looked at.

    Args:
        fix: the command that goes on with the fit.

    Raises:
        UserError: no checkpoint yet, or all are damaged.
    """
    checkpoint = load_latest_checkpoint(run)
    if checkpoint is None:
        raise UserError(
            ExitCode.DAMAGED_RUN,
            f"{run.path} has no checkpoint",
            where=str(run.checkpoints),
            why="the fit was stopped before its first checkpoint",
            fix=fix,
        )
    return checkpoint


def _manifest(step: int, written: Mapping[str, tuple[int, str]], facts: Mapping[str, Any]) -> bytes:
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in written.items()}
    manifest = {"schema": SCHEMA, "version": __version__, "step": step, "files": files, "facts": plain(facts)}
    return json.dumps({**manifest, "check": _check(manifest)}, indent=2, allow_nan=False).encode() + b"\n"


def _check(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, so that a flipped bit in its step or facts is seen as well."""
    rest = {key: value for key, value in manifest.items() if key != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _verified(path: Path, step: int) -> dict[str, Any]:
    """The facts of one checkpoint; raises `Damage` if a byte of it is not what was saved."""
    try:
        manifest = json.loads(read_limited(path / _FILES[2], JSON_LIMIT))
        if manifest["check"] != _check(manifest) or manifest["step"] != step:
            raise Damage("manifest.json is not as it was saved")
        for name in _FILES[:2]:
            _verify_file(path / name, manifest["files"][name])
        return dict(manifest["facts"])
    except OSError as error:
        if error.errno in _GONE:
            raise Damage(reason(error)) from error
        raise bad_input(f"cannot read the checkpoint {path}", why=reason(error).lower()) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Damage(f"manifest.json: {error}") from error  # not JSON, or JSON of another form


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise Damage(f"{path.name} has {size} bytes, expected {expected['bytes']}")
    if sha256_file(path) != expected["sha256"]:
        raise Damage(f"{path.name} has the wrong SHA-256")


def _checkpoints(folder: Path) -> list[tuple[int, int, Path]]:
    """(step, revision, path) of each folder that is named like a checkpoint, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and match[1] == f"{int(match[1]):06d}" and path.is_dir() and not path.is_symlink():
            found.append((int(match[1]), int(match[2] or 1), path))
    return sorted(found)


def _free_name(folder: Path, step: int) -> Path:
    """000500, or 000500-2 and so on where that step was saved before: replacing a folder cannot be done in one move."""
    revision = max((revision for saved, revision, _ in _checkpoints(folder) if saved == step), default=0) + 1
    while os.path.lexists(path := folder / (f"{step:06d}" + (f"-{revision}" if revision > 1 else ""))):
        revision += 1
    return path


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Removes our own checkpoints, but the `keep` newest up to `newest`, and those of later steps that are damaged."""
    found = [(step, path) for step, _, path in _checkpoints(folder)]
    place = [path for _, path in found].index(newest)
    doomed = [path for _, path in found[: max(0, place + 1 - keep)]]
    for step, path in found[place + 1 :]:  # passed over when this run was resumed; a whole one is somebody's work
        try:
            _verified(path, step)
        except Damage:
            doomed.append(path)
    for path in doomed:
        if {entry.name for entry in path.iterdir()} <= {*_FILES, *DESKTOP_LITTER}:
            with temporary(folder) as temp:  # renamed first: a half-removed checkpoint never has a checkpoint's name
                os.rename(path, temp)


# --- tensors, one at a time -----------------------------------------------------------------------------------------


def _pieces(arrays: Arrays) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece: beside the model itself no more than one tensor is held in memory.

    The library's own `save` returns all bytes at once and refuses tensors that share memory.
    """
    yield _header(arrays)
    for name in _order(arrays):
        yield _bytes(arrays[name])


def _size(arrays: Arrays) -> int:
    return len(_header(arrays)) + sum(array.nbytes for array in arrays.values())


def _header(arrays: Arrays) -> bytes:
    """Length and JSON of names, types, shapes and places; spaces fill it up so that the tensors are aligned."""
    entries, start = {}, 0
    for name in _order(arrays):
        array = arrays[name]
        end = start + array.nbytes
        entries[name] = {"dtype": _type_name(array), "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _order(arrays: Arrays) -> list[str]:
    """Wide numbers first: then every tensor starts at a multiple of its number's width."""
    return sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))


def _type_name(array: Any) -> str:
    name = str(array.dtype).removeprefix("torch.")
    if name not in _TYPE_NAMES:
        raise ValueError(f"a checkpoint holds no tensors of type {name}")
    return _TYPE_NAMES[name]


def _bytes(array: Any) -> memoryview:
    """The bytes of a tensor or numpy array, row by row; copied only if it is strided or on a GPU."""
    import numpy as np

    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    import torch

    return array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _read_tensors(path: Path, framework: str) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        if framework == "numpy":
            from safetensors.numpy import load_file

            return load_file(path)
        from safetensors.torch import load_file as load_tensors

        return load_tensors(path)
    except (SafetensorError, OSError) as error:  # OSError: removed by another process since it was verified
        raise Damage(f"{path.name} is not a safetensors file: {error}") from error

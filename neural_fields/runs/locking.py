"""The lock of a run: one writer at a time. It is freed however its holder ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import (
    disk_errors,
    is_process_alive,
    make_folder,
    nearest_existing_folder,
    remove_stale_temporaries,
    write_synced,
)
from neural_fields.runs.run import Run

_NO_LOCK_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held_files: set[str] = set()  # holder files that this process has made and not yet removed


@contextmanager
def lock_run(run: Run) -> Iterator[str]:
    """Holds `run` for writing until the block ends or the process dies, by whatever means. Reading needs no lock.

    Yields a note for the user: empty, or why a weaker lock is used on a volume that cannot lock files. Removes the
    temporary files of writers that were killed.

    Raises:
        UserError: LOCKED with the process, the machine and the start time of the holder.
    """
    with disk_errors(run.lock_file):
        make_folder(run.path)
        descriptor = os.open(run.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
    note, holder_file = "", None
    try:
        with disk_errors(run.lock_file):
            if _try_flock(run, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _encode_holder(), 0)
            else:
                holder_file = _create_holder_file(run)
                note = f"{nearest_existing_folder(run.path)} cannot lock files, so {holder_file.name} is used instead"
            for folder in (run.path, run.canonical, run.maps, run.previews, run.renders, run.exports, run.checkpoints):
                remove_stale_temporaries(folder)
        yield note
    finally:
        if holder_file is not None:
            _held_files.discard(str(holder_file))
            holder_file.unlink(missing_ok=True)
        os.close(descriptor)  # this frees the lock


def _try_flock(run: Run, descriptor: int) -> bool:
    """Takes the lock of the system; returns False where the volume has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _locked_error(run, os.pread(descriptor, 4096, 0)) from error
    except OSError as error:
        if error.errno in _NO_LOCK_ERRORS:
            return False
        raise
    return True


def _create_holder_file(run: Run) -> Path:
    """Creates LOCK.holder; replaces that of a process of this machine that has ended."""
    path = run.holder_file
    if path.exists():
        text = path.read_bytes()
        holder = _parse_holder(text)
        pid = holder.get("pid")
        left_over = pid == os.getpid() and str(path) not in _held_files
        dead = isinstance(pid, int) and (left_over or not is_process_alive(pid))
        if holder.get("host") != platform.node() or not dead:
            raise _locked_error(run, text)
        path.unlink(missing_ok=True)
    try:
        write_synced(path, _encode_holder())
    except FileExistsError as error:
        raise _locked_error(run, path.read_bytes()) from error
    _held_files.add(str(path))
    return path


def _encode_holder() -> bytes:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"pid": os.getpid(), "host": platform.node(), "started": started}).encode()


def _parse_holder(text: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        holder = json.loads(text)
        if isinstance(holder, dict):
            return holder
    return {}


def _locked_error(run: Run, text: bytes) -> UserError:
    shown = {key: "".join(c for c in str(value)[:80] if c.isprintable()) for key, value in _parse_holder(text).items()}
    who = "process {} on {} since {}".format(*(shown.get(key, "?") for key in ("pid", "host", "started")))
    fix = f"wait until it has ended; unwrap info {run.path} works meanwhile"
    why = f"{who} is writing to it, and only one may"
    return UserError(ExitCode.LOCKED, f"the run {run.path} is in use", where=str(run.lock_file), why=why, fix=fix)

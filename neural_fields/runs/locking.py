"""The lock of a run or another folder: one writer at a time. It is freed however its holder ends."""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import disk_errors, make_folder, nearest_existing_folder, remove_stale_temporaries
from neural_fields.runs.run import HOLDER_FILE, LOCK_FILE, TRAINING_LOCK_FILE, Run

MAX_WAIT_S = 20.0  # for others that write to a run: a training writes maps and pictures in between, an editor an edit
NO_LOCK_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def lock_run(run: Run, patience_s: float = 0.0) -> Iterator[str]:
    """Holds `run` for writing until the block ends or the process dies, by whatever means. Reading needs no lock.

    Yields a note for the user: empty, or why a weaker lock is used on a volume that cannot lock files. Removes the
    temporary files of writers that were killed.

    Args:
        run: the run.
        patience_s: how long to wait while the run is trained, which locks it now and then.

    Raises:
        UserError: LOCKED with the process, the machine and the start time of the holder.
    """
    meanwhile = f"unwrap info {run.path} works meanwhile"
    patience_s = patience_s if is_training(run) else 0.0
    with lock_folder(run.path, f"the run {run.path}", meanwhile, patience_s) as note:
        with disk_errors(run.lock_file):
            for folder in (run.canonical, run.maps, run.previews, run.renders, run.exports, run.checkpoints):
                remove_stale_temporaries(folder)
        yield note


@contextmanager
def lock_training(run: Run) -> Iterator[None]:
    """Holds `run` against other trainings until the block ends, while edits can be added to it in between.

    Args:
        run: the run.

    Raises:
        UserError: LOCKED with the process, the machine and the start time of the other training.
    """
    file = run.training_lock_file
    with disk_errors(file):
        make_folder(run.path)
        lock, _ = _acquire_lock(file, f"the run {run.path}", f"unwrap info {run.path} works meanwhile", 0.0)
    try:
        yield
    finally:
        lock.release()


def is_training(run: Run) -> bool:
    """Tells whether a process trains a run at this moment."""
    try:
        with FileLock(run.training_lock_file, timeout=0) if run.training_lock_file.exists() else nullcontext():
            return False
    except Timeout:
        return True
    except OSError:  # a volume that cannot lock files
        return run.training_lock_file.with_name(HOLDER_FILE.replace(LOCK_FILE, TRAINING_LOCK_FILE)).exists()


@contextmanager
def lock_folder(folder: Path, title: str, meanwhile: str = "", patience_s: float = 0.0) -> Iterator[str]:
    """Holds a folder, which is made if it is missing, for writing; like `lock_run`, which says more.

    Args:
        folder: the folder.
        title: what it is, for the error: "the run swan".
        meanwhile: what can be done until it is free, for the error.
        patience_s: how long to wait for another writer.

    Yields:
        The note.

    Raises:
        UserError: LOCKED with the process, the machine and the start time of the holder.
    """
    file = folder / LOCK_FILE
    with disk_errors(file):
        make_folder(folder)
        lock, note = _acquire_lock(file, title, meanwhile, patience_s)
    try:
        with disk_errors(file):
            remove_stale_temporaries(folder)
        yield note
    finally:
        lock.release()


def _acquire_lock(file: Path, title: str, meanwhile: str, patience_s: float) -> tuple[BaseFileLock, str]:
    """Takes the lock of the system or, where the volume has none, that of a file; returns it with the note."""
    lock: BaseFileLock = FileLock(file, timeout=patience_s, thread_local=False, on_acquired=_write_holder)
    try:
        lock.acquire()
        return lock, ""
    except Timeout as error:
        raise _locked_error(file, title, meanwhile) from error
    except OSError as error:
        if error.errno not in NO_LOCK_ERRORS:
            raise
    # The first try may only remove the file that a killed process of this machine left.
    holder = file.with_name(HOLDER_FILE.replace(LOCK_FILE, file.name))
    lock = SoftFileLock(holder, timeout=max(0.2, patience_s), thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise _locked_error(holder, title, meanwhile) from error
    return lock, f"{nearest_existing_folder(file.parent)} cannot lock files, so {holder.name} is used instead"


def _write_holder(descriptor: int) -> None:
    """Writes into the lock file who holds it, as filelock does into that of a soft lock."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{platform.node()}\n".encode(), 0)


def _locked_error(file: Path, title: str, meanwhile: str) -> UserError:
    """Makes the error that names the process and the machine in a lock file, and when it was written."""
    lines, started = ["?", "?"], "?"
    with suppress(OSError), file.open("rb") as stream:
        lines = stream.read(1024).decode(errors="replace").splitlines()
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.fstat(stream.fileno()).st_mtime))
    pid, host = ("".join(filter(str.isprintable, line[:80])) for line in (*lines, "?", "?")[:2])
    fix = "wait until it has ended" + (f"; {meanwhile}" if meanwhile else "")
    why = f"process {pid} on {host} since {started} is writing to it, and only one may"
    return UserError(ExitCode.LOCKED, f"{title} is in use", where=str(file), why=why, fix=fix)

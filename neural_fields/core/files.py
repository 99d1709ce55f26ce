"""Files that are never half written: a temporary name in the same folder, a flush to the disk, then a rename.

A kill, a power cut or a full disk leaves either the old file or the new one. Errors of the disk become a
`UserError` with a fix. Only temporary files of this program are removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, UserError, bad_input

WRITE_CHUNK_BYTES = 8 << 20  # given to one write call
DESKTOP_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")  # left by file managers in any folder they show

_DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_WRITE_REFUSED_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EMFILE,
)
_TEMP_NAME = re.compile(r"\.unwrap-part-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}(\..*)?")
_in_use: set[str] = set()  # temporary names that this process is writing now


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns an error of the disk that holds `path` into a `UserError`.

    Args:
        path: the file or folder that the block writes.
        needed: the bytes that the block writes, for the message; None where they are not known.

    Raises:
        UserError: NO_ROOM with the needed and the free bytes, or BAD_INPUT with the reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL_ERRORS:
            raise _disk_full_error(path, needed) from error
        failed = "" if error.filename is None else str(error.filename)
        # The block may also read other files meanwhile; an error about those is not an error of writing `path`.
        is_about_path = not failed or Path(failed) in path.parents or path.parent in Path(failed).parents
        if error.errno in _WRITE_REFUSED_ERRORS and is_about_path:
            why = (error.strerror or type(error).__name__).lower()
            fix = "choose a folder you may write to"
            raise bad_input(f"cannot write {path}", where=failed, why=why, fix=fix) from error
        raise


def nearest_existing_folder(path: Path) -> Path:
    """Returns the nearest parent folder of `path` (or `path` itself) that exists, resolved."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path.resolve()


def _disk_full_error(path: Path, needed: int | None) -> UserError:
    folder = mount = nearest_existing_folder(path)
    while not os.path.ismount(mount):
        mount = mount.parent
    free = shutil.disk_usage(folder).free
    why = f"only {free} bytes are free" if needed is None else f"{needed} bytes are needed and {free} are free"
    fix = f"free some space on {mount} and run the same command again: what was saved before is untouched"
    return UserError(ExitCode.NO_ROOM, f"the disk {mount} is full", where=str(path), why=why, fix=fix)


def require_disk_space(path: Path, needed_bytes: int) -> None:
    """Checks before a long job that the volume that holds `path` (existing or not) has `bytes` free.

    Raises:
        UserError: NO_ROOM with the volume, the needed and the free bytes.
    """
    usage = shutil.disk_usage(nearest_existing_folder(path))
    # Some network volumes report nothing at all; then only the write itself can tell.
    if usage.total > 0 and usage.free < needed_bytes:
        raise _disk_full_error(path, needed_bytes)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, and flushes the new names to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_to_disk(folder.parent)


def flush_to_disk(path: Path) -> None:
    """Flushes the content of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network volumes cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Makes the new file `path` and flushes its bytes; its name is safe only after `flush_to_disk` of the folder."""
    write_pieces(path, [data])


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Writes a new file like `write_synced` from bytes that are made piece by piece.

    Returns:
        The number of bytes and their SHA-256 in hexadecimal.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for chunk in _join_into_chunks(pieces):
            digest.update(chunk)
            size += len(chunk)
            write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def _join_into_chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[bytearray]:
    """Yields the same bytes in chunks of `WRITE_CHUNK_BYTES`, so that many small pieces need few system calls."""
    chunk = bytearray()
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest):
            taken = rest[: WRITE_CHUNK_BYTES - len(chunk)]
            chunk += taken
            rest = rest[len(taken) :]
            if len(chunk) == WRITE_CHUNK_BYTES:
                yield chunk
                chunk = bytearray()
    if chunk:
        yield chunk


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Writes all bytes, however few of them one system call takes."""
    rest = memoryview(data)
    while len(rest):
        rest = rest[os.write(descriptor, rest[:WRITE_CHUNK_BYTES]) :]


def hash_host_name() -> str:
    """Returns this machine in eight hexadecimal digits, for names of temporary files on shared volumes."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@contextmanager
def temporary_path(folder: Path, suffix: str = "") -> Iterator[Path]:
    """Gives a free path in `folder`, named after the process that uses it; what is left there at the end is removed."""
    part = folder / f".unwrap-part-{hash_host_name()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{suffix}"
    _in_use.add(part.name)
    try:
        yield part
    finally:
        _remove_temporary(part)
        _in_use.discard(part.name)


def _remove_temporary(part: Path) -> None:
    with suppress(FileNotFoundError):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            os.unlink(part)


def is_temporary(name: str) -> bool:
    """Tells whether `name` is a name of `temporary_path`, of this or another machine."""
    return _TEMP_NAME.fullmatch(name) is not None


def remove_stale_temporaries(folder: Path) -> None:
    """Removes the temporary files in `folder` whose writer, a process of this machine, is gone. The rest stays."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _TEMP_NAME.fullmatch(entry.name)
        if match and match[1] == hash_host_name() and entry.name not in _in_use:
            pid = int(match[2])
            if pid == os.getpid() or not is_process_alive(pid):
                _remove_temporary(entry)


def is_process_alive(pid: int) -> bool:
    """Tells whether this machine has a process with that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path in the same folder with the same suffix; what is written there becomes `path` at the end.

    The file is flushed to the disk before the rename and the folder after it. If the block raises, `path` is as it was.

        with atomic_write(path) as part:
            part.write_bytes(data)

    Raises:
        UserError: NO_ROOM on a full disk, BAD_INPUT where writing is not allowed.
    """
    path = Path(path)
    with disk_errors(path):
        make_folder(path.parent)
        with temporary_path(path.parent, path.suffix) as part:
            yield part
            flush_to_disk(part)
            os.replace(part, path)
            flush_to_disk(path.parent)


@contextmanager
def name_in_utf8(path: Path) -> Iterator[Path]:
    """Gives a file a name in UTF-8: its own, or that of a link to it. Some packages take no others."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, f"link{path.suffix}")
            link.symlink_to(os.path.abspath(path))
            yield link
    else:
        yield path


def write_json(path: Path | str, obj: Any) -> None:
    """Writes `obj` as JSON, atomically. Paths become text, numpy and torch scalars numbers, non-finite numbers null."""
    data = json.dumps(to_plain_values(obj), indent=2, allow_nan=False).encode() + b"\n"
    with atomic_write(path) as part:
        write_synced(part, data)


def to_plain_values(value: Any, finite: bool = True) -> Any:
    """Converts `value` to the types of JSON or, with `finite` off, of YAML, which has infinity and not-a-number."""
    match value:
        case Mapping():
            return {str(key): to_plain_values(item, finite) for key, item in value.items()}
        case list() | tuple():
            return [to_plain_values(item, finite) for item in value]
        case Path():
            return str(value)
    plain = value.item() if hasattr(value, "item") else value
    return None if finite and isinstance(plain, float) and not math.isfinite(plain) else plain


def read_json(path: Path | str) -> Any:
    """Reads the value in a JSON file of a run.

    Raises:
        UserError: DAMAGED_RUN if the file is missing, too large or not JSON; BAD_INPUT if it may not be read.
    """
    path = Path(path)
    try:
        return json.loads(read_limited(path), object_pairs_hook=_refuse_repeated_keys)
    except PermissionError as error:
        raise bad_input(f"cannot read {path}", why="permission denied") from error
    except (DamagedFileError, OSError, ValueError, RecursionError) as error:
        fix = "restore it from a copy, or make the run again with unwrap train"
        what = f"{path.name} is damaged"
        raise UserError(ExitCode.DAMAGED_RUN, what, where=str(path), why=describe_read_error(error), fix=fix) from error


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"key {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} is given twice")
    return found


class DamagedFileError(Exception):
    """Reports a file with other content than was written; the text says what is wrong."""


def describe_read_error(error: Exception) -> str:
    """Says in words for a user why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return f"{Path(str(error.filename)).name} is missing"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def read_limited(path: Path, max_bytes: int = 256 << 20) -> bytes:
    """Reads the bytes of a file; raises `DamagedFileError` without reading it if it has more than `limit`.

    The default is for our own JSON files: a source.json with a million timestamps is far below.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise DamagedFileError(f"{path.name} has {size} bytes, expected at most {max_bytes}")
        return file.read()


def sha256_file(path: Path | str) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

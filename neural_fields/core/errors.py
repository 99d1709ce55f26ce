"""The one way to tell a user that something is wrong: what, where, why, and a command to try."""

from __future__ import annotations

import errno
import os
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of every `unwrap` command."""

    OK = 0
    USAGE = 2
    BAD_INPUT = 3
    NO_ROOM = 4
    DAMAGED_RUN = 5
    LOCKED = 6
    UNSAFE_FILE = 7
    NOT_CONVERGED = 8
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


class UserError(Exception):
    """An error that the user caused and can correct.

    Args:
        code: the exit status of the command.
        what: the problem in one line, with the value received.
        where: the file, frame or config key.
        why: what was expected instead.
        fix: a command or an action that would work (shown after "try").

    Example:
        >>> print(UserError(ExitCode.BAD_INPUT, "no such file", where="car.mp4", fix="check the path"))
        error: no such file
          where car.mp4
          try   check the path
    """

    def __init__(self, code: ExitCode, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        parts = [("where", self.where), ("why", self.why), ("try", self.fix)]
        return "\n".join([f"error: {self.what}"] + [f"  {name:<6}{text}" for name, text in parts if text])


def bad_input(what: str, *, where: str = "", why: str = "", fix: str = "") -> UserError:
    """Makes a `UserError` for input that cannot be used (exit status 3).

    Args:
        what: the problem in one line, with the value received.
        where: the file, frame or config key.
        why: what was expected instead.
        fix: a command or an action that would work.

    Returns:
        The error, to be raised by the caller.
    """
    return UserError(ExitCode.BAD_INPUT, what, where=where, why=why, fix=fix)


# What the system says of a path (errno): what is wrong in our words, and what helps.
SYSTEM_ERRORS = {
    errno.EACCES: ("may not be read or written", "ls -ld {path}"),
    errno.EPERM: ("may not be changed", "ls -ld {path}"),
    errno.EROFS: ("is on a file system that can only be read", "--out in a folder that you may write to"),
    errno.ENOENT: ("is not there, or no longer", "check the name and the folder"),
    errno.EISDIR: ("is a folder, and a file was expected", "name a file in it"),
    errno.ENOTDIR: ("is inside of something that is not a folder", "check the name and the folder"),
    errno.EEXIST: ("exists already", "another name"),
    errno.ENAMETOOLONG: ("has a name that is too long", "a shorter name"),
    errno.ELOOP: ("is a link that leads back to itself", "ls -l {path}"),
    errno.EMFILE: ("cannot be opened: too many files are open", "ulimit -n 4096, then the same command"),
    errno.EIO: ("cannot be read: its disk reports a fault", "copy it to another disk"),
    errno.ESTALE: ("is on a network drive that was lost", "connect the drive again, then the same command"),
    errno.ENOTCONN: ("is on a network drive that was lost", "connect the drive again, then the same command"),
}


def explain_system_error(error: OSError) -> UserError:
    """Makes a `UserError` of an error of the system that reaches the border of the program.

    Args:
        error: the error; its file name is the place.

    Returns:
        The error: of space (exit 4) or of a path (exit 3).

    Example:
        >>> print(explain_system_error(PermissionError(13, "Permission denied", "runs/clip/renders")))
        error: runs/clip/renders may not be read or written
          where runs/clip/renders
          why   Permission denied
          try   ls -ld runs/clip/renders
    """
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename or "")
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space and run the same command again"
        return UserError(ExitCode.NO_ROOM, "the disk is full", where=path, why=reason, fix=fix)
    what, fix = SYSTEM_ERRORS.get(error.errno or 0, ("cannot be used", "the same command with --debug says where"))
    what = f"{path or 'a file'} {what}"
    return bad_input(what, where=path, why=reason, fix=fix.format(path=path or "FILE"))

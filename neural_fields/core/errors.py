"""The one way to tell a user that something is wrong: what, where, why, and a command to try."""

from __future__ import annotations

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

"""The error for a setting that an editor cannot use."""

from __future__ import annotations

from neural_fields.core.errors import ExitCode, UserError


def wrong_setting_error(flag: str, value: object, why: str, fix: str) -> UserError:
    """Makes the error for a setting that an editor cannot use (exit 2).

    Args:
        flag: name of the setting's flag, without dashes.
        value: the value that was given.
        why: the values that are possible.
        fix: a flag and value that would work.

    Example:
        >>> print(wrong_setting_error("steps", 0, "at least one is needed", "--steps 30"))
        error: --steps is 0
          why   at least one is needed
          try   --steps 30
    """
    shown = repr(value) if isinstance(value, str) else value
    return UserError(ExitCode.USAGE, f"--{flag} is {shown}", why=why, fix=fix)

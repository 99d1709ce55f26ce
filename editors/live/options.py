"""Options of `unwrap watch`."""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.config.flags import FramesFlag, PicturesFlag
from neural_fields.core.errors import ExitCode, UserError

MIN_SIZE_PX, MAX_SIZE_PX = 64, 4096


@dataclass(frozen=True)
class WatchOptions:
    """Sets what a preview shows; the fields are the flags of `unwrap watch`.

    Raises:
        UserError: a size out of range (exit 2).

    Example:
        >>> WatchOptions(frames=(0, 12), pictures=("car=paint/car.png",)).size
        1280
    """

    frames: FramesFlag = ()
    """The frame to show; several stand side by side (default: the middle one). May be repeated."""
    pictures: PicturesFlag = ()
    """A picture elsewhere, FILE or LAYER=FILE. May be repeated."""
    size: int = 1280
    """Longer side of the preview in pixels."""

    def __post_init__(self) -> None:
        """Checks the size.

        Raises:
            UserError: a size out of range (exit 2).
        """
        if not MIN_SIZE_PX <= self.size <= MAX_SIZE_PX:
            why = f"the longer side of the preview has {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels"
            raise UserError(ExitCode.USAGE, f"--size {self.size}", why=why, fix=f"--size {type(self).size}")

"""Options of `unwrap export` that all exports share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neural_fields.config.flags import MetadataFlag, OverwriteFlag
from neural_fields.core.errors import ExitCode, UserError


@dataclass(frozen=True)
class ExportOptions:
    """Sets where an export is written; the fields are flags of `unwrap export`.

    Example:
        >>> ExportOptions(out=Path("maps"), overwrite=True).metadata
        True
    """

    out: Path | None = None
    """The folder to write (default: exports/WHAT in the run)."""
    metadata: MetadataFlag = True
    """Write into the files what made them."""
    overwrite: OverwriteFlag = False
    """Replace a folder that exists."""
    start_number: int | None = None
    """Number of the run's first frame in names of files and in scripts (default: that in the source)."""

    def __post_init__(self) -> None:
        """Refuses a negative number, which no program has in the names of files.

        Raises:
            UserError: see above (exit 2).
        """
        if self.start_number is not None and not 0 <= self.start_number < 10**9:
            raise UserError(
                ExitCode.USAGE,
                f"frames cannot start with the number {self.start_number}",
                where="--start-number",
                why="expected a whole number from 0 to 999999999",
                fix="--start-number 1001",
            )

"""Options of `unwrap export` that all exports share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neural_fields.config.flags import MetadataFlag, OverwriteFlag


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

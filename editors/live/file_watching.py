"""Files that the user paints on: the layer that each belongs to, and whether a file that is being saved is complete."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from editors.inputs.file_kinds import DOCUMENT_SUFFIXES, PROGRAM_SUFFIXES, match_layer
from neural_fields.core.errors import UserError, bad_input

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
_BACKUP = re.compile(r"(^|[-_. ])(bak|backup)([-_. ]|$)", re.IGNORECASE)

Stat = tuple[int, int, int]  # size, time of the last change in nanoseconds, number of the file


@dataclass(frozen=True)
class WatchSettings:
    """Settings of `unwrap watch`."""

    busy_s: float = 0.02  # interval between checks of the files while something is saved or propagated
    idle_s: float = 0.5  # interval between checks otherwise
    still_s: float = 0.08  # time without a change after which a file is read
    gone_s: float = 0.7  # time after which a missing file is removed from the preview
    patience_s: float = 1.0  # time after which the user is told that a save is incomplete
    give_up_s: float = 2.0  # time without a change after which an unreadable file counts as damaged
    jpeg_quality: int = 90  # of the preview, 0 to 100
    chooser_frames: int = 8  # evenly spaced frames that the page can show beside those of the preview
    heartbeat_s: float = 2.0  # interval at which the page is told that the watch still runs
    tried_frames: int = 40  # approximate number of frames that are tried for the one that shows most
    part_divisor: int = 3  # at least 1/3 of a side of a picture is prepared: overlays are padded by their size
    part_step_texels: int = 16  # parts, as exported pictures, have sides that can be halved four times


DEFAULTS = WatchSettings()


def find_file_layer(name: str, layers: Sequence[str]) -> str | None:
    """Finds the layer that a file belongs to by its name.

    Args:
        name: name of the file.
        layers: the names of the run's layers.

    Returns:
        The longest name of a layer that the file name begins with, as a complete word; None if there is none.

    Example:
        >>> find_file_layer("car final.png", ["car", "background"])
        'car'
    """
    return match_layer(Path(name).stem, layers)


def is_watched(name: str) -> bool:
    """Tells whether a file name is that of a picture or document, and not of a temporary or backup file.

    Example:
        >>> [is_watched(name) for name in ("car.png", ".car.png", "notes.txt")]
        [True, False, False]
    """
    path = Path(name)
    known = path.suffix.lower() in (*PICTURE_SUFFIXES, *DOCUMENT_SUFFIXES, *PROGRAM_SUFFIXES)
    return known and not name.startswith((".", "~", "#")) and not _BACKUP.search(path.stem)


def parse_given_file(text: str | Path, layers: Sequence[str]) -> tuple[Path, str | None]:
    """Parses "[LAYER=]FILE": a file to watch, and its layer.

    Args:
        text: the text that the user gave, or a path.
        layers: the names of the run's layers.

    Returns:
        The path, and the layer; None for a document, which states its layer itself.

    Raises:
        UserError: a missing folder, a file that cannot be watched, or an unknown layer (exit 3).
    """
    name, has_name, file = str(text).partition("=")
    is_named = bool(has_name) and name in layers
    path = Path(os.path.abspath(file if is_named else text))
    is_document = path.suffix.lower() in DOCUMENT_SUFFIXES
    layer = None
    if is_named:
        layer = name
    elif not is_document:
        layer = find_file_layer(path.name, layers)
    if not path.parent.is_dir():
        raise bad_input(f"there is no folder {path.parent}", where=str(text), fix="check the spelling of the path")
    if path.suffix.lower() not in (*PICTURE_SUFFIXES, *DOCUMENT_SUFFIXES):
        raise bad_input(
            f"{path.name} is no picture that can be watched",
            where=str(path),
            why=f"expected {', '.join((*PICTURE_SUFFIXES, *DOCUMENT_SUFFIXES))}",
            fix="export it from your program as .png or .ora",
        )
    if layer is None and not is_document and len(layers) == 1:
        layer = layers[0]
    if layer is None and not is_document:
        raise bad_input(
            f"{path.name} does not tell which layer it belongs to",
            where=str(path),
            why=f"the layers of this run, front to back: {', '.join(layers)}",
            fix=f"--picture {layers[0]}={shlex.quote(str(text))}",
        )
    return path, layer


@dataclass
class WatchedFile:
    """Holds the state of a watched file."""

    path: Path
    stat: Stat | None = None  # as it was seen last
    taken_stat: Stat | None = None  # as it was when the preview took it
    seen_since: float = 0.0  # when `stat` was seen first
    save_begun: float = 0.0  # when a save was noticed first
    read_error: UserError | None = None  # why it cannot be read as it is
    is_told: bool = False  # that it is waited for

    def observe(self, now: float) -> None:
        """Reads the state of the file at time `now`, in seconds of `time.monotonic`."""
        found = read_stat(self.path)
        if found == self.stat:
            return
        if self.stat == self.taken_stat:
            self.save_begun, self.is_told = now, False
        self.stat, self.seen_since, self.read_error = found, now, None

    @property
    def is_new(self) -> bool:
        """Whether the file changed since the preview read it."""
        return self.stat != self.taken_stat

    def is_still(self, now: float, still_s: float) -> bool:
        """Tells whether the file has not changed for some time, as observed or by its modification time.

        Args:
            now: the current time, in seconds of `time.monotonic`.
            still_s: the time without a change, in seconds.
        """
        since_change = time.time() - self.stat[1] / 1e9 if self.stat else 0.0
        return now - self.seen_since >= still_s or since_change >= still_s

    def estimate_save_time(self, patience_s: float) -> float:
        """Estimates when the file was saved: its modification time, if that is close to the time of observation.

        Args:
            patience_s: largest difference between the two, in seconds.

        Returns:
            Seconds since the epoch.
        """
        noticed = time.time() - (time.monotonic() - self.seen_since)
        changed = self.stat[1] / 1e9 if self.stat else noticed
        return changed if 0 <= noticed - changed < patience_s else noticed


class IncompleteFileError(Exception):
    """Signals that a file cannot be read, perhaps because it is still being saved."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error.what)
        self.error = error


def read_stat(path: Path) -> Stat | None:
    """Reads the values that distinguish two states of a file; returns None if the file does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino

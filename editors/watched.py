"""Files that somebody paints on: which belong to what layer, and when one that is being saved is complete."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neural_fields.errors import UserError, bad_input

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
DOCUMENTS = (".ora", ".psd")
ELSEWHERE = (".kra", ".xcf", ".psb")  # files that only their own program reads well
STILL = 0.08  # seconds without a change after which a file is read
GONE = 0.7  # seconds after which a missing file is not about to come back under its name
PATIENCE = 1.0  # seconds after which it is said that a save is waited for
GIVE_UP = 2.0  # seconds without a change after which a file that cannot be read is damaged
_BACKUP = re.compile(r"(^|[-_. ])(bak|backup)([-_. ]|$)", re.IGNORECASE)

Stat = tuple[int, int, int]  # size, time of the last change in nanoseconds, number of the file


def layer_of(name: str, layers: Sequence[str]) -> str | None:
    """The layer that a file belongs to by its name: the longest that it begins with, as a whole word."""
    stem = Path(name).stem
    fits = [layer for layer in layers if stem.startswith(layer) and not stem[len(layer) : len(layer) + 1].isalnum()]
    return max(fits, key=len, default=None)


def is_watched(name: str) -> bool:
    """Whether a file of that name may be a picture or a document, and is not one that programs make while they save."""
    path = Path(name)
    known = path.suffix.lower() in (*PICTURES, *DOCUMENTS, *ELSEWHERE)
    return known and not name.startswith((".", "~", "#")) and not _BACKUP.search(path.stem)


def given_file(text: str | Path, layers: Sequence[str]) -> tuple[Path, str | None]:
    """A file to watch, and its layer; a document tells its own."""
    name, has_name, file = str(text).partition("=")
    named = bool(has_name) and name in layers
    path = Path(os.path.abspath(file if named else text))
    document = path.suffix.lower() in DOCUMENTS
    layer = name if named else None if document else layer_of(path.name, layers)
    if not path.parent.is_dir():
        raise bad_input(f"there is no folder {path.parent}", where=str(text), fix="check the spelling of the path")
    if path.suffix.lower() not in (*PICTURES, *DOCUMENTS):
        raise bad_input(
            f"{path.name} is no picture that can be watched",
            where=str(path),
            why=f"expected {', '.join((*PICTURES, *DOCUMENTS))}",
            fix="export it from your program as .png or .ora",
        )
    if layer is None and not document and len(layers) == 1:
        layer = layers[0]
    if layer is None and not document:
        raise bad_input(
            f"{path.name} does not tell which layer it belongs to",
            where=str(path),
            why=f"the layers of this run, front to back: {', '.join(layers)}",
            fix=f"--picture {layers[0]}={shlex.quote(str(text))}",
        )
    return path, layer


@dataclass
class Watched:
    """A watched file."""

    path: Path
    stat: Stat | None = None  # as it was seen last
    done: Stat | None = None  # as it was when the preview took it
    since: float = 0.0  # when `stat` was seen first
    begun: float = 0.0  # when a save was noticed first
    failed: UserError | None = None  # why it cannot be read as it is
    told: bool = False  # that it is waited for

    def observe(self, now: float) -> None:
        """Looks at the file."""
        found = stat_of(self.path)
        if found == self.stat:
            return
        if self.stat == self.done:
            self.begun, self.told = now, False
        self.stat, self.since, self.failed = found, now, None

    @property
    def is_new(self) -> bool:
        return self.stat != self.done

    def is_still(self, now: float) -> bool:
        """Whether it has not changed for a moment, as far as was seen or as the file itself says."""
        since_change = time.time() - self.stat[1] / 1e9 if self.stat else 0.0
        return now - self.since >= STILL or since_change >= STILL

    def saved(self) -> float:
        """When it was saved, in seconds since the epoch: what the file says, if that is about when it was noticed."""
        noticed = time.time() - (time.monotonic() - self.since)
        changed = self.stat[1] / 1e9 if self.stat else noticed
        return changed if 0 <= noticed - changed < PATIENCE else noticed


class Incomplete(Exception):
    """A file cannot be read; perhaps its save is not finished."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error.what)
        self.error = error


def stat_of(path: Path) -> Stat | None:
    """What tells two states of a file apart; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino

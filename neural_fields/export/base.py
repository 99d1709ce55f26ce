"""The interface of exporters: dataclasses of settings, each of which writes a folder of files for other programs.

Each field of an exporter is a flag of `unwrap export RUN NAME`. Files are made in a folder beside the final one, which
takes its place when all of them are there: an export that is stopped leaves nothing half written.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from neural_fields.core.errors import bad_input
from neural_fields.core.files import disk_errors, make_folder
from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.export.options import ExportOptions
from neural_fields.open_runs.opening import RunLike, require_planar
from neural_fields.open_runs.planar_run import PlanarRun


@dataclass(frozen=True)
class ExportResult:
    """Holds the folder that was written, the paths of its files, and notes for the user."""

    folder: Path
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """Holds the run that an exporter reads, and the folder that it fills.

    Attributes:
        run: the open run.
        folder: an empty folder; it is renamed at the end, so no file may contain its path.
        final_folder: its name at the end, for notes.
        metadata: whether files record how they were made (`--no-metadata` turns it off).
        start_number: the number of the run's first frame in the files; None: that in the source.
    """

    run: PlanarRun
    folder: Path
    final_folder: Path
    metadata: bool = True
    start_number: int | None = None

    @property
    def first_number(self) -> int:
        """The number of the source's first frame in the files."""
        first = self.run.metadata.first_number
        return first if self.start_number is None else first + self.start_number - self.run.frames[0]

    @property
    def frame_numbers(self) -> range:
        """The number of each frame of the run in the files."""
        frames, shift = self.run.frames, self.first_number - self.run.metadata.first_number
        return range(frames.start + shift, frames.stop + shift, frames.step)


@runtime_checkable
class Exporter(Protocol):
    """Writes files for other programs. An exporter is a dataclass whose fields are its settings."""

    name: ClassVar[str]

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Fills the folder of `target`.

        Args:
            target: the run, and the folder to fill.
            report: called with the progress.

        Returns:
            Notes for the user, one sentence each.

        Raises:
            UserError: settings that cannot be used, or no room.
        """
        ...


def export_run(
    run: RunLike,
    exporter: Exporter,
    options: ExportOptions | None = None,
    report: ProgressReporter = report_nothing,
) -> ExportResult:
    """Writes files for other programs: the Python twin of `unwrap export`.

    Args:
        run: an open run, or its folder.
        exporter: the exporter with its settings.
        options: the folder to write, numbers of frames, and whether files record how they were made.
        report: called with the progress.

    Returns:
        The folder, the paths of its files, and notes for the user.

    Raises:
        UserError: the folder exists or the exporter refuses its settings (exit 3), or there is no room (exit 4).

    Example:
        from neural_fields.export.maps.stmap import STMapExporter

        export_run("runs/car", STMapExporter(layer=("foreground",), convention="fusion"))
    """
    options, run = options or ExportOptions(), require_planar(run, f"the export {exporter.name}")
    _ = run.maps  # an unfinished run is refused before a folder is made
    folder = options.out or run.files.exports / exporter.name
    with create_folder_atomically(folder, options.overwrite) as part:
        notes = tuple(exporter(Target(run, part, folder, options.metadata, options.start_number), report))
        names = sorted(path.relative_to(part) for path in part.rglob("*") if path.is_file())
    return ExportResult(folder, tuple(folder / name for name in names), notes)


@contextmanager
def create_folder_atomically(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Creates an empty folder that replaces `folder` at the end; if the block raises, nothing is changed.

    Args:
        folder: the final folder.
        overwrite: whether an existing folder is replaced.

    Yields:
        The empty folder.

    Raises:
        UserError: `folder` exists and may not be replaced (exit 3), or no room (exit 4).
    """
    fix = "add -y to replace it, or --out with another name"
    if folder.exists() and not folder.is_dir():
        raise bad_input(f"{folder} is a file", where=str(folder), why="an export is a folder", fix="--out FOLDER")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise bad_input(f"{folder} exists already", where=str(folder), fix=fix)
    missing = [parent for parent in folder.parents if not parent.exists()]
    with disk_errors(folder):
        make_folder(folder.parent)
        part = folder.parent / f".part-{uuid.uuid4().hex[:12]}"
        part.mkdir()
    try:
        with disk_errors(folder):
            yield part
            old = folder.parent / f".old-{uuid.uuid4().hex[:12]}"
            if folder.exists():
                os.rename(folder, old)
            os.rename(part, folder)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for parent in missing:  # made for an export that failed, and empty again
            with suppress(OSError):
                parent.rmdir()

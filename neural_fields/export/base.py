"""The interface of exporters: dataclasses of settings, each of which writes a folder of files for other programs.

Each field of an exporter is a flag of `unwrap export RUN NAME`. Files are made in a folder beside the final one, which
takes its place when all of them are there: an export that is stopped leaves nothing half written.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import bad_input
from neural_fields.core.files import disk_errors, make_folder
from neural_fields.runs.kind import require_planar
from neural_fields.runs.run import Run

ReportProgress = Callable[[str, int, int], None]  # what is going on, steps done, steps in all


@dataclass(frozen=True)
class ExportResult:
    """The files that were written, and notes for the user."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """The run that an exporter reads, and the folder that it writes.

    Attributes:
        run, maps: the run and its baked maps.
        folder: an empty folder to fill; it is renamed at the end, so no file may hold its path.
        metadata: whether files say what made them (`--no-metadata` turns it off).
    """

    run: Run
    maps: Maps
    folder: Path
    metadata: bool = True


@runtime_checkable
class Exporter(Protocol):
    """A dataclass of settings that writes files."""

    name: ClassVar[str]

    def __call__(self, target: Target, report: ReportProgress) -> Sequence[str]:
        """Fills the folder of `target`; returns notes for the user, one sentence each."""
        ...


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Ignores the progress that is reported."""


def export_run(
    run: Run | str | Path,
    exporter: Exporter,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    metadata: bool = True,
    report: ReportProgress = ignore_progress,
) -> ExportResult:
    """Writes files for other programs.

    Args:
        run: an open run, or its folder.
        exporter: what to write, with its settings, such as `STMapExporter(layer=("foreground",))`.
        out: the folder; by default `exports/<name>` in the run.
        overwrite: whether a folder that is there is replaced.
        metadata: whether files say what made them.
        report: called with the progress.

    Raises:
        UserError: the folder exists, there is no room, or the exporter refuses its settings.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    require_planar(run, f"the export {exporter.name}")
    maps = Maps.open(run)
    folder = out or run.exports / exporter.name
    with create_folder_atomically(folder, overwrite) as part:
        notes = tuple(exporter(Target(run, maps, part, metadata), report))
        names = sorted(path.relative_to(part) for path in part.rglob("*") if path.is_file())
    return ExportResult(tuple(folder / name for name in names), notes)


@contextmanager
def create_folder_atomically(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Creates an empty folder that replaces `folder` at the end; if the block raises, nothing has changed.

    Raises:
        UserError: `folder` exists and may not be replaced, or the disk refuses.
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


def select_layers(maps: Maps, names: Sequence[str]) -> list[int]:
    """Returns the numbers of the layers that were named, front to back; all of them where none was.

    Raises:
        UserError: a layer that the run does not have (exit 3).
    """
    for name in names:
        if name not in maps.layers:
            raise bad_input(
                f"there is no layer '{name}'",
                why=f"the layers of this run, front to back: {', '.join(maps.layers)}",
                fix=f"--layer {maps.layers[0]}",
            )
    return [number for number, name in enumerate(maps.layers) if not names or name in names]

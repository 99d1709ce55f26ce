"""A run on disk: its paths, run.yaml and metrics.jsonl. No other file spells these paths.

Nothing that a user made is deleted here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import (
    DESKTOP_FILES,
    atomic_write,
    disk_errors,
    is_temporary,
    make_folder,
    to_plain_values,
    write_all,
    write_synced,
)
from neural_fields.core.suggestions import nearest_path
from neural_fields.core.version import __version__

RUN_SCHEMA = 1  # of run.yaml and of a checkpoint's manifest.json; raised when an older program could not read them
LOCK_FILE = "LOCK"
HOLDER_FILE = "LOCK.holder"  # only where the volume has no locks
TRAINING_LOCK_FILE = "LOCK.training"  # held during a whole training, which lets others write in between


class _PathInRun:
    """A path inside a run, as an attribute of `Run`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run | None, owner: type | None = None) -> Path:
        if run is None:
            raise AttributeError(f"{self.name} is a path of one run, not of the class")
        return run.path / self.name


@dataclass(frozen=True)
class Run:
    """The paths of one run. The constructor touches no file; `open` and `create` do."""

    path: Path

    run_yaml = _PathInRun("run.yaml")
    source_json = _PathInRun("source.json")
    cache = _PathInRun("cache")
    masks = _PathInRun("masks")
    checkpoints = _PathInRun("checkpoints")
    metrics = _PathInRun("metrics.jsonl")
    canonical = _PathInRun("canonical")
    maps = _PathInRun("maps")
    scene = _PathInRun("scene")
    edits = _PathInRun("edits")
    renders = _PathInRun("renders")
    exports = _PathInRun("exports")
    previews = _PathInRun("previews")
    layers_picture = _PathInRun("previews/layers.jpg")
    report = _PathInRun("report.html")
    lock_file = _PathInRun(LOCK_FILE)
    holder_file = _PathInRun(HOLDER_FILE)
    training_lock_file = _PathInRun(TRAINING_LOCK_FILE)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Finds the run in an existing folder; `open_run` reads it as well.

        Raises:
            UserError: the folder is missing, or is no run (exit 3).
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            what = "is not a folder" if run.path.exists() else "does not exist"
            # A name, or the video, instead of the folder that `unwrap train` makes for it by default.
            usual = [place for place in (Path("runs") / run.path.stem, nearest_path(run.path)) if place is not None]
            guess = next((place for place in usual if cls(place).run_yaml.exists()), None)
            why = f"did you mean {guess}?" if guess else "expected a folder made by unwrap train"
            fix = f"{guess} instead of {run.path}" if guess else "unwrap train VIDEO"
            raise bad_input(f"the run {run.path} {what}", why=why, fix=fix)
        if not run.run_yaml.exists() and not (run.checkpoints.exists() or run.source_json.exists()):
            fix = f"unwrap train VIDEO --out {run.path}"
            raise bad_input(f"{run.path} is not a run", why="it has no run.yaml", fix=fix)
        return run

    @classmethod
    def create(cls, path: Path | str) -> Run:
        """Creates a run in `path` and its folder if it is missing; an existing run is not changed.

        Raises:
            UserError: BAD_INPUT if `path` is a file, may not be written, or holds files but no run.
        """
        run = cls(Path(path))
        if run.path.exists() and not run.path.is_dir():
            fix = "unwrap train VIDEO --out ANOTHER_FOLDER"
            raise bad_input(f"{run.path} is a file", why="a run is a folder", fix=fix)
        with disk_errors(run.path):
            make_folder(run.path)
            names = {entry.name for entry in run.path.iterdir() if not is_temporary(entry.name)}
        strangers = sorted(names - _OWN_NAMES - set(DESKTOP_FILES))
        if strangers and not run.run_yaml.exists():
            others = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            why, fix = f"it already holds {strangers[0]!r}{others}", f"unwrap train VIDEO --out {run.path / 'run'}"
            raise bad_input(f"{run.path} is not a run and not empty", why=why, fix=fix)
        return run


_OWN_NAMES = {part.name for part in vars(Run).values() if isinstance(part, _PathInRun)}


# --- run.yaml and metrics.jsonl -------------------------------------------------------------------------------------


def write_run_yaml(run: Run, record: Mapping[str, Any]) -> None:
    """Writes run.yaml: `record` (plain mappings, lists and scalars), headed by the schema and the package version."""
    from neural_fields.config.plain_yaml import dump_yaml

    text = dump_yaml({"schema": RUN_SCHEMA, "version": __version__, **to_plain_values(record, finite=False)})
    with atomic_write(run.run_yaml) as part:
        write_synced(part, text.encode())


def read_run_yaml(run: Run) -> dict[str, Any]:
    """Reads what `write_run_yaml` wrote, with `schema` and `version`.

    Raises:
        UserError: DAMAGED_RUN if it is missing, not plain YAML, larger than 1 MiB or made by a newer version;
            UNSAFE_FILE if it asks to build objects.
    """
    from neural_fields.config.plain_yaml import load_yaml

    where, fix = str(run.run_yaml), f"restore {run.run_yaml} from a copy, or start another run with unwrap train --out"
    try:
        record = load_yaml(run.run_yaml)
    except UserError as error:
        code = ExitCode.DAMAGED_RUN if error.code == ExitCode.BAD_INPUT else error.code
        raise UserError(code, error.what, where=error.where or where, why=error.why, fix=fix) from error
    schema = record.get("schema")
    if not isinstance(schema, int) or schema < 1:
        why = f"schema is {schema!r}, expected a number from 1 to {RUN_SCHEMA}"
        raise UserError(ExitCode.DAMAGED_RUN, "run.yaml is damaged", where=where, why=why, fix=fix)
    if schema > RUN_SCHEMA:
        why = f"it has schema {schema}; this is unwrap {__version__}, which reads up to {RUN_SCHEMA}"
        fix = "update unwrap: git pull and make setup, in its folder"
        raise UserError(ExitCode.DAMAGED_RUN, "the run was made by a newer unwrap", where=where, why=why, fix=fix)
    return record


def append_metrics(run: Run, record: Mapping[str, Any]) -> None:
    """Appends a line of JSON to metrics.jsonl in one write. Values are converted as by `write_json`."""
    line = json.dumps(to_plain_values(record), allow_nan=False).encode() + b"\n"
    with disk_errors(run.metrics, len(line)):
        descriptor = os.open(run.metrics, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a kill in the middle of a line
            write_all(descriptor, b"\n" + line if torn else line)
        finally:
            os.close(descriptor)


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Reads the records of metrics.jsonl, oldest first; none without the file. Lines cut by a kill are left out."""
    records = []
    for line in run.metrics.read_bytes().splitlines() if run.metrics.exists() else ():
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records

"""`unwrap gc`: the command line of `runs/cleanup.py`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from neural_fields.cli.commands import print_json, refuse_overrides
from neural_fields.cli.progress_display import print_message
from neural_fields.core.errors import ExitCode


@dataclass(frozen=True)
class GcCommand:
    """Free the space of runs: caches, and checkpoints before the last. Everything that you made stays.

    Rendering, editing and exporting go on as before; decoded frames and flow are computed again where they are needed.
    A training that ends removes its own cache.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap gc runs/clip",
        "unwrap gc runs/* --dry-run",
        "unwrap gc clip-masks --json",
    )
    runs: Positional[tuple[Path, ...]]
    """Folders of runs, or folders of masks."""
    dry_run: bool = False
    """Only say what would be removed."""
    json: bool = False
    """Print one JSON object."""


def run_gc(command: GcCommand, extra: list[str]) -> int:
    """Runs `unwrap gc` and returns the exit status."""
    refuse_overrides(extra, command)
    from neural_fields.runs.cleanup import free_space

    found = [free_space(folder, remove=not command.dry_run) for folder in command.runs]
    if command.json:
        print_json({"removed": not command.dry_run, "runs": [asdict(freed) for freed in found]})
        return ExitCode.OK
    for freed in found:
        for path in freed.paths:
            print(path)
        done = "would be freed" if command.dry_run else "freed"
        print_message(f"{freed.folder}: {freed.freed_bytes / 1e6:.1f} MB {done}, {freed.left_bytes / 1e6:.1f} MB left")
    return ExitCode.OK

"""Frees the space of what a finished run does not need: what can be computed again, and checkpoints before the last.

Nothing that a user made is among it, and nothing that rendering, editing or exporting reads.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from neural_fields.core.files import disk_errors
from neural_fields.data.masks.mask_folder import MASKS_FILE
from neural_fields.runs.checkpoints import remove_older_checkpoints
from neural_fields.runs.locking import lock_run, lock_training
from neural_fields.runs.run import Run

_CLIP_CACHE = ("frames-", "flow-", "masks-", "mended-")  # how the names of what a training caches begin


@dataclass(frozen=True)
class FreedSpace:
    """Holds what was removed, or would be.

    Attributes:
        folder: the run, or the folder of masks.
        paths: the folders that were removed.
        freed_bytes: the size of what is in them.
        left_bytes: the size of what remains in `folder`.
    """

    folder: Path
    paths: tuple[Path, ...]
    freed_bytes: int
    left_bytes: int


def free_space(folder: Path | str, remove: bool = True) -> FreedSpace:
    """Removes the cache and the older checkpoints of a run, or the cache of a folder of masks.

    Decoded frames, flow and masks are computed again where they are needed, which takes time; the newest checkpoint,
    maps, pictures, masks, edits, renders and exports stay.

    Args:
        folder: the folder of a run, or one that `unwrap mask` wrote.
        remove: whether to remove it; otherwise it is only measured.

    Returns:
        What was removed.

    Raises:
        UserError: another folder (exit 3), one that another process writes to (6), or one that may not be changed (3).
    """
    folder = Path(folder)
    is_masks = (folder / MASKS_FILE).is_file()
    run = Run(folder) if is_masks else Run.open(folder)
    with lock_training(run), lock_run(run):  # which also removes what processes left that were killed
        doomed = [run.cache] if run.cache.is_dir() and not run.cache.is_symlink() else []
        sizes = {path: measure_size(path) for path in (*doomed, *remove_older_checkpoints(run, remove=False))}
        if remove:
            with disk_errors(folder):
                for path in doomed:
                    shutil.rmtree(path)
            remove_older_checkpoints(run)
        freed = sum(sizes.values())
        return FreedSpace(folder, tuple(sizes), freed, measure_size(folder) - (0 if remove else freed))


def remove_clip_cache(run: Run) -> None:
    """Removes decoded frames, flow and masks from the cache of a run whose training is finished.

    What is needed of them again is computed again. What `unwrap mask` found of objects stays: it may have taken long.

    Args:
        run: the run; who calls holds its lock.
    """
    if not run.cache.is_dir() or run.cache.is_symlink():
        return
    with disk_errors(run.cache):
        for path in run.cache.iterdir():
            if path.name.startswith(_CLIP_CACHE):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        if not [path for path in run.cache.iterdir() if path.name != "CACHEDIR.TAG"]:
            shutil.rmtree(run.cache)


def measure_size(folder: Path) -> int:
    """Returns the bytes of all files in a folder; links count as themselves."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total

"""Names of renderings: by default the next free version in the run's folder of renders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from neural_fields.core.errors import bad_input


def next_version(folder: Path, stem: str) -> Path:
    """Returns the path of the next version of a rendering, without a suffix: clip_v001, clip_v002, ...

    Args:
        folder: the folder of the renderings; it need not exist.
        stem: what the versions have in common.

    Example:
        >>> next_version(Path("no-such-folder"), "clip").name
        'clip_v001'
    """
    pattern = re.compile(re.escape(stem) + r"_v(\d+)(?!\d)")
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    used = [int(found[1]) for found in map(pattern.match, names) if found]
    return folder / f"{stem}_v{max(used, default=0) + 1:03d}"


def require_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuses outputs that exist, before anything is rendered.

    Args:
        paths: the files to write.
        overwrite: whether they may be replaced.

    Raises:
        UserError: one of them exists (exit 3).
    """
    for path in paths:
        if path.exists() and not overwrite:
            fix = "add -y to replace it, or use another --out"
            raise bad_input("the output exists already", where=str(path), fix=fix)

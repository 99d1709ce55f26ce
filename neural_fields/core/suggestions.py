"""The known name, or the path, that was probably meant."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

MAX_NAMES = 5000  # of a folder that are compared with a mistyped one


def nearest_word(key: str, known: Iterable[str]) -> str | None:
    """Finds the known word that is most like a mistyped one.

    Args:
        key: the word that was typed; its case does not count, and `-` equals `_`.
        known: the words that exist.

    Returns:
        The nearest word, or None where none is similar.

    Example:
        >>> nearest_word("textur", ["mapping", "texture", "opacity"])
        'texture'
    """
    by_normal_form = {_normalize_word(word): word for word in known}
    matches = get_close_matches(_normalize_word(key), by_normal_form, n=1, cutoff=0.6)
    return by_normal_form[matches[0]] if matches else None


def _normalize_word(word: str) -> str:
    return word.lower().replace("-", "_")


def nearest_path(path: Path) -> Path | None:
    """Finds the existing path that is most like a mistyped one.

    Args:
        path: a path that does not exist.

    Returns:
        The same path with the nearest names that exist; None where a folder on the way has no similar name.
    """
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if (found / part).exists():
            found = found / part
            continue
        with suppress(OSError):
            names = [entry.name for entry in islice(os.scandir(found), MAX_NAMES) if not entry.name.startswith(".")]
            guess = nearest_word(part, names)
            if guess is not None:
                found = found / guess
                continue
        return None
    return found if found != path else None

"""The known name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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

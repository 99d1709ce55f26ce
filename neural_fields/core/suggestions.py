"""The known name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_word(key: str, known: Iterable[str]) -> str | None:
    """Returns the known word most like `key`, or None when none is near. Case and the choice of - or _ do not count."""
    by_normal_form = {_normalize_word(word): word for word in known}
    matches = get_close_matches(_normalize_word(key), by_normal_form, n=1, cutoff=0.6)
    return by_normal_form[matches[0]] if matches else None


def _normalize_word(word: str) -> str:
    return word.lower().replace("-", "_")

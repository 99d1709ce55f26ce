"""Which files are documents, and which layer a name in them means."""

from __future__ import annotations

from collections.abc import Sequence

DOCUMENT_SUFFIXES = (".ora", ".psd")
PROGRAM_SUFFIXES = (".kra", ".xcf", ".psb")  # files that only their own program reads well


def match_layer(text: str, layers: Sequence[str]) -> str | None:
    """Finds the longest name of a layer that a text begins with, as a whole word."""
    fits = [name for name in layers if text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()]
    return max(fits, key=len, default=None)

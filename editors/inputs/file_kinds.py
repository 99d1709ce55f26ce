"""File name suffixes of documents, and the layer that a name refers to."""

from __future__ import annotations

from collections.abc import Sequence

DOCUMENT_SUFFIXES = (".ora", ".psd")
# Files that only their own program reads well: of Krita, GIMP, Photoshop, Clip Studio, Procreate, Affinity, SAI, ...
PROGRAM_SUFFIXES = (
    ".kra", ".krz", ".xcf", ".psb", ".clip", ".procreate", ".afphoto", ".afdesign", ".af", ".sai", ".sai2", ".mdp",
    ".pdn", ".pxd", ".ai", ".pdf",
)  # fmt: skip


def match_layer(text: str, layers: Sequence[str]) -> str | None:
    """Finds the layer with the longest name that a text begins with, as a complete word.

    Args:
        text: a file name or the name of a document's layer.
        layers: the names of the run's layers.

    Returns:
        The name of the layer; None if there is no such layer.

    Example:
        >>> match_layer("car-2nd-try", ["car", "background"])
        'car'
        >>> match_layer("carpet", ["car", "background"]) is None
        True
    """
    fits = [name for name in layers if text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()]
    return max(fits, key=len, default=None)

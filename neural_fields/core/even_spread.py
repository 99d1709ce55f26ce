"""Evenly spread choices: some frames of many."""

from __future__ import annotations

import numpy as np


def spread_indices(count: int, max_count: int) -> list[int]:
    """Chooses at most `max_count` of `count` indices, evenly spread, the first and the last among them.

    Example:
        >>> spread_indices(9, 3)
        [0, 4, 8]
    """
    return np.unique(np.linspace(0, count - 1, min(max_count, count)).round().astype(int)).tolist()

"""Log odds: evidence about a pixel that can be added up."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def compute_log_odds(share: Float[np.ndarray, "*shape"], least: float) -> Float[np.ndarray, "*shape"]:
    """Computes the log odds of shares.

    Args:
        share: from 0 to 1.
        least: shares are clipped to this and to 1 minus this, so that no evidence is a proof.

    Example:
        >>> compute_log_odds(np.array([0.5, 1.0]), 0.1).round(3).tolist()
        [0.0, 2.197]
    """
    share = share.clip(least, 1 - least)
    return np.log(share / (1 - share))

"""The error for what is no edit: values that are no numbers, or one color where a picture was asked for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

from neural_fields.core.errors import UserError, bad_input

FIX = "--device cpu, which computes with 32-bit floats (fp32); or a --model with another VAE, or another model"


def make_nonsense_error(what: str, fix: str = FIX) -> UserError:
    """Makes the error for what a model computed, with what to change."""
    why = "many models overflow in half precision (fp16), above all in their VAE; damaged weights do the same"
    return bad_input(what, why=why, fix=fix)


def check_finite_array(values: Shaped[np.ndarray, "..."], source: str) -> None:
    """Refuses values that are no numbers.

    Args:
        values: what an editor made.
        source: what computed them, for the message.

    Raises:
        UserError: some are NaN or infinite (exit 3).
    """
    finite = np.isfinite(values)
    if not finite.all():
        share = 1 - float(finite.mean())
        raise make_nonsense_error(f"{source} computed values that are no numbers (NaN, {share:.3g} of all)")

"""Loops that numba compiles when they are first called; the result is kept on disk."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def can_compile_loops() -> bool:
    """Returns whether numba is installed; it is not imported."""
    return importlib.util.find_spec("numba") is not None


def compile_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has numba compile a function when it is first called; the tests' check of argument types is taken off it."""
    from numba import njit

    return njit(fastmath=True, cache=True, nogil=True, error_model="numpy")(inspect.unwrap(function))

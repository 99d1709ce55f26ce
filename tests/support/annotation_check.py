"""The check of annotations that jaxtyping asks for in the tests: beartype, for what is called, and once for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import beartype

_checks: dict[Any, Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check its arguments, or its result.

    beartype takes a millisecond to write the check of a function. jaxtyping hands over stand-ins for all functions,
    made of their annotations alone; those inside others are defined anew whenever the outer one is called. So a check
    is written when it is first needed, and serves for all stand-ins that are alike.

    Each function has two stand-ins. The first has no annotation of the result, and is called before the function; what
    it finds of the arguments need not be found again by the second, which is called with the result.
    """
    written: Callable[..., Any] | None = None
    if function.__annotations__.get("return", Any) is not Any:
        function.__annotations__ = {"return": function.__annotations__["return"]}

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal written
        if written is None:
            names = (function.__module__, function.__qualname__)
            key = (*names, function.__code__, len(function.__defaults__ or ()), tuple(function.__annotations__.items()))
            if key not in _checks:
                _checks[key] = beartype.beartype(function)
            written = _checks[key]
        return written(*args, **kwargs)

    return call

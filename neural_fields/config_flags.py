"""Kinds of flags that dataclasses of settings share; the command lines are made of those dataclasses."""

from __future__ import annotations

from tyro.conf import UseAppendAction

Repeated = UseAppendAction[tuple[str, ...]]  # a flag that may be given several times

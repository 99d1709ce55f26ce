"""Types of flags that dataclasses of settings share; the command lines are made from those dataclasses."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

Repeated = UseAppendAction[tuple[str, ...]]  # a flag that may be given several times
MapProgram = Annotated[  # `for` is a keyword of Python
    Literal["nuke", "fusion", "blender", "after_effects", "opencv"], arg(name="for")
]

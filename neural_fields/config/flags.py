"""Types of flags that options classes share; the command lines are made from those classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from tyro.conf import Fixed, Suppress, UseAppendAction, arg

T = TypeVar("T")

Repeated = UseAppendAction[tuple[str, ...]]  # a flag that may be given several times
MapProgram = Annotated[  # `for` is a keyword of Python
    Literal["nuke", "fusion", "blender", "after_effects", "opencv"], arg(name="for")
]
EditsFlag = Annotated[Repeated, arg(name="edit")]
FramesFlag = Annotated[UseAppendAction[tuple[int, ...]], arg(name="frame")]
PicturesFlag = Annotated[Repeated, arg(name="picture")]
Overrides = Annotated[dict[str, object], Suppress]  # by dotted name; on the command line each is a separate flag
NotAFlag = Annotated[T, Suppress, Fixed]  # given by programs; a command line finds it out in another way
OutputFileFlag = Annotated[Path | None, arg(metavar="FILE")]  # the output of other commands is a folder
OverwriteFlag = Annotated[bool, arg(name="yes", aliases=["-y"])]
MetadataFlag = Annotated[  # True, which --no-metadata turns off
    bool, arg(help="Leave out of the files what made them.", help_behavior_hint="")
]

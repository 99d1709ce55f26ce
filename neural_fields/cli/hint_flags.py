"""Flags of hints: where an object is in a frame. `unwrap mask` and `unwrap train` have them.

They are taken from the command line before everything else (`masking/hints.py`), since their order counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from neural_fields.config.flags import Repeated


@dataclass(frozen=True, kw_only=True)
class HintFlags:
    """Shows the flags of hints in the help."""

    object: Repeated = ()
    """Name of the object that the hints after it are about (default: foreground)."""
    frame: Repeated = ()
    """Number of the frame that the hints after it are in (default: the first one)."""
    box: Repeated = ()
    """x,y,width,height: the object is inside; in pixels of the video, as all places."""
    point: Repeated = ()
    """x,y: the object is there."""
    negative: Annotated[Repeated, arg(name="not")] = ()
    """x,y: the object is not there."""
    stroke: Repeated = ()
    """A picture of the frame's size: green or white strokes are on the object, red ones are not."""
    mask: Repeated = ()
    """A picture of the frame's size: white is the object, all of it, and black the rest."""
    text: Repeated = ()
    """What the object is, in words, for --text-model; without --frame several frames are sampled."""
    main: bool = False
    """The object is the main thing in the frame, for --main-model."""

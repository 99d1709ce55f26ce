"""How an edit lies in the video: how strongly, mixed in which way, and when.

Frames are numbers of the source, 0 is the first. An edit is written once; how it lies can be changed later by a line in
the journal (`journal.py`), and an undo takes that back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

BLENDS = (
    "normal",
    "multiply",
    "screen",
    "overlay",
    "soft_light",
    "darken",
    "lighten",
    "add",
    "color",
    "luminosity",
)


@dataclass(frozen=True)
class Arrangement:
    """The place of an edit in time and in the mixture.

    Attributes:
        opacity: 0 to 1.
        blend: one of `BLENDS`.
        start, end: the first and the last frame that show it; None: from the beginning, to the end.
        fade_in, fade_out: over so many frames it comes from `start` on, and goes before `end`.
    """

    opacity: float = 1.0
    blend: str = "normal"
    start: int | None = None
    end: int | None = None
    fade_in: int = 0
    fade_out: int = 0

    def strength(self, frame: int) -> float:
        """How much of the edit a frame of the source shows, 0 to 1, without its opacity.

        A fade of n frames shows 1/(n + 1) of it in its first frame, and all of it after n.
        """
        if (self.start is not None and frame < self.start) or (self.end is not None and frame > self.end):
            return 0.0
        coming = 1.0 if self.start is None else (frame - self.start + 1) / (self.fade_in + 1)
        going = 1.0 if self.end is None else (self.end - frame + 1) / (self.fade_out + 1)
        return min(1.0, coming, going)

    @property
    def changes_in_time(self) -> bool:
        """Whether frames show it differently."""
        return self.start is not None or self.end is not None

    def changed(self, values: Mapping[str, Any]) -> Arrangement:
        """This with some of its values replaced.

        Raises:
            ValueError: a value that cannot be; the text says which, in words that follow a colon.
        """
        known = {entry.name for entry in fields(Arrangement)}
        found = replace(self, **{name: value for name, value in values.items() if name in known})
        found._check()
        return found

    def to_json(self) -> dict[str, Any]:
        """What differs from an edit that is shown always, fully and plainly."""
        plain = Arrangement()
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(Arrangement)
            if getattr(self, entry.name) != getattr(plain, entry.name)
        }

    def _check(self) -> None:
        if not isinstance(self.opacity, int | float) or isinstance(self.opacity, bool) or not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity is {self.opacity!r}; it is 0 to 1")
        if self.blend not in BLENDS:
            raise ValueError(f"blend is {self.blend!r}; there are {', '.join(BLENDS)}")
        for name in ("start", "end", "fade_in", "fade_out"):
            value = getattr(self, name)
            if value is None and name in ("start", "end"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1 << 31:
                raise ValueError(f"{name} is {value!r}; it counts frames from 0")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError(f"it ends at frame {self.end} and starts at frame {self.start}")
        for fade, side in (("fade_in", "start"), ("fade_out", "end")):
            if getattr(self, fade) and getattr(self, side) is None:
                raise ValueError(f"{fade} without {side}: a fade needs the frame that it belongs to")

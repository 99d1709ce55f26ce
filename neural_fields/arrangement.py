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
        given = {name: value for name, value in values.items() if name in known}
        for name, value in given.items():
            _check(name, value)
        if "opacity" in given:
            given["opacity"] = float(given["opacity"])
        found = replace(self, **given)
        if found.start is not None and found.end is not None and found.end < found.start:
            raise ValueError(f"it ends at frame {found.end} and starts at frame {found.start}")
        for fade, side in (("fade_in", "start"), ("fade_out", "end")):
            if getattr(found, fade) and getattr(found, side) is None:
                raise ValueError(f"{fade} without {side}: a fade needs the frame that it belongs to")
        return found

    def to_json(self) -> dict[str, Any]:
        """What differs from an edit that is shown always, fully and plainly."""
        plain = Arrangement()
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(Arrangement)
            if getattr(self, entry.name) != getattr(plain, entry.name)
        }


def _check(name: str, value: Any) -> None:
    """Raises `ValueError` for a value that a name cannot have, whatever the others are."""
    if name == "opacity":
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"opacity is {value!r}; it is 0 to 1")
    elif name == "blend":
        if value not in BLENDS:
            raise ValueError(f"blend is {value!r}; there are {', '.join(BLENDS)}")
    elif value is None and name in ("start", "end"):
        return
    elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1 << 31:
        raise ValueError(f"{name} is {value!r}; it counts frames from 0")

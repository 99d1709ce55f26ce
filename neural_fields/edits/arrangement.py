"""The arrangement of an edit in the video: its opacity, its blend mode, and the frames that show it.

Frames are numbers of the source, 0 is the first. An edit is written once; its arrangement can be changed later by a
line in the journal (`journal.py`), and an undo reverts that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from neural_fields.imaging.blend_modes import BLEND_MODES


@dataclass(frozen=True)
class Arrangement:
    """Opacity, blend mode and times of an edit.

    Attributes:
        opacity: 0 to 1.
        blend: one of `BLEND_MODES`.
        start, end: the first and the last frame that show it; None: from the beginning, to the end.
        fade_in, fade_out: frames over which it appears from `start` on, and disappears before `end`.
    """

    opacity: float = 1.0
    blend: str = "normal"
    start: int | None = None
    end: int | None = None
    fade_in: int = 0
    fade_out: int = 0

    def strength_at(self, frame: int) -> float:
        """Returns how much of the edit a frame of the source shows, 0 to 1, without its opacity.

        A fade of n frames shows 1/(n + 1) of it in its first frame, and all of it after n.
        """
        if (self.start is not None and frame < self.start) or (self.end is not None and frame > self.end):
            return 0.0
        coming = 1.0 if self.start is None else (frame - self.start + 1) / (self.fade_in + 1)
        going = 1.0 if self.end is None else (self.end - frame + 1) / (self.fade_out + 1)
        return min(1.0, coming, going)

    @property
    def changes_in_time(self) -> bool:
        """Whether some frames show the edit and others do not."""
        return self.start is not None or self.end is not None

    def replace_values(self, values: Mapping[str, Any]) -> Arrangement:
        """Returns a copy with some of its values replaced; names that are no field are ignored.

        Raises:
            ValueError: an invalid value; the text names it, in words that can follow a colon.
        """
        known = {entry.name for entry in fields(Arrangement)}
        given = {name: value for name, value in values.items() if name in known}
        for name, value in given.items():
            if name == "opacity":
                if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
                    raise ValueError(f"opacity is {value!r}; it is 0 to 1")
            elif name == "blend":
                if value not in BLEND_MODES:
                    raise ValueError(f"blend is {value!r}; there are {', '.join(BLEND_MODES)}")
            elif value is None and name in ("start", "end"):
                continue
            elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1 << 31:
                raise ValueError(f"{name} is {value!r}; it counts frames from 0")
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
        """Returns the values that differ from the default arrangement."""
        plain = Arrangement()
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(Arrangement)
            if getattr(self, entry.name) != getattr(plain, entry.name)
        }

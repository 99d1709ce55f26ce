"""The arrangement of an edit in the video: its opacity, its blend mode, and the frames that show it.

Frames are numbers of the source. An edit is written once; its arrangement can be changed later by a
line in the journal (`journal.py`), and an undo reverts that.
"""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.imaging.blend_names import BlendMode


@dataclass(frozen=True)
class Arrangement:
    """Sets opacity, blend mode and times of an edit.

    Attributes:
        opacity: 0 to 1.
        blend: the blend mode of paint.
        start: number in the source of the first frame that shows the edit; None: from the beginning.
        end: number of the last frame that shows it; None: to the end.
        fade_in: number of frames of the fade from `start`.
        fade_out: number of frames of the fade before `end`.

    Raises:
        ValueError: a value out of range, an end before the start, or a fade without its frame.

    Example:
        >>> fading = Arrangement(start=10, end=20, fade_in=3)
        >>> [fading.strength_at(frame) for frame in (9, 10, 12, 13, 20, 21)]
        [0.0, 0.25, 0.75, 1.0, 1.0, 0.0]
    """

    opacity: float = 1.0
    blend: BlendMode = "normal"
    start: int | None = None
    end: int | None = None
    fade_in: int = 0
    fade_out: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity is {self.opacity!r}; it is 0 to 1")
        for name in ("start", "end", "fade_in", "fade_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1 << 31:
                raise ValueError(f"{name} is {value!r}; it is the number of a frame, or of frames, 0 or more")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError(f"it ends at frame {self.end} and starts at frame {self.start}")
        for fade, side in (("fade_in", "start"), ("fade_out", "end")):
            if getattr(self, fade) and getattr(self, side) is None:
                raise ValueError(f"{fade} without {side}: a fade needs the frame that it belongs to")

    def strength_at(self, frame: int) -> float:
        """Returns the strength of the edit in a frame of the source, 0 to 1, without its opacity.

        A fade of n frames has the strength 1/(n + 1) in its first frame, and 1 after n frames.
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

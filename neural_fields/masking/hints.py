"""Hints as a user gives them: where an object is in a frame, in pixels of the source; and hints as flags.

On the command line `--object` and `--frame` apply to the hints after them, so the order of the words counts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.data.masks.layer_names import check_layer_name

DEFAULT_OBJECT = "foreground"  # as a single mask without a name is called
FIRST_FRAME = -1  # in place of a number: the first frame in use


@dataclass(frozen=True)
class Hint(ABC):
    """Says something about an object in a frame.

    Attributes:
        object: name of the object, which becomes the name of a layer.
        frame: number of the frame in the source; `FIRST_FRAME` for the first one in use, whatever its number.
    """

    object: str
    frame: int

    def __post_init__(self) -> None:
        """Checks the name and the number.

        Raises:
            UserError: a name that no layer can have, or a number below 0 (exit 3).
        """
        check_layer_name(self.object, where="--object", fix="--object person")
        if self.frame < FIRST_FRAME:
            raise bad_input(f"--frame {self.frame}", why="a frame's number is 0 or more", fix="--frame 0")

    @property
    @abstractmethod
    def words(self) -> str:
        """The hint as a flag, without object and frame."""

    @property
    def where(self) -> str:
        """The object and the frame, for messages."""
        return f"{self.object}, {'first frame' if self.frame == FIRST_FRAME else f'frame {self.frame}'}"

    @property
    def unfound(self) -> Hint:
        """The hint as it was given, before a network found what it means."""
        return self


@dataclass(frozen=True)
class BoxHint(Hint):
    """Says that the object is inside a box, and fills it in height and width.

    Attributes:
        x: left side of the box, in pixels of the source.
        y: upper side.
        width: width in pixels, above 0.
        height: height in pixels, above 0.

    Example:
        >>> BoxHint("person", 12, 100, 60, 80, 120).words
        '--box 100,60,80,120'
        >>> BoxHint("person", 12, 100, 60, 0, 120)
        Traceback (most recent call last):
        ...
        neural_fields.core.errors.UserError: error: the box 100,60,0,120 is empty
          where person, frame 12
          why   a box is x,y,width,height in pixels of the video, with width and height above 0
          try   --box 100,60,80,120
    """

    kind: ClassVar[str] = "box"
    x: float | int
    y: float | int
    width: float | int
    height: float | int

    def __post_init__(self) -> None:
        super().__post_init__()
        _make_finite(self, "x", "y", "width", "height")
        if self.width <= 0 or self.height <= 0:
            raise bad_input(
                f"the box {self.words.partition(' ')[2]} is empty",
                where=self.where,
                why="a box is x,y,width,height in pixels of the video, with width and height above 0",
                fix=f"--box {self.x:g},{self.y:g},{max(self.width, 80):g},{max(self.height, 80):g}",
            )

    @property
    def words(self) -> str:
        """The hint as a flag."""
        return f"--box {self.x:g},{self.y:g},{self.width:g},{self.height:g}"


@dataclass(frozen=True)
class PointHint(Hint):
    """Says of a point whether it is on the object.

    Attributes:
        x: position in pixels of the source, to the right.
        y: position in pixels, down.
        is_object: whether the object is there; otherwise something else is.
    """

    kind: ClassVar[str] = "point"
    x: float | int
    y: float | int
    is_object: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _make_finite(self, "x", "y")

    @property
    def words(self) -> str:
        """The hint as a flag."""
        return f"--{'point' if self.is_object else 'not'} {self.x:g},{self.y:g}"


@dataclass(frozen=True)
class StrokeHint(Hint):
    """Names a picture of strokes: green or white ones are on the object, red ones are not, black says nothing.

    Attributes:
        file: the picture, of the source's size. In a folder of masks: the copy that was made of it.
    """

    kind: ClassVar[str] = "stroke"
    file: Path

    @property
    def words(self) -> str:
        """The hint as a flag."""
        return f"--stroke {self.file}"


@dataclass(frozen=True)
class MaskHint(Hint):
    """Names a picture of the whole object: white is the object, black the rest.

    Attributes:
        file: the picture, of the source's size. In a folder of masks: the copy that was made of it.
    """

    kind: ClassVar[str] = "mask"
    file: Path

    @property
    def words(self) -> str:
        """The hint as a flag."""
        return f"--mask {self.file}"


@dataclass(frozen=True)
class TextHint(Hint):
    """Names the object in words; a network finds it in the frame.

    Attributes:
        text: what the object is: "surfer".
        any_frame: whether it may be found in another frame; `frame` is `FIRST_FRAME` then, until it is found.
        box: where it was found: left, top, width and height in pixels of the source; None before.
        file: its mask, in the folder of masks; None from networks that find boxes only.
    """

    kind: ClassVar[str] = "text"
    text: str
    any_frame: bool = False
    box: tuple[float, float, float, float] | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text.strip():
            raise bad_input("--text is empty", where=self.where, fix='--text "surfer"')

    @property
    def words(self) -> str:
        """The hint as a flag."""
        return f'--text "{self.text}"'

    @property
    def where(self) -> str:
        """The object and the frame, for messages."""
        return self.object if self.any_frame and self.box is None else super().where

    @property
    def unfound(self) -> TextHint:
        """The hint as it was given, before a network found what it means."""
        return replace(self, frame=FIRST_FRAME if self.any_frame else self.frame, box=None, file=None)


@dataclass(frozen=True)
class MainHint(Hint):
    """Says that the object is the main thing in the frame; a network finds it.

    Attributes:
        file: its mask, in the folder of masks; None before it was found.
    """

    kind: ClassVar[str] = "main"
    file: Path | None = None

    @property
    def words(self) -> str:
        """The hint as a flag."""
        return "--main"

    @property
    def unfound(self) -> MainHint:
        """The hint as it was given, before a network found what it means."""
        return replace(self, file=None)


AnyHint = BoxHint | PointHint | StrokeHint | MaskHint | TextHint | MainHint


def _make_finite(hint: Hint, *names: str) -> None:
    """Makes places floats, so that equal hints are written equally; refuses infinity and NaN."""
    for name in names:
        object.__setattr__(hint, name, float(getattr(hint, name)))
    if not all(math.isfinite(getattr(hint, name)) for name in names):
        raise bad_input(f"{hint.words} is not a place in the frame", where=hint.where, fix="--point 160,90")


# --- the command line -----------------------------------------------------------------------------------------------

HINT_FLAGS = ("--object", "--frame", "--box", "--point", "--not", "--stroke", "--mask", "--text", "--main")


def split_hint_words(words: Sequence[str]) -> tuple[tuple[AnyHint, ...], list[str]]:
    """Takes the hints out of a command line.

    Args:
        words: the words of the command line.

    Returns:
        The hints in the order of the words, and the other words.

    Raises:
        UserError: a flag without a value or with one that cannot be used, or `--object` or `--frame` without a hint
            after it (exit 2 or 3).

    Example:
        >>> hints, rest = split_hint_words("mask clip.mp4 --object dog --frame 3 --point 20,30 --json".split())
        >>> hints, rest
        ((PointHint(object='dog', frame=3, x=20.0, y=30.0, is_object=True),), ['mask', 'clip.mp4', '--json'])
    """
    hints: list[AnyHint] = []
    rest: list[str] = []
    name, frame, unused = DEFAULT_OBJECT, FIRST_FRAME, ""
    any_frame = True  # as long as none is named
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in HINT_FLAGS or "--help" in words:  # the help shows them, and wants no values
            rest.append(word)
            continue
        if word == "--main":
            hints.append(MainHint(name, frame))
            unused = ""
            continue
        if flag == "--main":
            raise UserError(ExitCode.USAGE, f"{word}: --main has no value", fix="--object swan --frame 12 --main")
        if not equals and not waiting:
            raise UserError(ExitCode.USAGE, f"{flag} has no value", fix=f"{flag} {_EXAMPLES[flag]}")
        value = value if equals else waiting.pop(0)
        unused = f"{flag} {value}" if flag in ("--object", "--frame") else ""
        if flag == "--object":
            name = value
        elif flag == "--frame":
            if not (value.isascii() and value.isdigit()):
                raise bad_input(f"--frame {value}", why="expected the number of a frame", fix="--frame 12")
            frame, any_frame = int(value[:10]), False
        elif flag == "--box":
            hints.append(BoxHint(name, frame, *_parse_numbers(flag, value, 4)))
        elif flag in ("--point", "--not"):
            x, y = _parse_numbers(flag, value, 2)
            hints.append(PointHint(name, frame, x, y, is_object=flag == "--point"))
        elif flag == "--stroke":
            hints.append(StrokeHint(name, frame, Path(value)))
        elif flag == "--mask":
            hints.append(MaskHint(name, frame, Path(value)))
        else:
            hints.append(TextHint(name, frame, value, any_frame))
    if unused:
        why = "--object and --frame apply to the hints that follow them"
        raise UserError(ExitCode.USAGE, f"no hint follows {unused}", why=why, fix=f"{unused} --box 100,60,80,120")
    return tuple(hints), rest


_EXAMPLES = {
    "--object": "person",
    "--frame": "12",
    "--box": "100,60,80,120",
    "--point": "160,90",
    "--not": "20,30",
    "--stroke": "strokes.png",
    "--mask": "mask.png",
    "--text": '"surfer"',
}


def _parse_numbers(flag: str, value: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        form = "x,y,width,height" if count == 4 else "x,y"
        why = f"expected {form} in pixels of the video, without spaces"
        raise bad_input(f"{flag} {value}", why=why, fix=f"{flag} {_EXAMPLES[flag]}")
    return numbers

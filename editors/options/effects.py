"""The settings of editors that need no diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from neural_fields.config.flags import Repeated
from neural_fields.core.errors import bad_input


@dataclass(frozen=True, kw_only=True)
class AdjustOptions:
    """Holds the settings of `Adjust`."""

    name: ClassVar[str] = "adjust"

    exposure: float = 0.0
    """Stops of light: 1 is twice as bright, -1 half."""
    curve: str = ""
    """Points of a tone curve for all channels, input and output from 0 to 1: "0,0 0.5,0.6 1,1"."""
    curve_red: str = ""
    """The same for the red channel alone."""
    curve_green: str = ""
    """The same for the green channel alone."""
    curve_blue: str = ""
    """The same for the blue channel alone."""
    hue: float = 0.0
    """Degrees by which hues are rotated; 120 turns red into green."""
    saturation: float = 1.0
    """Factor of the saturation: 0 is gray, 1 leaves it unchanged, 2 doubles it."""
    blur: float = 0.0
    """Standard deviation of a blur, in pixels of the video; colors beside the layer do not bleed in."""
    sharpen: float = 0.0
    """Amount of sharpening; 1 is strong."""
    radius: float = 2.0
    """Radius of the sharpening in pixels of the video: finer detail is enhanced."""


@dataclass(frozen=True, kw_only=True)
class DragOptions:
    """Holds the settings of `Drag`."""

    name: ClassVar[str] = "drag"

    drag: Repeated = ()
    """A point and its target, in pixels of that frame: "x,y>x,y". Repeatable."""
    hold: Repeated = ()
    """A point to hold in place: "x,y". Repeatable."""
    frame: int | None = None
    """Number of the frame in the source that the points refer to (default: the middle one)."""
    radius: float | None = None
    """Falloff radius around a point, in pixels (default: from the object's size and the longest drag)."""


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Holds the settings of `Place`."""

    name: ClassVar[str] = "place"

    image: Path | None = None
    """The picture: a PNG, JPEG, TIFF, WebP or BMP file; transparency is kept."""
    text: str | None = None
    """A text, instead of a picture. Lines are separated by a line break or by \\n."""
    font: Path | None = None
    """The font of the text: a .ttf, .otf or .ttc file (default: a plain font with the letters of English)."""
    color: str | None = None
    """The color of the text: "#rrggbb" or a CSS name (default: white)."""
    point: str | None = None
    """The center of the placement, in pixels of the frame: "x,y". Use --width and --angle with it."""
    width: float | None = None
    """Width of the placement at --point, in pixels of the frame (default: a quarter of the frame's width)."""
    angle: float | None = None
    """Rotation of the placement at --point, in degrees clockwise (default: 0)."""
    box: str | None = None
    """A box, instead of a point: "x,y,w,h". The placement is centered in it, as large as its aspect ratio allows."""
    quad: str | None = None
    """The four corners, instead of a point: "x,y x,y x,y x,y", top left first, clockwise."""
    frame: int | None = None
    """Number of the frame in the source that the positions refer to (default: the middle one)."""


@dataclass(frozen=True, kw_only=True)
class LiftOptions:
    """Holds the settings of `Lift`."""

    name: ClassVar[str] = "lift"

    function: str
    """FILE.py:NAME or MODULE:NAME of a function from float32 [height, width, 3] in [0, 1] to the same. Runs as code."""


@dataclass(frozen=True, kw_only=True)
class RemoveOptions:
    """Holds the settings of `Remove`."""

    name: ClassVar[str] = "remove"

    grow: float | None = None
    """Pixels of the video by which the layer is widened; by default as far as what is around it, such as its outline,
    stands out from the background."""
    grain: bool = True
    """What is seen instead has the grain of the frame."""


@dataclass(frozen=True, kw_only=True)
class ReplaceOptions:
    """Holds the settings of `Replace`."""

    name: ClassVar[str] = "replace"

    image: Path
    """The picture or video to show."""
    fit: Literal["cover", "contain", "stretch"] = "cover"
    """Cover crops it, contain shows it completely with the old texture around it, stretch changes its aspect ratio."""
    still: bool = False
    """Keep it in place in the frame instead of moving it with the layer."""
    lit: bool = False
    """Apply the layer's light and shade to it."""


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """Holds the settings of `ShapeEdit`."""

    name: ClassVar[str] = "shape"

    frame: int | None = None
    """Number of the frame in the source that the points refer to (default: the middle one)."""
    pairs: Repeated = ()
    """A point and its target, in pixels of that frame: "x,y>x,y". Equal positions hold a point in place. Repeatable."""
    pairs_file: Path | None = None
    """A CSV file with four numbers per line: x, y of a point, and x, y of its target."""
    flow: Path | None = None
    """A .flo or .npy file of that frame's size, instead of points: the displacement of each pixel, in pixels."""


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """Holds the settings of `Style`."""

    name: ClassVar[str] = "style"

    weights: Path
    """The network: a .pth or .safetensors state dict of pytorch/examples fast_neural_style, or its .bin for ncnn."""
    side: int | None = None
    """Longer side in pixels at which the largest picture is painted, 64 to 2048; less gives larger strokes."""
    strength: float = 1.0
    """How much of the style is shown, above 0 and at most 1."""

    def __post_init__(self) -> None:
        low, high = 64, 2048  # 2048 x 2048 pixels at once take 3.6 GB
        if self.side is not None and not low <= self.side <= high:
            why = f"it is {low} to {high}"
            raise bad_input(f"a side of {self.side} pixels", where="--side", why=why, fix="--side 640")
        check_strength(self.strength)


@dataclass(frozen=True, kw_only=True)
class EditedFramesOptions:
    """Holds the settings of `Frames`."""

    name: ClassVar[str] = "frames"

    frames: Path
    """The edited frames: a folder of numbered pictures or a video, with as many frames as the run or its source."""
    strength: float = 1.0
    """How much of the edit is shown, above 0 and at most 1."""

    def __post_init__(self) -> None:
        check_strength(self.strength)


@dataclass(frozen=True, kw_only=True)
class UnwrappedOptions:
    """Holds the settings of `UnwrappedClip`."""

    name: ClassVar[str] = "unwrapped"

    clip: Path
    """The edited clip, a video file or a folder of numbered pictures."""


def check_strength(strength: float) -> None:
    """Refuses a strength outside of (0, 1].

    Args:
        strength: the strength of an edit.

    Raises:
        UserError: the strength is 0, negative, above 1 or not a number (exit 3).

    Example:
        >>> check_strength(0.8)
        >>> check_strength(1.5)
        Traceback (most recent call last):
            ...
        neural_fields.core.errors.UserError: error: a strength of 1.5
          where --strength
          why   it is above 0 and at most 1
          try   --strength 0.8
    """
    if not 0 < strength <= 1:
        why = "it is above 0 and at most 1"
        raise bad_input(f"a strength of {strength:g}", where="--strength", why=why, fix="--strength 0.8")

"""Text as a picture: letters of a font on nothing, as large as makes sense: it is shown smaller.

A font is a program of somebody else's that FreeType runs: only outline fonts of a bounded size are opened, and whatever
FreeType says of a damaged one becomes one error.
"""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from neural_fields.errors import bad_input

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SUFFIXES = (".ttf", ".otf", ".ttc")
MAX_FONT_BYTES = 32 << 20
MAX_LETTERS = 400
MAX_LINES = 40
AREA = 4_000_000  # pixels of a text's picture, about
LONGEST = 8192  # pixels of its longer side
LARGEST = 4000.0  # pixels of a letter
TRIAL = 64.0  # pixels of a letter, to find out how much room a text takes
LEADING = 0.1  # of the size: room between lines
PAD = 0.5  # of the size: room around the letters
NO_LETTER = "\U0010fffe"  # which no font has: what it draws for that, it draws for all that it does not have
WITH_GLYPHS = "LNPS"  # letters, numbers, punctuation, symbols: what a font draws something for


def text_picture(text: str, font: Path | None, color: str) -> Float[np.ndarray, "height width 4"]:
    """A text in one colour: straight RGBA in [0, 1], cropped to its ink.

    Args:
        text: one line or several, which are centred; a line break, or the two characters backslash and n.
        font: a TrueType or OpenType file; None for one that comes with Pillow.
        color: "#rrggbb", "#rrggbbaa", or a name that CSS knows.

    Raises:
        UserError: no text, too much of it, a colour or a font that is none, a character that the font does not have.
    """
    lines, (red, green, blue, *alpha) = _lines(text), _color(color)
    data = None if font is None else _font_bytes(font)
    # A border around a foreign parser: FreeType and Raqm answer damaged fonts with several exception types.
    try:
        missing = _missing("".join(lines), _sized(data, TRIAL))
        ink = _ink(lines, data) if not missing else None
    except Exception as problem:
        said = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise bad_input(f"{_name(font)} cannot draw the text", why=said, fix="--font with another one") from problem
    if ink is None:
        why = f"it draws nothing for {', '.join(map(repr, missing[:5]))}"
        raise bad_input(
            f"{_name(font)} does not have all letters of the text", why=why, fix="--font with one that has them"
        )
    if not ink.any() or alpha == [0]:
        raise bad_input(
            f"nothing of --text {text!r} can be seen",
            why="its characters have no ink, or its colour is transparent",
            fix='--text "Hello"',
        )
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rgba = np.empty((*ink.shape, 4), np.float32)
    rgba[..., :3] = np.array([red, green, blue], np.float32) / 255
    rgba[..., 3] = ink.astype(np.float32) / 255 * ((alpha[0] if alpha else 255) / 255)
    return rgba


def _lines(text: str) -> list[str]:
    """The lines of a text.

    Raises:
        UserError: no text, too much of it, or control characters (exit 3).
    """
    lines = text.replace("\\n", "\n").replace("\r\n", "\n").split("\n")
    if not text.strip():
        raise bad_input("--text is empty", fix='--text "Hello"')
    if len(text) > MAX_LETTERS or len(lines) > MAX_LINES:
        why = f"it has {len(text)} characters in {len(lines)} lines; at most {MAX_LETTERS} in {MAX_LINES} are taken"
        raise bad_input("--text is too long", why=why, fix="leave some of it out")
    for letter in "".join(lines):
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise bad_input(f"--text holds {letter!r}, which is no letter", fix="leave it out; a new line is \\n")
    return lines


def _color(color: str) -> tuple[int, ...]:
    """Red, green, blue and perhaps alpha, 0 to 255.

    Raises:
        UserError: a text that is no colour (exit 3).
    """
    try:
        return ImageColor.getrgb(color)
    except ValueError:
        why = 'expected "#rrggbb" or a name such as white, gold or navy'
        raise bad_input(f"--color {color!r} is no colour", why=why, fix='--color "#ffcc00"') from None


def _font_bytes(path: Path) -> bytes:
    """The bytes of a font file.

    Raises:
        UserError: a file that is no font by its name, or too large, or cannot be read (exit 3).
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        why = f"expected a file that ends with {', '.join(SUFFIXES)}" if path.exists() else "there is no such file"
        raise bad_input(f"--font {path} is no font", where=str(path), why=why, fix="leave it out for the usual font")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_FONT_BYTES else b""
    except OSError as problem:
        raise bad_input(f"--font {path.name} cannot be read: {problem.strerror}", where=str(path)) from problem
    if not data:
        why = f"it has {size} bytes; 1 to {MAX_FONT_BYTES} are accepted"
        raise bad_input(f"--font {path.name} was not opened", where=str(path), why=why, fix="take another font")
    return data


def _sized(data: bytes | None, pixels: float) -> Font:
    """A font at a size; without bytes the one that comes with Pillow."""
    return ImageFont.load_default(pixels) if data is None else ImageFont.truetype(io.BytesIO(data), pixels)


def _missing(letters: str, font: Font) -> list[str]:
    """Letters for which a font draws nothing, or what it draws for those that it does not have."""
    absent = font.getmask(NO_LETTER)
    nothing = (absent.size, bytes(absent))
    wanted = dict.fromkeys(letter for letter in letters if unicodedata.category(letter)[0] in WITH_GLYPHS)
    masks = {letter: font.getmask(letter) for letter in wanted}
    return [letter for letter, mask in masks.items() if (mask.size, bytes(mask)) == nothing or 0 in mask.size]


def _ink(lines: list[str], data: bytes | None) -> UInt8[np.ndarray, "height width"]:
    """How much of each pixel the letters fill, 0 to 255."""
    text = "\n".join(lines)

    def box(pixels: float) -> list[float]:
        draw = ImageDraw.Draw(Image.new("L", (1, 1)))
        font, leading = _sized(data, pixels), LEADING * pixels
        found = draw.multiline_textbbox((0, 0), text, font, spacing=leading, align="center")
        return [float(edge) for edge in found]

    left, top, right, bottom = box(TRIAL)
    width, height = max(1.0, right - left), max(1.0, bottom - top)
    pixels = min(TRIAL * min((AREA / (width * height)) ** 0.5, LONGEST / max(width, height)), LARGEST)
    left, top, right, bottom = box(pixels)
    room = PAD * pixels  # some fonts draw beyond what they say
    canvas = Image.new("L", (round(right - left + 2 * room), round(bottom - top + 2 * room)))
    ImageDraw.Draw(canvas).multiline_text(
        (room - left, room - top), text, 255, _sized(data, pixels), spacing=LEADING * pixels, align="center"
    )
    return np.asarray(canvas)


def _name(font: Path | None) -> str:
    return "the usual font" if font is None else font.name

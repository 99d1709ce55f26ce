"""Draws a text as a picture: letters on a transparent background, at a high resolution that is scaled down later.

A font is a foreign program that FreeType runs: only outline fonts of a limited size are opened, and every failure of
FreeType on a damaged font becomes one error.
"""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from neural_fields.core.errors import bad_input

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class LetteringSettings:
    """Limits on texts and fonts, and the layout of letters."""

    max_font_bytes: int = 32 << 20
    max_letters: int = 400
    max_lines: int = 40
    target_px: int = 4_000_000  # of a text's picture, about
    max_side_px: int = 8192  # of its longer side
    max_letter_px: float = 4000.0
    trial_letter_px: float = 64.0  # at which the extent of a text is measured
    leading: float = 0.1  # of the letter size: space between lines
    padding: float = 0.5  # of the letter size: space around the letters; some fonts draw beyond what they say


DEFAULTS = LetteringSettings()


def draw_text(
    text: str, font: Path | None, color: str, settings: LetteringSettings = DEFAULTS
) -> Float[np.ndarray, "height width 4"]:
    """Draws a text in one color, cropped to the visible glyphs.

    Args:
        text: one or more lines, which are centered; separated by a line break or by the characters backslash and n.
        font: a TrueType or OpenType file; None for the font of Pillow.
        color: "#rrggbb", "#rrggbbaa", or a CSS color name.
        settings: limits and layout.

    Returns:
        Straight RGBA in [0, 1].

    Raises:
        UserError: no text, too long a text, an unknown color or font, or a character that the font lacks (exit 3).
    """
    lines = text.replace("\\n", "\n").replace("\r\n", "\n").split("\n")
    if not text.strip():
        raise bad_input("--text is empty", fix='--text "Hello"')
    if len(text) > settings.max_letters or len(lines) > settings.max_lines:
        limits = f"at most {settings.max_letters} in {settings.max_lines} are accepted"
        why = f"it has {len(text)} characters in {len(lines)} lines; {limits}"
        raise bad_input("--text is too long", why=why, fix="leave some of it out")
    for letter in "".join(lines):
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise bad_input(f"--text holds {letter!r}, which is no letter", fix="leave it out; a new line is \\n")
    try:
        red, green, blue, *alpha = ImageColor.getrgb(color)
    except ValueError:
        why = 'expected "#rrggbb" or a name such as white, gold or navy'
        raise bad_input(f"--color {color!r} is no color", why=why, fix='--color "#ffcc00"') from None

    data = None if font is None else _read_font(font, settings.max_font_bytes)
    name = "the usual font" if font is None else font.name
    # A border around a foreign parser: FreeType and Raqm answer damaged fonts with several exception types.
    try:
        # Letters for which the font draws nothing, or what it draws for those that it does not have.
        trial = _load_font(data, settings.trial_letter_px)
        absent = trial.getmask("\U0010fffe")  # a code point that no font has
        nothing = (absent.size, bytes(absent))
        # Letters, numbers, punctuation and symbols: what a font draws something for.
        wanted = dict.fromkeys(letter for letter in "".join(lines) if unicodedata.category(letter)[0] in "LNPS")
        masks = {letter: trial.getmask(letter) for letter in wanted}
        missing = [letter for letter, mask in masks.items() if (mask.size, bytes(mask)) == nothing or 0 in mask.size]
        ink = _draw_ink("\n".join(lines), data, settings) if not missing else None
    except Exception as problem:
        said = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise bad_input(f"{name} cannot draw the text", why=said, fix="--font with another one") from problem
    if ink is None:
        why = f"it draws nothing for {', '.join(map(repr, missing[:5]))}"
        raise bad_input(f"{name} does not have all letters of the text", why=why, fix="--font with one that has them")
    if not ink.any() or alpha == [0]:
        raise bad_input(
            f"nothing of --text {text!r} can be seen",
            why="its characters have no ink, or its color is transparent",
            fix='--text "Hello"',
        )

    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rgba = np.empty((*ink.shape, 4), np.float32)
    rgba[..., :3] = np.array([red, green, blue], np.float32) / 255
    rgba[..., 3] = ink.astype(np.float32) / 255 * ((alpha[0] if alpha else 255) / 255)
    return rgba


def _read_font(path: Path, max_bytes: int) -> bytes:
    """Reads the bytes of a font file.

    Raises:
        UserError: a file with another suffix than those of fonts, one that is too large, or cannot be read (exit 3).
    """
    suffixes = (".ttf", ".otf", ".ttc")
    if path.suffix.lower() not in suffixes or not path.is_file():
        why = f"expected a file that ends with {', '.join(suffixes)}" if path.exists() else "there is no such file"
        raise bad_input(f"--font {path} is no font", where=str(path), why=why, fix="leave it out for the usual font")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= max_bytes else b""
    except OSError as problem:
        raise bad_input(f"--font {path.name} cannot be read: {problem.strerror}", where=str(path)) from problem
    if not data:
        why = f"it has {size} bytes; 1 to {max_bytes} are accepted"
        raise bad_input(f"--font {path.name} was not opened", where=str(path), why=why, fix="take another font")
    return data


def _load_font(data: bytes | None, pixels: float) -> Font:
    """Loads a font at a size in pixels; without `data`, the font of Pillow."""
    return ImageFont.load_default(pixels) if data is None else ImageFont.truetype(io.BytesIO(data), pixels)


def _draw_ink(text: str, data: bytes | None, settings: LetteringSettings) -> UInt8[np.ndarray, "height width"]:
    """Draws the coverage of each pixel by the letters, 0 to 255."""
    trial = settings.trial_letter_px
    left, top, right, bottom = _measure_text(text, data, trial, settings.leading)
    width, height = max(1.0, right - left), max(1.0, bottom - top)
    scale = min((settings.target_px / (width * height)) ** 0.5, settings.max_side_px / max(width, height))
    pixels = min(trial * scale, settings.max_letter_px)
    left, top, right, bottom = _measure_text(text, data, pixels, settings.leading)
    room = settings.padding * pixels
    canvas = Image.new("L", (round(right - left + 2 * room), round(bottom - top + 2 * room)))
    font, leading = _load_font(data, pixels), settings.leading * pixels
    place = (room - left, room - top)
    ImageDraw.Draw(canvas).multiline_text(place, text, 255, font, spacing=leading, align="center")
    return np.asarray(canvas)


def _measure_text(text: str, data: bytes | None, pixels: float, leading: float) -> list[float]:
    """Measures left, top, right and bottom of a text at a size in pixels."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    found = draw.multiline_textbbox((0, 0), text, _load_font(data, pixels), spacing=leading * pixels, align="center")
    return [float(edge) for edge in found]

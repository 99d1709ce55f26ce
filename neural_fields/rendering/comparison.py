"""Pictures that compare: side by side with captions, a wipe from one to the other, their difference."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "height width 3"]

DIFFERENCE_GAIN = 4  # differences are shown this many times as large
LINE_PX = 2  # width of the line between the two sides of a wipe


def caption_height(height: int) -> int:
    """Returns the height in pixels of the caption above a picture of this height; it is even."""
    return max(14, height // 20) // 2 * 2


def add_caption(picture: Picture, text: str) -> UInt8[np.ndarray, "taller width 3"]:
    """Puts a caption above a picture; no pixel of the picture is covered.

    Args:
        picture: the picture.
        text: the caption; as large as its strip, or smaller if it is too long for it.
    """
    height, width = caption_height(picture.shape[0]), picture.shape[1]
    strip = Image.new("RGB", (width, height), (24, 24, 24))
    draw = ImageDraw.Draw(strip)
    letter_px = height * 0.72
    letter_px *= min(1, 0.96 * width / draw.textlength(text, font=ImageFont.load_default(letter_px)))
    font = ImageFont.load_default(max(5, letter_px))
    draw.text((width / 2, height / 2), text, fill=(255, 255, 255), font=font, anchor="mm")
    return np.concatenate([np.asarray(strip), picture])


def wipe(before: Picture, after: Picture, share: float) -> Picture:
    """Shows one picture on the left and another on the right of a white line.

    Args:
        before: the picture on the left.
        after: the picture on the right, of the same size.
        share: the part of the width that the picture on the right fills, 0 to 1.
    """
    width = before.shape[1]
    edge = round(width * (1 - share))
    shown = np.concatenate([before[:, :edge], after[:, edge:]], axis=1)
    if 0 < edge < width:
        shown[:, max(0, edge - LINE_PX // 2) : edge + LINE_PX - LINE_PX // 2] = 255
    return shown


def show_difference(before: Picture, after: Picture) -> Picture:
    """Shows how far two pictures of one size are apart in each channel, `DIFFERENCE_GAIN` times; black is equal."""
    apart = np.abs(before.astype(np.int16) - after.astype(np.int16)) * DIFFERENCE_GAIN
    return apart.clip(0, 255).astype(np.uint8)

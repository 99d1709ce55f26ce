"""Frames side by side in one image, and objects drawn on frames: tinted and outlined, each in its own color."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ObjectLooks:
    """Holds the looks of objects that are drawn on frames."""

    tint: float = 0.35  # share of an object's color inside its outline
    outline_px: int = 2
    first_hue: float = 0.33  # of the front object: green
    hue_step: float = 0.381966  # golden steps around the color wheel: neighbors in a list look different


DEFAULTS = ObjectLooks()


def contact_sheet(frames: Sequence[np.ndarray], columns: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Arranges frames in rows, on black.

    Args:
        frames: uint8 RGB [h, w, 3], all of one size.
        columns: number of frames in a row.
        width: width of a frame on the sheet, in pixels.

    Returns:
        The sheet; the last row is filled up with black.
    """
    height = round(frames[0].shape[0] * width / frames[0].shape[1])
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    small += [np.zeros_like(small[0])] * (-len(small) % columns)
    rows = [np.concatenate(small[i : i + columns], axis=1) for i in range(0, len(small), columns)]
    return np.concatenate(rows)


def choose_object_color(index: int, looks: ObjectLooks = DEFAULTS) -> Color:
    """Returns the RGB color, 0 to 255, of the object with this number from front to back."""
    hue = (looks.first_hue + looks.hue_step * index) % 1
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 1, 1))
    return red, green, blue


def draw_objects(
    picture: UInt8[np.ndarray, "h w 3"], masks: Sequence[Bool[np.ndarray, "h w"]], looks: ObjectLooks = DEFAULTS
) -> None:
    """Tints and outlines objects on a picture, in place, each in its `choose_object_color`.

    Args:
        picture: RGB.
        masks: the objects, front to back; the front one is drawn last.
        looks: share of the color, width of the outline.
    """
    for index, mask in reversed(list(enumerate(masks))):
        color = choose_object_color(index, looks)
        picture[mask] = np.rint((1 - looks.tint) * picture[mask] + looks.tint * np.array(color)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, color, looks.outline_px)


def write_frame_number(picture: UInt8[np.ndarray, "h w 3"], number: int, color: Color = (255, 255, 255)) -> None:
    """Writes the number of a frame in the top left corner of its picture, in place, readable on any ground.

    Args:
        picture: is drawn into.
        number: of the frame.
        color: of the digits, which have a black rim.
    """
    for ink, thick in (((0, 0, 0), 4), (color, 1)):
        cv2.putText(picture, str(number), (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, ink, thick, cv2.LINE_AA)

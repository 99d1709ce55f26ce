"""The contact sheet of a folder of masks: frames with outlines; doubtful frames have a red border."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from neural_fields.imaging.contact_sheet import contact_sheet, draw_objects, write_frame_number
from neural_fields.masking.matte_folders import read_matte

WHITE, RED, YELLOW = (255, 255, 255), (255, 40, 40), (255, 220, 0)


@dataclass(frozen=True)
class MaskSheetSettings:
    """Holds the looks of the sheet."""

    frame_count: int = 24  # at most
    columns: int = 4
    width_px: int = 320  # of one frame
    border_px: int = 6


DEFAULTS = MaskSheetSettings()


def draw_mask_sheet(
    frames: UInt8[np.ndarray, "time height width 3"],
    numbers: range,
    folders: Mapping[str, Path],
    doubtful: Collection[int],
    hinted: Collection[int],
    settings: MaskSheetSettings = DEFAULTS,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the contact sheet.

    Args:
        frames: RGB; may be memory-mapped.
        numbers: the numbers of these frames in the source.
        folders: the mattes of each object, front to back.
        doubtful: numbers of frames to look at, which get a red border.
        hinted: numbers of frames with a hint, which get a yellow number.
        settings: the looks.

    Returns:
        The sheet: evenly spread frames; hinted ones and the first doubtful ones are among them.
    """
    places = {round(place) for place in np.linspace(0, len(numbers) - 1, min(len(numbers), settings.frame_count))}
    wanted = [number - numbers.start for number in [*sorted(hinted), *sorted(doubtful)] if number in numbers]
    for place in wanted[: settings.frame_count // 2]:
        if place not in places:  # instead of the nearest frame that nothing speaks for
            free = places - set(wanted)
            places -= {min(free, key=lambda other: abs(other - place))} if free else set()
            places.add(place)
    height = round(frames.shape[1] * settings.width_px / frames.shape[2])
    size = (settings.width_px, height)
    pictures = []
    for place in sorted(places):
        number = numbers[place]
        picture = cv2.resize(frames[place], size, interpolation=cv2.INTER_AREA)
        draw_objects(picture, [read_matte(folder, number, size) >= 128 for folder in folders.values()])
        if number in doubtful:
            cv2.rectangle(picture, (0, 0), (size[0] - 1, size[1] - 1), RED, settings.border_px)
        write_frame_number(picture, number, YELLOW if number in hinted else WHITE)
        pictures.append(picture)
    return contact_sheet(pictures, min(settings.columns, len(pictures)), settings.width_px)

"""Pictures as users give them: a file, an array, a PIL picture, or a function that changes a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neural_fields.core.errors import bad_input
from neural_fields.imaging.image_io import Picture, convert_image, make_picture, read_picture

PictureInput = str | Path | np.ndarray | Image.Image | Callable[[Any], Any]


def take_picture(given: PictureInput, read_base: Callable[[], np.ndarray], *, max_pixels: int) -> Picture:
    """Converts any kind of picture input to a picture.

    Args:
        given: the path of a file; an array [height, width, 3 or 4], uint8 or float in [0, 1]; a PIL picture; or a
            function that gets the picture to paint on as an array and returns an array or a PIL picture.
        read_base: reads the picture to paint on: straight colors in [0, 1], [height, width, 3 or 4]. Only called for a
            function.
        max_pixels: largest number of pixels of a file; a larger file is refused before it is decoded.

    Raises:
        UserError: a file that cannot be read, an array of the wrong shape, type or range, a function that fails
            (exit 3), or too many pixels (exit 7).

    Example:
        >>> red = np.zeros((2, 4, 3), np.uint8)
        >>> red[..., 0] = 255
        >>> picture = take_picture(red, lambda: red, max_pixels=100)
        >>> picture.size, picture.rgba[0, 0].tolist()
        ((4, 2), [1.0, 0.0, 0.0, 1.0])
    """
    if isinstance(given, str | Path):
        return read_picture(given, max_pixels=max_pixels)
    name = "the picture"
    if callable(given):
        base, called = np.array(read_base()), name_input(given, "the function")
        # The border around foreign code: whatever it raises is reported to the user.
        try:
            given = given(base)
        except Exception as problem:
            raise bad_input(f"{called} failed: {type(problem).__name__}: {problem}") from problem
        name = f"what {called} returned"
    if not isinstance(given, np.ndarray | Image.Image):
        raise bad_input(
            f"{name} is of the type {type(given).__name__}",
            why="a picture is a file, an array or a PIL picture",
            fix="np.asarray turns most pictures into arrays",
        )
    return convert_image(given) if isinstance(given, Image.Image) else make_picture(given, name)


def name_input(given: PictureInput, otherwise: str) -> str:
    """Returns a name for a picture input.

    Args:
        given: the picture input.
        otherwise: the name of an input without a name, such as an array.

    Returns:
        The name of a file without its suffix, the name of a function, or `otherwise`.

    Example:
        >>> name_input("pictures/stripes.png", "picture")
        'stripes'
        >>> name_input(np.zeros((2, 2, 3)), "picture")
        'picture'
    """
    return Path(given).stem if isinstance(given, str | Path) else getattr(given, "__name__", otherwise)

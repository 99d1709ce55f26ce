"""Pictures of runs, layers and edits in a notebook: small, over a checkerboard where they are transparent."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from neural_fields.imaging.alpha import premultiply, resize_image
from neural_fields.imaging.image_io import encode_png


@dataclass(frozen=True)
class NotebookSettings:
    """Settings of pictures in a notebook."""

    max_side_px: int = 320  # longer side of a thumbnail; larger pictures are scaled down
    square_px: int = 8  # side of a square of the checkerboard behind transparent pixels
    light: float = 0.8  # gray of its light squares, 0 to 1
    dark: float = 0.6  # gray of its dark squares, 0 to 1


DEFAULTS = NotebookSettings()


def draw_thumbnail(
    picture: Float[np.ndarray, "height width channels"], settings: NotebookSettings = DEFAULTS
) -> Float[np.ndarray, "rows columns 3"]:
    """Draws a thumbnail of a picture, over a checkerboard where it is transparent.

    Args:
        picture: RGB, or RGBA with straight alpha, in [0, 1].
        settings: largest size, and the checkerboard.

    Returns:
        RGB in [0, 1]; a picture that is smaller keeps its size.
    """
    height, width = picture.shape[:2]
    shrink = min(1.0, settings.max_side_px / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    if picture.shape[2] == 3:
        return resize_image(np.ascontiguousarray(picture, np.float32), size)
    rgba = resize_image(premultiply(np.ascontiguousarray(picture, np.float32)), size)
    rows, columns = np.indices((size[1], size[0])) // settings.square_px
    gray = np.where((rows + columns) % 2 == 0, settings.light, settings.dark).astype(np.float32)
    return rgba[..., :3] + (1 - rgba[..., 3:]) * gray[..., None]


def encode_thumbnail(picture: Float[np.ndarray, "height width channels"]) -> bytes:
    """Encodes the thumbnail of a picture as PNG, for `_repr_png_`."""
    return encode_png(draw_thumbnail(picture))


def make_gallery(pictures: Mapping[str, Float[np.ndarray, "height width channels"]], title: str = "") -> str:
    """Makes the HTML of pictures side by side with their names beneath, for `_repr_html_`.

    Args:
        pictures: RGB, or RGBA with straight alpha, in [0, 1], by name.
        title: a line of text above them.
    """
    figures = []
    for name, picture in pictures.items():
        data, text = base64.b64encode(encode_thumbnail(picture)).decode("ascii"), escape(name)
        image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
        figures.append(f'<figure style="margin: 0">{image}<figcaption>{text}</figcaption></figure>')
    row = f'<div style="display: flex; flex-wrap: wrap; gap: 12px">{"".join(figures)}</div>'
    return f"<div><p>{escape(title)}</p>{row}</div>" if title else row

"""The size of a painted picture against the size of its base."""

from __future__ import annotations

from neural_fields.core.errors import bad_input
from neural_fields.imaging.image_io import Picture

MAX_SCALE = 4  # a painted picture may be up to four times as large, or as small, as the exported one


def check_picture_size(painted: Picture, size: tuple[int, int], base: str) -> None:
    """Refuses a picture whose aspect is not that of `size`, or that was scaled by more than `MAX_SCALE`.

    Args:
        painted: the painted picture.
        size: (width, height) of what it was painted on, in pixels.
        base: what that is, for the message: "the frame".

    Raises:
        UserError: with both sizes and the likely cause (exit 3).
    """
    (width, height), (had_width, had_height) = painted.size, size
    scale = (width + height) / (had_width + had_height)
    both = f"{base} has {_format_size(size)} pixels, the painted one {_format_size(painted.size)}"
    if abs(width - had_width * scale) > 1 or abs(height - had_height * scale) > 1:
        turned = abs(height / width - had_width / had_height) < 0.02 and painted.size != size
        cause = "it seems to be turned by 90 degrees" if turned else "it seems to be cropped or stretched"
        raise bad_input(
            f"{painted.source or 'the picture'} has another shape: {_compare_sizes(painted.size, size)}",
            where=painted.source,
            why=f"{both}; {cause}",
            fix="paint without cropping, turning or resizing the canvas, and save the whole picture",
        )
    if not 1 / MAX_SCALE - 1e-3 <= scale <= MAX_SCALE + 1e-3:
        raise bad_input(
            f"{painted.source or 'the picture'} has {scale:.3g} times the size: {_format_size(painted.size)}",
            where=painted.source,
            why=f"{both}; at most {MAX_SCALE} times larger or smaller is accepted",
            fix=f"resize it to {_format_size(size)} and save it again",
        )


def compute_pixel_limit(size: tuple[int, int], scale: int = MAX_SCALE, least: int = 16_000_000) -> int:
    """Computes how many pixels a painted picture may have, so that decompression bombs are refused early.

    Args:
        size: (width, height) of what it was painted on, in pixels.
        scale: by which it may be larger.
        least: pixels that it may always have.
    """
    return max(least, scale**2 * size[0] * size[1])


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _compare_sizes(own: tuple[int, int], expected: tuple[int, int]) -> str:
    return f"{_format_size(own)} instead of {_format_size(expected)}"

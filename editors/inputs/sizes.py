"""Checks the size of a painted picture against the size of its base."""

from __future__ import annotations

from neural_fields.core.errors import bad_input
from neural_fields.imaging.image_io import Picture

MAX_SCALE = 4  # a painted picture may be up to four times as large, or as small, as the exported one


def check_picture_size(painted: Picture, size: tuple[int, int], base: str) -> None:
    """Refuses a picture whose aspect ratio differs from that of `size`, or that was scaled by more than `MAX_SCALE`.

    Args:
        painted: the painted picture.
        size: (width, height) of its base, in pixels.
        base: name of its base for the message, such as "the frame".

    Raises:
        UserError: the size does not match (exit 3); the message has both sizes and the likely cause.
    """
    (width, height), (had_width, had_height) = painted.size, size
    scale = (width + height) / (had_width + had_height)
    both = f"{base} has {format_size(size)} pixels, the painted one {format_size(painted.size)}"
    if abs(width - had_width * scale) > 1 or abs(height - had_height * scale) > 1:
        turned = abs(height / width - had_width / had_height) < 0.02 and painted.size != size
        cause = "it seems to be turned by 90 degrees" if turned else "it seems to be cropped or stretched"
        raise bad_input(
            f"{painted.source or 'the picture'} has another shape: {compare_sizes(painted.size, size)}",
            where=painted.source,
            why=f"{both}; {cause}",
            fix="paint without cropping, turning or resizing the canvas, and save the whole picture",
        )
    if not 1 / MAX_SCALE - 1e-3 <= scale <= MAX_SCALE + 1e-3:
        raise bad_input(
            f"{painted.source or 'the picture'} has {scale:.3g} times the size: {format_size(painted.size)}",
            where=painted.source,
            why=f"{both}; at most {MAX_SCALE} times larger or smaller is accepted",
            fix=f"resize it to {format_size(size)} and save it again",
        )


def compute_pixel_limit(size: tuple[int, int], scale: int = MAX_SCALE, least: int = 16_000_000) -> int:
    """Computes the largest number of pixels of a painted picture, so that decompression bombs are refused early.

    Args:
        size: (width, height) of its base, in pixels.
        scale: factor by which each side may be larger.
        least: number of pixels that is always allowed.

    Example:
        >>> compute_pixel_limit((1920, 1080)) == 4**2 * 1920 * 1080
        True
        >>> compute_pixel_limit((320, 180))
        16000000
    """
    return max(least, scale**2 * size[0] * size[1])


def format_size(size: tuple[int, int]) -> str:
    """Writes (width, height) as users read it: 640x360."""
    return f"{size[0]}x{size[1]}"


def compare_sizes(own: tuple[int, int], expected: tuple[int, int]) -> str:
    """Writes two different sizes, for messages."""
    return f"{format_size(own)} instead of {format_size(expected)}"

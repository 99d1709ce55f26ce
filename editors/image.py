"""Edit by picture: what differs between a painted canonical image and the exported one becomes an overlay.

The comparison has to survive what image tools do to a picture they were not asked to change: lossy compression,
resampling, flattening on a background, dropping hidden colors. So the exported picture is first put through the same
treatment as far as the file tells it, and a difference counts only where it stands out of the noise that is left.
"""

from __future__ import annotations

import numpy as np

from editors.changes import DEFAULTS, Change, ChangeSettings, Rgba, find_local_change, find_whole_change
from editors.sameness import LEVEL
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.errors import UserError, bad_input
from neural_fields.pictures import Picture, premultiply, resize_image, unpremultiply

__all__ = [
    "LEVEL",
    "MAX_SCALE",
    "Change",
    "check_picture_size",
    "find_change",
    "make_no_change_error",
    "overlay_from_canonical",
    "overlay_from_change",
    "compute_pixel_limit",
    "overlay_from_whole_picture",
]

MAX_SCALE = 4  # a painted picture may be up to four times as large, or as small, as the exported one


def overlay_from_canonical(painted: Picture, canonical: CanonicalImage) -> Overlay:
    """Computes the overlay of the change a user made to a canonical image.

    Args:
        painted: the picture that came back from an image tool.
        canonical: the picture it started from, as exported.

    Returns:
        An overlay at the painted picture's size, or at the canonical image's where that is larger.

    Raises:
        UserError: another aspect, more than four times larger or smaller, or no change found (exit 3).
    """
    check_picture_size(painted, canonical.size, f"the exported picture of the layer {canonical.layer}")
    found = find_change(painted, canonical.to_array())
    if found.is_empty:
        raise make_no_change_error(painted, "the exported picture", found.notes)
    return overlay_from_change(found, painted, canonical)


def overlay_from_change(found: Change, painted: Picture, canonical: CanonicalImage) -> Overlay:
    """Makes the overlay of what `find_change` found in a painted picture against a canonical image.

    Args:
        found: the change, at the size of the painted picture.
        painted: the painted picture.
        canonical: the picture it started from, as exported.

    Returns:
        An overlay at the painted picture's size, or at the canonical image's where that is larger.
    """
    notes = [*painted.notes, *found.notes]
    if painted.size != canonical.size:
        notes.append(
            f"{_format_size(painted.size)} instead of {_format_size(canonical.size)}: compared at its own size"
        )
    covered = resize_image(canonical.to_array()[..., 3:], painted.size)[..., 0] > 0.5
    if covered.any() and found.rgba[..., 3][covered].mean() > 0.9:
        notes.append("nearly every texel differs: check that the picture belongs to this layer if that is a surprise")
    rgba = found.rgba
    if painted.size[0] < canonical.size[0]:
        rgba = unpremultiply(resize_image(premultiply(rgba), canonical.size))
    return Overlay(rgba, canonical.box, tuple(notes))


def overlay_from_whole_picture(painted: Picture, canonical: CanonicalImage) -> Overlay:
    """Makes an overlay of all of a picture, wherever the video shows the layer: for one that an upscaler enlarged.

    Raises:
        UserError: another aspect, or more than four times larger or smaller (exit 3).
    """
    check_picture_size(painted, canonical.size, f"the exported picture of the layer {canonical.layer}")
    own = canonical.to_array()[..., 3:]
    seen = np.clip(resize_image(np.ascontiguousarray((own > 0).astype(np.float32)), painted.size)[..., :1], 0, 1)
    rgba = np.concatenate([painted.rgba[..., :3], seen], axis=-1) * (seen > 0)
    sizes = _compare_sizes(painted.size, canonical.size)
    note = f"{sizes}: shown as a whole, in place of the video's pixels"
    return Overlay(rgba.astype(np.float32), canonical.box, (*painted.notes, note))


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


def make_no_change_error(painted: Picture, base: str, notes: tuple[str, ...]) -> UserError:
    """Makes the error for a painted picture that equals its base.

    Args:
        painted: the painted picture.
        base: what it equals: "the exported picture".
        notes: what else there is to say, one sentence each.
    """
    return bad_input(
        f"no change found in {painted.source or 'the picture'}",
        where=painted.source,
        why="; ".join([f"it equals {base}", *notes]),
        fix="paint on it, save it, and run the same command again",
    )


def find_change(painted: Picture, base: Rgba, settings: ChangeSettings = DEFAULTS) -> Change:
    """Finds the texels of a painted picture that differ from its base, beyond noise.

    Args:
        painted: any size of the aspect of `base`.
        base: what it was painted on, float in [0, 1] with straight alpha (one everywhere for a video frame).
        settings: of the search.
    """
    base = np.asarray(base, np.float32)
    quick = None if painted.lossy else find_local_change(painted.rgba, base, settings)
    if quick is None:
        return find_whole_change(painted, base, settings)
    part, found = quick
    rgba = np.zeros_like(base)
    rgba[part] = found.rgba
    return Change(rgba, found.notes)


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

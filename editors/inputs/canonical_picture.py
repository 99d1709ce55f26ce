"""Edit by picture: what differs between a painted canonical image and the exported one becomes an overlay.

The comparison has to survive what image tools do to a picture they were not asked to change: lossy compression,
resampling, flattening on a background, dropping hidden colors. So the exported picture is first put through the same
treatment as far as the file tells it, and a difference counts only where it stands out of the noise that is left.
"""

from __future__ import annotations

import numpy as np

from editors.inputs.change_detection import DEFAULTS, Change, ChangeSettings, Rgba, find_local_change, find_whole_change
from editors.inputs.noise_model import LEVEL
from editors.inputs.sizes import _compare_sizes, _format_size, check_picture_size
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.core.errors import UserError, bad_input
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import Picture

__all__ = [
    "LEVEL",
    "Change",
    "check_picture_size",
    "find_change",
    "make_no_change_error",
    "overlay_from_canonical",
    "overlay_from_change",
    "overlay_from_whole_picture",
]


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

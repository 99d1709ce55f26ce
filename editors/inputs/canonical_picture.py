"""Edit by picture: the difference between a painted canonical picture and the exported one becomes an overlay.

Image tools change a picture even where nobody painted: lossy compression, resampling, flattening on a background,
dropping hidden colors. So the exported picture first gets the same treatment, as far as the file reveals it, and a
difference counts only where it exceeds the noise that remains.
"""

from __future__ import annotations

import numpy as np

from editors.inputs.change_detection import DEFAULTS, Change, ChangeSettings, Rgba, find_local_change, find_whole_change
from editors.inputs.match_to_original import require_whole_picture
from editors.inputs.noise_model import LEVEL
from editors.inputs.sizes import check_picture_size, compare_sizes, format_size
from neural_fields.atlas.canonical import CanonicalImage, Overlay, read_older_versions
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import Picture
from neural_fields.open_runs.planar_run import PlanarRun

__all__ = [
    "LEVEL",
    "Change",
    "NoChangeError",
    "check_picture_size",
    "find_base_version",
    "find_change",
    "overlay_from_canonical",
    "overlay_from_change",
    "overlay_from_whole_picture",
]


def find_base_version(run: PlanarRun, layer: str, painted: Picture) -> CanonicalImage:
    """Finds the exported version of a layer that a picture was painted on: the one that most of its texels still equal.

    Continued training exports the layer again; a picture painted before that has to be compared with the older version.

    Args:
        run: the open run.
        layer: name of the layer.
        painted: the painted picture.

    Raises:
        UserError: an unknown layer (exit 3), a damaged picture (exit 5).
    """
    newest = run.canonical(layer)
    older = read_older_versions(run.files.canonical, layer)
    same_size = [image for image in (newest, *older) if image.size == painted.size]
    if not older or not same_size:
        return newest

    def measure_difference(image: CanonicalImage) -> float:
        step = max(1, max(image.size) // 256)  # a few ten thousand texels tell versions apart
        base, other = image.rgba[::step, ::step], painted.rgba[::step, ::step]
        seen = base[..., 3] > 0.5
        return float(np.median(np.abs(base - other)[..., :3][seen])) if seen.any() else 0.0

    return min(same_size, key=measure_difference)


def overlay_from_canonical(painted: Picture, canonical: CanonicalImage) -> Overlay:
    """Computes the overlay of the change that a user made to a canonical picture.

    Args:
        painted: the picture as saved by an image tool.
        canonical: the exported picture that it was painted on.

    Returns:
        An overlay at the size of the painted picture or of the canonical picture, whichever is larger.

    Raises:
        UserError: a different aspect ratio, a picture more than four times larger or smaller, or no change (exit 3).
    """
    name = f"the exported picture of the layer {canonical.layer}"
    require_whole_picture(painted, canonical.rgba, name)
    found = find_change(painted, canonical.rgba, name)
    if found.is_empty:
        raise NoChangeError(painted, "the exported picture", found.notes)
    return overlay_from_change(found, painted, canonical)


def overlay_from_change(found: Change, painted: Picture, canonical: CanonicalImage) -> Overlay:
    """Makes an overlay from the change that `find_change` found in a painted picture.

    Args:
        found: the change, at the size of the painted picture.
        painted: the painted picture.
        canonical: the exported picture that it was painted on.

    Returns:
        An overlay at the size of the painted picture or of the canonical picture, whichever is larger.
    """
    notes = [*painted.notes, *found.notes]
    if painted.size != canonical.size:
        notes.append(f"{format_size(painted.size)} instead of {format_size(canonical.size)}: compared at its own size")
    covered = resize_image(canonical.rgba[..., 3:], painted.size)[..., 0] > 0.5
    if covered.any() and found.rgba[..., 3][covered].mean() > 0.9:
        notes.append("nearly every texel differs: check that the picture belongs to this layer if that is a surprise")
    rgba = found.rgba
    if painted.size[0] < canonical.size[0]:
        rgba = unpremultiply(resize_image(premultiply(rgba), canonical.size))
    return Overlay(rgba, canonical.box, tuple(notes))


def overlay_from_whole_picture(painted: Picture, canonical: CanonicalImage) -> Overlay:
    """Makes an overlay of a complete picture, such as an enlarged one, wherever the video shows the layer.

    Args:
        painted: the picture to show.
        canonical: the exported picture that it replaces.

    Returns:
        An overlay at the picture's size.

    Raises:
        UserError: a different aspect ratio, or a picture more than four times larger or smaller (exit 3).
    """
    check_picture_size(painted, canonical.size, f"the exported picture of the layer {canonical.layer}")
    own = canonical.rgba[..., 3:]
    seen = np.clip(resize_image(np.ascontiguousarray((own > 0).astype(np.float32)), painted.size)[..., :1], 0, 1)
    rgba = np.concatenate([painted.rgba[..., :3], seen], axis=-1) * (seen > 0)
    sizes = compare_sizes(painted.size, canonical.size)
    note = f"{sizes}: shown as a whole, in place of the video's pixels"
    return Overlay(rgba.astype(np.float32), canonical.box, (*painted.notes, note))


class NoChangeError(UserError):
    """The error for a painted picture that equals its base.

    Args:
        painted: the painted picture.
        base: name of its base for the message, such as "the exported picture".
        notes: further explanations, one sentence each.
    """

    def __init__(self, painted: Picture, base: str, notes: tuple[str, ...]) -> None:
        super().__init__(
            ExitCode.BAD_INPUT,
            f"no change found in {painted.source or 'the picture'}",
            where=painted.source,
            why="; ".join([f"it equals {base}", *notes]),
            fix="paint on it, save it, and run the same command again",
        )


def find_change(
    painted: Picture,
    base: Rgba,
    name: str = "the exported picture",
    any_colors: bool = False,
    settings: ChangeSettings = DEFAULTS,
) -> Change:
    """Finds the texels of a painted picture that differ from its base by more than noise.

    Args:
        painted: the painted picture, of any size with the aspect ratio of `base`.
        base: the picture that it was painted on, float in [0, 1] with straight alpha (1 everywhere for a video frame).
        name: what that is, for messages, such as "the frame 12".
        any_colors: whether any conversion of all colors is undone; otherwise only those that programs usually make by
            mistake, and others are a grade that somebody wants.
        settings: thresholds of the search.

    Returns:
        The change, at the size of the painted picture.

    Raises:
        UserError: the picture is no copy of its base: cropped, on a larger canvas, stretched or mirrored (exit 3).
    """
    base = np.asarray(base, np.float32)
    quick = None if painted.lossy or painted.rounding is not None else find_local_change(painted.rgba, base, settings)
    if quick is None:
        return find_whole_change(painted, base, name, any_colors, settings)
    part, found = quick
    rgba = np.zeros_like(base)
    rgba[part] = found.rgba
    return Change(rgba, found.notes)

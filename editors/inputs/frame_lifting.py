"""Edit by frame: the changed pixels of a painted frame are lifted into the canonical picture of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.inputs.canonical_picture import NoChangeError, find_change
from editors.inputs.match_to_original import require_whole_picture
from editors.inputs.sizes import format_size
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.paint_lifting import DEFAULTS as LIFTING
from neural_fields.atlas.paint_lifting import FrameMaps, PaintLiftSettings, lift_paint
from neural_fields.core.errors import bad_input
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import Picture


@dataclass(frozen=True)
class FrameLiftSettings:
    """Settings of lifting the paint on a frame."""

    told_share: float = 0.01  # share of the paint above which lost, clipped or differing paint is reported
    lifting: PaintLiftSettings = LIFTING


DEFAULTS = FrameLiftSettings()


def lift_frame(
    painted: Picture,
    source_frame: UInt8[np.ndarray, "height width 3"],
    maps: FrameMaps,
    layer: str | None = None,
    name: str = "the frame",
    settings: FrameLiftSettings = DEFAULTS,
) -> Mapping[str, Overlay]:
    """Lifts the change that a user made to one frame into an overlay of one layer.

    Args:
        painted: the painted frame, with the aspect ratio of the frame.
        source_frame: the original frame.
        maps: the baked maps of that frame.
        layer: the layer that takes the change; by default the layer that is most visible under the paint.
        name: what messages call the frame.
        settings: of the lifting, and what is reported.

    Returns:
        One overlay, by the name of its layer.

    Raises:
        UserError: a different aspect ratio, no change, an unknown layer, or a layer that is not visible under the paint
            (exit 3).
    """
    height, width = source_frame.shape[:2]
    opaque = add_alpha(source_frame)
    observed = np.ascontiguousarray(opaque[..., :3])
    require_whole_picture(painted, opaque, name)
    change = find_change(painted, opaque, name, any_colors=True)
    if change.is_empty:
        raise NoChangeError(painted, f"{name} of the video", change.notes)
    rgba = unpremultiply(resize_image(premultiply(change.rgba), (width, height)))
    alpha = rgba[..., 3]
    notes = [*painted.notes, *change.notes]

    # The layer that takes the change: by default the one with the largest share of what is under the paint.
    names = list(maps.names)
    sums = (maps.weight * alpha).sum(axis=(1, 2), dtype=np.float64)
    index = int(np.argmax(sums))
    if layer is not None:
        best, index = names[index], names.index(layer)
        if not ((maps.weight[index] >= settings.lifting.min_weight) & (alpha > 0)).any():
            raise bad_input(
                f"the layer {layer} is not seen under the paint",
                why=f"there the frame shows {best}",
                fix=f"--layer {best}",
            )
    elif len(names) > 1:
        share = sums[index] / max(sums.sum(), 1e-12)
        notes.append(f"lifted into {names[index]}, which makes up {share:.0%} of what is under the paint")

    overlay, lost, clipped = lift_paint(rgba, observed, maps, index, settings.lifting)
    if lost > settings.told_share:
        notes.append(f"{lost:.0%} of the paint does not lie on {names[index]} and was left out")
    if clipped > settings.told_share:
        notes.append(
            f"{clipped:.0%} of the paint is out of range there, because of the light of the scene: "
            "it will look slightly duller in the video"
        )
    return {names[index]: Overlay(overlay, maps.boxes[index], tuple(notes))}


def add_alpha(frame: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 4"]:
    """Returns a frame as a picture in [0, 1] that is opaque."""
    return cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2RGBA)


def squeeze_pixels(painted: Picture, size: tuple[int, int], pixel_aspect: Fraction) -> Picture:
    """Brings a frame that a player saved at the size of the display to the shape of the video's own pixels.

    Args:
        painted: the painted frame.
        size: (width, height) of the frames of the video in pixels.
        pixel_aspect: width of a pixel of the video over its height.

    Returns:
        The picture at the size of the video, with a note; `painted` itself where it has no such shape.
    """
    width, height = painted.size
    shown = (size[0] * float(pixel_aspect), size[1])
    scale = height / shown[1]
    own_scale = height / size[1]
    if pixel_aspect == 1 or abs(width - shown[0] * scale) > 1 + scale or abs(width - size[0] * own_scale) <= 1:
        return painted
    note = (
        f"taken from the size of the display ({format_size(painted.size)}) to that of the video ({format_size(size)}), "
        f"whose pixels have the shape {pixel_aspect.numerator}:{pixel_aspect.denominator}"
    )
    rgba = unpremultiply(resize_image(premultiply(painted.rgba), size))
    # Nobody knows how these texels were made.
    return replace(painted, rgba=rgba, pixels=None, lossy=True, quantization=None, notes=(*painted.notes, note))

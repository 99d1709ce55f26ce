"""Edit by frame: the changed pixels of a painted frame are lifted into the canonical image of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from editors.inputs.canonical_picture import find_change, make_no_change_error
from editors.inputs.sizes import check_picture_size
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
    settings: FrameLiftSettings = DEFAULTS,
) -> Mapping[str, Overlay]:
    """Lifts the change that a user made to one frame into an overlay of one layer.

    Args:
        painted: the painted frame, with the aspect ratio of the frame.
        source_frame: the original frame.
        maps: the baked maps of that frame.
        layer: the layer that takes the change; by default the layer that is most visible under the paint.
        settings: of the lifting, and what is reported.

    Returns:
        One overlay, by the name of its layer.

    Raises:
        UserError: a different aspect ratio, no change, an unknown layer, or a layer that is not visible under the paint
            (exit 3).
    """
    height, width = source_frame.shape[:2]
    check_picture_size(painted, (width, height), "the frame")
    observed = source_frame.astype(np.float32) / 255
    opaque = np.concatenate([observed, np.ones_like(observed[..., :1])], axis=-1)
    change = find_change(painted, opaque)
    if change.is_empty:
        raise make_no_change_error(painted, "the frame of the video", change.notes)
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
        notes.append(f"{clipped:.0%} of the paint would need a brighter or darker color than there is: clipped")
    return {names[index]: Overlay(overlay, maps.boxes[index], tuple(notes))}

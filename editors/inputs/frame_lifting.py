"""Edit by frame: the changed pixels of a painted frame are lifted into the canonical picture of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.inputs.canonical_picture import Change, NoChangeError, find_change
from editors.inputs.match_to_original import require_whole_picture
from editors.inputs.picture_projection import find_own_plane, lay_picture
from editors.inputs.sizes import format_size
from neural_fields.atlas.canonical import FramePaint
from neural_fields.atlas.layer_sight import see_layer
from neural_fields.atlas.paint_lifting import DEFAULTS as LIFTING
from neural_fields.atlas.paint_lifting import PaintLiftSettings
from neural_fields.atlas.placed_picture import PlacedPicture
from neural_fields.core.errors import bad_input
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import Picture
from neural_fields.open_runs.planar_run import PlanarRun


@dataclass(frozen=True)
class FrameLiftSettings:
    """Settings of lifting the paint on a frame."""

    full_weight: float = 0.996  # from this weight of a layer on, it alone fills the pixel
    told_share: float = 0.01  # share of the paint above which lost, clipped or differing paint is reported
    lifting: PaintLiftSettings = LIFTING


DEFAULTS = FrameLiftSettings()


def find_frame_change(painted: Picture, frame: UInt8[np.ndarray, "height width 3"], name: str) -> Change:
    """Finds what was painted on a frame.

    Args:
        painted: the painted frame, with the aspect ratio of the frame.
        frame: the original frame.
        name: what messages call the frame.

    Returns:
        The change, at the size of the painted picture.

    Raises:
        UserError: a different aspect ratio, or no change (exit 3).
    """
    opaque = add_alpha(frame)
    require_whole_picture(painted, opaque, name)
    change = find_change(painted, opaque, name, any_colors=True)
    if change.is_empty:
        raise NoChangeError(painted, f"{name} of the video", change.notes)
    return change


def choose_painted_layer(
    alpha: Float[np.ndarray, "height width"],
    names: Sequence[str],
    weights: Float[np.ndarray, "layers height width"],
    layer: str | None,
    settings: FrameLiftSettings,
) -> tuple[int, list[str]]:
    """Chooses the layer that takes paint: the one asked for, or that with the largest share of what is under it.

    Args:
        alpha: of the paint on the frame.
        names: of the layers, front to back.
        weights: share of each pixel that each layer fills.
        layer: the layer asked for; None: the one that is most visible under the paint.
        settings: least weight of the layer in a pixel that takes paint.

    Returns:
        The number of the layer, and notes for the user.

    Raises:
        UserError: the layer asked for is not visible under the paint (exit 3).
    """
    sums = (weights * alpha).sum(axis=(1, 2), dtype=np.float64)
    best = int(np.argmax(sums))
    if layer is not None:
        index = names.index(layer)
        if not ((weights[index] >= settings.lifting.min_weight) & (alpha > 0)).any():
            raise bad_input(
                f"the layer {layer} is not seen under the paint",
                why=f"there the frame shows {names[best]}",
                fix=f"--layer {names[best]}",
            )
        return index, []
    share = sums[best] / max(sums.sum(), 1e-12)
    note = f"lifted into {names[best]}, which makes up {share:.0%} of what is under the paint"
    return best, [note] if len(names) > 1 else []


def place_frame(
    painted: Picture,
    frame: UInt8[np.ndarray, "height width 3"],
    run: PlanarRun,
    number: int,
    layer: str | None = None,
    settings: FrameLiftSettings = DEFAULTS,
) -> Mapping[str, PlacedPicture]:
    """Places the change that a user made to one frame on the plane of one layer.

    The edit keeps the paint as it was painted: that frame shows it so, and others look it up through the maps, under
    the light that has changed since.

    Args:
        painted: the painted frame, with the aspect ratio of the frame.
        frame: the original frame.
        run: the open run.
        number: of the frame in the source.
        layer: the layer that takes the change; by default the layer that is most visible under the paint.
        settings: of what is lifted and reported.

    Returns:
        One placed picture, by the name of its layer.

    Raises:
        UserError: a different aspect ratio, no change, or a layer that is not visible under the paint (exit 3).
    """
    change = find_frame_change(painted, frame, f"the frame {number}")
    maps, t = run.maps, run.require_frame(number)
    height, width = change.rgba.shape[:2]
    weights = np.stack([cv2.resize(one, (width, height)) for one in maps.read_weights(t, run.source_size)])
    index, notes = choose_painted_layer(change.rgba[..., 3], maps.layers, weights, layer, settings)
    is_own = weights[index] >= settings.lifting.min_weight
    kept = change.rgba * is_own[..., None]
    lost = 1 - float(kept[..., 3].sum()) / float(change.rgba[..., 3].sum())
    if lost > settings.told_share:
        notes.append(f"{lost:.0%} of the paint does not lie on {maps.layers[index]} and was left out")
    sight = see_layer(maps, t, index)
    rows, columns = (np.flatnonzero((kept[..., 3] > 0).any(axis)) for axis in (1, 0))
    if sight is None or not len(rows):
        raise bad_input(f"too little of the layer {maps.layers[index]} is seen in frame {number}", fix="another frame")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    box = (float(left / width), float(top / height), float(right / width), float(bottom / height))
    exact = FramePaint(number, np.ascontiguousarray(change.rgba[top:bottom, left:right]), box)

    # In pixels that layers share, the paint without what others show of them: for the other frames.
    rgba = np.ascontiguousarray(kept[top:bottom, left:right])
    part = (slice(top, bottom), slice(left, right))
    share = np.maximum(weights[index][part], settings.lifting.min_weight)[..., None]
    under = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)[part].astype(np.float32) / 255
    is_mixed = (share < settings.full_weight) & (rgba[..., 3:] > 0)
    rgba[..., :3] = np.where(is_mixed, np.clip(under + (rgba[..., :3] - under) / share, 0, 1), rgba[..., :3])

    quad = np.array([(box[x], box[y]) for x, y in ((0, 1), (2, 1), (2, 3), (0, 3))]) * np.array(maps.size)
    plane, size = find_own_plane(maps, maps.layers[index], t), (rgba.shape[1], rgba.shape[0])
    patch = lay_picture(sight.uv_map, sight.is_seen, size, quad, plane, sight.light)
    if patch is None:
        raise bad_input(f"the layer {maps.layers[index]} is not seen under the paint", fix="another --layer")
    notes = [*painted.notes, *change.notes, *notes]
    return {maps.layers[index]: PlacedPicture(rgba, (patch,), tuple(notes), (exact,))}


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

"""Draws the overlays of exported maps: looked up bilinearly, they show what `unwrap render` shows.

Rendering looks an edit up at the resolution at which a frame shows it, in the edit's own box. A comp has one picture a
layer over the layer's box. An edit that covers the box is drawn at an odd multiple of its own resolution, which leaves
every texel where it was; any other edit lies between the texels of that picture, which is therefore finer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from jaxtyping import Float

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.placed_picture import Paint, PlacedPicture, draw_paint
from neural_fields.core.box import Box
from neural_fields.edits.payloads import read_paint
from neural_fields.edits.read_stack import Edit
from neural_fields.imaging.alpha import premultiply, unpremultiply
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.overlay_pass import OverlayPass


@dataclass(frozen=True)
class OverlayPictureSettings:
    """Settings of the pictures that overlays are drawn into."""

    fineness: int = 8  # texels of the picture, along a side, to one of an edit that lies between them
    min_fineness: int = 3  # below it a note says that the picture is soft
    max_pixels: int = 32_000_000  # of a picture that is finer than its layer
    sampled_frames: int = 9  # that say at which resolution an edit is looked up


DEFAULTS = OverlayPictureSettings()


def draw_layer_overlay(
    run: PlanarRun,
    edits: Sequence[Edit],
    layer: str,
    frame_size: tuple[int, int],
    asked_size: tuple[int, int] | None = None,
    settings: OverlayPictureSettings = DEFAULTS,
) -> Overlay:
    """Draws the still overlays of a layer into one picture over its box.

    Args:
        run: the open run.
        edits: from the lowest to the highest.
        layer: the layer's name.
        frame_size: (width, height) of the frames that look the picture up.
        asked_size: (width, height) of the picture; None: as fine as the edits ask for.
        settings: fineness and limits.

    Returns:
        The picture, transparent where nothing was edited, with a note where it is coarser than the edits ask for.

    Raises:
        UserError: a missing, damaged or changed overlay (exit 5).
    """
    picture, number = run.canonical(layer), run.maps.layers.index(layer)
    frames = sorted({int(t) for t in np.linspace(0, run.frame_count - 1, settings.sampled_frames)})
    parts: list[tuple[Paint, float]] = []  # each at the resolution at which most frames look it up, and its opacity
    for edit in edits:
        if layer not in edit.record.painted_layers:
            continue
        paint = read_paint(edit, layer)
        renderer = OverlayPass(run.maps, run.canonicals, {layer: paint})
        levels = [level for t in frames if (level := renderer.find_level(t, number, frame_size)) is not None]
        level = Counter(levels).most_common(1)[0][0] if levels else (0, 0)
        lookup = renderer.lookups[number]
        copy = unpremultiply(lookup.read_copy(level) / np.array([255, 255, 255, 1], np.float32))
        if isinstance(paint, PlacedPicture):
            paint = paint.replace_picture(copy)
        elif level != (0, 0):
            paint = Overlay(copy, paint.box)
        parts.append((paint, edit.overlay_arrangement.opacity))

    size = asked_size or choose_picture_size(picture, [paint for paint, _ in parts], settings)
    (only, opacity), is_alone = parts[0] if parts else (None, 1.0), len(parts) == 1
    if is_alone and opacity == 1 and isinstance(only, Overlay) and (only.size, only.box) == (size, picture.box):
        return only
    box, texel = picture.box, np.array([picture.box.width, picture.box.height]) / size
    result: Float[np.ndarray, "height width 4"] = np.zeros((size[1], size[0], 4), np.float32)
    fineness = float(settings.min_fineness)
    for overlay, opacity in parts:
        # Only the texels of the picture that the overlay reaches, with one more for its soft edge.
        corner = np.array([box.u0, box.v0])
        low = np.floor((np.array([overlay.box.u0, overlay.box.v0]) - corner) / texel).astype(int) - 1
        high = np.ceil((np.array([overlay.box.u1, overlay.box.v1]) - corner) / texel).astype(int) + 1
        low, high = np.clip(low, 0, size), np.clip(high, 0, size)
        if (high <= low).any():
            continue
        part_box = (
            box if overlay.box == box else Box(*(corner + low * texel).tolist(), *(corner + high * texel).tolist())
        )
        width, height = (high - low).tolist()
        top = premultiply(draw_paint(overlay, (width, height), part_box)) * np.float32(opacity)
        under = result[low[1] : high[1], low[0] : high[0]]
        under[...] = top + under * (1 - top[..., 3:])
        if overlay.box != box or size[0] < overlay.size[0]:
            fineness = min(fineness, 1 / (_measure_density(overlay) * float(texel[0])))
    soft = f"overlay/{layer}.png is softer than what unwrap render shows: it has {size[0]} x {size[1]} texels"
    return Overlay(unpremultiply(result), box, () if fineness >= settings.min_fineness else (soft,))


def choose_picture_size(
    picture: CanonicalImage, overlays: Sequence[Paint], settings: OverlayPictureSettings = DEFAULTS
) -> tuple[int, int]:
    """Chooses the (width, height) of a picture over a layer's box that shows overlays as they are.

    Args:
        picture: the canonical picture of the layer; the result is at least as large.
        overlays: at the resolutions at which they are looked up.
        settings: fineness and limits.
    """
    covering = [one.size for one in overlays if isinstance(one, Overlay) and one.box == picture.box]
    width, height = max(covering, default=picture.size)
    others = [one for one in overlays if isinstance(one, PlacedPicture) or one.box != picture.box]
    density = max((_measure_density(one) for one in others), default=0.0)
    wanted = max(settings.fineness * density * picture.box.width, picture.size[0]) / width
    largest = max((settings.max_pixels / (width * height)) ** 0.5, picture.size[0] / width)
    if not covering:
        return round(min(wanted, largest) * width), round(min(wanted, largest) * height)
    times = next(times for times in count(1, 2) if times >= wanted or times + 2 > largest)
    return times * width, times * height


def _measure_density(paint: Paint) -> float:
    """Measures how many pixels of paint lie in one unit of uv."""
    return paint.density if isinstance(paint, PlacedPicture) else paint.size[0] / paint.box.width

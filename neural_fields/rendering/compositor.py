"""The compositor: turns a stack of edits into render passes, which are applied to a frame one after the other.

Plain edits (normal blend mode, at all times, over one box) are flattened and put on in one pass, as quickly as a single
one. An edit that depends on the pixels below it (blend modes, grades), changes in time, or is animated, is a pass of
its own. Hidden layers are removed first, so that overlays can be put on the layers behind them. Shapes come last: a
layer is deformed together with everything that is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage, resample_overlay
from neural_fields.atlas.placed_picture import draw_paint
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.payloads import (
    flatten_overlays,
    read_animated_overlay,
    read_mask,
    read_paint,
    read_shapes,
)
from neural_fields.edits.read_stack import Edit
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.alpha import premultiply, unpremultiply
from neural_fields.imaging.blend_modes import blend_function
from neural_fields.imaging.color_grading import apply_grade_to_bytes
from neural_fields.rendering.animated_pass import AnimatedPass
from neural_fields.rendering.base import Canonicals, OverlayOptions, RenderPass
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.grade_pass import GradePass
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.removal_pass import HiddenShare, RemovalPass
from neural_fields.rendering.warp_pass import WarpPass

Strength = Callable[[int], float]


class PassChain(RenderPass):
    """Several passes, one after the other."""

    def __init__(self, maps: Maps, passes: Sequence[RenderPass]) -> None:
        self.maps = maps
        self.passes = passes

    @property
    def changes_something(self) -> bool:
        """Whether any of the passes can change a frame."""
        return any(step.changes_something for step in self.passes)

    def render_frame(
        self, t: int, source: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame after all passes."""
        edges = edges or FrameEdges(t, source)
        for step in self.passes:
            source = step.render_frame(t, source, edges)
        return source

    def layer_weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """Returns the share of each pixel that each layer fills after the last pass; the shares sum to one."""
        return self.passes[-1].layer_weights(t, size) if self.passes else super().layer_weights(t, size)

    def affected_mask(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns where any of the passes may change a frame."""
        found = np.zeros((size[1], size[0]), bool)
        for step in self.passes:
            found |= step.affected_mask(t, size)
        return found


@dataclass(frozen=True)
class CanonicalPainter:
    """The effect of one edit on the canonical picture of a layer, as far as a still picture can show it."""

    layer: str
    strength: Strength
    paint: Callable[[CanonicalImage], CanonicalImage]


def build_passes(
    maps: Maps,
    pictures: Mapping[str, CanonicalImage],
    edits: Sequence[Edit],
    frames: Sequence[int],
    shutter: float = 0.0,
) -> RenderPass:
    """Builds the passes that put some edits on the frames of a run.

    Args:
        maps: the baked maps of the run.
        pictures: the exported canonical picture of every layer.
        edits: the edits, lowest first.
        frames: number in the source of each frame of the run.
        shutter: share of the time between frames for which the shutter is open; paint is blurred accordingly.

    Returns:
        One pass, or a chain of several.

    Raises:
        UserError: a missing, damaged or changed file of an edit (exit 5).
    """
    hidden: dict[str, list[HiddenShare]] = {}  # by layer, of each edit
    for edit in edits:
        if removal := edit.record.removal:
            strength = partial(_strength_at, edit.arrangement, frames, edit.arrangement.opacity)
            for layer in removal.layers:
                hidden.setdefault(layer, []).append(HiddenShare(strength, removal.grow, removal.grain))
    hider = RemovalPass(maps, pictures, hidden) if hidden else None
    shown_maps = maps if hider is None else hider.shown_maps
    passes: list[RenderPass] = [] if hider is None else [hider]

    if shutter > 0:
        shown_maps.keep_uv_frames(3)  # the motion of a frame is that from its neighbors

    # Overlays, grades and animated overlays, the lowest first.
    below = _PaintedCanonicals(maps.layers, pictures)
    for group in _group_plain(edits):
        first = group[0]
        if _is_plain(first):
            flat = {name: overlay for name in maps.layers if (overlay := flatten_overlays(group, name)) is not None}
            if flat:
                passes.append(
                    OverlayPass(
                        shown_maps, pictures, flat, OverlayOptions(canonicals_at=below.at_this_point(), shutter=shutter)
                    )
                )
        else:
            canonicals_at = below.at_this_point()
            shown = partial(_strength_at, first.overlay_arrangement, frames, first.overlay_arrangement.opacity)
            blend, lit = blend_function(first.overlay_arrangement.blend), first.record.lit
            options = OverlayOptions(shown, blend, lit, canonicals_at, shutter)
            overlays = {layer: read_paint(first, layer) for layer in first.record.painted_layers}
            if overlays:
                passes.append(OverlayPass(shown_maps, pictures, overlays, options, frames))
            for layer, entry in first.record.grades.items():
                grade, mask = entry.grade, read_mask(first, layer)
                passes.append(
                    GradePass(
                        shown_maps, pictures, layer, grade, mask, OverlayOptions(shown, canonicals_at=canonicals_at)
                    )
                )
            for layer in first.record.animated:
                moving = read_animated_overlay(first, layer, len(frames))
                passes.append(AnimatedPass(shown_maps, pictures, layer, moving, options))
        for edit in group:
            below.add_edit(canonical_painters(edit, frames))

    if shapes := read_deformations(edits, frames):
        passes.append(WarpPass(shown_maps, pictures, {}, shapes, below.at_this_point()))
    return passes[0] if len(passes) == 1 else PassChain(maps, passes)


def canonical_painters(edit: Edit, frames: Sequence[int] = ()) -> Iterator[CanonicalPainter]:
    """Yields the effects of an edit on canonical pictures, by layer. Without `frames`, its times do not count."""
    # Files are read when a picture is painted: most stacks never need to, and have read them once for their passes.
    strength = partial(_strength_at, edit.overlay_arrangement, frames, 1.0)
    for layer in edit.record.painted_layers:
        yield CanonicalPainter(layer, strength, partial(_paint_overlay, edit, layer))
    for layer in edit.record.grades:
        yield CanonicalPainter(layer, strength, partial(_apply_grade, edit, layer))


def _paint_overlay(edit: Edit, layer: str, picture: CanonicalImage) -> CanonicalImage:
    """Returns a picture with the paint of an edit on it."""
    blend, opacity = blend_function(edit.overlay_arrangement.blend), edit.overlay_arrangement.opacity
    paint, box = read_paint(edit, layer), picture.box
    # Only the texels that the paint reaches.
    texel = np.array([box.width, box.height]) / picture.size
    low = np.floor((np.array([paint.box.u0, paint.box.v0]) - (box.u0, box.v0)) / texel).astype(int) - 1
    high = np.ceil((np.array([paint.box.u1, paint.box.v1]) - (box.u0, box.v0)) / texel).astype(int) + 1
    low, high = low.clip(0, picture.size), high.clip(0, picture.size)
    if (high <= low).any():
        return picture
    rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
    is_whole = (high - low == picture.size).all()
    start = np.array([box.u0, box.v0])
    part = box if is_whole else Box(*(start + low * texel).tolist(), *(start + high * texel).tolist())
    found, under = draw_paint(paint, (int(high[0] - low[0]), int(high[1] - low[1])), part), picture.rgba[rows, columns]
    color = found[..., :3] if blend is None else blend(found[..., :3], under[..., :3])
    share = opacity * found[..., 3:]
    top = np.concatenate([color * share, share], -1)
    mixed = unpremultiply((top + premultiply(under) * (1 - share)).astype(np.float32))
    mixed[..., :3] = np.where(mixed[..., 3:] > 1e-6, mixed[..., :3], under[..., :3])
    result = picture.rgba.copy()
    result[rows, columns] = mixed
    return CanonicalImage(result, box, picture.layer)


def _apply_grade(edit: Edit, layer: str, picture: CanonicalImage) -> CanonicalImage:
    """Returns a picture with its colors graded within the edit's mask; its coverage stays."""
    mask, grade = read_mask(edit, layer), edit.record.grades[layer].grade
    # By bytes: the pictures of long clips have many texels, and say only what layers that share a pixel look like.
    under = cv2.cvtColor(cv2.convertScaleAbs(picture.rgba, alpha=255), cv2.COLOR_RGBA2RGB)
    graded = cv2.cvtColor(apply_grade_to_bytes(grade, under) * np.float32(1 / 255), cv2.COLOR_RGB2RGBA)
    cv2.insertChannel(cv2.extractChannel(picture.rgba, 3), graded, 3)
    share = np.full((1, 1, 1), edit.overlay_arrangement.opacity, np.float32)
    if mask is not None:
        share = share * resample_overlay(mask, picture.size, picture.box)[..., 3:]
    if share.min() < 1:
        graded = (picture.rgba + share * (graded - picture.rgba)).astype(np.float32)
    return CanonicalImage(graded, picture.box, picture.layer)


def _group_plain(edits: Sequence[Edit]) -> Iterator[list[Edit]]:
    """Yields edits that can be flattened together, and each of the others alone, in their order."""
    group: list[Edit] = []
    boxes: dict[str, Box] = {}  # of the group's overlays, by layer
    for edit in edits:
        # Only overlays over the same box of a layer can be flattened without any getting coarser.
        own = {layer: entry.box for layer, entry in edit.record.overlays.items()}
        share_boxes = all(boxes.get(layer, box) == box for layer, box in own.items())
        if group and _is_plain(edit) and _is_plain(group[0]) and share_boxes:
            group.append(edit)
            boxes |= own
            continue
        if group:
            yield group
        group, boxes = [edit], own
    if group:
        yield group


def _is_plain(edit: Edit) -> bool:
    """Returns whether an edit has lit overlays of boxes alone, with the normal blend mode and at all times."""
    record, arrangement = edit.record, edit.overlay_arrangement
    is_normal = arrangement.blend == "normal" and not arrangement.changes_in_time
    return is_normal and not (record.animated or record.grades or record.placed or record.frames) and record.lit


def _strength_at(arrangement: Arrangement, frames: Sequence[int], opacity: float, t: int) -> float:
    """Returns how much of an edit frame `t` of the run shows, times an opacity."""
    return opacity * (arrangement.strength_at(frames[t]) if frames else 1.0)


def read_deformations(edits: Sequence[Edit], frames: Sequence[int] = ()) -> dict[str, list[Deformation]]:
    """Reads the shapes of some edits by layer, the lowest first. Without `frames`, their times do not count.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    found: dict[str, list[Deformation]] = {}
    for edit in edits:
        shown = partial(_strength_at, edit.overlay_arrangement, frames, edit.overlay_arrangement.opacity)
        for layer in edit.record.deformed_layers:
            shapes = [replace(shape, strength=shown) for shape in read_shapes(edit, layer)]
            found.setdefault(layer, []).extend(shapes)
    return found


class _PaintedCanonicals:
    """The canonical pictures of all layers, by frame, after the edits that were added so far."""

    def __init__(self, layers: Sequence[str], pictures: Mapping[str, CanonicalImage]) -> None:
        self.layers = layers
        self.pictures = pictures
        self.painters: list[CanonicalPainter] = []
        self._found: dict[tuple[bool, ...], Mapping[str, CanonicalImage]] = {}

    def add_edit(self, painters: Iterator[CanonicalPainter]) -> None:
        """Adds the effects of one more edit."""
        self.painters += painters

    def at_this_point(self) -> Callable[[int], Canonicals] | None:
        """Returns the pictures by frame of the run; later edits do not change them. None: as exported."""
        painters = tuple(self.painters)
        if not painters:
            return None

        def find_pictures(t: int) -> Canonicals:
            found = self._paint(tuple(painter.strength(t) > 0.5 for painter in painters))
            return [(found[name].rgba, found[name].box) for name in self.layers]

        return find_pictures

    def _paint(self, shown: tuple[bool, ...]) -> Mapping[str, CanonicalImage]:
        """Returns the pictures after as many edits as there are answers to whether a frame shows them."""
        if not shown:
            return self.pictures
        if shown not in self._found:
            before, painter = self._paint(shown[:-1]), self.painters[len(shown) - 1]
            after = {painter.layer: painter.paint(before[painter.layer])} if shown[-1] else {}
            # Those of one state of each length are kept: passes ask for them one after the other, frame by frame.
            self._found = {one: kept for one, kept in self._found.items() if len(one) != len(shown)}
            self._found[shown] = {**before, **after}
        return self._found[shown]

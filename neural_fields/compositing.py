"""Edits put on frames one after the other: each stack of edits becomes passes over a frame.

Edits that lie plainly on each other (normal mixture, always shown, over one box) are flattened and put on in one pass,
as quickly as a single one. Whatever needs what is under it (blend modes, grades), comes and goes in time, or is
another picture in every frame, is a pass of its own. Layers that are hidden go first: what is behind them is there
before something is put on it. Shapes come last: a layer is bent with everything that is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from neural_fields.arrangement import Arrangement
from neural_fields.baking import Maps
from neural_fields.blending import blend_of
from neural_fields.canonical import CanonicalImage, fit
from neural_fields.edit_files import flatten, read_mask, read_moving, read_overlay, read_shape
from neural_fields.edits import Edit
from neural_fields.grading import Grade
from neural_fields.hiding import Hider
from neural_fields.passes import Grader, Mover
from neural_fields.pictures import premultiplied, straight
from neural_fields.rendering import Canonicals, FrameChanger, How, Renderer
from neural_fields.reshaping import Reshaper, Shape

Strength = Callable[[int], float]


class Passes(FrameChanger):
    """Several changes of frames, one after the other."""

    def __init__(self, maps: Maps, passes: Sequence[FrameChanger]) -> None:
        self.maps = maps
        self.passes = passes

    @property
    def changes_something(self) -> bool:
        return any(step.changes_something for step in self.passes)

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """One frame after all changes."""
        for step in self.passes:
            source = step.render_frame(t, source)
        return source

    def weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """How much of each pixel each layer fills after the last change; sums to one."""
        return self.passes[-1].weights(t, size) if self.passes else super().weights(t, size)

    def reach(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Where any of the changes may change a frame."""
        found = np.zeros((size[1], size[0]), bool)
        for step in self.passes:
            found |= step.reach(t, size)
        return found


@dataclass(frozen=True)
class Painter:
    """What one edit does to the canonical picture of a layer, as far as a still picture can show it."""

    layer: str
    strength: Strength
    paint: Callable[[CanonicalImage], CanonicalImage]


def changer_of(
    maps: Maps, pictures: Mapping[str, CanonicalImage], edits: Sequence[Edit], frames: Sequence[int]
) -> FrameChanger:
    """What puts some edits on the frames of a run.

    Args:
        pictures: the exported canonical picture of every layer.
        edits: the lowest first.
        frames: the number in the source of each frame of the run.

    Raises:
        UserError: a missing, damaged or changed file of an edit (exit 5).
    """
    hidden = _hidden(edits, frames)
    hider = Hider(maps, pictures, hidden) if hidden else None
    shown_maps = maps if hider is None else hider.shown
    looks = _Looks(maps.layers, pictures)
    passes: list[FrameChanger] = [] if hider is None else [hider]
    for group in _groups(edits):
        if _is_plain(group[0]):
            found = {name: flat for name in maps.layers if (flat := flatten(group, name)) is not None}
            if found:
                passes.append(Renderer(shown_maps, pictures, found, How(looks=looks.at_this_point())))
        else:
            passes += _of_one(group[0], shown_maps, pictures, looks, frames)
        for edit in group:
            looks.add(painters(edit, frames))
    if shapes := shapes_of(edits, frames):
        passes.append(Reshaper(shown_maps, pictures, {}, shapes, looks.at_this_point()))
    return passes[0] if len(passes) == 1 else Passes(maps, passes)


def painters(edit: Edit, frames: Sequence[int] = ()) -> Iterator[Painter]:
    """What an edit does to canonical pictures, by layer. Without `frames`, its place in time does not count."""
    # Files are read where a picture is painted: most stacks never need to, and have read them once for their passes.
    strength = _strength(edit.paint, frames)
    for layer in edit.facts["layers"]:
        yield Painter(layer, strength, partial(_painted, edit, layer))
    for layer in edit.facts.get("grades", {}):
        yield Painter(layer, strength, partial(_graded, edit, layer))


def _painted(edit: Edit, layer: str, picture: CanonicalImage) -> CanonicalImage:
    """A picture with the overlay of an edit on it."""
    blend, opacity = blend_of(edit.paint.blend), edit.paint.opacity
    paint, under = fit(read_overlay(edit, layer), picture.size, picture.box), picture.array()
    colour = paint[..., :3] if blend is None else blend(paint[..., :3], under[..., :3])
    share = opacity * paint[..., 3:]
    mixed = straight(
        (np.concatenate([colour * share, share], -1) + premultiplied(under) * (1 - share)).astype(np.float32)
    )
    mixed[..., :3] = np.where(mixed[..., 3:] > 1e-6, mixed[..., :3], under[..., :3])
    return _with_pixels(picture, mixed)


def _graded(edit: Edit, layer: str, picture: CanonicalImage) -> CanonicalImage:
    """A picture with its colours graded where the edit's mask says; its coverage stays."""
    mask, grade, under = read_mask(edit, layer), Grade.from_json(edit.facts["grades"][layer]), picture.array()
    share = edit.paint.opacity * (1.0 if mask is None else fit(mask, picture.size, picture.box)[..., 3:])
    colour = under[..., :3] + share * (grade.apply(under[..., :3]) - under[..., :3])
    return _with_pixels(picture, np.concatenate([colour, under[..., 3:]], axis=-1).astype(np.float32))


def _with_pixels(picture: CanonicalImage, rgba: Float[np.ndarray, "h w 4"]) -> CanonicalImage:
    return CanonicalImage(torch.from_numpy(rgba).permute(2, 0, 1).contiguous(), picture.box, picture.layer)


def _groups(edits: Sequence[Edit]) -> Iterator[list[Edit]]:
    """Edits that can be flattened together, and each of the others alone, in their order."""
    group: list[Edit] = []
    for edit in edits:
        if group and _is_plain(edit) and _is_plain(group[0]) and _share_boxes([*group, edit]):
            group.append(edit)
            continue
        if group:
            yield group
        group = [edit]
    if group:
        yield group


def _is_plain(edit: Edit) -> bool:
    lies, facts = edit.paint, edit.facts
    more = any(facts.get(key) for key in ("moving", "grades"))
    return lies.blend == "normal" and not lies.changes_in_time and not more and facts.get("lit", True)


def _share_boxes(edits: Sequence[Edit]) -> bool:
    """Whether the overlays of each layer cover the same box: only then does none get coarser by flattening."""
    boxes: dict[str, set[tuple[float, ...]]] = {}
    for edit in edits:
        for layer, entry in edit.facts["layers"].items():
            boxes.setdefault(layer, set()).add(tuple(entry["box"]))
    return all(len(found) == 1 for found in boxes.values())


def _of_one(
    edit: Edit, maps: Maps, pictures: Mapping[str, CanonicalImage], looks: _Looks, frames: Sequence[int]
) -> Iterator[FrameChanger]:
    """The passes of an edit that is not plain."""
    seen, shown = looks.at_this_point(), _strength(edit.paint, frames, edit.paint.opacity)
    how = How(shown, blend_of(edit.paint.blend), bool(edit.facts.get("lit", True)), seen)
    if overlays := {layer: read_overlay(edit, layer) for layer in edit.facts["layers"]}:
        yield Renderer(maps, pictures, overlays, how)
    for layer, value in edit.facts.get("grades", {}).items():
        yield Grader(maps, pictures, layer, Grade.from_json(value), read_mask(edit, layer), How(shown, looks=seen))
    for layer in edit.facts.get("moving", {}):
        yield Mover(maps, pictures, layer, read_moving(edit, layer, len(frames)), how)


def _strength(lies: Arrangement, frames: Sequence[int], opacity: float = 1.0) -> Strength:
    """How much of an edit that lies so each frame of the run shows, times an opacity."""
    return partial(_shown, lies, frames, opacity)


def _shown(lies: Arrangement, frames: Sequence[int], opacity: float, t: int) -> float:
    return opacity * (lies.strength(frames[t]) if frames else 1.0)


def _hidden(edits: Sequence[Edit], frames: Sequence[int]) -> dict[str, list[tuple[Strength, float]]]:
    """By layer: how much of it is hidden in each frame, and by how many pixels that is widened."""
    found: dict[str, list[tuple[Strength, float]]] = {}
    for edit in edits:
        for layer in edit.facts.get("hidden", ()):
            how = (_strength(edit.arrangement, frames, edit.arrangement.opacity), float(edit.facts.get("grow", 0)))
            found.setdefault(layer, []).append(how)
    return found


def shapes_of(edits: Sequence[Edit], frames: Sequence[int] = ()) -> dict[str, list[Shape]]:
    """The shapes of some edits by layer, the lowest first. Without `frames`, their place in time does not count.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    found: dict[str, list[Shape]] = {}
    for edit in edits:
        for layer in edit.facts.get("shapes", {}):
            shape = read_shape(edit, layer)
            shown = _strength(edit.paint, frames, edit.paint.opacity)
            found.setdefault(layer, []).append(Shape(shape.field, shape.box, shown))
    return found


class _Looks:
    """How the layers look, by frame, after the edits that were added so far."""

    def __init__(self, layers: Sequence[str], pictures: Mapping[str, CanonicalImage]) -> None:
        self.layers = layers
        self.pictures = pictures
        self.painters: list[Painter] = []

    def add(self, painters: Iterator[Painter]) -> None:
        """One more edit."""
        self.painters += painters

    def at_this_point(self) -> Callable[[int], Canonicals] | None:
        """The looks by frame of the run; later edits do not change them. None: as exported."""
        painters = tuple(self.painters)
        if not painters:
            return None

        @lru_cache(maxsize=3)
        def painted(shown: tuple[bool, ...]) -> Canonicals:
            found = dict(self.pictures)
            for painter, is_shown in zip(painters, shown, strict=True):
                if is_shown:
                    found[painter.layer] = painter.paint(found[painter.layer])
            return [(found[name].array(), found[name].box) for name in self.layers]

        return lambda t: painted(tuple(painter.strength(t) > 0.5 for painter in painters))

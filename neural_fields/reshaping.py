"""Shapes: a layer is deformed in its canonical plane, and so in every frame.

A shape is a displacement d of the plane, backward: the deformed layer shows at uv what it showed at uv - d(uv). With
m_t the uv map of frame t, pixel x then shows what lay at y, with m_t(y) = m_t(x) - d(m_t(x)). To first order that is
the displacement pushed through the inverse of the map's Jacobian, as in Lee et al., "Shape-aware Text-driven Layered
Video Editing" (CVPR 2023, 3.2) and, for points, in Gu et al., "VideoSwap" (CVPR 2024, 3.3); Newton's method goes on
from there, so that a large displacement ends where it should.

The pixels of the object come from the frame itself, as sharp and as lit as they are. Where the object was and is no
longer, the layers behind show their canonical pictures, matched in light to the pixels around. Pixels that nothing
reaches stay the source's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.coords import Box
from neural_fields.extended_map import ExtendedMap, extend
from neural_fields.frame_parts import Part
from neural_fields.lookup import scattered
from neural_fields.planar.placement import pull_push
from neural_fields.rendering import Canonicals, How, Renderer
from neural_fields.taking_apart import FREE, Scene, TakingApart, picture_at

SEEN = 0.5  # weight from which a pixel says where its layer lies
STILL = 0.02  # pixels; what moves less stays as it is
LOST = 1.0  # pixels; a position that is further off was not found
TOUCHED = 0.5 / 255  # less of a layer than this is not in a pixel


@dataclass(frozen=True)
class Shape:
    """A deformation of one layer.

    Attributes:
        field: displacement in uv units at the middles of equal cells of `box`; zero at its rim, and beyond.
        box: the part of the canonical plane that is deformed.
        strength: how much of it frame `t` of a run shows, 0 to 1.
    """

    field: Float[np.ndarray, "2 height width"]
    box: Box
    strength: Callable[[int], float] = lambda t: 1.0

    def in_frame(self, t: int) -> Shape:
        """As much of it as frame `t` shows."""
        strength = self.strength(t)
        return self if strength == 1 else Shape(np.float32(strength) * self.field, self.box)

    def at(self, uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """The displacement at any uv."""
        height, width = self.field.shape[1:]
        x = (uv[:, 0] - self.box.u0) / self.box.width * width - 0.5
        y = (uv[:, 1] - self.box.v0) / self.box.height * height - 0.5
        image = np.ascontiguousarray(np.moveaxis(self.field, 0, -1))
        return scattered(image, x.astype(np.float32), y.astype(np.float32))


def frame_map(maps: Maps, t: int, layer: int) -> ExtendedMap | None:
    """Where a layer lies in frame `t`, also beyond what is seen of it; None where too little of it is seen."""
    return extend(maps.uv_small(t, layer), maps.layer_weight_small(t, layer) >= SEEN)


def moves(found: ExtendedMap, shapes: Sequence[Shape]) -> Float[np.ndarray, "height width 2"]:
    """The backward displacement of every pixel of a frame: pixel x shows what lay at x minus this.

    Args:
        shapes: oldest first; each deforms what those before it show.
    """
    height, width = found.uv.shape[:2]
    uv = found.uv.reshape(-1, 2)
    from_uv = uv
    for shape in reversed(shapes):
        from_uv = from_uv - shape.at(from_uv)
    x = (np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2) + 0.5).astype(np.float64)
    result = np.zeros_like(x)
    moved = np.abs(from_uv - uv).max(axis=1) > 1e-7
    slope = found.slope_at(x[moved]).astype(np.float64)
    first = np.linalg.solve(slope, (from_uv - uv)[moved, :, None])[..., 0]
    y, off = found.solve(from_uv[moved], x[moved] + first)
    result[moved] = x[moved] - y
    known = np.ones(len(x), bool)
    known[moved] = off < LOST
    plane = result.reshape(height, width, 2).astype(np.float32)
    return plane if known.all() else pull_push(plane, known.reshape(height, width))


class Reshaper(Renderer):
    """Puts overlays on source frames and then deforms layers, with what is painted on them.

    Args:
        maps, canonicals, overlays: as `Renderer`.
        shapes: by layer, oldest first.
        looks: how the layers look in frame `t` before the overlays; by default as their canonical pictures.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        overlays: Mapping[str, Overlay],
        shapes: Mapping[str, Sequence[Shape]],
        looks: Callable[[int], Canonicals] | None = None,
    ) -> None:
        super().__init__(maps, canonicals, overlays, How(looks=looks))
        self.shapes = {maps.layers.index(name): tuple(parts) for name, parts in shapes.items()}
        images = {name: image.over(overlays[name]) if name in overlays else image for name, image in canonicals.items()}
        painted = [(images[name].array(), images[name].box) for name in maps.layers]
        self.apart = TakingApart(maps, looks or (lambda t: painted))

    @property
    def changes_something(self) -> bool:
        """Whether a frame can come out different."""
        return bool(self.edits or self.shapes)

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """One frame with the overlays on it and the layers deformed, at the size of `source`."""
        return self.deformed(t, super().render_frame(t, source))[0]

    def deformed(
        self, t: int, frame: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[UInt8[np.ndarray, "height width 3"], Float[np.ndarray, "layers height width"]]:
        """A frame with its layers deformed, and how much of each pixel each layer then fills; sums to one."""
        size = (frame.shape[1], frame.shape[0])
        weights = self.maps.weight(t, size)
        for layer in sorted(self.shapes, reverse=True):  # what lies behind is there before something is put on it
            move = self._move(t, layer, size)
            if move is not None:
                frame = self._reshaped(t, layer, frame, weights, move)
        return frame, weights

    def weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """How much of each pixel each layer fills after it was deformed; sums to one."""
        return self.deformed(t, np.zeros((size[1], size[0], 3), np.uint8))[1]

    def reach(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Where overlays and shapes change a frame of `size` (width, height)."""
        result = super().reach(t, size)
        weights = self.maps.weight(t, size)
        for layer in self.shapes:
            move = self._move(t, layer, size)
            if move is not None:
                result |= _changed(weights, layer, move)
        return result

    def places(self, t: int, layer: int, size: tuple[int, int]) -> Float[np.ndarray, "height width 2"]:
        """Where in a frame of `size` each pixel's part of a layer lay before it was deformed, in pixels."""
        move, pixels = self._move(t, layer, size), _pixels((slice(0, size[1]), slice(0, size[0])))
        return pixels if move is None else pixels - move

    def _move(self, t: int, layer: int, size: tuple[int, int]) -> Float[np.ndarray, "height width 2"] | None:
        """The backward displacement in pixels of a frame of `size`; None where nothing moves."""
        found = frame_map(self.maps, t, layer)
        if found is None:
            return None
        move = moves(found, [shape.in_frame(t) for shape in self.shapes[layer]])
        if np.abs(move).max() < STILL:
            return None
        scale = np.array(size, np.float32) / np.array(self.maps.size, np.float32)
        return cv2.resize(move, size, interpolation=cv2.INTER_LINEAR) * scale

    def _reshaped(
        self,
        t: int,
        layer: int,
        frame: UInt8[np.ndarray, "height width 3"],
        weights: Float[np.ndarray, "layers height width"],
        move: Float[np.ndarray, "height width 2"],
    ) -> UInt8[np.ndarray, "height width 3"]:
        """A frame with one layer deformed; `weights` become those of the new frame."""
        changed = _changed(weights, layer, move)
        part = _window(changed, move)
        if part is None:
            return frame
        size = (frame.shape[1], frame.shape[0])
        seen = frame[part].astype(np.float32)
        scene = self.apart.scene(t, layer, seen, weights[(slice(None), *part)], size, part)
        places = _pixels(part) - move[part]
        body, opacity = self._body(t, layer, scene, places, size, part)
        free = 1 - scene.front_weight
        shown = scene.front + (1 - opacity) * scene.rest + free * body
        here = changed[part]
        result = frame.copy()
        result[part][here] = np.clip(np.rint(shown), 0, 255).astype(np.uint8)[here]
        new = scene.weights_with(layer, free[..., 0] * opacity[..., 0])
        for number, plane in enumerate(new):
            weights[number][part][here] = plane[here]
        return result

    def _body(
        self, t: int, layer: int, scene: Scene, places: np.ndarray, size: tuple[int, int], part: Part
    ) -> tuple[Float[np.ndarray, "rows columns 3"], Float[np.ndarray, "rows columns 1"]]:
        """The deformed layer, premultiplied, and its opacity, as if nothing were in front of it.

        Where something was in front, or the object came from beyond the frame, from its canonical picture.
        """
        corner = np.array([part[1].start, part[0].start])
        taken = _take(np.concatenate([scene.own, 1 - scene.front_weight], axis=-1), places - corner)
        free = np.clip(taken[..., 4:], 0, 1)
        inside = ((places >= 0) & (places <= np.array(size))).all(axis=-1, keepdims=True)
        sure = np.clip(free / FREE, 0, 1) * inside
        opacity = np.clip(taken[..., 3:4] / np.maximum(free, FREE / 2), 0, 1)
        body = taken[..., :3] / np.maximum(free, FREE / 2)
        doubt = sure[..., 0] < 1
        if doubt.any():
            colour, known = self._from_picture(t, layer, places[doubt], size)
            body[doubt] = sure[doubt] * body[doubt] + (1 - sure[doubt]) * known * colour
            opacity[doubt] = sure[doubt] * opacity[doubt] + (1 - sure[doubt]) * known
        return body, opacity

    def _from_picture(
        self, t: int, layer: int, places: Float[np.ndarray, "n 2"], size: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 1"]]:
        """Colours of positions by the canonical picture of a layer, and where it was ever seen."""
        found = frame_map(self.maps, t, layer)
        assert found is not None, "nothing moves where nothing is seen"
        small = places * (np.array(self.maps.size) / np.array(size))
        image, box = self.apart.looks(t)[layer]
        colour = picture_at(image, box, found.at(small))
        x, y = (np.clip(places[:, axis], 0, size[axis] - 1).astype(np.float32) for axis in (0, 1))
        return 255 * colour[:, :3] * self.maps.at(t, x, y, size).gain[layer], colour[:, 3:]


def _changed(
    weights: Float[np.ndarray, "layers height width"], layer: int, move: Float[np.ndarray, "height width 2"]
) -> Bool[np.ndarray, "height width"]:
    """Pixels that move and show the layer before or after, or may: what comes from where the frame does not tell."""
    height, width = weights.shape[1:]
    places = _pixels((slice(0, height), slice(0, width))) - move
    here = np.stack([weights[layer], weights[:layer].sum(axis=0)], axis=-1)
    own, front = np.moveaxis(_take(here, places), -1, 0)
    hidden = (front > TOUCHED) & (here[..., 1] < 1 - TOUCHED)
    beyond = ((places < 0) | (places > (width, height))).any(axis=-1)
    shown = (weights[layer] > TOUCHED) | (own > TOUCHED) | hidden | beyond
    return (np.abs(move).max(axis=-1) > STILL) & shown


def _window(changed: Bool[np.ndarray, "height width"], move: Float[np.ndarray, "height width 2"]) -> Part | None:
    """The rows and columns of the pixels that change, of those they come from, and of some around them."""
    if not changed.any():
        return None
    height, width = changed.shape
    rows, columns = np.nonzero(changed)
    from_x, from_y = columns - move[..., 0][changed], rows - move[..., 1][changed]
    around = 4 + round(0.02 * max(height, width))  # for the light of the surroundings
    low = np.floor([min(rows.min(), from_y.min()), min(columns.min(), from_x.min())]).astype(int) - around
    high = np.ceil([max(rows.max(), from_y.max()), max(columns.max(), from_x.max())]).astype(int) + around + 1
    return slice(max(0, int(low[0])), min(height, int(high[0]))), slice(max(0, int(low[1])), min(width, int(high[1])))


def _pixels(part: Part) -> Float[np.ndarray, "rows columns 2"]:
    """Positions of the pixel centres of a part of a frame."""
    rows, columns = part
    x, y = np.meshgrid(np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop))
    return (np.stack([x, y], axis=-1) + 0.5).astype(np.float32)


def _take(image: Float[np.ndarray, "h w c"], places: Float[np.ndarray, "rows columns 2"]) -> np.ndarray:
    """Cubic lookup of positions in pixels; beyond the edges the edge goes on."""
    x, y = (np.ascontiguousarray(places[..., axis] - 0.5, np.float32) for axis in (0, 1))
    planes = [
        cv2.remap(np.ascontiguousarray(image[..., c]), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        for c in range(image.shape[2])
    ]
    return np.stack(planes, axis=-1)

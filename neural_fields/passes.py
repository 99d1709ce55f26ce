"""Changes of frames beyond a still overlay: grades, and overlays that are another in every frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.coords import Box
from neural_fields.frame_parts import Part
from neural_fields.grading import Grade, smoothed
from neural_fields.moving import Moving
from neural_fields.pictures import premultiplied, resize
from neural_fields.rendering import ALONE, FrameChanger, How, Renderer, prepare
from neural_fields.taking_apart import picture_at

EVERYWHERE = 100.0  # times the size of a layer's box: no uv of a layer lies beyond


class Grader(Renderer):
    """Grades what frames show of a layer.

    Args:
        maps, canonicals, how: as `Renderer`.
        mask: its alpha says where on the canonical plane; None: everywhere.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        layer: str,
        grade: Grade,
        mask: Overlay | None,
        how: How,
    ) -> None:
        super().__init__(maps, canonicals, {layer: mask or _everywhere(canonicals[layer].box)}, how)
        self.grade = grade
        self.layer = maps.layers.index(layer)
        self._around: dict[float, np.ndarray] = {}

    @property
    def mixes(self) -> bool:
        return True

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """One frame with the grade on it."""
        self._around = {}
        if self.grade.looks_around and self.how.strength(t) > 0:
            size = (source.shape[1], source.shape[0])
            weight, plain = self.maps.layer_weight(t, self.layer, size), source.astype(np.float32)
            for share in {self.grade.blur, self.grade.radius if self.grade.sharpen else 0.0} - {0.0}:
                self._around[share] = smoothed(plain, weight, max(0.1, share * max(size)))
        return super().render_frame(t, source)

    def _blended(
        self, paint: Float[np.ndarray, "rows columns 4"], under: Float[np.ndarray, "rows columns 3"], part: Part
    ) -> Float[np.ndarray, "rows columns 4"]:
        """What the layer shows in a part of the frame, graded, the mask as alpha; premultiplied, in 8-bit units."""
        grade, alpha = self.grade, paint[..., 3:]
        seen = self._around[grade.blur][part] if grade.blur else under
        if grade.sharpen:
            seen = seen + grade.sharpen * (under - self._around[grade.radius][part])
        found = 255 * grade.apply(np.clip(seen / 255, 0, 1))
        return np.concatenate([found * alpha, alpha], axis=-1).astype(np.float32)


class Mover(FrameChanger):
    """Puts an overlay of its own on every frame.

    Args:
        maps, canonicals, how: as `Renderer`.
        moving: the overlays of a layer.
    """

    def __init__(
        self, maps: Maps, canonicals: Mapping[str, CanonicalImage], layer: str, moving: Moving, how: How
    ) -> None:
        self.maps = maps
        self.layer = maps.layers.index(layer)
        self.moving = moving
        self.renderer = Renderer(maps, canonicals, {}, how)
        self._rest: Iterator[np.ndarray] = iter(())
        self._next = moving.count
        self._last: tuple[int, np.ndarray] | None = None

    @property
    def changes_something(self) -> bool:
        return True

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """One frame with its overlay on it."""
        strength = self.renderer.how.strength(t)
        if strength <= 0:
            return source
        rgba = self._frame(t)
        if not rgba[..., 3].any():
            return source
        if self.moving.box is None:
            return self._over_frame(t, rgba, strength, source)
        self._put_on(rgba)
        return self.renderer.render_frame(t, source)

    def reach(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Where the overlay is not transparent and its layer is seen."""
        rgba = self._frame(t)
        if self.moving.box is None:
            alpha = cv2.resize(rgba[..., 3], size, interpolation=cv2.INTER_LINEAR)
            return (alpha > 0) & (self.maps.layer_weight(t, self.layer, size) > 0)
        self._put_on(rgba)
        return self.renderer.reach(t, size)

    def _put_on(self, rgba: UInt8[np.ndarray, "h w 4"]) -> None:
        assert self.moving.box is not None
        self.renderer.edits = {self.layer: prepare(Overlay(rgba.astype(np.float32) / 255, self.moving.box))}

    def _frame(self, t: int) -> UInt8[np.ndarray, "h w 4"]:
        """The overlay of a frame; quick where frames are asked for in their order."""
        t = min(t, self.moving.count - 1)
        if self._last is not None and self._last[0] == t:
            return self._last[1]
        if t < self._next:
            self._rest, self._next = self.moving.frames(), 0
        while self._next <= t:
            found = next(self._rest)
            self._next += 1
        self._last = (t, found)
        return found

    def _over_frame(
        self, t: int, rgba: UInt8[np.ndarray, "h w 4"], strength: float, source: UInt8[np.ndarray, "height width 3"]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """A frame whose layer shows the overlay laid over the frame itself."""
        size, how = (source.shape[1], source.shape[0]), self.renderer.how
        under = self._layer_alone(t, source)
        paint = resize(premultiplied(rgba.astype(np.float32) / 255), size)
        top, alpha = paint[..., :3], paint[..., 3:]
        if how.blend is not None:
            straight = np.clip(top / np.maximum(alpha, 1e-6), 0, 1)
            top = alpha * how.blend(straight, np.clip(under / 255, 0, 1))
        elif how.lit:
            top = top * self.maps.gain(t, self.layer, size)
        share = strength * self.maps.layer_weight(t, self.layer, size)[..., None]
        changed = np.rint(source + share * (255 * top - alpha * under)).clip(0, 255).astype(np.uint8)
        return np.where(share * alpha > 0, changed, source)

    def _layer_alone(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
        """What a frame shows of the layer, also where others share the pixel; in 8-bit units."""
        size = (source.shape[1], source.shape[0])
        weight = self.maps.layer_weight(t, self.layer, size)
        under = source.astype(np.float32)
        y, x = np.nonzero((weight > 0) & (weight < ALONE))
        if not len(y):
            return under
        found = self.maps.at(t, x.astype(np.float32), y.astype(np.float32), size)
        looks = self.renderer.canonicals if self.renderer.how.looks is None else self.renderer.how.looks(t)
        lit = [picture_at(*look, uv)[:, :3] * gain for look, uv, gain in zip(looks, found.uv, found.gain, strict=True)]
        seen = sum(weight[:, None] * colour for weight, colour in zip(found.weight, lit, strict=True))
        under[y, x] += 255 * (lit[self.layer] - seen)
        return under


def _everywhere(box: Box) -> Overlay:
    """An opaque overlay that covers all of a canonical plane."""
    u, v = (box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2
    half = EVERYWHERE * max(box.width, box.height)
    return Overlay(np.ones((8, 8, 4), np.float32), Box(u - half, v - half, u + half, v + half))

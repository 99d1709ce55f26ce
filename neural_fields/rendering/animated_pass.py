"""Animated overlays: one picture for every frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.imaging.alpha import premultiply, resize_image
from neural_fields.rendering.base import OverlayOptions, RenderPass
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.layer_decomposition import sample_canonical
from neural_fields.rendering.overlay_pass import DEFAULTS, OverlayPass, OverlaySettings
from neural_fields.rendering.picture_lookup import PictureLookup


class AnimatedPass(RenderPass):
    """Composites a different overlay onto each frame.

    Args:
        maps, canonicals, options: as for `OverlayPass`.
        layer: name of the layer.
        animation: the overlays of the layer.
        settings: thresholds of putting overlays on frames.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        layer: str,
        animation: AnimatedOverlay,
        options: OverlayOptions,
        settings: OverlaySettings = DEFAULTS,
    ) -> None:
        self.maps = maps
        self.layer = maps.layers.index(layer)
        self.animation = animation
        self.overlay_pass = OverlayPass(maps, canonicals, {}, options, settings=settings)
        self.settings = settings
        self._rest: Iterator[np.ndarray] = iter(())
        self._next = animation.count
        self._last: tuple[int, np.ndarray] | None = None

    @property
    def changes_something(self) -> bool:
        """Always True: the overlays are only read when frames are rendered."""
        return True

    def render_frame(
        self, t: int, source: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with its overlay on it."""
        strength = self.overlay_pass.options.strength(t)
        if strength <= 0:
            return source
        rgba = self._read_overlay(t)
        if not rgba[..., 3].any():
            return source
        if self.animation.box is not None:  # it lies on the canonical plane
            self._set_overlay(rgba)
            return self.overlay_pass.render_frame(t, source, edges)

        # It covers the frame and is put on the pixels of the layer.
        size, how = (source.shape[1], source.shape[0]), self.overlay_pass.options
        weight = (edges or FrameEdges(t, source)).read_weight(self.maps, self.layer)

        # The colors of the layer alone, also in pixels that it shares with others; in 8-bit units.
        under = source.astype(np.float32)
        y, x = np.nonzero((weight > 0) & (weight < self.settings.full_weight))
        if len(y):
            samples = self.maps.sample_at_points(t, x.astype(np.float32), y.astype(np.float32), size)
            lit = []
            for (image, box), uv, gain in zip(
                self.overlay_pass.canonicals_at(t), samples.uv, samples.gain, strict=True
            ):
                lit.append(sample_canonical(image, box, uv)[:, :3] * gain)
            seen = sum(part[:, None] * color for part, color in zip(samples.weight, lit, strict=True))
            coarse = samples.weight[self.layer]
            excess = (lit[self.layer] - seen) * ((1 - weight[y, x]) / np.maximum(1 - coarse, 1e-3))[:, None]
            under[y, x] += 255 * excess

        paint = resize_image(premultiply(rgba.astype(np.float32) / 255), size)
        top, alpha = paint[..., :3], paint[..., 3:]
        if how.blend is not None:
            straight = np.clip(top / np.maximum(alpha, 1e-6), 0, 1)
            top = alpha * how.blend(straight, np.clip(under / 255, 0, 1))
        elif how.lit:
            top = top * self.maps.read_gain(t, self.layer, size)
        share = strength * weight[..., None]
        changed = np.rint(source + share * (255 * top - alpha * under)).clip(0, 255).astype(np.uint8)
        return np.where(share * alpha > 0, changed, source)

    def affected_mask(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns where the overlay is not transparent and its layer is visible."""
        rgba = self._read_overlay(t)
        if self.animation.box is None:
            alpha = cv2.resize(rgba[..., 3], size, interpolation=cv2.INTER_LINEAR)
            return (alpha > 0) & (self.maps.read_layer_weight(t, self.layer, size) > 0)
        self._set_overlay(rgba)
        return self.overlay_pass.affected_mask(t, size)

    def _set_overlay(self, rgba: UInt8[np.ndarray, "h w 4"]) -> None:
        """Makes an overlay on the canonical plane the one that the renderer puts on."""
        assert self.animation.box is not None
        overlay = Overlay(rgba.astype(np.float32) / 255, self.animation.box)
        self.overlay_pass.lookups = {self.layer: PictureLookup.build(overlay)}

    def _read_overlay(self, t: int) -> UInt8[np.ndarray, "h w 4"]:
        """Reads the overlay of a frame; quick where frames are read in their order."""
        t = min(t, self.animation.count - 1)
        if self._last is not None and self._last[0] == t:
            return self._last[1]
        if t < self._next:
            self._rest, self._next = self.animation.frames(), 0
        while self._next <= t:
            found = next(self._rest)
            self._next += 1
        self._last = (t, found)
        return found

"""The warp pass: a layer is deformed in its canonical plane, and so in every frame.

A shape is a displacement d of the plane, backward: the deformed layer shows at uv what it showed at uv - d(uv). With
m_t the uv map of frame t, pixel x then shows what was at y, with m_t(y) = m_t(x) - d(m_t(x)). To first order that is
the displacement pushed through the inverse of the map's Jacobian, as in Lee et al., "Shape-aware Text-driven Layered
Video Editing" (CVPR 2023, 3.2) and, for points, in Gu et al., "VideoSwap" (CVPR 2024, 3.3); Newton's method continues
from there, so that a large displacement is followed exactly.

The pixels of the object come from the frame itself, as sharp and as lit as they are. Where the object no longer is,
the layers behind show their canonical pictures, matched in light to the surrounding pixels. All other pixels stay the
source's, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap, ExtrapolationSettings, extrapolate_frame_map
from neural_fields.atlas.uv_maps import Maps
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.push_pull import pull_push
from neural_fields.imaging.tiles import Part
from neural_fields.rendering.base import Canonicals, OverlayOptions
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.layer_decomposition import LayerDecomposer, LayerDecomposition, sample_canonical
from neural_fields.rendering.overlay_pass import OverlayPass


@dataclass(frozen=True)
class DeformationSettings:
    """Settings of the deformation of layers."""

    min_motion_px: float = 0.02  # pixels that move less are not changed
    min_visible_weight: float = 0.5 / 255  # a pixel with less weight of the layer does not show it
    # Where layers in front leave at least this share of a pixel, the frame gives the layer's color.
    min_free_share: float = 0.5
    # Margin around the change in which light is measured, as a share of the frame's longer side.
    light_margin_share: float = 0.03


DEFAULTS = DeformationSettings()


def compute_displacement(
    uv_map: ExtrapolatedMap, deformations: Sequence[Deformation], settings: ExtrapolationSettings = EXTRAPOLATION
) -> Float[np.ndarray, "height width 2"]:
    """Computes the backward displacement of every pixel of a frame: pixel x shows the color at x minus this.

    Args:
        uv_map: the uv map of the layer in the frame.
        deformations: oldest first; each deforms the result of those before it.
        settings: largest error of a position.

    Returns:
        Pixels of the maps.
    """
    height, width = uv_map.uv.shape[:2]
    uv = uv_map.uv.reshape(-1, 2)
    from_uv = uv
    for shape in reversed(deformations):
        from_uv = from_uv - shape.displacement_at(from_uv)
    x = (np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2) + 0.5).astype(np.float64)
    result = np.zeros_like(x)
    moved = np.abs(from_uv - uv).max(axis=1) > 1e-7
    slope = uv_map.sample_jacobian(x[moved]).astype(np.float64)
    first = np.linalg.solve(slope, (from_uv - uv)[moved, :, None])[..., 0]
    y, off = uv_map.solve_positions(from_uv[moved], x[moved] + first)
    result[moved] = x[moved] - y
    known = np.ones(len(x), bool)
    known[moved] = off < settings.max_error_px
    plane = result.reshape(height, width, 2).astype(np.float32)
    return plane if known.all() else pull_push(plane, known.reshape(height, width))


class WarpPass(OverlayPass):
    """Puts overlays on source frames and then deforms the layers together with their overlays.

    Args:
        maps, canonicals, overlays: as for `OverlayPass`.
        deformations: the deformations of each layer, oldest first.
        canonicals_at: the canonical pictures of all layers before the overlays, by frame; by default those that were
            exported.
        deformation: thresholds of deforming.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        overlays: Mapping[str, Overlay],
        deformations: Mapping[str, Sequence[Deformation]],
        canonicals_at: Callable[[int], Canonicals] | None = None,
        deformation: DeformationSettings = DEFAULTS,
    ) -> None:
        super().__init__(maps, canonicals, overlays, OverlayOptions(canonicals_at=canonicals_at))
        self.deformation = deformation
        self.deformations = {maps.layers.index(name): tuple(parts) for name, parts in deformations.items()}
        images = {
            name: image.composite_overlay(overlays[name]) if name in overlays else image
            for name, image in canonicals.items()
        }
        painted = [(images[name].rgba, images[name].box) for name in maps.layers]
        self.decomposer = LayerDecomposer(maps, canonicals_at or (lambda t: painted))

    @property
    def changes_something(self) -> bool:
        """Whether the pass can change any frame."""
        return bool(self.lookups or self.deformations)

    def render_frame(
        self, t: int, source: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with the overlays on it and the layers deformed, at the size of `source`."""
        edges = edges or FrameEdges(t, source)
        return self.deform_frame(t, super().render_frame(t, source, edges), edges)[0]

    def deform_frame(
        self, t: int, frame: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> tuple[UInt8[np.ndarray, "height width 3"], Float[np.ndarray, "layers height width"]]:
        """Deforms the layers of a frame; also returns the share of each pixel that each layer then fills."""
        size = (frame.shape[1], frame.shape[0])
        weights = self.maps.read_weights(t, size) if edges is None else edges.read_weights(self.maps)
        for layer in sorted(
            self.deformations, reverse=True
        ):  # back to front: what a layer uncovers is already deformed
            move = self._displacement(t, layer, size)
            if move is None:
                continue
            changed = self._changed_mask(weights, layer, move)
            if not changed.any():
                continue
            # The part to work on: the pixels that change, those they come from, and some around them for the light.
            height, width = changed.shape
            rows, columns = np.nonzero(changed)
            from_x, from_y = columns - move[..., 0][changed], rows - move[..., 1][changed]
            margin = math.ceil(self.deformation.light_margin_share * max(height, width))
            low = np.floor([min(rows.min(), from_y.min()), min(columns.min(), from_x.min())]).astype(int) - margin
            high = np.ceil([max(rows.max(), from_y.max()), max(columns.max(), from_x.max())]).astype(int) + margin + 1
            part = (
                slice(max(0, int(low[0])), min(height, int(high[0]))),
                slice(max(0, int(low[1])), min(width, int(high[1]))),
            )
            # The layer at its new place, between the layers in front and those behind.
            seen = frame[part].astype(np.float32)
            split = self.decomposer.decompose_part(t, layer, seen, weights[(slice(None), *part)], (width, height), part)
            places = _pixel_centers(part) - move[part]
            body, opacity = self._warp_layer(t, layer, split, places, (width, height), part)
            free = 1 - split.front_weight
            shown = split.front + (1 - opacity) * split.rest + free * body
            here = changed[part]
            result = frame.copy()
            result[part][here] = np.clip(np.rint(shown), 0, 255).astype(np.uint8)[here]
            # The weights of the layers in the new frame.
            new = split.replace_weight(layer, free[..., 0] * opacity[..., 0])
            for number, plane in enumerate(new):
                weights[number][part][here] = plane[here]
            frame = result
        return frame, weights

    def layer_weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """Returns the share of each pixel that each layer fills after the deformation; the shares sum to one."""
        return self.deform_frame(t, np.zeros((size[1], size[0], 3), np.uint8))[1]

    def affected_mask(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns where overlays and shapes change a frame of `size` (width, height)."""
        result = super().affected_mask(t, size)
        weights = self.maps.read_weights(t, size)
        for layer in self.deformations:
            move = self._displacement(t, layer, size)
            if move is not None:
                result |= self._changed_mask(weights, layer, move)
        return result

    def source_positions(self, t: int, layer: int, size: tuple[int, int]) -> Float[np.ndarray, "height width 2"]:
        """Returns the positions in a frame of `size`, in pixels, from which the deformation takes each pixel.

        Args:
            t: frame of the run.
            layer: number of the layer.
            size: (width, height) of the frame.
        """
        move, pixels = self._displacement(t, layer, size), _pixel_centers((slice(0, size[1]), slice(0, size[0])))
        return pixels if move is None else pixels - move

    def _displacement(self, t: int, layer: int, size: tuple[int, int]) -> Float[np.ndarray, "height width 2"] | None:
        """Computes the backward displacement in pixels of a frame of `size`; None where nothing moves."""
        found = extrapolate_frame_map(self.maps, t, layer)
        if found is None:
            return None
        move = compute_displacement(found, [shape.at_frame(t) for shape in self.deformations[layer]])
        if np.abs(move).max() < self.deformation.min_motion_px:
            return None
        scale = np.array(size, np.float32) / np.array(self.maps.size, np.float32)
        return cv2.resize(move, size, interpolation=cv2.INTER_LINEAR) * scale

    def _changed_mask(
        self, weights: Float[np.ndarray, "layers height width"], layer: int, move: Float[np.ndarray, "height width 2"]
    ) -> Bool[np.ndarray, "height width"]:
        """Returns the pixels that move and show the layer before or after, or may do so where the frame cannot say."""
        height, width = weights.shape[1:]
        visible = self.deformation.min_visible_weight
        places = _pixel_centers((slice(0, height), slice(0, width))) - move
        here = np.stack([weights[layer], weights[:layer].sum(axis=0)], axis=-1)
        own, front = np.moveaxis(_sample_cubic(here, places), -1, 0)
        hidden = (front > visible) & (here[..., 1] < 1 - visible)
        beyond = ((places < 0) | (places > (width, height))).any(axis=-1)
        shown = (weights[layer] > visible) | (own > visible) | hidden | beyond
        return (np.abs(move).max(axis=-1) > self.deformation.min_motion_px) & shown

    def _warp_layer(
        self, t: int, layer: int, split: LayerDecomposition, places: np.ndarray, size: tuple[int, int], part: Part
    ) -> tuple[Float[np.ndarray, "rows columns 3"], Float[np.ndarray, "rows columns 1"]]:
        """Computes the deformed layer, premultiplied, and its opacity, as if no layer were in front of it.

        Where another layer was in front, or the object came from beyond the frame, it shows its canonical picture.
        """
        min_free = self.deformation.min_free_share
        corner = np.array([part[1].start, part[0].start])
        taken = _sample_cubic(np.concatenate([split.own, 1 - split.front_weight], axis=-1), places - corner)
        free = np.clip(taken[..., 4:], 0, 1)
        inside = ((places >= 0) & (places <= np.array(size))).all(axis=-1, keepdims=True)
        sure = np.clip(free / min_free, 0, 1) * inside
        opacity = np.clip(taken[..., 3:4] / np.maximum(free, min_free / 2), 0, 1)
        body = taken[..., :3] / np.maximum(free, min_free / 2)
        doubt = sure[..., 0] < 1
        if not doubt.any():
            return body, opacity

        # From the canonical picture: the color under the light of the frame, and where the layer was ever visible.
        found = extrapolate_frame_map(self.maps, t, layer)
        assert found is not None, "nothing moves where nothing is seen"
        unsure = places[doubt]
        small = unsure * (np.array(self.maps.size) / np.array(size))
        image, box = self.decomposer.canonicals_at(t)[layer]
        color = sample_canonical(image, box, found.sample_uv(small))
        x, y = (np.clip(unsure[:, axis], 0, size[axis] - 1).astype(np.float32) for axis in (0, 1))
        lit, known = 255 * color[:, :3] * self.maps.sample_at_points(t, x, y, size).gain[layer], color[:, 3:]
        body[doubt] = sure[doubt] * body[doubt] + (1 - sure[doubt]) * known * lit
        opacity[doubt] = sure[doubt] * opacity[doubt] + (1 - sure[doubt]) * known
        return body, opacity


def _pixel_centers(part: Part) -> Float[np.ndarray, "rows columns 2"]:
    """Returns the positions of the pixel centers of a part of a frame."""
    rows, columns = part
    x, y = np.meshgrid(np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop))
    return (np.stack([x, y], axis=-1) + 0.5).astype(np.float32)


def _sample_cubic(image: Float[np.ndarray, "h w c"], places: Float[np.ndarray, "rows columns 2"]) -> np.ndarray:
    """Samples an image at positions in pixels by cubic interpolation; beyond its edges the edge continues."""
    x, y = (np.ascontiguousarray(places[..., axis] - 0.5, np.float32) for axis in (0, 1))
    planes = []
    for c in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., c])
        planes.append(cv2.remap(plane, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(planes, axis=-1)

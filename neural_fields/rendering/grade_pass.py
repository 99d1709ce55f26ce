"""The grade pass, and the pass of animated overlays, which differ from frame to frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.imaging.color_grading import apply_grade, apply_grade_to_bytes, smooth_colors, tabulate_grade
from neural_fields.imaging.grade import Grade
from neural_fields.imaging.tiles import Part, bounding_part
from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.rendering.base import OverlayOptions
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.overlay_pass import LayerFrameState, OverlayPass, list_sides


class GradePass(OverlayPass):
    """Grades what frames show of a layer.

    Args:
        maps, canonicals, options: as for `OverlayPass`.
        layer: name of the layer.
        grade: the change of colors.
        mask: its alpha limits the grade on the canonical plane; None: everywhere.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        layer: str,
        grade: Grade,
        mask: Overlay | None,
        options: OverlayOptions,
    ) -> None:
        self.is_everywhere = mask is None
        if mask is None:
            # Opaque, and a hundred times the size of the layer's box: no uv of the layer is beyond.
            box = canonicals[layer].box
            u, v, half = (box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2, 100.0 * max(box.width, box.height)
            mask = Overlay(np.ones((8, 8, 4), np.float32), Box(u - half, v - half, u + half, v + half))
        super().__init__(maps, canonicals, {layer: mask}, options)
        self.grade = grade
        self.layer = maps.layers.index(layer)
        self._smoothed: dict[float, np.ndarray] = {}  # the frame smoothed within the layer, by radius

    @property
    def blends_with_layer(self) -> bool:
        """Always True: a grade changes the pixels of the frame, which already have the shading."""
        return True

    def render_frame(
        self, t: int, source: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame with the grade on it."""
        self._smoothed = {}
        if self.grade.reads_neighbors and self.options.strength(t) > 0:
            size = (source.shape[1], source.shape[0])
            weight, plain = self.maps.read_layer_weight(t, self.layer, size), source.astype(np.float32)
            for share in {self.grade.blur, self.grade.radius if self.grade.sharpen else 0.0} - {0.0}:
                self._smoothed[share] = smooth_colors(plain, weight, max(0.1, share * max(size)))
        return super().render_frame(t, source, edges)

    @property
    def has_compiled_loops(self) -> bool:
        """Whether a compiled loop does the work of this pass."""
        return can_compile_loops() and self.is_everywhere and not self.grade.reads_neighbors

    def _find_states(self, t: int, layer: int, size: tuple[int, int], strength: float) -> Iterator[LayerFrameState]:
        """See `OverlayPass`; a grade of all of a layer looks nothing up."""
        if not self.has_compiled_loops:
            yield from super()._find_states(t, layer, size, strength)
            return
        weight = self.maps.read_rimmed(t, layer)[1]
        near = bounding_part(weight, self.settings.margin_px)
        if near is not None:
            light = cv2.merge([cv2.multiply(weight[near], strength / 255, dtype=cv2.CV_32F)] * 4)
            (rows, columns), nowhere = near, np.zeros((1, 1, 4), np.float32)
            shared = self._find_shared(weight[near], weight[near])
            yield LayerFrameState(layer, (rows.start, columns.start), weight[near], shared, light, (0, 0), nowhere)

    def _put_state(
        self,
        state: LayerFrameState,
        excess: tuple[tuple[int, int], Float[np.ndarray, "_ _ 4"]] | None,
        source: UInt8[np.ndarray, "height width 3"],
        edges: FrameEdges,
        result: UInt8[np.ndarray, "height width 3"],
        part: Part,
    ) -> int:
        """Grades a part of a frame with a compiled loop; returns the number of pixels that are graded."""
        from neural_fields.rendering.blend_kernels import put_grade  # numba takes a second

        table, matrix = tabulate_grade(self.grade)
        steps, *excesses = self._locate_samples(state.corner, excess, source)
        mixes, guide = bool(self.grade.hue or self.grade.saturation != 1), self._locate_guide(state, edges)
        return put_grade(source, result, list_sides(part), steps, state.weight, table, mixes, matrix, *excesses, *guide)

    def _blend_paint(
        self,
        paint: Float[np.ndarray, "rows columns 4"],
        seen: UInt8[np.ndarray, "rows columns 3"],
        part: Part,
        excess: tuple[Part, Float[np.ndarray, "_ _ 3"]] | None,
    ) -> Float[np.ndarray, "rows columns 4"]:
        """Grades what a part of the frame shows of the layer; the mask is the alpha. Premultiplied, in 8-bit units."""
        grade = self.grade
        if grade.reads_neighbors:
            under = seen.astype(np.float32)
            if excess is not None:
                under[excess[0]] += excess[1]
            plain = self._smoothed[grade.blur][part] if grade.blur else under
            if grade.sharpen:
                plain = plain + grade.sharpen * (under - self._smoothed[grade.radius][part])
            graded = 255 * apply_grade(grade, np.clip(plain / 255, 0, 1))
        else:
            graded = apply_grade_to_bytes(grade, seen)
            if excess is not None:
                where, more = excess
                shared = more.any(axis=2)
                plain = np.clip((seen[where][shared] + more[shared]) / 255, 0, 1)
                graded[where][shared] = 255 * apply_grade(grade, plain)
        alpha = cv2.extractChannel(paint, 3)
        return cv2.multiply(cv2.cvtColor(graded, cv2.COLOR_RGB2RGBA), cv2.merge([alpha] * 4))

"""Edges of layers at the size of the source, from weights at the size of the maps and the frame's own edges.

The weight of a layer has the resolution of the maps: enlarged, its outline is as soft as pixels of the maps are large.
Two things make it fine again. Where the weight goes from nothing to all within a few pixels, the outline is finer than
these pixels: it is made as steep as it would be at the size of the source. Where it changes more slowly, something is
soft (hair, motion), and stays so. And in a window around each pixel the weight is taken for a linear function of the
colors of the frame, which the frame's own pixels then evaluate: the fast guided filter of He and Sun ("Fast Guided
Filter", 2015; He, Sun and Tang, "Guided Image Filtering", PAMI 2013, equations 13 to 16). It moves the outline to the
edges of the source, but brings texture into it as well, so it only has a part in the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_fields.atlas.uv_maps import Maps
from neural_fields.imaging.resampling import RIM, enlarge_map, warp_part
from neural_fields.imaging.tiles import Part, bounding_part


@dataclass(frozen=True)
class EdgeSettings:
    """Settings of edges; measured on DAVIS (masks of 480p, fits of 240p) and on a synthetic clip of 1080p."""

    coarseness: int = 2  # pixels of the maps to each pixel in which the guided filter works
    window_px: int = 3  # side of its window, in these pixels
    epsilon: float = 6.5  # 8-bit levels squared: variance of colors below which they say nothing
    guided_share: float = 0.4  # of the guided filter in the result
    # Within 3x3 pixels, a change of the weight up to the first is soft, and from the second on an outline.
    soft_change: float = 0.2
    steep_change: float = 0.5
    least_scale: float = 1.25  # a frame that is not larger by this than the maps shows no finer edges
    full_weight: float = 0.996  # from this weight of a layer on, it alone fills the pixel


DEFAULTS = EdgeSettings()


@dataclass(frozen=True)
class WeightGuide:
    """Says what the weight of a layer is in pixels of a frame that the layer shares.

    Attributes:
        corner: (row, column) in the rimmed maps of the first of `outlines`.
        outlines: in samples of the rimmed maps: the weight, and how much steeper it becomes.
        spans: of each row of them the first and the last column where the layer shares the pixel, which lie within;
            where there is none, the first is after the last.
        factors: of red, green and blue (0 to 255), and a constant, whose sum is the guided weight; they cover the
            frame, with a rim of one on each side.
    """

    corner: tuple[int, int]
    outlines: Float[np.ndarray, "rows columns 2"]
    spans: Int[np.ndarray, "rows 2"]
    factors: Float[np.ndarray, "high wide 4"]


class FrameEdges:
    """The edges of one frame.

    Args:
        t: number of the frame in the run.
        frame: the frame of the source, before any edit.
        settings: of the guided filter and of outlines.
    """

    def __init__(self, t: int, frame: UInt8[np.ndarray, "height width 3"], settings: EdgeSettings = DEFAULTS) -> None:
        self.t, self.frame, self.settings = t, frame, settings
        self._small: UInt8[np.ndarray, "rows columns 3"] | None = None
        self._found: dict[tuple[int, int], WeightGuide | None] = {}

    def guide_weight(self, maps: Maps, layer: int) -> WeightGuide | None:
        """Finds the guide of the weight of a layer.

        Args:
            maps: the maps; the same ones whenever it is called.
            layer: number of the layer.

        Returns:
            None where the layer shares no pixel, or the frame is no finer than the maps.
        """
        key = (id(maps), layer)
        if key not in self._found:
            is_finer = self.frame.shape[1] >= self.settings.least_scale * maps.size[0]
            self._found[key] = self._find_guide(maps, layer) if is_finer else None
        return self._found[key]

    def read_weights(self, maps: Maps) -> Float[np.ndarray, "layers height width"]:
        """Returns the weights of all layers in every pixel of the frame; those of a pixel sum to one."""
        weights = np.stack([self.read_weight(maps, layer) for layer in range(len(maps.layers))])
        return weights / weights.sum(axis=0).clip(1e-3)

    def read_weight(self, maps: Maps, layer: int) -> Float[np.ndarray, "height width"]:
        """Returns the weight of a layer in every pixel of the frame, 0 to 1."""
        size = (self.frame.shape[1], self.frame.shape[0])
        # Enlarged as numbers that are finer than what is stored.
        weight = enlarge_map(maps.read_rimmed(self.t, layer)[1].astype(np.float32), maps.size, size) / 255
        guide = self.guide_weight(maps, layer)
        if guide is None:
            return weight
        scales = [wanted / stored for wanted, stored in zip(size, maps.size, strict=True)]
        rows, columns = (
            slice(max(0, int((corner - RIM) * scale)), min(count, math.ceil((corner - RIM + length) * scale)))
            for corner, length, count, scale in zip(
                guide.corner, guide.outlines.shape[:2], size[::-1], scales[::-1], strict=True
            )
        )
        coarse, fine = self.refine_weight(maps, guide, (rows, columns))
        weight[rows, columns] = np.where(self.is_mixed(coarse), fine, weight[rows, columns])
        return weight

    def is_mixed(self, weight: Float[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
        """Returns where a layer shares pixels with others, by its weight."""
        return (weight > 0) & (weight < self.settings.full_weight)

    def refine_weight(
        self, maps: Maps, guide: WeightGuide, part: Part
    ) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "rows columns"]]:
        """Refines the weight of a layer in a part of the frame.

        Args:
            maps: the maps.
            guide: of the layer.
            part: rows and columns.

        Returns:
            The weight as the maps have it, and, where it is mixed, as the edges of the frame have it.
        """
        size = (self.frame.shape[1], self.frame.shape[0])
        outlines = maps.resample_part(guide.outlines, guide.corner, size, part)
        inner = (guide.factors.shape[1] - 2 * RIM, guide.factors.shape[0] - 2 * RIM)
        factors = warp_part(guide.factors, (0, 0), inner, size, part)
        guided = ((factors[..., :3] * self.frame[part]).sum(axis=2) + factors[..., 3]).clip(0, 1)
        weight, steepness, share = outlines[..., 0], outlines[..., 1], np.float32(self.settings.guided_share)
        mixed = (1 - share) * weight + share * guided
        return weight, ((mixed - np.float32(0.5)) * steepness + np.float32(0.5)).clip(0, 1)

    def _find_guide(self, maps: Maps, layer: int) -> WeightGuide | None:
        """See `guide_weight`."""
        settings = self.settings
        weights = maps.read_rimmed(self.t, layer)[1]
        mixed = cv2.inRange(weights, 1, round(255 * settings.full_weight) - 1)
        near = bounding_part(mixed, 2)
        if near is None:
            return None
        window = np.ones((3, 3), np.uint8)
        change = cv2.subtract(cv2.dilate(weights[near], window), cv2.erode(weights[near], window))
        scale = self.frame.shape[1] / maps.size[0]
        steepness = cv2.LUT(change, self._tabulate_steepness(scale))
        outlines = cv2.merge([cv2.multiply(weights[near], 1 / 255, dtype=cv2.CV_32F), steepness])
        other = self._found.get((id(maps), 1 - layer)) if len(maps.layers) == 2 else None
        if other is not None:  # what one of two layers has, the other has not
            factors = cv2.add(cv2.multiply(other.factors, (-1.0,) * 4), (0.0, 0.0, 0.0, 1.0))
        else:
            factors = self._fit_factors(maps, weights, mixed)
        shared, width = mixed[near] > 0, outlines.shape[1]
        first, last = shared.argmax(axis=1), width - 1 - shared[:, ::-1].argmax(axis=1)
        is_any = shared[np.arange(len(shared)), first]
        spans = np.stack([np.where(is_any, first, width), np.where(is_any, last, -1)], axis=1)
        return WeightGuide((near[0].start, near[1].start), outlines, spans, factors)

    def _tabulate_steepness(self, scale: float) -> Float[np.ndarray, "256"]:
        """Says how much steeper the weight becomes, for each change of it within some pixels, 0 to 255."""
        soft, steep = self.settings.soft_change, self.settings.steep_change
        share = ((np.arange(256) / 255 - soft) / (steep - soft)).clip(0, 1)
        return (1 + (scale - 1) * share**2 * (3 - 2 * share)).astype(np.float32)

    def _fit_factors(
        self, maps: Maps, weights: UInt8[np.ndarray, "rows columns"], mixed: UInt8[np.ndarray, "rows columns"]
    ) -> Float[np.ndarray, "high wide 4"]:
        """Fits weights in the rimmed maps to the colors of the frame, around the pixels that are mixed."""
        side = self.settings.window_px
        wide, high = (max(1, round(length / self.settings.coarseness)) for length in maps.size)
        if self._small is None:
            small = self.frame
            while small.shape[1] >= 2 * wide and small.shape[0] >= 2 * high:  # exact halves are quick
                small = cv2.resize(small, (small.shape[1] // 2, small.shape[0] // 2), interpolation=cv2.INTER_AREA)
            self._small = cv2.resize(small, (wide, high), interpolation=cv2.INTER_LINEAR)
        coarse, some = (
            cv2.resize(plane[RIM:-RIM, RIM:-RIM], (wide, high), interpolation=cv2.INTER_AREA)
            for plane in (weights, mixed)
        )
        asked = cv2.dilate(cv2.compare(some, 0, cv2.CMP_GT), np.ones((3, 3), np.uint8))  # for interpolation
        fitted = cv2.dilate(asked, np.ones((side, side), np.uint8))  # for the means over windows
        factors = np.zeros((high + 2 * RIM, wide + 2 * RIM, 4), np.float32)
        part = bounding_part(fitted, side)
        if part is None:
            return factors
        here = fitted[part] > 0
        found = np.zeros((*here.shape, 4), np.float32)
        shares = cv2.multiply(coarse[part], 1 / 255, dtype=cv2.CV_32F)
        found[here] = self._solve_windows(self._small[part].astype(np.float32), shares, here)
        known = np.maximum(cv2.blur(here.astype(np.float32), (side, side)), np.float32(1e-6))
        inner = tuple(slice(lines.start + RIM, lines.stop + RIM) for lines in part)
        factors[inner] = cv2.divide(cv2.blur(found, (side, side)), cv2.merge([known] * 4))
        for edge, beside in ((0, 1), (-1, -2)):
            factors[edge], factors[:, edge] = factors[beside], factors[:, beside]
        return factors

    def _solve_windows(
        self,
        colors: Float[np.ndarray, "rows columns 3"],
        weight: Float[np.ndarray, "rows columns"],
        asked: Bool[np.ndarray, "rows columns"],
    ) -> Float[np.ndarray, "n 4"]:
        """Finds for some windows the linear function of the color that is closest to the weight."""
        side = (self.settings.window_px,) * 2

        def average(values: np.ndarray) -> np.ndarray:
            return cv2.blur(values, side)[asked]

        r, g, b = cv2.split(colors)
        mean, mean_weight = average(colors), average(weight)
        covariance = average(colors * weight[..., None]) - mean * mean_weight[:, None]
        squares = average(cv2.merge([r * r, g * g, b * b])) - mean * mean + self.settings.epsilon
        products = average(cv2.merge([r * g, r * b, g * b]))
        rg, rb, gb = (products - mean[:, [0, 0, 1]] * mean[:, [1, 2, 2]]).T
        rr, gg, bb = squares.T
        # The inverse of a symmetric matrix by its cofactors.
        a, d, e = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
        f, h, k = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
        determinant = rr * a + rg * d + rb * e
        one, two, three = covariance.T
        factors = np.stack(
            [a * one + d * two + e * three, d * one + f * two + h * three, e * one + h * two + k * three]
        )
        factors = (factors / determinant).T
        return np.column_stack([factors, mean_weight - (factors * mean).sum(axis=1)])

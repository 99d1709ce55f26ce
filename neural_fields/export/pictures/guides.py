"""Draws guides for painting on a canonical picture: outlines of frames, texture resolution, and coverage.

Each is RGBA of the canonical picture's size, to be shown over it, and drawn from the baked maps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.coverage import DEFAULTS as COVERAGE
from neural_fields.atlas.coverage import count_frames_seen, read_maps
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.core.even_spread import spread_indices
from neural_fields.imaging.color_scales import color_scale

Color = tuple[int, int, int]


@dataclass(frozen=True)
class GuideSettings:
    """Settings of the guides."""

    min_outline_share: float = 0.02  # of the largest outline's area; smaller ones are specks
    max_frames: int = 24  # that sizes are measured in
    cell_px: int = 2  # of the maps along a side of a cell that sizes are averaged in
    max_scale: float = 4.0  # pixels per texel at the strong end of the colors, and one in so many at the other
    max_opacity: float = 0.85  # there
    frame_colors: tuple[Color, Color, Color] = ((64, 224, 120), (255, 205, 60), (255, 96, 96))  # first, middle, last
    fine_color: Color = (60, 130, 255)  # more texels than pixels
    coarse_color: Color = (255, 60, 20)  # more pixels than texels
    dark_color: Color = (18, 18, 22)  # of edges and panels
    light_color: Color = (235, 235, 235)  # of texts
    panel_opacity: int = 215  # of 255
    min_legend_width: int = 240  # texels; a narrower picture has no room for a legend


DEFAULTS = GuideSettings()
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Guide = UInt8[np.ndarray, "height width 4"]
Mask = UInt8[np.ndarray, "height width"]
Size = tuple[int, int]


@dataclass(frozen=True)
class GuidePlane:
    """Describes the canonical picture of a layer: its number in the maps, its box in uv and its (width, height)."""

    layer: int
    box: Box
    size: Size

    def uv_to_texels(self, uv: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Converts canonical points to texel coordinates."""
        return array_coords.uv_to_texels(np.asarray(uv, np.float32), self.box, *self.size)


def draw_outlines(maps: Maps, plane: GuidePlane, numbers: Sequence[int], settings: GuideSettings = DEFAULTS) -> Guide:
    """Draws outlines of the first, the middle and the last frame that show a layer, with the frame's number.

    For the background, it outlines the frame, for other layers the part that the frame shows.

    Args:
        maps: the baked maps of the run.
        plane: the canonical picture.
        numbers: the number in the source of each frame of the run.
        settings: of the guides.
    """
    guide = np.zeros((plane.size[1], plane.size[0], 4), np.uint8)
    width, height = plane.size
    weight = max(1, round(max(plane.size) / 700))
    scale = max(0.5, max(width, height) / 1800)  # of the labels
    labels: list[tuple[int, int, int, int]] = []  # left, top, right and height of those so far
    shown = [t for t in range(maps.frame_count) if _clean_mask(maps, plane.layer, t).any()]
    if shown:
        shown = [shown[i] for i in spread_indices(len(shown), 3)]
    for place, t in enumerate(shown):
        color = settings.frame_colors[place if len(shown) > 1 else 1]

        # Closed lines around the frame, or around the visible part of a front layer.
        uv = maps.read_uv_small(t, plane.layer)
        mask = np.ones(uv.shape[:2], np.uint8)
        if plane.layer < len(maps.layers) - 1:
            mask = _clean_mask(maps, plane.layer, t)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        areas = [cv2.contourArea(line) for line in contours]
        found = []
        for contour, area in zip(contours, areas, strict=True):
            if area >= settings.min_outline_share * max(areas):
                line = contour[:, 0]
                found.append(plane.uv_to_texels(uv[line[:, 1], line[:, 0]]))
        _draw_with_edge(guide, partial(_draw_lines, found, weight), color, weight, settings)

        # The label goes to the upper left of an outline, its top or its upper right; below others in its way.
        points = np.concatenate(found)
        left, top = points[np.argmin(points[:, 1] + (1, 0, -1)[place] * points[:, 0])]
        text = f"frame {numbers[t]}"
        (wide, high), base = cv2.getTextSize(text, _FONT, scale, max(1, round(2 * scale)))
        margin = high // 2 + 2
        x = int(np.clip(float(left) + margin, margin, max(margin, width - wide - margin)))
        y = int(np.clip(float(top) + high + margin, high + margin, max(high + margin, height - base - margin)))
        while any(abs(y - other[1]) < high + margin and x < other[2] and other[0] < x + wide for other in labels):
            y += high + margin
        labels.append((x, y, x + wide, high))
        _draw_with_edge(guide, partial(_draw_text, text, (x, y), scale), color, 1, settings)
    return guide


def _clean_mask(maps: Maps, layer: int, t: int) -> Mask:
    """Returns where a frame shows a layer, without specks and thin lines, which have no outline worth drawing."""
    seen = maps.read_layer_weight_small(t, layer) >= COVERAGE.min_weight
    return cv2.medianBlur(seen.astype(np.uint8), 5)


def measure_pixels_per_texel(
    maps: Maps, plane: GuidePlane, scale: float = 1.0, settings: GuideSettings = DEFAULTS
) -> Float[np.ndarray, "rows columns"]:
    """Measures the number of pixels of a frame along the side of a texel, averaged over frames.

    It is 1 / sqrt(|det J|) of the map J from pixels to texels: with 2, a texel is two pixels wide, and paint on it
    looks half as sharp as the frame.

    Args:
        maps: the baked maps of the run.
        plane: the canonical picture.
        scale: pixels of the source per pixel of the maps.
        settings: of the guides.

    Returns:
        Cells of about `settings.cell_px` pixels over the picture; nan where no frame shows them.
    """
    per_unit = max(maps.size) / 2
    columns, rows = (
        max(1, min(side, round(length * per_unit / settings.cell_px)))
        for side, length in zip(plane.size, (plane.box.width, plane.box.height), strict=True)
    )
    total, count = (np.zeros(rows * columns) for _ in range(2))
    for t in spread_indices(maps.frame_count, settings.max_frames):
        seen = (maps.read_layer_weight_small(t, plane.layer) >= COVERAGE.min_weight).astype(np.uint8)
        seen = cv2.erode(seen, np.ones((3, 3))) > 0
        texels = plane.uv_to_texels(maps.read_uv_small(t, plane.layer))
        x, y = np.floor(texels[seen] * [columns / plane.size[0], rows / plane.size[1]]).astype(int).T
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        down, right = (np.gradient(texels, axis=axis) for axis in (0, 1))
        areas = np.abs(right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0])  # texels that each pixel covers
        cell, area = (y * columns + x)[inside], areas[seen][inside]
        total += np.bincount(cell, -0.5 * np.log2(np.maximum(area, 1e-8)), rows * columns)
        count += np.bincount(cell, minlength=rows * columns)
    total, count = (cv2.boxFilter(v.reshape(rows, columns), -1, (3, 3), normalize=False) for v in (total, count))
    return np.where(count > 0.5, scale * np.exp2(total / np.maximum(count, 1)), np.nan).astype(np.float32)


def draw_stretch(maps: Maps, plane: GuidePlane, scale: float = 1.0, settings: GuideSettings = DEFAULTS) -> Guide:
    """Draws the pixels per texel: red where paint gets blurred, blue where detail is lost, transparent where it is one.

    Args:
        maps: the baked maps of the run.
        plane: the canonical picture.
        scale: pixels of the source per pixel of the maps.
        settings: of the guides.
    """
    found = measure_pixels_per_texel(maps, plane, scale, settings)
    known = np.isfinite(found)
    ratio = np.log2(np.where(known, found, 1)) / np.log2(settings.max_scale)
    ratio = cv2.resize(ratio.astype(np.float32), plane.size, interpolation=cv2.INTER_LINEAR)
    known = cv2.resize(known.astype(np.uint8), plane.size, interpolation=cv2.INTER_NEAREST) > 0
    guide = _diverging_colors(np.where(known, ratio, 0), settings)
    bar = _diverging_colors(np.linspace(-1, 1, 256, dtype=np.float32)[None], settings)
    _draw_legend(guide, bar, "pixels of the video per texel", ("1/4", "1/2", "1", "2", "4"), settings)
    return guide


def draw_coverage(maps: Maps, plane: GuidePlane, settings: GuideSettings = DEFAULTS) -> Guide:
    """Draws the number of frames that show each texel, transparent where none does.

    Args:
        maps: the baked maps of the run.
        plane: the canonical picture.
        settings: of the guides.
    """
    seen = count_frames_seen(read_maps(maps, plane.layer), maps.frame_count, plane.box, plane.size)
    colors = color_scale("seen")
    levels = (255 * np.clip(seen / maps.frame_count, 0, 1)).round().astype(np.uint8)
    shown = np.clip(seen, 0, 1)[..., None]
    guide = np.concatenate([colors[levels], np.rint(255 * shown).astype(np.uint8)], axis=-1)
    bar = np.concatenate([colors[None], np.full((1, 256, 1), 255, np.uint8)], axis=-1)
    _draw_legend(guide, bar, "frames that show it", ("0", str(maps.frame_count)), settings)
    return guide


def _diverging_colors(ratio: Float[np.ndarray, "rows columns"], settings: GuideSettings) -> Guide:
    """Colors numbers blue below zero and red above, the stronger the further from it up to one."""
    strength = np.abs(ratio).clip(0, 1)[..., None]
    fine, coarse = np.array(settings.fine_color, np.float32), np.array(settings.coarse_color, np.float32)
    color = np.where(ratio[..., None] < 0, fine, coarse)
    return np.rint(np.concatenate([color, 255 * settings.max_opacity * strength], axis=-1)).astype(np.uint8)


def _draw_with_edge(
    guide: Guide, draw_shape: Callable[[Mask, int], object], color: Color, edge: int, settings: GuideSettings
) -> None:
    """Draws a shape in a color with a dark edge of some texels.

    Args:
        guide: to draw on.
        draw_shape: draws the shape on a mask, its lines wider by a number of texels.
        color: of the shape.
        edge: texels.
        settings: of the guides.
    """
    for paint, wide in ((settings.dark_color, 2 * edge), (color, 0)):
        mask = np.zeros(guide.shape[:2], np.uint8)
        draw_shape(mask, wide)
        left, top, width, height = cv2.boundingRect(mask)
        part = slice(top, top + height), slice(left, left + width)
        share = mask[part][..., None].astype(np.float32) / 255
        below = guide[part][..., 3:].astype(np.float32) / 255 * (1 - share)
        alpha = share + below
        mixed = (np.array(paint, np.float32) * share + guide[part][..., :3] * below) / np.maximum(alpha, 1e-6)
        guide[part] = np.rint(np.concatenate([mixed, 255 * alpha], axis=-1)).astype(np.uint8)


def _draw_lines(lines: Sequence[np.ndarray], width: int, mask: Mask, more: int) -> None:
    """Draws closed lines through texel coordinates, to an eighth of a texel."""
    points = [np.rint((line - 0.5) * 8).clip(-(1 << 20), 1 << 20).astype(np.int32) for line in lines]
    cv2.polylines(mask, points, True, 255, width + more, cv2.LINE_AA, shift=3)


def _draw_text(text: str, place: tuple[int, int], scale: float, mask: Mask, more: int) -> None:
    """Draws a text on a mask, its strokes wider by `more` texels."""
    cv2.putText(mask, text, place, _FONT, scale, 255, max(1, round(2 * scale)) + more, cv2.LINE_AA)


def _draw_legend(
    guide: Guide, bar: UInt8[np.ndarray, "1 256 4"], title: str, marks: Sequence[str], settings: GuideSettings
) -> None:
    """Draws a bar of colors with numbers below and a title above, at the lower left."""
    height, width = guide.shape[:2]
    scale = max(0.35, max(width, height) / 2400)
    (title_width, high), _ = cv2.getTextSize(title, _FONT, scale, 1)
    gap = high // 2 + 2
    long = min(width - 6 * gap, max(title_width, 12 * high))
    panel = (long + 4 * gap, 3 * high + 5 * gap)
    left, top = gap, height - panel[1] - gap
    if width < settings.min_legend_width or top < height // 2:
        return
    guide[top : top + panel[1], left : left + panel[0]] = (*settings.dark_color, settings.panel_opacity)
    colors = cv2.resize(bar, (long, high), interpolation=cv2.INTER_LINEAR)
    share = colors[..., 3:].astype(np.float32) / 255
    solid = np.rint(colors[..., :3] * share + 150 * (1 - share)).astype(np.uint8)
    bar_top, bar_left = top + high + 2 * gap, left + 2 * gap
    guide[bar_top : bar_top + high, bar_left : bar_left + long] = np.dstack(
        [solid, np.full((high, long), 255, np.uint8)]
    )
    texts = [(title, bar_left, top + high + gap)]
    for number, mark in enumerate(marks):
        wide = cv2.getTextSize(mark, _FONT, scale, 1)[0][0]
        center = bar_left + number * long / (len(marks) - 1) - wide / 2
        texts.append((mark, round(np.clip(center, left + gap, left + panel[0] - gap - wide)), bar_top + 2 * high + gap))
    for text, x, y in texts:
        _draw_with_edge(guide, partial(_draw_text, text, (x, y), scale), settings.light_color, 0, settings)

"""Pictures that help to paint on a canonical picture: where frames lie on it, how fine it is, how often it is seen.

Each is RGBA of the canonical picture's size, made to lie over it, and drawn from the baked maps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from neural_fields import coords
from neural_fields.baking import Maps
from neural_fields.coords import Box
from neural_fields.coverage import SEEN, frames_seen
from neural_fields.report.heat import palette
from neural_fields.report.survey import spread

LEAST_SHOWN = 0.0005  # of a frame; a layer that fills less of it has no outline there worth drawing
SMALL_PART = 0.02  # of the largest outline's area; smaller ones are specks
LOOKED_AT = 24  # frames, at most, that sizes are measured in
CELL = 2  # pixels of the fit along a side of a cell that sizes are averaged in
MOST_SCALE = 4.0  # pixels per texel at the strong end of the colours, and one in so many at the other
STRONGEST = 0.85  # opacity there
COLOURS = ((64, 224, 120), (255, 205, 60), (255, 96, 96))  # of the first, the middle and the last frame
FINE, COARSE = (60, 130, 255), (255, 60, 20)  # more texels than pixels, more pixels than texels
DARK, LIGHT = (18, 18, 22), (235, 235, 235)
FONT = cv2.FONT_HERSHEY_SIMPLEX
LEGEND_WIDTH = 240  # texels; a narrower picture has no room for a legend

Guide = UInt8[np.ndarray, "height width 4"]
Mask = UInt8[np.ndarray, "height width"]
Size = tuple[int, int]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Plane:
    """The canonical picture of one layer: its number in the maps, its box and its (width, height)."""

    layer: int
    box: Box
    size: Size

    def texels(self, uv: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Texel coordinates of canonical points."""
        points = torch.from_numpy(np.ascontiguousarray(uv, np.float32))
        return coords.uv_to_texels(points, self.box, *self.size).numpy()


def outlines(maps: Maps, plane: Plane, numbers: Sequence[int]) -> Guide:
    """Outlines of the first, the middle and the last frame that show a layer, with the frame's number.

    Of the background the whole frame is drawn, of other layers what the frame shows of them.

    Args:
        numbers: the number in the source of each frame of the run.
    """
    guide = np.zeros((plane.size[1], plane.size[0], 4), np.uint8)
    weight = max(1, round(max(plane.size) / 700))
    labels: list[tuple[int, int, int, int]] = []
    shown = _frames_that_show(maps, plane.layer)
    for place, t in enumerate(shown):
        colour = COLOURS[place if len(shown) > 1 else 1]
        found = [plane.texels(line) for line in _outline(maps, plane.layer, t)]
        _draw(guide, partial(_lines, found, weight), colour, weight)
        _label(guide, f"frame {numbers[t]}", _corner(found, place), colour, labels)
    return guide


def pixels_per_texel(maps: Maps, plane: Plane, scale: float = 1.0) -> Float[np.ndarray, "rows columns"]:
    """How many pixels of a frame lie along the side of a texel, averaged over frames; nan where none shows it.

    It is 1 / sqrt(|det J|) of the map J from pixels to texels: with 2, a texel is two pixels wide, and what is painted
    on it looks half as sharp as the frame. The result has cells of about `CELL` pixels.

    Args:
        scale: pixels of the source per pixel of the fit.
    """
    per_unit = max(maps.size) / 2
    columns, rows = (
        max(1, min(side, round(length * per_unit / CELL)))
        for side, length in zip(plane.size, (plane.box.width, plane.box.height), strict=True)
    )
    total, count = (np.zeros(rows * columns) for _ in range(2))
    for t in spread(maps.frame_count, LOOKED_AT):
        seen = cv2.erode((maps.layer_weight_small(t, plane.layer) >= SEEN).astype(np.uint8), np.ones((3, 3))) > 0
        texels = plane.texels(maps.uv_small(t, plane.layer))
        x, y = np.floor(texels[seen] * [columns / plane.size[0], rows / plane.size[1]]).astype(int).T
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        cell, area = (y * columns + x)[inside], _areas(texels)[seen][inside]
        total += np.bincount(cell, -0.5 * np.log2(np.maximum(area, 1e-8)), rows * columns)
        count += np.bincount(cell, minlength=rows * columns)
    total, count = (cv2.boxFilter(v.reshape(rows, columns), -1, (3, 3), normalize=False) for v in (total, count))
    return np.where(count > 0.5, scale * np.exp2(total / np.maximum(count, 1)), np.nan).astype(np.float32)


def stretch(maps: Maps, plane: Plane, scale: float = 1.0) -> Guide:
    """Colours for `pixels_per_texel`: none where it is one, red where paint gets blurred, blue where detail is lost."""
    found = pixels_per_texel(maps, plane, scale)
    known = np.isfinite(found)
    ratio = np.log2(np.where(known, found, 1)) / np.log2(MOST_SCALE)
    ratio = cv2.resize(ratio.astype(np.float32), plane.size, interpolation=cv2.INTER_LINEAR)
    known = cv2.resize(known.astype(np.uint8), plane.size, interpolation=cv2.INTER_NEAREST) > 0
    guide = _diverging(np.where(known, ratio, 0))
    bar = _diverging(np.linspace(-1, 1, 256, dtype=np.float32)[None])
    _legend(guide, bar, "pixels of the video per texel", ("1/4", "1/2", "1", "2", "4"))
    return guide


def coverage(maps: Maps, plane: Plane) -> Guide:
    """Colours for the number of frames that show each texel, transparent where none does."""
    seen = frames_seen(maps, plane.layer, plane.box, plane.size)
    colours = palette("seen")
    levels = (255 * np.clip(seen / maps.frame_count, 0, 1)).round().astype(np.uint8)
    shown = np.clip(seen, 0, 1)[..., None]
    guide = np.concatenate([colours[levels], np.rint(255 * shown).astype(np.uint8)], axis=-1)
    bar = np.concatenate([colours[None], np.full((1, 256, 1), 255, np.uint8)], axis=-1)
    _legend(guide, bar, "frames that show it", ("0", str(maps.frame_count)))
    return guide


def _frames_that_show(maps: Maps, layer: int) -> list[int]:
    """The first, the middle and the last frame that show a layer."""
    shown = [t for t in range(maps.frame_count) if (maps.layer_weight_small(t, layer) >= SEEN).mean() > LEAST_SHOWN]
    return [shown[i] for i in spread(len(shown), 3)] if shown else []


def _outline(maps: Maps, layer: int, t: int) -> list[Float[np.ndarray, "n 2"]]:
    """Closed lines, in uv, around a frame or around what it shows of a front layer."""
    uv = maps.uv_small(t, layer)
    mask = np.ones(uv.shape[:2], np.uint8)
    if layer < len(maps.layers) - 1:
        mask = cv2.medianBlur((maps.layer_weight_small(t, layer) >= SEEN).astype(np.uint8), 5)
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(line) for line in found]
    kept = [line[:, 0] for line, area in zip(found, areas, strict=True) if area >= SMALL_PART * max(areas)]
    return [uv[line[:, 1], line[:, 0]] for line in kept]


def _areas(texels: Float[np.ndarray, "height width 2"]) -> Float[np.ndarray, "height width"]:
    """How many texels each pixel covers."""
    down, right = (np.gradient(texels, axis=axis) for axis in (0, 1))
    return np.abs(right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0])


def _diverging(ratio: Float[np.ndarray, "rows columns"]) -> Guide:
    """Blue below zero, red above, the stronger the further from it up to one."""
    strength = np.abs(ratio).clip(0, 1)[..., None]
    colour = np.where(ratio[..., None] < 0, np.array(FINE, np.float32), np.array(COARSE, np.float32))
    return np.rint(np.concatenate([colour, 255 * STRONGEST * strength], axis=-1)).astype(np.uint8)


def _draw(guide: Guide, shape: Callable[[Mask, int], object], colour: Colour, edge: int) -> None:
    """Draws a shape in a colour with a dark edge of some texels; `shape` draws on a mask, wider by a number."""
    for paint, wide in ((DARK, 2 * edge), (colour, 0)):
        mask = np.zeros(guide.shape[:2], np.uint8)
        shape(mask, wide)
        top = mask[..., None].astype(np.float32) / 255
        below = guide[..., 3:].astype(np.float32) / 255 * (1 - top)
        alpha = top + below
        mixed = (np.array(paint, np.float32) * top + guide[..., :3] * below) / np.maximum(alpha, 1e-6)
        guide[...] = np.rint(np.concatenate([mixed, 255 * alpha], axis=-1)).astype(np.uint8)


def _lines(lines: Sequence[np.ndarray], width: int, mask: Mask, more: int) -> None:
    """Closed lines through texel coordinates, to an eighth of a texel."""
    points = [np.rint((line - 0.5) * 8).clip(-(1 << 20), 1 << 20).astype(np.int32) for line in lines]
    cv2.polylines(mask, points, True, 255, width + more, cv2.LINE_AA, shift=3)


def _corner(lines: Sequence[np.ndarray], place: int) -> tuple[float, float]:
    """Where the label of an outline goes: at its upper left, its top or its upper right."""
    points = np.concatenate(lines)
    x, y = points[np.argmin(points[:, 1] + (1, 0, -1)[place] * points[:, 0])]
    return float(x), float(y)


def _label(
    guide: Guide,
    text: str,
    place: tuple[float, float],
    colour: Colour,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Writes a text inside the picture near a place, below other labels that are in its way."""
    height, width = guide.shape[:2]
    scale = max(0.5, max(width, height) / 1800)
    (wide, high), base = cv2.getTextSize(text, FONT, scale, max(1, round(2 * scale)))
    margin = high // 2 + 2
    x = int(np.clip(place[0] + margin, margin, max(margin, width - wide - margin)))
    y = int(np.clip(place[1] + high + margin, high + margin, max(high + margin, height - base - margin)))
    while any(abs(y - other[1]) < high + margin and x < other[2] and other[0] < x + wide for other in taken):
        y += high + margin
    taken.append((x, y, x + wide, high))
    _draw(guide, partial(_write, text, (x, y), scale), colour, 1)


def _write(text: str, place: tuple[int, int], scale: float, mask: Mask, more: int) -> None:
    cv2.putText(mask, text, place, FONT, scale, 255, max(1, round(2 * scale)) + more, cv2.LINE_AA)


def _legend(guide: Guide, bar: UInt8[np.ndarray, "1 256 4"], title: str, marks: Sequence[str]) -> None:
    """A bar of colours with numbers below and a title above, at the lower left."""
    height, width = guide.shape[:2]
    scale = max(0.35, max(width, height) / 2400)
    (title_width, high), _ = cv2.getTextSize(title, FONT, scale, 1)
    gap = high // 2 + 2
    long = min(width - 6 * gap, max(title_width, 12 * high))
    panel = (long + 4 * gap, 3 * high + 5 * gap)
    left, top = gap, height - panel[1] - gap
    if width < LEGEND_WIDTH or top < height // 2:
        return
    under = np.array([*DARK, 215], np.uint8)
    guide[top : top + panel[1], left : left + panel[0]] = under
    colours = cv2.resize(bar, (long, high), interpolation=cv2.INTER_LINEAR)
    share = colours[..., 3:].astype(np.float32) / 255
    solid = np.rint(colours[..., :3] * share + 150 * (1 - share)).astype(np.uint8)
    bar_top, bar_left = top + high + 2 * gap, left + 2 * gap
    guide[bar_top : bar_top + high, bar_left : bar_left + long] = np.dstack(
        [solid, np.full((high, long), 255, np.uint8)]
    )
    texts = [(title, bar_left, top + high + gap)]
    for number, mark in enumerate(marks):
        wide = cv2.getTextSize(mark, FONT, scale, 1)[0][0]
        centre = bar_left + number * long / (len(marks) - 1) - wide / 2
        texts.append((mark, round(np.clip(centre, left + gap, left + panel[0] - gap - wide)), bar_top + 2 * high + gap))
    for text, x, y in texts:
        _draw(guide, partial(_write, text, (x, y), scale), LIGHT, 0)

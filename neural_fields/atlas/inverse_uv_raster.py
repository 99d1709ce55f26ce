"""Inverts the uv map of a frame: computes where in the frame every texel of a canonical picture is seen.

A baked map is bilinear between its samples. Four neighboring samples make a cell, which covers a patch of the
canonical picture; the cells are rasterized there, and the position of a texel in the cell that covers it is found by
Newton's method. A texel that is covered by two cells far apart in the frame is folded, and has no single position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_fields.core.box import Box
from neural_fields.imaging.push_pull import pull_push
from neural_fields.imaging.resampling import RIM, sample_bilinear


@dataclass(frozen=True)
class InversionSettings:
    """Settings of the inversion of uv maps. A sample is the distance of neighboring samples of the map."""

    newton_steps: int = 5  # steps of Newton's method for each texel
    max_last_step: float = 1e-3  # a texel whose last step is longer, in samples, was not found
    max_gap: float = 1.0  # a texel found at positions further apart than this, in samples, is folded and left out
    max_cell_ratio: float = 16  # a cell larger than this many usual cells joins things that are apart and is left out
    margin_texels: int = 2  # distance from the texels that were found up to which positions are extrapolated
    block_texels: int = 1 << 20  # texels that are processed together; limits the memory
    slack: float = 1e-9  # widens each cell a little, so that no texel falls between two of them


DEFAULTS = InversionSettings()


@dataclass(frozen=True)
class InverseMap:
    """Holds the positions of the texels of a canonical picture in a frame.

    Attributes:
        positions: x, y as shares of the frame's width and height; (0, 0) is its top left corner. They continue
            smoothly for some texels beyond the visible ones, and are 0 elsewhere.
        visibility: the share of the layer that the frame shows, 0 to 1; 0 where it is hidden or the map folds.
        folded_share: the share of folds among the texels that the frame shows, 0 to 1.
    """

    positions: Float[np.ndarray, "height width 2"]
    visibility: Float[np.ndarray, "height width"]
    folded_share: float


def invert_map(
    uv: Float[np.ndarray, "rows columns 2"],
    weight: UInt8[np.ndarray, "rows columns"],
    box: Box,
    size: tuple[int, int],
    settings: InversionSettings = DEFAULTS,
) -> InverseMap:
    """Inverts one frame's map.

    Args:
        uv: the stored map, with its rim.
        weight: the stored weight of the layer (255 is one), with its rim.
        box: the part of the canonical plane that the picture covers, in uv units.
        size: (width, height) of the canonical picture.
        settings: tolerances and steps of the search.

    Returns:
        The position in the frame of each texel, and where the frame shows it.
    """
    width, height = size
    frame = np.array([weight.shape[1] - 2 * RIM, weight.shape[0] - 2 * RIM])
    texels = (uv - [box.u0, box.v0]) / [box.width, box.height] * size
    covered = zip(*_find_covered_texels(texels, weight > 0, size, settings), strict=True)
    to, spots = (np.concatenate(part) for part in covered)
    shares = (spots + (0.5 - RIM)) / frame
    inside = ((shares >= 0) & (shares <= 1)).all(axis=1)
    to, spots, shares = to[inside], spots[inside], shares[inside]
    shown = sample_bilinear(weight.astype(np.float32), *spots.astype(np.float32).T) / 255
    to, spots, shares, shown = (values[shown > 0] for values in (to, spots, shares, shown))
    visible, place = np.zeros(height * width, np.float32), np.zeros((height * width, 2), np.float32)
    if not len(to):
        return InverseMap(place.reshape(height, width, 2), visible.reshape(height, width), 0.0)
    place[to], visible[to] = shares, shown

    # Texels that have positions apart from each other are folded.
    order = np.argsort(to, kind="stable")
    sorted_to, sorted_spots = to[order], spots[order]
    first = np.flatnonzero(np.r_[True, sorted_to[1:] != sorted_to[:-1]])
    gaps = np.maximum.reduceat(sorted_spots, first, axis=0) - np.minimum.reduceat(sorted_spots, first, axis=0)
    folds = sorted_to[first[gaps.max(axis=1) > settings.max_gap]]
    visible[folds] = 0

    found = np.zeros((height, width), bool)
    found.reshape(-1)[to] = True
    side = 2 * settings.margin_texels + 1
    near = cv2.dilate(found.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    filled = pull_push(place.reshape(height, width, 2), found) * near[..., None]
    return InverseMap(filled, visible.reshape(height, width), len(folds) / max(1, int(found.sum())))


def _find_covered_texels(
    texels: Float[np.ndarray, "rows columns 2"],
    seen: Bool[np.ndarray, "rows columns"],
    size: tuple[int, int],
    settings: InversionSettings,
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 2"]]]:
    """Yields the texels that cells cover, some cells at a time.

    Args:
        texels: texel coordinates of the samples of the map.
        seen: the samples that show the layer.
        size: (width, height) of the canonical picture.
        settings: tolerances and block size.

    Yields:
        Texels by number, row by row, and their positions in samples of the map.
    """
    corners = np.stack([texels[:-1, :-1], texels[:-1, 1:], texels[1:, :-1], texels[1:, 1:]]).reshape(4, -1, 2)
    some = seen[:-1, :-1] | seen[:-1, 1:] | seen[1:, :-1] | seen[1:, 1:]
    # The texels whose centers lie between the least and the greatest coordinates of a cell.
    low = np.maximum(np.ceil(corners.min(axis=0) - 0.5 - settings.slack), 0).astype(np.int64)
    high = np.minimum(np.floor(corners.max(axis=0) - 0.5 + settings.slack), np.array(size) - 1).astype(np.int64)
    count = np.maximum(high - low + 1, 0)
    span = np.ptp(corners, axis=0).max(axis=1)
    usual = float(np.median(span[some.reshape(-1)])) if some.any() else 1.0
    cells = np.flatnonzero(some.reshape(-1) & (count.prod(axis=1) > 0) & (span < settings.max_cell_ratio * (usual + 1)))
    yield np.zeros(0, np.int64), np.zeros((0, 2))
    ends = np.cumsum(count[cells].prod(axis=1))
    last = int(ends[-1]) if len(ends) else 0
    borders = np.searchsorted(ends, np.arange(settings.block_texels, last, settings.block_texels))
    for block in np.split(cells, borders):
        each = count[block].prod(axis=1)
        cell = np.repeat(block, each)
        inner = np.arange(len(cell)) - np.repeat(np.cumsum(each) - each, each)
        y, x = np.divmod(inner, count[cell, 0])
        column, row = low[cell, 0] + x, low[cell, 1] + y

        # The position of each texel in its cell, [0, 1] along x and y, by Newton's method.
        wanted = np.stack([column, row], axis=1) + 0.5
        start, beside, below, opposite = corners[:, cell]
        right, down = beside - start, below - start
        both = opposite - beside - down
        spot, off = np.full(wanted.shape, 0.5), np.full(len(wanted), np.inf)
        for _ in range(settings.newton_steps):
            along_x, along_y = right + both * spot[:, 1:], down + both * spot[:, :1]
            rest = wanted - (start + right * spot[:, :1] + along_y * spot[:, 1:])
            area = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
            area = np.where(np.abs(area) < 1e-12, np.inf, area)  # a cell without an area has no place for a texel
            step = np.stack(
                [
                    (along_y[:, 1] * rest[:, 0] - along_y[:, 0] * rest[:, 1]) / area,
                    (along_x[:, 0] * rest[:, 1] - along_x[:, 1] * rest[:, 0]) / area,
                ],
                axis=1,
            )
            off = np.where(np.isinf(area), np.inf, np.hypot(step[:, 0], step[:, 1]))
            spot = np.clip(spot + step, -1, 2)
        inside = ((spot >= -settings.slack) & (spot <= 1 + settings.slack)).all(axis=1)
        good = (off < settings.max_last_step) & inside
        corner = np.stack(np.divmod(cell[good], texels.shape[1] - 1)[::-1], axis=1)
        yield (row * size[0] + column)[good], corner + spot[good]

"""The uv map of a frame turned round: where in the frame every texel of a canonical picture is seen.

A baked map is bilinear between its samples. Four neighbouring samples make a cell, which covers a patch of the
canonical picture; the cells are drawn there, and every texel finds its place in the cell that covers it by Newton's
method. What two cells cover that lie apart in the frame is folded, and has no place of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_fields.coords import Box
from neural_fields.lookup import RIM, scattered
from neural_fields.planar.placement import pull_push

ROUNDS = 5
FOUND = 1e-3  # samples of the map; what is further off after that was not found
APART = 1.0  # samples between places of one texel from which it counts as folded
TORN = 16  # times as long as usual: a cell between things that do not belong together
MARGIN = 2  # texels around those that are found to which places go on
BLOCK = 1 << 20  # texels looked at together
SLACK = 1e-9  # so that no texel falls between two cells


@dataclass(frozen=True)
class InverseMap:
    """Where the texels of a canonical picture lie in one frame.

    Attributes:
        place: x, y as shares of the frame's width and height; (0, 0) is its top left corner. It goes on smoothly for
            some texels beyond those that are seen, and is 0 farther off.
        visible: how much of the layer the frame shows there, 0 to 1; 0 where it is not seen or the map folds.
        folded: the share of folds among the texels that the frame shows, 0 to 1.
    """

    place: Float[np.ndarray, "height width 2"]
    visible: Float[np.ndarray, "height width"]
    folded: float


def invert(
    uv: Float[np.ndarray, "rows columns 2"],
    weight: UInt8[np.ndarray, "rows columns"],
    box: Box,
    size: tuple[int, int],
) -> InverseMap:
    """The inverse of one frame's map.

    Args:
        uv, weight: the map and the layer's weight (255 is one) as they are stored, with their rim.
        box, size: what the canonical picture covers, and its (width, height).
    """
    width, height = size
    frame = np.array([weight.shape[1] - 2 * RIM, weight.shape[0] - 2 * RIM])
    texels = (uv - [box.u0, box.v0]) / [box.width, box.height] * size
    to, spots = (np.concatenate(part) for part in zip(*_hits(texels, weight > 0, size), strict=True))
    shares = (spots + (0.5 - RIM)) / frame
    inside = ((shares >= 0) & (shares <= 1)).all(axis=1)
    to, spots, shares = to[inside], spots[inside], shares[inside]
    shown = scattered(weight.astype(np.float32), *spots.astype(np.float32).T) / 255
    to, spots, shares, shown = (values[shown > 0] for values in (to, spots, shares, shown))
    visible, place = np.zeros(height * width, np.float32), np.zeros((height * width, 2), np.float32)
    if not len(to):
        return InverseMap(place.reshape(height, width, 2), visible.reshape(height, width), 0.0)
    place[to], visible[to] = shares, shown
    folds = _folds(to, spots)
    visible[folds] = 0
    found = np.zeros((height, width), bool)
    found.reshape(-1)[to] = True
    near = cv2.dilate(found.astype(np.uint8), np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)) > 0
    filled = pull_push(place.reshape(height, width, 2), found) * near[..., None]
    return InverseMap(filled, visible.reshape(height, width), len(folds) / max(1, int(found.sum())))


def _hits(
    texels: Float[np.ndarray, "rows columns 2"], seen: Bool[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 2"]]]:
    """Texels (by number, row by row) that cells cover, and their places in samples of the map; some cells at a time."""
    corners = np.stack([texels[:-1, :-1], texels[:-1, 1:], texels[1:, :-1], texels[1:, 1:]]).reshape(4, -1, 2)
    some = seen[:-1, :-1] | seen[:-1, 1:] | seen[1:, :-1] | seen[1:, 1:]
    # The texels whose centres lie between the least and the greatest coordinates of a cell.
    low = np.maximum(np.ceil(corners.min(axis=0) - 0.5 - SLACK), 0).astype(np.int64)
    high = np.minimum(np.floor(corners.max(axis=0) - 0.5 + SLACK), np.array(size) - 1).astype(np.int64)
    count = np.maximum(high - low + 1, 0)
    span = np.ptp(corners, axis=0).max(axis=1)
    usual = float(np.median(span[some.reshape(-1)])) if some.any() else 1.0
    cells = np.flatnonzero(some.reshape(-1) & (count.prod(axis=1) > 0) & (span < TORN * (usual + 1)))
    yield np.zeros(0, np.int64), np.zeros((0, 2))
    ends = np.cumsum(count[cells].prod(axis=1))
    for block in np.split(cells, np.searchsorted(ends, np.arange(BLOCK, int(ends[-1]) if len(ends) else 0, BLOCK))):
        each = count[block].prod(axis=1)
        cell = np.repeat(block, each)
        inner = np.arange(len(cell)) - np.repeat(np.cumsum(each) - each, each)
        y, x = np.divmod(inner, count[cell, 0])
        column, row = low[cell, 0] + x, low[cell, 1] + y
        spot, good = _in_cell(corners[:, cell], np.stack([column, row], axis=1) + 0.5)
        corner = np.stack(np.divmod(cell[good], texels.shape[1] - 1)[::-1], axis=1)
        yield (row * size[0] + column)[good], corner + spot[good]


def _in_cell(
    corners: Float[np.ndarray, "4 n 2"], wanted: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Where in its cell ([0, 1] along x and y) each texel lies, and whether it lies in it at all."""
    start, right, down = corners[0], corners[1] - corners[0], corners[2] - corners[0]
    both = corners[3] - corners[1] - down
    spot, off = np.full(wanted.shape, 0.5), np.full(len(wanted), np.inf)
    for _ in range(ROUNDS):
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
    return spot, (off < FOUND) & ((spot >= -SLACK) & (spot <= 1 + SLACK)).all(axis=1)


def _folds(to: Int[np.ndarray, " n"], spots: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " folds"]:
    """The texels that have places apart from each other."""
    order = np.argsort(to, kind="stable")
    to, spots = to[order], spots[order]
    first = np.flatnonzero(np.r_[True, to[1:] != to[:-1]])
    spread = np.maximum.reduceat(spots, first, axis=0) - np.minimum.reduceat(spots, first, axis=0)
    return to[first[spread.max(axis=1) > APART]]

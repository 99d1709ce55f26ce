"""Placing frames on a canonical plane by long-range flow, so that errors do not add up from frame to frame.

Going outwards from the reference frame, every frame is matched with an *anchor*: the reference frame itself, as long as
enough of the layer is seen in both, then the last frame that was placed. The anchor is first warped by the predicted
transform, so that the flow between the two is small; what the layer does not cover is filled with its own colours in
both, so that no other layer's motion bleeds in. A frame's place is then the anchor's, looked up through that flow.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields import coords
from neural_fields.data.flow import consistency_mask

KEEP_ANCHOR = 0.5  # an anchor may be left when less than this share of the layer can be matched with it,
WORTH_LEAVING = 1.3  # and is left when a nearer frame matches so many times more: things in the way hide both alike
MARGIN = 16  # pixels around the layer that flow is computed on
SMALLEST = 64  # pixels: DIS needs some surroundings
SMOOTHING = 3.0  # pixels, Gaussian, of the shifts that flow adds to the transforms

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (xy [n, 2], uv [n, 2], fallback) -> 3 x 3


@dataclass(frozen=True)
class Placed:
    """Where a frame lies: uv = transform(xy) + shift(xy)."""

    transform: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "height width 2"]


@dataclass(frozen=True)
class View:
    """What one frame shows of the layer."""

    gray: UInt8[np.ndarray, "height width"]  # filled with the layer's own brightness where it is not seen
    visible: Float[np.ndarray, "height width"]


def place(
    views: Callable[[int], View],
    pairs: list[np.ndarray],
    reference: int,
    fit: Fit,
    grid: tuple[int, int] | None = None,
) -> list[Placed]:
    """Places every frame relative to the reference frame.

    Args:
        views: the layer as each frame shows it.
        pairs: for each frame but the last, the transform to the next one in xy units: a prediction.
        reference: the frame whose own coordinates the canonical plane has.
        fit: finds the transform of a frame from matched points.
        grid: (columns, rows) to which the shifts are brought; by default they have the size of the views.
    """
    count = len(pairs) + 1
    first = views(reference)
    start = Placed(np.eye(3), np.zeros((*first.gray.shape, 2), np.float32))

    def outwards(order: range) -> list[Placed]:
        return _outwards(views, pairs, order, first, start, fit, grid)

    # The two ways know nothing of each other; OpenCV lets other threads run.
    with ThreadPoolExecutor(2) as pool:
        after, before = pool.map(outwards, (range(reference + 1, count), range(reference - 1, -1, -1)))
    return [*reversed(before), _shrunk(start, grid), *after]


def _outwards(
    views: Callable[[int], View],
    pairs: list[np.ndarray],
    order: range,
    first: View,
    start: Placed,
    fit: Fit,
    grid: tuple[int, int] | None,
) -> list[Placed]:
    """Places the frames on one side of the reference frame, the nearest first."""
    anchor, anchor_view, previous, previous_view = start, first, start, first
    found = []
    for t in order:
        pair = np.linalg.pinv(pairs[t - 1]) if order.step > 0 else pairs[t]
        predicted = previous.transform @ pair
        view = views(t)
        placed, share = _match(view, predicted, anchor_view, anchor, fit)
        if share < KEEP_ANCHOR and anchor is not previous:
            nearer, nearer_share = _match(view, predicted, previous_view, previous, fit)
            if nearer_share > WORTH_LEAVING * share:
                anchor, anchor_view, placed = previous, previous_view, nearer
        found.append(_shrunk(placed, grid))
        previous, previous_view = placed, view
    return found


def _shrunk(placed: Placed, grid: tuple[int, int] | None) -> Placed:
    """With the shifts at the size of a grid."""
    if grid is None:
        return placed
    return Placed(placed.transform, cv2.resize(placed.shift, grid, interpolation=cv2.INTER_AREA))


def _match(
    view: View, predicted: Float[np.ndarray, "3 3"], anchor_view: View, anchor: Placed, fit: Fit
) -> tuple[Placed, float]:
    """Places one frame by its flow to an anchor; also the share of the layer that could be matched."""
    height, width = view.gray.shape
    window = _window(view.visible)
    xy = coords.frame_xy(width, height).numpy()[window]
    to_anchor = np.linalg.pinv(anchor.transform) @ predicted  # xy of this frame to xy of the anchor
    x, y = _to_pixels(project(to_anchor, xy), width, height)
    warped = cv2.remap(anchor_view.gray, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    here = np.ascontiguousarray(view.gray[window])
    flow, ok = _flow(here, warped)
    moved = project(to_anchor, xy + flow * (2 / max(width, height)))
    x, y = _to_pixels(moved, width, height)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    seen = cv2.remap(anchor_view.visible, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0) > 0.5
    own = view.visible[window] > 0.5
    trusted = ok & inside & seen & own
    shift = cv2.remap(anchor.shift, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    uv = project(anchor.transform, moved) + shift
    # The shifts stay out of the fit: where they were only carried to, they would bend the next transform.
    transform = fit(xy[trusted], project(anchor.transform, moved)[trusted], predicted)
    full = np.zeros((height, width, 2), np.float32)
    known = np.zeros((height, width), bool)
    full[window], known[window] = uv - project(transform, xy), trusted
    return Placed(transform, spread(full, known)), trusted.sum() / max(1, own.sum())


def _flow(first: UInt8[np.ndarray, "h w"], second: UInt8[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """DIS flow from one picture to another, and where it agrees with the way back."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forward, backward = dis.calc(first, second, None), dis.calc(second, first, None)
    return forward, consistency_mask(forward, backward)


def _window(visible: Float[np.ndarray, "height width"]) -> tuple[slice, slice]:
    """The part (rows, columns) of the frame that holds the layer, with a margin."""
    parts = []
    for axis, side in ((1, visible.shape[0]), (0, visible.shape[1])):
        used = np.flatnonzero((visible > 0).any(axis))
        if not len(used):
            return slice(0, visible.shape[0]), slice(0, visible.shape[1])
        start, stop = used[0] - MARGIN, used[-1] + 1 + MARGIN
        short = max(0, SMALLEST - (stop - start))
        parts.append(slice(max(0, start - short // 2), min(side, stop + short - short // 2)))
    return parts[0], parts[1]


def _to_pixels(
    xy: Float[np.ndarray, "*n 2"], width: int, height: int
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """xy units to sample positions (0 is the centre of the first pixel)."""
    long = max(width, height)
    x = (xy[..., 0] * long + width) / 2 - 0.5
    y = (xy[..., 1] * long + height) / 2 - 0.5
    return x.astype(np.float32), y.astype(np.float32)


def project(matrix: Float[np.ndarray, "3 3"], xy: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    """Points through a 3 x 3 transform."""
    x, y = xy[..., 0], xy[..., 1]
    rows = np.asarray(matrix, xy.dtype)
    moved = np.empty_like(xy)  # a product of matrices would be slower: they are small
    for axis in (0, 1):
        moved[..., axis] = rows[axis, 0] * x + (rows[axis, 1] * y + rows[axis, 2])
    if rows[2, 0] == 0 and rows[2, 1] == 0:
        return moved if rows[2, 2] == 1 else moved / rows[2, 2]
    moved /= (rows[2, 0] * x + (rows[2, 1] * y + rows[2, 2]))[..., None]
    return moved


# --- filling --------------------------------------------------------------------------------------------------------


def make_view(frame: UInt8[np.ndarray, "h w 3"], visible: Float[np.ndarray, "height width"]) -> View:
    """The layer as a frame shows it, at the size of `visible`."""
    height, width = visible.shape
    if frame.shape[:2] != (height, width):
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    if visible.min() > 0.5:
        return View(gray, visible)
    filled = pull_push(gray[..., None].astype(np.float32), visible > 0.5)[..., 0]
    return View(filled.round().clip(0, 255).astype(np.uint8), visible)


def spread(shift: Float[np.ndarray, "h w 2"], trusted: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 2"]:
    """Shifts smoothed over the pixels that can be trusted, and carried smoothly into the others."""
    if not trusted.any():
        return np.zeros_like(shift)
    known = trusted.astype(np.float32)
    weight = cv2.GaussianBlur(known, (0, 0), SMOOTHING)
    mean = cv2.GaussianBlur(shift * known[..., None], (0, 0), SMOOTHING) / np.maximum(weight, 1e-6)[..., None]
    return pull_push(mean.astype(np.float32), weight > 0.2)


def pull_push(values: Float[np.ndarray, "h w c"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w c"]:
    """Values where they are known, elsewhere smooth means of ever larger surroundings."""
    sums, weights = values * known[..., None], known.astype(np.float32)[..., None]
    levels = [(sums, weights)]
    while max(levels[-1][0].shape[:2]) > 1:
        rows, columns = levels[-1][0].shape[:2]
        half = ((columns + 1) // 2, (rows + 1) // 2)
        # Area means halve sums and weights alike, so that their ratio stays the mean.
        sums, weights = (_with_channels(cv2.resize(p, half, interpolation=cv2.INTER_AREA)) for p in levels[-1])
        levels.append((sums, weights))
    filled = levels[-1][0] / np.maximum(levels[-1][1], 1e-9)
    for sums, weights in reversed(levels[:-1]):
        size = (sums.shape[1], sums.shape[0])
        coarse = _with_channels(cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR))
        share = np.minimum(1, weights)
        filled = np.where(weights > 1e-6, sums / np.maximum(weights, 1e-6), 0) * share + coarse * (1 - share)
    return np.where(known[..., None], values, filled).astype(np.float32)


def _with_channels(image: np.ndarray) -> np.ndarray:
    """OpenCV drops a single channel; this puts it back."""
    return image if image.ndim == 3 else image[..., None]

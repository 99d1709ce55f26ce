"""Placing frames on a canonical plane by long-range flow, so that errors do not add up from frame to frame.

Going outwards from the reference frame, every frame is matched with an *anchor*: the reference frame itself, as long as
enough of the layer is visible in both, then the last frame that was placed. The anchor is first warped by the predicted
transform, so that the flow between the two is small; what the layer does not cover is filled with its own colors in
both, so that no other layer's motion bleeds in. The placement of a frame is then that of the anchor, sampled through
this flow.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core import coords
from neural_fields.data.flow.compute import consistency_mask
from neural_fields.imaging.push_pull import pull_push


@dataclass(frozen=True)
class PlacementSettings:
    """Settings of the placement of frames by long-range flow."""

    min_anchor_share: float = 0.5  # of the layer that must match: with less the anchor may be left,
    min_nearer_gain: float = 1.3  # and is, if a nearer frame matches so many times more: occluders hide both alike
    flow_margin_px: int = 16  # around the layer that flow is computed on
    min_flow_side_px: int = 64  # of what flow is computed on: DIS needs some surroundings
    shift_blur_sigma_px: float = 3.0  # Gaussian, of the shifts that flow adds to the transforms
    min_shift_weight: float = 0.2  # share of trusted pixels in that Gaussian: with less a shift is extrapolated


DEFAULTS = PlacementSettings()

TransformFitter = Callable[
    [np.ndarray, np.ndarray, np.ndarray], np.ndarray
]  # (xy [n, 2], uv [n, 2], predicted) -> 3 x 3


@dataclass(frozen=True)
class FramePlacement:
    """Holds the placement of a frame on the canonical plane: uv = transform(xy) + shift(xy)."""

    transform: Float[np.ndarray, "3 3"]  # xy units to uv units
    shift: Float[np.ndarray, "height width 2"]  # uv units


@dataclass(frozen=True)
class FrameView:
    """Holds the view of a layer in a frame."""

    gray: UInt8[np.ndarray, "height width"]  # filled with the layer's own brightness where it is not visible
    visibility: Float[np.ndarray, "height width"]  # share of each pixel that the layer fills, 0 to 1


def place_frames(
    views: Callable[[int], FrameView],
    pairs: list[np.ndarray],
    reference: int,
    fit: TransformFitter,
    grid: tuple[int, int] | None = None,
    settings: PlacementSettings = DEFAULTS,
) -> list[FramePlacement]:
    """Places every frame relative to the reference frame.

    Args:
        views: the layer as each frame shows it.
        pairs: for each frame but the last, the transform to the next one in xy units: a prediction.
        reference: the frame whose own coordinates the canonical plane has.
        fit: fits the transform of a frame to matched points.
        grid: (columns, rows) to which the shifts are resized; by default they have the size of the views.
        settings: when an anchor is left, and how flow is computed.

    Returns:
        One placement for each frame, in the order of time.
    """
    count = len(pairs) + 1
    first = views(reference)
    start = FramePlacement(np.eye(3), np.zeros((*first.gray.shape, 2), np.float32))
    place_outwards = partial(
        _place_outwards, views, pairs, first=first, start=start, fit=fit, grid=grid, settings=settings
    )
    # The two ways know nothing of each other; OpenCV lets other threads run.
    with ThreadPoolExecutor(2) as pool:
        orders = (range(reference + 1, count), range(reference - 1, -1, -1))
        after, before = pool.map(place_outwards, orders)
    return [*reversed(before), _resize_shift(start, grid), *after]


def _place_outwards(
    views: Callable[[int], FrameView],
    pairs: list[np.ndarray],
    order: range,
    first: FrameView,
    start: FramePlacement,
    fit: TransformFitter,
    grid: tuple[int, int] | None,
    settings: PlacementSettings,
) -> list[FramePlacement]:
    """Places the frames on one side of the reference frame, the nearest first."""
    anchor, anchor_view, previous, previous_view = start, first, start, first
    found = []
    for t in order:
        pair = np.linalg.pinv(pairs[t - 1]) if order.step > 0 else pairs[t]
        predicted = previous.transform @ pair
        view = views(t)
        placed, share = _match_to_anchor(view, predicted, anchor_view, anchor, fit, settings)
        if share < settings.min_anchor_share and anchor is not previous:
            nearer, nearer_share = _match_to_anchor(view, predicted, previous_view, previous, fit, settings)
            if nearer_share > settings.min_nearer_gain * share:
                anchor, anchor_view, placed = previous, previous_view, nearer
        found.append(_resize_shift(placed, grid))
        previous, previous_view = placed, view
    return found


def _resize_shift(placed: FramePlacement, grid: tuple[int, int] | None) -> FramePlacement:
    """Returns the placement with its shifts at the size of a grid (columns, rows)."""
    if grid is None:
        return placed
    return FramePlacement(placed.transform, cv2.resize(placed.shift, grid, interpolation=cv2.INTER_AREA))


def _match_to_anchor(
    view: FrameView,
    predicted: Float[np.ndarray, "3 3"],
    anchor_view: FrameView,
    anchor: FramePlacement,
    fit: TransformFitter,
    settings: PlacementSettings,
) -> tuple[FramePlacement, float]:
    """Places one frame by its flow to an anchor; also returns the share of the layer that could be matched."""
    height, width = view.gray.shape
    # The rows and columns that hold the layer, with a margin.
    window = (slice(0, height), slice(0, width))
    if (view.visibility > 0).any():
        spans = []
        for axis, side in ((1, height), (0, width)):
            used = np.flatnonzero((view.visibility > 0).any(axis))
            start, stop = used[0] - settings.flow_margin_px, used[-1] + 1 + settings.flow_margin_px
            short = max(0, settings.min_flow_side_px - (stop - start))
            spans.append(slice(max(0, start - short // 2), min(side, stop + short - short // 2)))
        window = (spans[0], spans[1])
    xy = coords.frame_xy(width, height).numpy()[window]
    # The anchor warped to where this frame is predicted, and the flow that is left between the two.
    to_anchor = np.linalg.pinv(anchor.transform) @ predicted  # xy of this frame to xy of the anchor
    x, y = _to_pixels(apply_transform(to_anchor, xy), width, height)
    warped = cv2.remap(anchor_view.gray, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    here = np.ascontiguousarray(view.gray[window])
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = dis.calc(here, warped, None)
    is_consistent = consistency_mask(flow, dis.calc(warped, here, None))
    # The pixels of the layer that are visible in both.
    moved = apply_transform(to_anchor, xy + flow * (2 / max(width, height)))
    x, y = _to_pixels(moved, width, height)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    seen = (
        cv2.remap(anchor_view.visibility, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0) > 0.5
    )
    own = view.visibility[window] > 0.5
    trusted = is_consistent & inside & seen & own
    # Their uv are those of the anchor, sampled through the flow.
    shift = cv2.remap(anchor.shift, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    uv = apply_transform(anchor.transform, moved) + shift
    # The shifts stay out of the fit: where they were only extrapolated, they would bend the next transform.
    transform = fit(xy[trusted], apply_transform(anchor.transform, moved)[trusted], predicted)
    full = np.zeros((height, width, 2), np.float32)
    known = np.zeros((height, width), bool)
    full[window], known[window] = uv - apply_transform(transform, xy), trusted
    return FramePlacement(transform, extrapolate_shifts(full, known, settings)), trusted.sum() / max(1, own.sum())


def _to_pixels(
    xy: Float[np.ndarray, "*n 2"], width: int, height: int
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Converts xy units to sample positions (0 is the center of the first pixel)."""
    long = max(width, height)
    x = (xy[..., 0] * long + width) / 2 - 0.5
    y = (xy[..., 1] * long + height) / 2 - 0.5
    return x.astype(np.float32), y.astype(np.float32)


def apply_transform(matrix: Float[np.ndarray, "3 3"], xy: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    """Applies a 3 x 3 projective transform to points."""
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


def make_frame_view(frame: UInt8[np.ndarray, "h w 3"], visible: Float[np.ndarray, "height width"]) -> FrameView:
    """Returns the view of the layer in a frame, at the size of `visible` (0 to 1)."""
    height, width = visible.shape
    if frame.shape[:2] != (height, width):
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    if visible.min() > 0.5:
        return FrameView(gray, visible)
    filled = pull_push(gray[..., None].astype(np.float32), visible > 0.5)[..., 0]
    return FrameView(filled.round().clip(0, 255).astype(np.uint8), visible)


def extrapolate_shifts(
    shift: Float[np.ndarray, "h w 2"], trusted: Bool[np.ndarray, "h w"], settings: PlacementSettings = DEFAULTS
) -> Float[np.ndarray, "h w 2"]:
    """Smooths shifts over the reliable pixels, and extrapolates them smoothly to the others.

    Args:
        shift: in pixels.
        trusted: the reliable pixels.
        settings: of the smoothing.

    Returns:
        The shifts of all pixels; zero where no pixel is reliable.
    """
    if not trusted.any():
        return np.zeros_like(shift)
    known = trusted.astype(np.float32)
    sigma = settings.shift_blur_sigma_px
    weight = cv2.GaussianBlur(known, (0, 0), sigma)
    mean = cv2.GaussianBlur(shift * known[..., None], (0, 0), sigma) / np.maximum(weight, 1e-6)[..., None]
    return pull_push(mean.astype(np.float32), weight > settings.min_shift_weight)

"""Placing frames on a canonical plane by long-range flow, so that errors do not add up from frame to frame.

Going outwards from the reference frame, every frame is matched with an *anchor*: the reference frame itself, as long as
enough of the layer is visible in both and matches, then the last frame that was placed. The anchor is first warped to
where the frame before leads one to expect it, so that the flow between the two is small; what the layer does not cover
is filled with its own colors in both, so that no other layer's motion bleeds in. The placement of a frame is then that
of the anchor, sampled through this flow.

Flow follows whatever is bright or dark: on plain ground, a shadow. So each match is judged by fine detail, which light
hardly changes: where the frame correlates with the anchor no better through the flow than through the transform alone,
the transform is taken, and where it does with neither, the place follows from its surroundings.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core import array_coords
from neural_fields.data.flow.compute import consistency_mask
from neural_fields.imaging.push_pull import pull_push


@dataclass(frozen=True)
class PlacementSettings:
    """Settings of the placement of frames by long-range flow."""

    min_anchor_share: float = 0.5  # of the layer that must match: with less the anchor may be left,
    min_nearer_gain: float = 1.3  # and is, if a nearer frame matches so many times more: occluders hide both alike
    min_agreement: float = 0.7  # of what both frames show of the layer that must match: with less it may be left,
    min_agreement_gain: float = 1.1  # and is, if a nearer frame agrees so many times more
    retry_factor: float = 0.95  # of the agreement at which a nearer frame was no better: it is asked again below that
    flow_margin_px: int = 16  # around the layer that flow is computed on
    min_flow_side_px: int = 64  # of what flow is computed on: DIS needs some surroundings
    finest_scale: int = 0  # of DIS: 0 is full resolution; flow back only checks, at half of it
    patch_stride_px: int = 4  # of DIS
    descent_steps: int = 12  # of DIS, for each patch
    refinement_steps: int = 3  # of DIS, variational
    detail_sigma_px: float = 1.5  # Gaussian that is taken away twice: what remains is detail, not light
    detail_window_px: int = 13  # side of the square in which detail is correlated
    detail_noise: float = 0.25  # variance in gray levels squared that says nothing
    min_correlation: float = 0.3  # of the detail of two frames: with less they show no texture, or not the same
    stiffness: float = 0.1  # advantage of the transform in a correlation r, times 1 - r^2, as chance grows with that
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

    def compute_detail(self, sigma_px: float) -> Float[np.ndarray, "height width"]:
        """Computes the gray levels less their blur, twice: slopes and bends of the light are gone then."""
        detail = self.gray.astype(np.float32)
        for _ in range(2):
            detail = detail - cv2.GaussianBlur(detail, (0, 0), sigma_px)
        return detail


@dataclass(frozen=True)
class AnchorMatch:
    """Holds what the flow between a frame and its anchor says."""

    placed: FramePlacement
    bend: Float[np.ndarray, "height width 2"]  # xy units from where the transform leads in the anchor to the match
    share: float  # of the layer in the frame that matches
    agreement: float  # share that matches of what both frames show of the layer


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
    return [*reversed(before), _smooth_shift(start, grid, settings), *after]


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
    straight = bend = np.zeros_like(start.shift)
    asked_at = 1.0  # agreement at which a nearer frame was no better
    found = []
    for t in order:
        pair = np.linalg.pinv(pairs[t - 1]) if order.step > 0 else pairs[t]
        predicted = previous.transform @ pair
        view = views(t)
        height, width = view.gray.shape
        x, y = _to_pixels(apply_transform(pair, array_coords.frame_xy(width, height)), width, height)
        match = _match_to_anchor(view, predicted, anchor_view, anchor, _sample(bend, x, y), fit, settings)
        hides = match.share < settings.min_anchor_share
        differs = match.agreement < min(settings.min_agreement, settings.retry_factor * asked_at)
        if (hides or differs) and anchor is not previous:
            nearer = _match_to_anchor(view, predicted, previous_view, previous, straight, fit, settings)
            shows_more = nearer.share > settings.min_nearer_gain * match.share
            agrees_more = nearer.agreement > settings.min_agreement_gain * match.agreement
            asked_at = match.agreement
            if (hides and shows_more) or (differs and agrees_more):
                anchor, anchor_view, match, asked_at = previous, previous_view, nearer, 1.0
        placed, bend = match.placed, match.bend
        found.append(_smooth_shift(placed, grid, settings))
        previous, previous_view = placed, view
    return found


def _smooth_shift(
    placed: FramePlacement, grid: tuple[int, int] | None, settings: PlacementSettings = DEFAULTS
) -> FramePlacement:
    """Returns the placement with smooth shifts at the size of a grid (columns, rows); anchors keep theirs as found."""
    shift = cv2.GaussianBlur(placed.shift, (0, 0), settings.shift_blur_sigma_px)
    if grid is not None:
        shift = cv2.resize(shift, grid, interpolation=cv2.INTER_AREA)
    return FramePlacement(placed.transform, shift)


def _match_to_anchor(
    view: FrameView,
    predicted: Float[np.ndarray, "3 3"],
    anchor_view: FrameView,
    anchor: FramePlacement,
    bend: Float[np.ndarray, "height width 2"],
    fit: TransformFitter,
    settings: PlacementSettings,
) -> AnchorMatch:
    """Places one frame by its flow to an anchor; `bend` is the one to expect beside the predicted transform."""
    height, width = view.gray.shape
    window = find_flow_window(view.visibility, settings)
    whole = array_coords.frame_xy(width, height)
    xy, own = whole[window], view.visibility[window] > 0.5

    def find_visible(places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns sample positions in the anchor, and which of them show the layer there as well as here."""
        x, y = _to_pixels(places, width, height)
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        return x, y, own & inside & (_sample(anchor_view.visibility, x, y) > 0.5)

    # The anchor warped to where this frame is expected, and the flow that is left between the two.
    to_anchor = np.linalg.pinv(anchor.transform)  # uv to xy of the anchor
    expected = apply_transform(to_anchor @ predicted, xy) + bend[window]
    warped = _sample(anchor_view.gray, *_to_pixels(expected, width, height))
    flow, is_consistent = compute_checked_flow(np.ascontiguousarray(view.gray[window]), warped, settings)
    # The pixels of the layer that are visible in both.
    rows, columns = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    # Beyond the edge of the window the difference of the two goes on as it ends.
    moved = _sample(expected - xy, columns + flow[..., 0], rows + flow[..., 1]) + xy
    moved += flow * np.float32(2 / max(width, height))
    x, y, is_seen = find_visible(moved)
    trusted = is_consistent & is_seen
    share = trusted.sum() / max(1, own.sum())
    # The shifts stay out of the fit: where they were only extrapolated, they would bend the next transform.
    transform = fit(xy[trusted], apply_transform(anchor.transform, moved)[trusted], predicted)
    straight = apply_transform(to_anchor @ transform, whole)
    # The transform alone, where detail does not say that the flow is better.
    x_straight, y_straight, is_seen_straight = find_visible(straight[window])
    here, there = (seen.compute_detail(settings.detail_sigma_px) for seen in (view, anchor_view))
    by_flow = correlate_detail(here[window], _sample(there, x, y), settings)
    by_transform = correlate_detail(here[window], _sample(there, x_straight, y_straight), settings)
    is_stiff = is_seen_straight & (by_transform > settings.min_correlation)
    is_stiff &= by_transform + settings.stiffness * (1 - by_transform**2) > by_flow
    trusted = (trusted & (by_flow > settings.min_correlation)) | is_stiff
    agreement = trusted.sum() / max(1, is_seen.sum())
    # The uv are those of the anchor, sampled through the match.
    found = np.zeros((height, width, 2), np.float32)
    if not trusted.any():
        return AnchorMatch(FramePlacement(transform, found), found, 0.0, 0.0)
    known = np.zeros((height, width), bool)
    found[window], known[window] = np.where(is_stiff[..., None], 0, moved - straight[window]), trusted
    smooth = extrapolate_shifts(found, known, settings)
    places = straight + np.where(known[..., None], found, smooth)
    shift = apply_transform(anchor.transform, places) - apply_transform(transform, whole)
    shift += _sample(anchor.shift, *_to_pixels(places, width, height))
    return AnchorMatch(FramePlacement(transform, shift), smooth, share, agreement)


def find_flow_window(
    visibility: Float[np.ndarray, "height width"], settings: PlacementSettings = DEFAULTS
) -> tuple[slice, slice]:
    """Returns the rows and columns that hold a layer, with a margin; all of them where it is not visible."""
    height, width = visibility.shape
    if not (visibility > 0).any():
        return slice(0, height), slice(0, width)
    spans = []
    for axis, side in ((1, height), (0, width)):
        used = np.flatnonzero((visibility > 0).any(axis))
        start, stop = used[0] - settings.flow_margin_px, used[-1] + 1 + settings.flow_margin_px
        short = max(0, settings.min_flow_side_px - (stop - start))
        spans.append(slice(max(0, start - short // 2), min(side, stop + short - short // 2)))
    return spans[0], spans[1]


def compute_checked_flow(
    first: UInt8[np.ndarray, "h w"], second: UInt8[np.ndarray, "h w"], settings: PlacementSettings = DEFAULTS
) -> tuple[Float[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]:
    """Computes DIS flow from one gray picture to another, and where flow back leads to the start.

    Args:
        first: where the flow starts.
        second: where it ends.
        settings: of DIS.

    Returns:
        The flow in pixels, and the mask.
    """
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(settings.finest_scale)
    dis.setPatchStride(settings.patch_stride_px)
    dis.setGradientDescentIterations(settings.descent_steps)
    dis.setVariationalRefinementIterations(settings.refinement_steps)
    flow = dis.calc(first, second, None)
    dis.setFinestScale(max(1, settings.finest_scale))
    return flow, consistency_mask(flow, dis.calc(second, first, None))


def correlate_detail(
    first: Float[np.ndarray, "h w"], second: Float[np.ndarray, "h w"], settings: PlacementSettings = DEFAULTS
) -> Float[np.ndarray, "h w"]:
    """Correlates the detail of two pictures around each pixel.

    Args:
        first: detail of one picture (`FrameView.compute_detail`).
        second: detail of the other picture.
        settings: of the window, and of the noise.

    Returns:
        -1 to 1; near 0 where there is no more than noise.
    """
    window = (settings.detail_window_px, settings.detail_window_px)
    product, *squares = (cv2.blur(a * b, window) for a, b in ((first, second), (first, first), (second, second)))
    return product / np.sqrt((squares[0] + settings.detail_noise) * (squares[1] + settings.detail_noise))


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Samples an image linearly; beyond its edge it goes on as it ends."""
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


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

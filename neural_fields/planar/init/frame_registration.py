"""Placing frames on a canonical plane by long-range flow, so that errors do not add up from frame to frame.

Going outwards from the reference frame, every frame is matched with an *anchor*: the reference frame itself, as long as
enough of the layer is visible in both and matches, then the last frame that was placed. The anchor is first warped to
where the frame before leads one to expect it, so that the flow between the two is small; what the layer does not cover
is filled with its own colors in both, so that no other layer's motion bleeds in. Flow is computed on a lattice, at half
the resolution of the views, and windows of the views themselves are then aligned by a few steps of Gauss-Newton (Lucas
and Kanade 1981). The placement of a frame is that of the anchor, sampled through this match.

Flow follows whatever is bright or dark: on plain ground, a shadow. So each match is judged by fine detail, which light
hardly changes: where the frame correlates with the anchor no better through the flow than through the transform alone,
the transform is taken, and where it does with neither, the place follows from its surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from neural_fields.core import array_coords
from neural_fields.core.prefetch import map_in_threads
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
    lattice_px: int = 2  # from one of the places that are matched to the next, along rows and columns
    lattice_blur_sigma_px: float = 1.0  # Gaussian, before pictures are sampled on the lattice
    flow_margin: int = 16  # places around the layer that flow is computed on
    min_flow_side: int = 64  # places along a side of what flow is computed on: DIS needs some surroundings
    finest_scale: int = 0  # of DIS: 0 is the resolution of the lattice; flow back only checks, at half of it
    patch_stride_px: int = 4  # of DIS
    descent_steps: int = 12  # of DIS, for each patch
    refinement_steps: int = 3  # of DIS, variational
    window_sigma_px: float = 4.0  # of the Gaussian windows around places, which are aligned after flow
    band_sigma_px: float = 3.0  # Gaussian that is taken away before windows are aligned: light does not count
    outlier_levels: float = 16.0  # gray levels; larger differences count less in a window
    slope_noise: float = 0.7  # gray levels a pixel; windows with flatter texture stay where flow has them
    max_alignment_step_px: float = 1.5
    detail_sigma_px: float = 1.5  # Gaussian that is taken away twice: what remains is detail, not light
    detail_window_px: int = 19  # side of the square in which detail is correlated
    detail_noise: float = 0.25  # variance in gray levels squared that says nothing
    min_correlation: float = 0.3  # of the detail of two frames: with less they show no texture, or not the same
    stiffness: float = 0.1  # advantage of the transform in a correlation r, times 1 - r^2, as chance grows with that
    shift_blur_sigma_px: float = 3.0  # Gaussian, of the shifts that flow adds to the transforms
    min_shift_weight: float = 0.2  # share of trusted pixels in that Gaussian: with less a shift is extrapolated


DEFAULTS = PlacementSettings()

Window = tuple[slice, slice]  # rows and columns
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
class Lattice:
    """Holds the places of a frame that are matched: every `step`-th pixel along rows and columns."""

    width: int  # of the frame, in pixels
    height: int  # of the frame, in pixels
    step: int  # pixels

    @cached_property
    def xy(self) -> Float[np.ndarray, "h w 2"]:
        """The places, in xy units."""
        return self.pick(array_coords.frame_xy(self.width, self.height))

    def pick(self, picture: Shaped[np.ndarray, "height width ..."]) -> Shaped[np.ndarray, "h w ..."]:
        """Returns the values of a picture of the frame at the places."""
        return np.ascontiguousarray(picture[:: self.step, :: self.step])

    def sample_picture(self, picture: np.ndarray, xy: Float[np.ndarray, "*n 2"]) -> np.ndarray:
        """Samples a picture of the frame linearly, at positions in xy units."""
        return _sample(picture, *self.to_pixels(xy))

    def sample(self, values: np.ndarray, xy: Float[np.ndarray, "*n 2"]) -> np.ndarray:
        """Samples values that belong to the places linearly, at positions in xy units."""
        x, y = self.to_pixels(xy)
        return _sample(values, x / self.step, y / self.step)

    def to_pixels(self, xy: Float[np.ndarray, "*n 2"]) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
        """Converts xy units to sample positions in pixels (0 is the center of the first pixel)."""
        long = max(self.width, self.height)
        x = (xy[..., 0] * long + self.width) / 2 - 0.5
        y = (xy[..., 1] * long + self.height) / 2 - 0.5
        return x.astype(np.float32), y.astype(np.float32)

    def resize(
        self, values: Float[np.ndarray, "h w 2"], columns: int, rows: int
    ) -> Float[np.ndarray, "rows columns 2"]:
        """Samples values that belong to the places at the centers of cells that divide the frame evenly.

        Args:
            values: of the places.
            columns: number of cells along x.
            rows: number of cells along y.
        """
        x = ((np.arange(columns, dtype=np.float32) + 0.5) * (self.width / columns) - 0.5) / self.step
        y = ((np.arange(rows, dtype=np.float32) + 0.5) * (self.height / rows) - 0.5) / self.step
        return _sample(values, *np.meshgrid(x, y))


class WindowPictures:
    """Holds what windows around the places of a lattice are aligned by.

    Args:
        picture: gray levels of a view.
        visibility: of its layer, 0 to 1.
        lattice: the places.
        settings: of the filters.
    """

    def __init__(
        self,
        picture: Float[np.ndarray, "height width"],
        visibility: Float[np.ndarray, "height width"],
        lattice: Lattice,
        settings: PlacementSettings,
    ) -> None:
        self.lattice = lattice
        self.band = picture - cv2.GaussianBlur(picture, (0, 0), settings.band_sigma_px)  # of all pixels
        self.levels = lattice.pick(self.band)
        self.slope_x = lattice.pick(cv2.Scharr(self.band, cv2.CV_32F, 1, 0, scale=1 / 32))
        self.slope_y = lattice.pick(cv2.Scharr(self.band, cv2.CV_32F, 0, 1, scale=1 / 32))
        self.visibility = lattice.pick(visibility)

    def find_visible(self, xy: Float[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
        """Finds the positions, in xy units, that lie in the frame where it shows the layer."""
        lattice = self.lattice
        x, y = lattice.to_pixels(xy)
        inside = (x >= 0) & (x <= lattice.width - 1) & (y >= 0) & (y <= lattice.height - 1)
        return inside & (_sample(self.visibility, x / lattice.step, y / lattice.step) > 0.5)


class LatticeView:
    """Holds what the matching looks at.

    Args:
        view: the layer in a frame.
        lattice: the places that are matched.
        settings: of the filters.
    """

    def __init__(self, view: FrameView, lattice: Lattice, settings: PlacementSettings = DEFAULTS) -> None:
        gray, every_pixel = view.gray.astype(np.float32), Lattice(lattice.width, lattice.height, 1)
        self.soft, self.fine = view.gray, WindowPictures(gray, view.visibility, every_pixel, settings)
        self.coarse = self.fine
        if lattice.step > 1:  # less than all pixels would alias, without a blur before
            soft = cv2.GaussianBlur(gray, (0, 0), settings.lattice_blur_sigma_px)
            self.soft, self.coarse = (
                soft.round().astype(np.uint8),
                WindowPictures(soft, view.visibility, lattice, settings),
            )
        self.detail = view.compute_detail(settings.detail_sigma_px)


@dataclass(frozen=True)
class AnchorMatch:
    """Holds what the flow between a frame and its anchor says."""

    placed: FramePlacement
    bend: Float[np.ndarray, "height width 2"]  # xy units from where the transform leads in the anchor to the match
    share: float  # of the layer in the frame that matches
    agreement: float  # share that matches of what both frames show of the layer


@dataclass(frozen=True)
class ReachedFrame:
    """Holds where a frame lies, and what the next frame outwards needs to know of that."""

    placed: FramePlacement  # with shifts as found
    bend: Float[np.ndarray, "height width 2"]  # as of `AnchorMatch`
    anchor: int  # index of the frame that it was matched with
    anchor_placed: FramePlacement
    asked_at: float  # agreement at which a nearer frame was no better


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
    (placed,) = place_frames_in_turns(views, pairs, reference, fit, [range(len(pairs) + 1)], grid, settings)
    return [placed[index] for index in range(len(placed))]


def place_frames_in_turns(
    views: Callable[[int], FrameView],
    pairs: list[np.ndarray],
    reference: int,
    fit: TransformFitter,
    turns: Sequence[Iterable[int]],
    grid: tuple[int, int] | None = None,
    settings: PlacementSettings = DEFAULTS,
) -> Iterator[dict[int, FramePlacement]]:
    """Places some frames around the reference frame first, then others beyond them; see `place_frames`.

    Args:
        views: as for `place_frames`, like the other arguments.
        pairs: a prediction.
        reference: the index of the reference frame, which is one of the first turn.
        fit: fits the transform of a frame to matched points.
        turns: indices of the frames of each turn, which lie directly beyond those of the turns before.
        grid: (columns, rows) of the shifts.
        settings: when an anchor is left, and how flow is computed.

    Yields:
        The placements of a turn, by the index of the frame.
    """
    view = views(reference)
    height, width = view.gray.shape
    first = LatticeView(view, Lattice(width, height, settings.lattice_px), settings)
    start = FramePlacement(np.eye(3), np.zeros_like(first.coarse.lattice.xy))
    cells = grid or (width, height)
    ways = [_Way(views, pairs, reference, first, start, fit, cells, settings) for _ in range(2)]
    own = {reference: _smooth_shift(start, first.coarse.lattice, cells, settings)}
    for turn in turns:
        # The two ways know nothing of each other.
        outwards = [sorted(t for t in turn if t > reference), sorted((t for t in turn if t < reference), reverse=True)]
        after, before = map_in_threads(lambda work: work[0].place(work[1]), zip(ways, outwards, strict=True))
        yield own | after | before
        own = {}


class _Way:
    """Places the frames on one side of the reference frame; see `place_frames` for the arguments."""

    def __init__(
        self,
        views: Callable[[int], FrameView],
        pairs: list[np.ndarray],
        reference: int,
        first: LatticeView,
        start: FramePlacement,
        fit: TransformFitter,
        cells: tuple[int, int],
        settings: PlacementSettings,
    ) -> None:
        self.pairs, self.fit, self.cells, self.settings = pairs, fit, cells, settings
        self.lattice = lattice = first.coarse.lattice
        self.reference = reference
        self.reached = ReachedFrame(start, np.zeros_like(start.shift), reference, start, 1.0)  # the outermost frame

        @lru_cache(3)  # a frame, the one before it and its anchor
        def view_frame(index: int) -> LatticeView:
            return first if index == reference else LatticeView(views(index), lattice, settings)

        self.view_frame = view_frame

    def place(self, order: Sequence[int]) -> dict[int, FramePlacement]:
        """Places frames in their order outwards, which goes on from the frames that were placed before."""
        settings, found = self.settings, {}
        for t in order:
            before = t - 1 if t > self.reference else t + 1
            pair = np.linalg.pinv(self.pairs[before]) if t > before else self.pairs[t]
            last = self.reached
            predicted = last.placed.transform @ pair
            view, anchor_view = self.view_frame(t), self.view_frame(last.anchor)
            bend = self.lattice.sample(last.bend, apply_transform(pair, self.lattice.xy))
            match = _match_to_anchor(view, predicted, anchor_view, last.anchor_placed, bend, self.fit, settings)
            anchor, anchor_placed, asked_at = last.anchor, last.anchor_placed, last.asked_at
            hides = match.share < settings.min_anchor_share
            differs = match.agreement < min(settings.min_agreement, settings.retry_factor * asked_at)
            if (hides or differs) and before != last.anchor:
                straight = np.zeros_like(bend)
                nearer = _match_to_anchor(
                    view, predicted, self.view_frame(before), last.placed, straight, self.fit, settings
                )
                shows_more = nearer.share > settings.min_nearer_gain * match.share
                agrees_more = nearer.agreement > settings.min_agreement_gain * match.agreement
                asked_at = match.agreement
                if (hides and shows_more) or (differs and agrees_more):
                    anchor, anchor_placed, match, asked_at = before, last.placed, nearer, 1.0
            self.reached = ReachedFrame(match.placed, match.bend, anchor, anchor_placed, asked_at)
            found[t] = _smooth_shift(match.placed, self.lattice, self.cells, settings)
        return found


def _smooth_shift(
    placed: FramePlacement, lattice: Lattice, cells: tuple[int, int], settings: PlacementSettings
) -> FramePlacement:
    """Returns the placement with smooth shifts for (columns, rows) of cells; anchors keep theirs as found."""
    shift = cv2.GaussianBlur(placed.shift, (0, 0), settings.shift_blur_sigma_px / lattice.step)
    return FramePlacement(placed.transform, lattice.resize(shift, *cells))


def _match_to_anchor(
    view: LatticeView,
    predicted: Float[np.ndarray, "3 3"],
    anchor_view: LatticeView,
    anchor: FramePlacement,
    bend: Float[np.ndarray, "h w 2"],
    fit: TransformFitter,
    settings: PlacementSettings,
) -> AnchorMatch:
    """Places one frame by its flow to an anchor; `bend` is the one to expect beside the predicted transform."""
    lattice = view.coarse.lattice
    window = find_flow_window(view.coarse.visibility, settings)
    xy, own = lattice.xy[window], view.coarse.visibility[window] > 0.5
    # The anchor warped to where this frame is expected, and the flow that is left between the two.
    to_anchor = np.linalg.pinv(anchor.transform)  # uv to xy of the anchor
    expected = apply_transform(to_anchor @ predicted, xy) + bend[window]
    warped = lattice.sample_picture(anchor_view.soft, expected)
    flow, is_consistent = compute_checked_flow(lattice.pick(view.soft)[window].copy(), warped, settings)
    moved = _move_match(expected, flow * lattice.step, lattice, window)
    moved = _align_windows(view, window, anchor_view, moved, settings)
    # The pixels of the layer that are visible in both.
    is_seen = own & anchor_view.coarse.find_visible(moved)
    trusted = is_consistent & is_seen
    share = trusted.sum() / max(1, own.sum())
    # The shifts stay out of the fit: where they were only extrapolated, they would bend the next transform.
    transform = fit(xy[trusted], apply_transform(anchor.transform, moved)[trusted], predicted)
    straight = apply_transform(to_anchor @ transform, lattice.xy)
    # The transform alone, where detail does not say that the flow is better.
    here, side = lattice.pick(view.detail)[window], settings.detail_window_px // lattice.step
    by_flow, by_transform = (
        correlate_detail(here, lattice.sample_picture(anchor_view.detail, places), side, settings.detail_noise)
        for places in (moved, straight[window])
    )
    is_stiff = own & anchor_view.coarse.find_visible(straight[window]) & (by_transform > settings.min_correlation)
    is_stiff &= by_transform + settings.stiffness * (1 - by_transform**2) > by_flow
    trusted = (trusted & (by_flow > settings.min_correlation)) | is_stiff
    agreement = trusted.sum() / max(1, is_seen.sum())
    # The uv are those of the anchor, sampled through the match.
    found, known = np.zeros_like(lattice.xy), np.zeros(lattice.xy.shape[:2], bool)
    if not trusted.any():
        return AnchorMatch(FramePlacement(transform, found), found, 0.0, 0.0)
    found[window], known[window] = np.where(is_stiff[..., None], 0, moved - straight[window]), trusted
    smooth = extrapolate_shifts(found, known, settings.shift_blur_sigma_px / lattice.step, settings.min_shift_weight)
    places = straight + np.where(known[..., None], found, smooth)
    shift = apply_transform(anchor.transform, places) - apply_transform(transform, lattice.xy)
    shift += lattice.sample(anchor.shift, places)
    return AnchorMatch(FramePlacement(transform, shift), smooth, share, agreement)


def _move_match(
    match: Float[np.ndarray, "h w 2"], move_px: Float[np.ndarray, "h w 2"], lattice: Lattice, window: Window
) -> Float[np.ndarray, "h w 2"]:
    """Samples a match, positions in xy units of the places in a window, where each place moves by some pixels.

    Beyond the edge of the window, the difference between places and positions goes on as it ends.
    """
    xy = lattice.xy[window]
    rows, columns = np.mgrid[: xy.shape[0], : xy.shape[1]].astype(np.float32)
    by = move_px / lattice.step
    moved = _sample(match - xy, columns + by[..., 0], rows + by[..., 1]) + xy
    return moved + move_px * np.float32(2 / max(lattice.width, lattice.height))


def _align_windows(
    view: LatticeView,
    window: Window,
    anchor_view: LatticeView,
    match: Float[np.ndarray, "h w 2"],
    settings: PlacementSettings,
) -> Float[np.ndarray, "h w 2"]:
    """Moves the match of each place until its surroundings look like the anchor's (Lucas and Kanade 1981, equation 10).

    One step is done with the blurred picture on the lattice, and one with all pixels.
    """
    lattice = view.coarse.lattice
    steps = _find_steps(view.coarse, window, anchor_view.coarse, match, settings)
    match = _move_match(match, steps, lattice, window)
    rows, columns = (slice(part.start * lattice.step, part.stop * lattice.step) for part in window)
    height, width = view.fine.levels[rows, columns].shape
    y, x = np.mgrid[:height, :width].astype(np.float32) / lattice.step
    every_match = _sample(match, x, y)
    steps = _find_steps(view.fine, (rows, columns), anchor_view.fine, every_match, settings, lattice.step)
    return _move_match(match, steps, lattice, window)


def _find_steps(
    view: WindowPictures,
    window: Window,
    anchor: WindowPictures,
    match: Float[np.ndarray, "h w 2"],
    settings: PlacementSettings,
    cell: int = 1,
) -> Float[np.ndarray, "rows columns 2"]:
    """Solves for the pixels by which the surroundings of each place are to be moved to look like the anchor's.

    Args:
        view: the layer in a frame.
        window: the places.
        anchor: the layer in the anchor.
        match: where the places lie in the anchor, in xy units.
        settings: of the windows.
        cell: side of the squares of places that move alike.
    """
    slope_x, slope_y = view.slope_x[window], view.slope_y[window]
    gap = view.levels[window] - anchor.lattice.sample_picture(anchor.band, match)
    weight = (view.visibility[window] > 0.5) & anchor.find_visible(match)
    weight = weight / (1 + np.square(gap / settings.outlier_levels))
    x, y = weight * slope_x, weight * slope_y
    sums = cv2.merge([part.astype(np.float32) for part in (x * slope_x, x * slope_y, y * slope_y, x * gap, y * gap)])
    if cell > 1:  # the windows are wide: sums of squares say as much
        rows, columns = (-(-side // cell) for side in weight.shape)
        sums = cv2.copyMakeBorder(
            sums, 0, rows * cell - len(weight), 0, columns * cell - weight.shape[1], cv2.BORDER_REPLICATE
        )
        sums = cv2.resize(sums, (columns, rows), interpolation=cv2.INTER_AREA)
    sums = cv2.GaussianBlur(sums, (0, 0), settings.window_sigma_px / (view.lattice.step * cell))
    xx, xy, yy, to_x, to_y = np.moveaxis(sums, 2, 0)
    xx, yy = xx + settings.slope_noise**2, yy + settings.slope_noise**2
    steps = cv2.merge([yy * to_x - xy * to_y, xx * to_y - xy * to_x]) / (xx * yy - xy * xy)[..., None]
    return steps.clip(-settings.max_alignment_step_px, settings.max_alignment_step_px)


def find_flow_window(visibility: Float[np.ndarray, "h w"], settings: PlacementSettings = DEFAULTS) -> Window:
    """Returns the rows and columns that hold a layer, with a margin; all of them where it is not visible."""
    height, width = visibility.shape
    if not (visibility > 0).any():
        return slice(0, height), slice(0, width)
    spans = []
    for axis, side in ((1, height), (0, width)):
        used = np.flatnonzero((visibility > 0).any(axis))
        start, stop = used[0] - settings.flow_margin, used[-1] + 1 + settings.flow_margin
        short = max(0, settings.min_flow_side - (stop - start))
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
        The flow in pixels of these pictures, and the mask.
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
    first: Float[np.ndarray, "h w"], second: Float[np.ndarray, "h w"], side: int, noise: float = DEFAULTS.detail_noise
) -> Float[np.ndarray, "h w"]:
    """Correlates the detail of two pictures around each pixel.

    Args:
        first: detail of one picture (`FrameView.compute_detail`).
        second: detail of the other picture.
        side: places along a side of the square around each place in which they are correlated.
        noise: variance in gray levels squared that says nothing.

    Returns:
        -1 to 1; near 0 where there is no more than noise.
    """
    window = (side | 1, side | 1)  # odd: the place is in its middle
    product, *squares = (cv2.blur(a * b, window) for a, b in ((first, second), (first, first), (second, second)))
    return product / np.sqrt((squares[0] + noise) * (squares[1] + noise))


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Samples an image linearly; beyond its edge it goes on as it ends."""
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


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
    shift: Float[np.ndarray, "h w 2"],
    trusted: Bool[np.ndarray, "h w"],
    sigma: float = DEFAULTS.shift_blur_sigma_px,
    min_weight: float = DEFAULTS.min_shift_weight,
) -> Float[np.ndarray, "h w 2"]:
    """Smooths shifts over the reliable pixels, and extrapolates them smoothly to the others.

    Args:
        shift: in any unit.
        trusted: the reliable pixels.
        sigma: of the Gaussian that smooths, in pixels of the arrays.
        min_weight: share of reliable pixels in the Gaussian with which a smooth shift is taken.

    Returns:
        The shifts of all pixels; zero where no pixel is reliable.
    """
    if not trusted.any():
        return np.zeros_like(shift)
    known = trusted.astype(np.float32)
    weight = cv2.GaussianBlur(known, (0, 0), sigma)
    mean = cv2.GaussianBlur(shift * known[..., None], (0, 0), sigma) / np.maximum(weight, 1e-6)[..., None]
    return pull_push(mean.astype(np.float32), weight > min_weight)

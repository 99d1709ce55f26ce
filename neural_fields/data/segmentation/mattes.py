"""Soft edges: the share of an object in each pixel of a frame, in a band around its outline.

The outline is first moved to color edges. In a band around it, each pixel is a mixture of a color of the object and
one of its surroundings. Three things say in which proportion: the colors nearby on both sides (Chuang et al., "A
Bayesian Approach to Digital Matting", CVPR 2001, with one Gaussian a side); neighbors, by the matting Laplacian of
Levin et al., "A Closed-Form Solution to Natural Image Matting" (TPAMI 2008); and, weakly, the matte of the frame
before, moved along the flow. Together they are one sparse linear system for the pixels of the band.

Lengths marked `_ref` are pixels of a picture whose shorter side is 240, and scale with the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import cg

from neural_fields.core.memmap import allocate_zeros, iterate_releasing
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.compute import FlowField, resize_vectors
from neural_fields.data.masks.boundaries import align_outline
from neural_fields.data.masks.layer_masks import LayerMasks

_WINDOW = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]  # the pixels of a window of the matting Laplacian
_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # a symmetric 3x3 matrix is stored in this order
SHARES = np.linspace(0, 1, 11, dtype=np.float32)  # of the object in a pixel, between which colors decide
_CHUNK = 1 << 16  # windows whose matrices are in memory at a time


@dataclass(frozen=True)
class MatteSettings:
    """Holds the settings of `make_matte`."""

    reference_side_px: int = 240  # lengths marked `_ref` are pixels of a frame whose shorter side is this long
    inner_band_ref: float = 2.0  # width of the band inside the outline
    outer_band_ref: float = 3.0  # width of the band outside it; wider, as hair sticks out of masks
    max_band_ref: float = 12.0  # farthest from the outline that doubtful shares and blur of motion widen the band
    doubtful_shares: tuple[float, float] = (0.1, 0.9)  # pixels with a share between these belong to the band
    shutter: float = 0.5  # part of the time between two frames in which the camera exposes: blur widens the band
    color_radius_ref: float = 8.0  # half the side of the box around a pixel from which colors are learned
    common_colors_px: float = 20.0  # the colors of a whole side count like this many pixels in each box
    noise: float = 3.0  # standard deviation of noise and compression in a color channel, in 8-bit steps
    # Pixels of thin parts whose colors are further than this from all mixtures of both sides teach colors themselves.
    foreign_deviations: float = 4.0
    outline_weight: float = 2.5  # log odds, for each `_ref` pixel from the outline, of the side on which a pixel is
    pure_odds: float = 4.0  # log odds of a pixel that is not mixed, against each of the shares between
    color_weight: float = 0.3  # weight of the local colors, relative to the matting Laplacian
    settled_difference: float = 0.05  # nearer to 0 or 1 by their colors, pixels among their like are not solved for
    smoothing: float = 1e-4  # regularization of the matting Laplacian, in squares of the color range
    steady_weight: float = 0.1  # weight of the matte of the frame before
    steady_difference: float = 0.3  # standard deviation of differences from that matte that are taken for flicker
    # Half the side of the boxes in which the matte of the frame before is shifted as a whole, as flow is not exact.
    shift_radius_ref: float = 12.0
    shift_steps: int = 3
    tolerance: float = 1e-3  # relative residual at which the linear system is solved
    max_iterations: int = 200


DEFAULTS = MatteSettings()


def make_matte(
    frame: UInt8[np.ndarray, "height width 3"],
    share: UInt8[np.ndarray, "rows columns"] | Bool[np.ndarray, "rows columns"],
    settings: MatteSettings = DEFAULTS,
    before: UInt8[np.ndarray, "height width"] | None = None,
    flow: Float[np.ndarray, "flow_rows flow_columns 2"] | None = None,
) -> UInt8[np.ndarray, "height width"]:
    """Computes the share of an object in each pixel of a frame.

    Args:
        frame: RGB, 0 to 255.
        share: share of the object in each pixel, 0 to 255, or its mask; of any size.
        settings: widths and weights.
        before: matte of the frame before, which keeps the edges steady; it needs `flow`.
        flow: from this frame to the one before, in pixels of its own size, which may be any. The edges of what moves
            fast are expected to be blurred; for the first frame, the flow to the next one says as much.

    Returns:
        The matte, 0 to 255: 255 in the object, 0 outside, between them in the band around the outline. A share that
        is nowhere or everywhere at least one half has no outline, and is returned as 0 or 255.

    Raises:
        ValueError: `before` without `flow`.
    """
    if before is not None and flow is None:
        raise ValueError("a matte of the frame before is of use only with the flow to that frame")
    size = (frame.shape[1], frame.shape[0])
    given = share.astype(np.float32) / (1 if share.dtype == bool else 255)
    if given.shape != frame.shape[:2]:
        given = cv2.resize(given, size, interpolation=cv2.INTER_LINEAR)
    mask = given >= 0.5
    matte = mask.astype(np.uint8) * 255
    if not mask.any() or mask.all():
        return matte
    unit = max(1.0, min(mask.shape) / settings.reference_side_px)
    vectors = None if flow is None else resize_vectors(flow, size)
    margin = 2 + int((settings.max_band_ref + settings.color_radius_ref) * unit)
    top, left, rows, columns = _bounding_box(mask, margin)
    window = (slice(top, top + rows), slice(left, left + columns))
    picture = np.ascontiguousarray(frame[window])
    thin = _find_thin_parts(mask[window], unit, settings)
    mask = thin | align_outline(picture, mask[window])
    matte[window] = mask * np.uint8(255)
    if not mask.any() or mask.all():
        return matte
    # The distance of pixel centers to the outline, positive inside.
    to_rest, to_mask = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (mask, ~mask))
    distance = np.where(mask, to_rest - 0.5, 0.5 - to_mask).astype(np.float32)
    moved = None if vectors is None else vectors[window]
    band, motion = _find_band(given[window], distance, moved, unit, settings)
    if not band.any():
        return matte
    alpha, trust = _estimate_from_colors(picture, mask, thin, band, distance / unit, unit, settings)
    weight = settings.color_weight * trust
    wanted = weight * alpha
    if before is not None and motion is not None:
        expected, sure = mask.astype(np.float32), np.ones(mask.shape, np.float32)
        expected[band], sure[band] = alpha, trust
        carried, seen = (plane[band] for plane in _carry(before, motion, (top, left), expected, sure, unit, settings))
        steady = settings.steady_weight * seen
        steady *= np.exp(-np.square(trust * (carried - alpha) / settings.steady_difference))
        weight, wanted = weight + steady, wanted + steady * carried
    known, doubtful = mask.copy(), np.zeros(mask.shape, np.uint8)
    known[band] = alpha > 0.5
    doubtful[band] = np.abs(alpha - known[band]) > settings.settled_difference
    unknown = band & (cv2.dilate(doubtful, np.ones((5, 5), np.uint8)) > 0)
    alpha, weight, wanted = (values[unknown[band]] for values in (alpha, weight, wanted))
    matte[window] = known * np.uint8(255)
    if not unknown.any():
        return matte
    matrix, pull = _build_laplacian(picture.astype(np.float32) / 255, known, unknown, settings.smoothing)
    least = 1e-6  # the mask decides where nothing else does
    matrix = (matrix + diags_array(weight + least)).tocsr()
    target = pull + wanted + least * mask[unknown]
    scale = diags_array(1 / matrix.diagonal())
    solved, _ = cg(matrix, target, x0=alpha, rtol=settings.tolerance, maxiter=settings.max_iterations, M=scale)
    matte[window][unknown] = np.rint(np.clip(solved, 0, 1) * 255).astype(np.uint8)
    return matte


def soften_masks(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    masks: LayerMasks,
    report: ProgressReporter = report_nothing,
    settings: MatteSettings = DEFAULTS,
) -> LayerMasks:
    """Gives hard masks soft edges.

    Args:
        frames: RGB, 0 to 255; may be memory-mapped.
        flow: of the clip, of any size.
        masks: of the size of the frames.
        report: called after each frame, as the stage "masks".
        settings: widths and weights.

    Returns:
        The masks, moved to color edges, with shares.
    """
    shares, hard = (allocate_zeros(masks.masks.shape, kind) for kind in (np.uint8, bool))
    for layer in range(len(masks.names)):
        before = None
        for number, frame in enumerate(iterate_releasing(frames)):
            back = np.asarray(flow.backward[number - 1], np.float32) if number else None
            before = make_matte(np.ascontiguousarray(frame), masks.masks[layer, number], settings, before, back)
            shares[layer, number], hard[layer, number] = before, before >= 128
            report(Progress("masks", layer * len(frames) + number + 1, shares.shape[0] * len(frames)))
    return LayerMasks(masks.names, hard, shares)


def _bounding_box(mask: np.ndarray, margin: int) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the box of a mask, widened by a margin inside the picture."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = max(0, int(ys[0]) - margin), max(0, int(xs[0]) - margin)
    bottom, right = int(ys[-1]) + 1 + margin, int(xs[-1]) + 1 + margin
    return top, left, min(mask.shape[0], bottom) - top, min(mask.shape[1], right) - left


def _find_thin_parts(mask: np.ndarray, unit: float, settings: MatteSettings) -> np.ndarray:
    """Finds parts of the object too thin to have pixels outside the band: a refined outline would lose them."""
    side = 2 * max(1, round(settings.inner_band_ref * unit)) + 1
    shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    thick = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, shape)
    away = cv2.distanceTransform(1 - thick, cv2.DIST_L2, 5) > settings.inner_band_ref * unit / 2  # not mere corners
    return mask & (thick == 0) & (cv2.dilate((mask & away).astype(np.uint8), shape) > 0)


def _find_band(
    share: np.ndarray, distance: np.ndarray, vectors: np.ndarray | None, unit: float, settings: MatteSettings
) -> tuple[np.ndarray, np.ndarray | None]:
    """Finds the pixels that may be mixed: near the outline, within the blur of motion, or of a doubtful share.

    Returns:
        The band, and the object's motion at each pixel, by which it was widened; None without `vectors`.
    """
    blur, motion, depth = 0.0, None, settings.inner_band_ref * unit
    if vectors is not None:  # of the nearest pixel well inside the object, as flow is not reliable at edges
        sure = distance > min(depth, float(distance.max()) / 2)
        _, labels = cv2.distanceTransformWithLabels(
            (~sure).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        nearest = np.empty((labels.max() + 1, 2), np.float32)
        nearest[labels[sure]] = vectors[sure]
        motion = cv2.blur(nearest[labels], (2 * round(2 * depth) + 1,) * 2)
        blur = settings.shutter / 2 * np.linalg.norm(motion, axis=2)
    low, high = settings.doubtful_shares
    doubtful = (share > low) & (share < high)
    near = (distance < depth + blur) & (distance > -settings.outer_band_ref * unit - blur)
    return (near | doubtful) & (np.abs(distance) <= settings.max_band_ref * unit), motion


def _estimate_from_colors(
    picture: np.ndarray,
    mask: np.ndarray,
    thin: np.ndarray,
    band: np.ndarray,
    depth: np.ndarray,
    unit: float,
    settings: MatteSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates the share of the object in the pixels of the band from the colors nearby on both sides.

    Args:
        picture: RGB, 0 to 255.
        mask: the object.
        thin: its parts that lie within the band as a whole, and may have colors of their own.
        band: pixels to estimate; all others teach the colors of their side.
        depth: signed distance to the outline in `_ref` pixels, positive inside.
        unit: pixels of the picture in a `_ref` pixel.
        settings: weights.

    Returns:
        Mean of each pixel's share, and its trust, 0 to 1: 0 where its standard deviation is that of no knowledge.
    """
    colors = picture.astype(np.float32)
    radius = max(2, round(settings.color_radius_ref * unit))
    sides = []
    for side in (mask, ~mask):
        sure = side & ~band
        sides.append(_measure_colors(colors, sure if sure.any() else side, band, radius, settings.common_colors_px))
    pixels = colors[band]
    odds, distance = _compare_mixtures(pixels, sides[0], sides[1], settings.noise)
    foreign = np.zeros(mask.shape, bool)
    foreign[band] = thin[band] & (distance > settings.foreign_deviations**2)
    if foreign.any():
        reach = round(settings.inner_band_ref * unit)
        near = band & (cv2.dilate(foreign.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0)
        own = _measure_colors(colors, foreign, near, 2 * reach, 0.1)
        outer = [part[near[band]] for part in sides[1]]
        odds[:, near[band]] = _compare_mixtures(colors[near], own, outer, settings.noise)[0]
    odds += settings.outline_weight * depth[band] * (SHARES[:, None] - 0.5)
    odds[[0, -1]] += settings.pure_odds
    chance = np.exp(odds - odds.max(0))
    chance /= chance.sum(0)
    mean = SHARES @ chance
    variance = np.square(SHARES) @ chance - mean**2
    return mean, np.clip(1 - 12 * variance, 0, 1)


def _compare_mixtures(
    pixels: np.ndarray,
    inner: Sequence[np.ndarray],
    outer: Sequence[np.ndarray],
    noise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Compares pixels with mixtures of two Gaussians of colors, each a mean and a covariance for every pixel.

    Returns:
        Log likelihood of each of SHARES, and the squared Mahalanobis distance to the nearest of the mixtures.
    """
    odds = np.empty((len(SHARES), len(pixels)), np.float32)
    nearest = np.full(len(pixels), np.inf, np.float32)
    for row, share in zip(odds, SHARES, strict=True):
        spread = share**2 * inner[1] + (1 - share) ** 2 * outer[1] + np.float32(noise**2 * np.array([1, 0, 0, 1, 0, 1]))
        # The determinant and the inverse of each symmetric 3x3 matrix, then v^T M v with the inverse.
        a, b, c, d, e, f = spread.T
        cofactors = np.stack([d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b])
        determinant = a * cofactors[0] + b * cofactors[1] + c * cofactors[2]
        determinant = np.maximum(determinant, np.finfo(np.float32).tiny)
        a, b, c, d, e, f = cofactors / determinant
        x, y, z = (pixels - share * inner[0] - (1 - share) * outer[0]).T
        distance = a * x * x + d * y * y + f * z * z + 2 * (b * x * y + c * x * z + e * y * z)
        row[:] = -0.5 * (distance + np.log(determinant))
        np.minimum(nearest, distance, out=nearest)
    return odds, nearest


def _measure_colors(
    colors: np.ndarray, where: np.ndarray, at: np.ndarray, radius: int, common_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and covariance (6 numbers) of the colors of `where` in a box around each pixel of `at`."""
    pairs = np.stack([colors[..., i] * colors[..., j] for i, j in _UPPER], axis=-1)
    values = np.concatenate([colors, pairs], axis=-1)
    whole = values[where].mean(0, dtype=np.float64).astype(np.float32)
    values = (values - whole) * where[..., None]
    box = (2 * radius + 1,) * 2
    sums = np.stack(
        [cv2.boxFilter(plane, -1, box, normalize=False)[at] for plane in np.moveaxis(values, -1, 0)], axis=-1
    )
    count = cv2.boxFilter(where.astype(np.float32), -1, box, normalize=False)[at][:, None]
    mean = whole + sums / (count + common_px)
    first, second = mean[:, :3], mean[:, 3:]
    return first, second - np.stack([first[:, i] * first[:, j] for i, j in _UPPER], axis=-1)


def _carry(
    before: np.ndarray,
    motion: np.ndarray,
    corner: tuple[int, int],
    expected: np.ndarray,
    trust: np.ndarray,
    unit: float,
    settings: MatteSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Moves a matte along the flow, then by small shifts to where the matte is expected.

    The flow of an edge is a mixture of two motions, off by a pixel or more. The shifts are those of Lucas and Kanade
    ("An Iterative Image Registration Technique", IJCAI 1981), in boxes so wide that they do not follow flicker.

    Args:
        before: matte of the whole frame before, 0 to 255.
        motion: from each pixel of the picture to the frame before, in pixels.
        corner: top and left of the picture in the frame.
        expected: estimated share of the object in each pixel of the picture, 0 to 1.
        trust: weight of that estimate, 0 to 1.
        unit: pixels of the picture in a `_ref` pixel.
        settings: size of the boxes.

    Returns:
        The moved matte, 0 to 1, and where it comes from inside the frame, 0 or 1.
    """
    height, width = expected.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    place_x, place_y = x + corner[1] + motion[..., 0], y + corner[0] + motion[..., 1]
    radius = max(2, round(settings.shift_radius_ref * unit))
    box, blur = (2 * radius + 1,) * 2, (2 * max(1, round(unit)) + 1,) * 2
    matte = before.astype(np.float32) / 255
    for _ in range(settings.shift_steps):
        moved = cv2.remap(matte, place_x, place_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        smooth, rest = cv2.blur(moved, blur), cv2.blur(expected - moved, blur)
        dx, dy = cv2.Sobel(smooth, -1, 1, 0, scale=1 / 8), cv2.Sobel(smooth, -1, 0, 1, scale=1 / 8)
        xx, xy, yy, xt, yt = (
            cv2.blur(trust * product, box) for product in (dx * dx, dx * dy, dy * dy, dx * rest, dy * rest)
        )
        floor = 0.05 * float((xx + yy).max()) + 1e-9  # no shift where there is no edge
        xx, yy = xx + floor, yy + floor
        determinant = xx * yy - xy * xy
        place_x += ((yy * xt - xy * yt) / determinant).clip(-2 * unit, 2 * unit)
        place_y += ((xx * yt - xy * xt) / determinant).clip(-2 * unit, 2 * unit)
    moved = cv2.remap(matte, place_x, place_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    seen = (place_x >= 0) & (place_y >= 0) & (place_x <= matte.shape[1] - 1) & (place_y <= matte.shape[0] - 1)
    return moved, seen.astype(np.float32)


def _build_laplacian(
    picture: np.ndarray, mask: np.ndarray, band: np.ndarray, epsilon: float
) -> tuple[csr_matrix, np.ndarray]:
    """Builds the matting Laplacian of the band's pixels.

    Args:
        picture: RGB, 0 to 1.
        mask: the object; its values are kept outside the band.
        band: the unknown pixels.
        epsilon: regularization of the windows' covariances.

    Returns:
        The matrix of the unknown pixels, and what the known pixels add to the right-hand side.
    """
    height, width = band.shape
    count = int(band.sum())
    number = np.full(height * width, -1)
    number[band.ravel()] = np.arange(count)
    values = np.zeros((count, 25))  # a row for each unknown pixel, a column for each of its 5x5 neighbors
    # The windows that touch the band: flat indices of their pixels [K, 9] and their matrices [K, 9, 9].
    touching = cv2.dilate(band.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    touching[[0, -1]] = touching[:, [0, -1]] = False
    centers, around = np.flatnonzero(touching), np.array([dy * width + dx for dy, dx in _WINDOW])
    for start in range(0, len(centers), _CHUNK):
        pixels = centers[start : start + _CHUNK, None] + around
        colors = picture.reshape(-1, 3)[pixels]
        colors -= colors.mean(1, keepdims=True)
        spread = colors.transpose(0, 2, 1) @ colors / 9 + np.eye(3, dtype=np.float32) * np.float32(epsilon / 9)
        matrices = (1 + colors @ np.linalg.inv(spread) @ colors.transpose(0, 2, 1)) / 9
        for a, (ya, xa) in enumerate(_WINDOW):
            rows = number[pixels[:, a]]
            inside = rows >= 0
            slots = np.array([(yb - ya + 2) * 5 + xb - xa + 2 for yb, xb in _WINDOW])
            values[rows[inside, None], slots] -= matrices[inside, a]
            values[rows[inside], 12] += 1
    offsets = np.array([dy * width + dx for dy in range(-2, 3) for dx in range(-2, 3)])
    neighbors = np.clip(np.flatnonzero(band)[:, None] + offsets, 0, height * width - 1)
    columns = number[neighbors]
    unknown = columns >= 0
    pull = -(values * (mask.ravel()[neighbors] & ~unknown)).sum(1)
    starts = np.concatenate([[0], np.cumsum(unknown.sum(1))])
    return csr_matrix((values[unknown], columns[unknown], starts), shape=(count, count)), pull

"""Occluders of a region that is tracked: colors that do not belong to it, and come from outside it.

Images are RGB in [0, 1] at the size of the flow; the canonical picture has the pixels of the frame that the region was
drawn on.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.data.masks.roi import RegionTrack, apply_homography, draw_quad_mask, pixel_positions


@dataclass(frozen=True)
class OcclusionSettings:
    """Settings of the search for occluders. Colors are in [0, 1]."""

    strong_difference: float = 0.16  # of colors: something is in front
    weak_difference: float = 0.07  # of colors: continues an occluder where one is sure
    noise_factor: float = 3.0  # times the median difference counts as weak in a noisy clip, which differs everywhere
    max_slip_px: int = 1  # by which colors may be misplaced before they count as different
    min_piece_share: float = 0.002  # of the region that must be sure in an occluder; smaller specks are noise
    min_piece_px: float = 4.0  # the same, at least
    closing_px: int = 2  # holes of an occluder up to twice as wide are closed
    border_px: int = 2  # what comes from outside the region has been so near its sides
    rim_px: int = 6  # around the region that are looked at with it
    light_offset: float = 0.02  # added to colors before they are divided: black says nothing about light


DEFAULTS = OcclusionSettings()


def map_window(
    transform: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Applies a transform to the pixels of a window.

    Args:
        transform: 3 x 3, xy units to xy units.
        size: (width, height) of the frame.
        window: rows and columns of the frame.

    Returns:
        x and y in sample positions (0 is the center of the first pixel).
    """
    uv = apply_homography(transform, pixel_positions(*size)[window])
    at = ((uv * max(size) + np.array(size)) / 2 - 0.5).astype(np.float32)
    return np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])


def window_around(
    mask: Bool[np.ndarray, "height width"], settings: OcclusionSettings = DEFAULTS
) -> tuple[slice, slice]:
    """Returns the rows and columns that a mask fills, with a rim; all of them for an empty mask."""
    parts = []
    for axis, side in ((1, mask.shape[0]), (0, mask.shape[1])):
        used = np.flatnonzero(mask.any(axis))
        if len(used):
            parts.append(slice(max(0, used[0] - settings.rim_px), min(side, used[-1] + 1 + settings.rim_px)))
        else:
            parts.append(slice(0, side))
    return parts[0], parts[1]


def find_occluders(
    picture: Float[np.ndarray, "height width 3"],
    transform: Float[np.ndarray, "3 3"],
    canonical: Float[np.ndarray, "height width 3"],
    quad: Bool[np.ndarray, "height width"],
    settings: OcclusionSettings = DEFAULTS,
) -> Bool[np.ndarray, "height width"]:
    """Finds the pixels of the region whose color is not that of the canonical picture, under smooth light.

    Colors count as different that occur nowhere within `max_slip_px` of their place: an edge that is a little beside
    its place is no occluder. Differences that are weak count where they are connected to enough strong ones.

    Args:
        picture: the frame.
        transform: xy units of the frame to those of the canonical picture.
        canonical: the region without occluders.
        quad: the pixels of the frame that the region fills.
        settings: thresholds.

    Returns:
        The occluders, closed and one pixel wider.
    """
    out = np.zeros(quad.shape, bool)
    if not quad.any():
        return out
    window = window_around(quad, settings)
    x, y = map_window(transform, (quad.shape[1], quad.shape[0]), window)
    inside, part = quad[window], picture[window]
    kernel = _square(settings.max_slip_px)
    low, high, expected = (
        cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for image in (cv2.erode(canonical, kernel), cv2.dilate(canonical, kernel), canonical)
    )
    lit = estimate_light(part, expected, inside, settings)
    gap = np.maximum(low * lit - part, part - high * lit).max(-1).clip(min=0)
    # Noise is rough; what covers most of the region need not be, and differs everywhere too.
    rough = np.abs(part - cv2.blur(part, (3, 3))).max(-1)
    noise = min(float(np.median(gap[inside])), float(np.median(rough[inside])))
    scale = max(1.0, settings.noise_factor * noise / settings.weak_difference)
    strong = inside & (gap > settings.strong_difference * scale)
    weak = inside & (gap > settings.weak_difference * scale)
    # The connected pieces of the weak differences that hold enough strong ones.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    with_outside = (weak | ~inside).astype(np.uint8)  # a sliver at the border is the beginning of something larger
    opened = cv2.morphologyEx(with_outside, cv2.MORPH_OPEN, cross) * inside
    count, labels = cv2.connectedComponents(opened, connectivity=8)
    strong_area = np.bincount(labels[strong & (opened > 0)], minlength=count)
    min_area = max(settings.min_piece_px, settings.min_piece_share * inside.sum())
    kept = (strong_area >= min_area)[labels] & (opened > 0)
    closed = cv2.morphologyEx(kept.astype(np.uint8), cv2.MORPH_CLOSE, _square(settings.closing_px))
    out[window] = (closed > 0) & inside
    return out


def estimate_light(
    seen: np.ndarray, expected: np.ndarray, inside: np.ndarray, settings: OcclusionSettings = DEFAULTS
) -> Float[np.ndarray, "1 1 3"]:
    """Estimates the light: the factor for each channel that most colors agree on.

    Args:
        seen: RGB of the frame.
        expected: RGB of the canonical picture at the same places.
        inside: the pixels to look at.
        settings: what is added to colors.
    """
    if not inside.any():
        return np.ones((1, 1, 3), np.float32)
    ratio = (seen[inside] + settings.light_offset) / (expected[inside] + settings.light_offset)
    return np.median(ratio, axis=0)[None, None].astype(np.float32)


def remove_specks(
    track: RegionTrack, seen: Bool[np.ndarray, "time height width"], settings: OcclusionSettings = DEFAULTS
) -> Bool[np.ndarray, "time height width"]:
    """Removes occluders that did not enter the region from outside.

    Reflections and blinking lights change colors in the middle of a region; tracked over time on the plane of the
    drawn frame, they never reach its border.

    Args:
        track: the place of the region in each frame.
        seen: the pixels that show the region.
        settings: of the occluders.

    Returns:
        The pixels that show the region, without these occluders.
    """
    size = (seen.shape[2], seen.shape[1])
    quad = draw_quad_mask(track.corners, size)
    window = window_around(quad, settings)
    inside = quad[window]
    core = cv2.erode(inside.astype(np.uint8), _square(settings.border_px), borderValue=0) > 0
    covered = np.zeros((len(seen), *inside.shape), bool)
    for t, mask in enumerate(seen):
        x, y = map_window(np.linalg.inv(track.transforms[t]), size, window)
        front = draw_quad_mask(track.compute_quad(t), size) & ~mask
        covered[t] = cv2.remap(front.astype(np.float32), x, y, cv2.INTER_LINEAR, borderValue=0) > 0.5
    from scipy import ndimage  # only clips with occluders need it, and it takes a tenth of a second

    labels, _ = ndimage.label(covered, np.ones((3, 3, 3)))
    entering = np.unique(labels[covered & inside & ~core])
    entered = np.isin(labels, entering[entering > 0])
    out = seen.copy()
    whole = np.zeros(quad.shape, np.float32)
    for t, mask in enumerate(seen):
        x, y = map_window(track.transforms[t], size, window_around(np.ones_like(quad), settings))
        whole[window] = cv2.dilate(entered[t].astype(np.uint8), _square(1))
        kept = cv2.remap(whole, x, y, cv2.INTER_LINEAR, borderValue=0) > 0
        out[t] = mask | (draw_quad_mask(track.compute_quad(t), size) & ~kept)
    return out


def _square(radius: int) -> np.ndarray:
    """Returns the kernel of a square neighborhood of `radius` pixels."""
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)

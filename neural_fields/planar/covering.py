"""What passes in front of a region that is followed: colours that do not belong to it, and come from outside it.

Pictures are RGB in [0, 1] at the size of the flow; the canonical picture lies on the pixels of the frame that the
region was drawn on.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from neural_fields.data.region import RegionTrack, carried, pixel_xy, quad_mask

STRONG, WEAK = 0.16, 0.07  # colour differences that mean something is in front; that continue it where it is sure
SLIP = 1  # texels by which colours may be misplaced before they count as different
SMALLEST_SHARE = 0.002  # of the region: smaller specks are noise
BORDER = 2  # pixels: what comes from outside the region has been so near its sides
RIM = 6  # pixels around the region that are looked at with it


def mapped(
    transform: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Where the pixels of a window lie after a transform, x and y in sample positions (0: the first pixel's centre)."""
    uv = carried(transform, pixel_xy(*size)[window])
    at = ((uv * max(size) + np.array(size)) / 2 - 0.5).astype(np.float32)
    return np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])


def around(mask: Bool[np.ndarray, "height width"]) -> tuple[slice, slice]:
    """The rows and columns that a mask fills, with a rim."""
    parts = []
    for axis, side in ((1, mask.shape[0]), (0, mask.shape[1])):
        used = np.flatnonzero(mask.any(axis))
        parts.append(slice(max(0, used[0] - RIM), min(side, used[-1] + 1 + RIM)) if len(used) else slice(0, side))
    return parts[0], parts[1]


def in_front(
    picture: Float[np.ndarray, "height width 3"],
    transform: Float[np.ndarray, "3 3"],
    canonical: Float[np.ndarray, "height width 3"],
    quad: Bool[np.ndarray, "height width"],
) -> Bool[np.ndarray, "height width"]:
    """The pixels of the region whose colour is not what the canonical picture has there, under smooth light.

    Colours count as different that occur nowhere within `SLIP` texels of their place: an edge that is a little beside
    its place is no occluder.
    """
    out = np.zeros(quad.shape, bool)
    if not quad.any():
        return out
    window = around(quad)
    x, y = mapped(transform, (quad.shape[1], quad.shape[0]), window)
    inside, part = quad[window], picture[window]
    kernel = np.ones((2 * SLIP + 1, 2 * SLIP + 1), np.uint8)
    low, high, expected = (
        cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for image in (cv2.erode(canonical, kernel), cv2.dilate(canonical, kernel), canonical)
    )
    lit = light(part, expected, inside)
    gap = np.maximum(low * lit - part, part - high * lit).max(-1).clip(min=0)
    scale = max(1.0, 3 * float(np.median(gap[inside])) / WEAK)  # a noisy clip differs everywhere
    out[window] = _sure_pieces(inside & (gap > STRONG * scale), inside & (gap > WEAK * scale), inside)
    return out


def light(seen: np.ndarray, expected: np.ndarray, inside: np.ndarray) -> Float[np.ndarray, "1 1 3"]:
    """The factor for each channel that most of what is seen agrees on."""
    if not inside.any():
        return np.ones((1, 1, 3), np.float32)
    ratio = (seen[inside] + 0.02) / (expected[inside] + 0.02)
    return np.median(ratio, axis=0).clip(0.25, 4)[None, None].astype(np.float32)


def _sure_pieces(
    strong: Bool[np.ndarray, "h w"], weak: Bool[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The connected pieces of `weak` that hold enough of `strong`, closed and one pixel wider."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    around_too = (weak | ~inside).astype(np.uint8)  # a sliver at the border is the beginning of something larger
    opened = cv2.morphologyEx(around_too, cv2.MORPH_OPEN, cross) * inside
    count, labels = cv2.connectedComponents(opened, connectivity=8)
    sure = np.bincount(labels[strong & (opened > 0)], minlength=count)
    smallest = max(4.0, SMALLEST_SHARE * inside.sum())
    kept = (sure >= smallest)[labels] & (opened > 0)
    closed = cv2.morphologyEx(kept.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return (closed > 0) & inside


def without_specks(
    track: RegionTrack, seen: Bool[np.ndarray, "time height width"]
) -> Bool[np.ndarray, "time height width"]:
    """What is seen, and also what only seemed to be covered: a thing in front came from outside the region.

    Reflections and blinking lights change colours in the middle of a region; followed through time on the plane of the
    drawn frame, they never reach its border.
    """
    size = (seen.shape[2], seen.shape[1])
    quad = quad_mask(track.corners, size)
    window = around(quad)
    inside = quad[window]
    core = cv2.erode(inside.astype(np.uint8), np.ones((2 * BORDER + 1, 2 * BORDER + 1), np.uint8), borderValue=0) > 0
    covered = np.zeros((len(seen), *inside.shape), bool)
    for t, mask in enumerate(seen):
        x, y = mapped(np.linalg.inv(track.transforms[t]), size, window)
        front = quad_mask(track.quad(t), size) & ~mask
        covered[t] = cv2.remap(front.astype(np.float32), x, y, cv2.INTER_LINEAR, borderValue=0) > 0.5
    labels, _ = ndimage.label(covered, np.ones((3, 3, 3)))
    entering = np.unique(labels[covered & inside & ~core])
    entered = np.isin(labels, entering[entering > 0])
    out = seen.copy()
    whole = np.zeros(quad.shape, np.float32)
    for t, mask in enumerate(seen):
        x, y = mapped(track.transforms[t], size, around(np.ones_like(quad)))
        whole[window] = cv2.dilate(entered[t].astype(np.uint8), np.ones((3, 3), np.uint8))
        kept = cv2.remap(whole, x, y, cv2.INTER_LINEAR, borderValue=0) > 0
        out[t] = mask | (quad_mask(track.quad(t), size) & ~kept)
    return out

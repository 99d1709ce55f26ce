"""Outlines of masks, moved to where the colours change.

In a narrow band around the outline, the colours of both sides nearby (mean and spread, in boxes, as Bai et al. 2009,
"Video SnapCut", do with mixtures) say how likely a pixel is the object's; the distance to the given outline says how
likely it was. Both add up in log odds. Where the two sides look alike, the given outline stands.

Distances are pixels of a picture whose shorter side is 240; larger pictures have them in proportion.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

REFERENCE_SIDE = 240
BAND = 3.0  # half the width of the band around the outline
SURE = 2.0  # pixels this far from the outline teach the colours of their side
REACH = 5.0  # half the side of the box that colours are learnt in
LEAST_PIXELS = 10  # that must teach a side
SPREAD = 6.0  # least standard deviation of a side's colour, in CIELAB steps of 8-bit pictures: compression and noise
COLOUR_WEIGHT = 0.3  # neighbouring pixels repeat each other, so each says less than it seems to
MOST_ODDS = 6.0  # of one pixel's colour


def align_outline(
    frame: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """The mask with its outline moved by up to BAND pixels to where the colours of its two sides part."""
    if not mask.any() or mask.all():
        return mask
    unit = max(1.0, min(mask.shape) / REFERENCE_SIDE)
    distance = signed_distance(mask)
    inside, outside, lab = _sides(frame, distance, unit)
    odds = np.zeros(mask.shape, np.float32)
    for sign, (_, mean, spread) in ((1, outside), (-1, inside)):
        odds += sign * (((lab - mean) ** 2 / spread + np.log(spread)).sum(-1) / 2)
    known = (inside[0] >= LEAST_PIXELS) & (outside[0] >= LEAST_PIXELS)
    odds = cv2.GaussianBlur(np.where(known, odds, 0).clip(-MOST_ODDS, MOST_ODDS), (0, 0), 1.0)
    moved = distance / unit + COLOUR_WEIGHT * odds > 0
    return np.where(np.abs(distance) <= BAND * unit, moved, mask)


def signed_distance(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Distance of each pixel centre to the outline in pixels, positive inside."""
    inside, outside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (mask, ~mask))
    return np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float32)


def _sides(
    frame: np.ndarray, distance: np.ndarray, unit: float
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """(pixels, mean colour, variance) around every pixel on the object's side and on the other; the frame in CIELAB."""
    lab = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2LAB).astype(np.float32)
    box = (2 * max(1, round(REACH * unit)) + 1,) * 2

    def learn(where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = where.astype(np.float32)[..., None]
        count = cv2.boxFilter(weight, -1, box, normalize=False)
        least_one = np.maximum(count, 1)[..., None]
        mean = cv2.boxFilter(lab * weight, -1, box, normalize=False) / least_one
        square = cv2.boxFilter(lab * lab * weight, -1, box, normalize=False) / least_one
        return count, mean, np.maximum(square - mean * mean, 0) + SPREAD**2

    return learn(distance > SURE * unit), learn(distance < -SURE * unit), lab

"""Boundary refinement: it moves outlines of masks to color edges.

Near the outline, the colors of both sides give the likelihood that a pixel belongs to the object (mean and spread in
boxes, where Bai et al. 2009, "Video SnapCut", use mixtures); the distance to the given outline gives the prior. Both
are added as log odds. Where the colors of both sides are similar, the outline is kept.

Lengths marked `_ref` are pixels of a picture whose shorter side is 240, and scale with the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8


@dataclass(frozen=True)
class OutlineSettings:
    """Holds the settings of `align_outline`."""

    reference_side_px: int = 240  # lengths marked `_ref` are pixels of a frame whose shorter side is this long
    sure_distance_ref: float = 2.0  # pixels further from the outline than this teach the colors of their side
    # Half the side of the box around a pixel from which the colors of the two sides are learned.
    box_radius_ref: float = 5.0
    min_pixels: int = 10  # least pixels of each side in that box; with fewer the outline stays
    # Least standard deviation of a side's colors, in 8-bit CIELAB steps: compression and noise.
    min_color_spread: float = 6.0
    # `_ref` pixels by which log odds of one move the outline; low, since neighboring pixels repeat each other.
    color_weight: float = 0.3
    # Largest log odds that the color of one pixel gives; times `color_weight`, the farthest that the outline moves.
    max_odds: float = 6.0
    odds_blur_px: float = 1.0  # standard deviation of the Gaussian that smooths the log odds


DEFAULTS = OutlineSettings()


def align_outline(
    frame: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
    settings: OutlineSettings = DEFAULTS,
) -> Bool[np.ndarray, "height width"]:
    """Moves the outline of a mask by at most two `_ref` pixels to where the colors of its two sides differ.

    Args:
        frame: RGB, 0 to 255.
        mask: mask of the object; an empty or full mask is returned unchanged.
        settings: lengths and weights.

    Returns:
        The mask with its new outline.
    """
    if not mask.any() or mask.all():
        return mask
    unit = max(1.0, min(mask.shape) / settings.reference_side_px)
    box_radius = max(1, round(settings.box_radius_ref * unit))
    blur_radius = math.ceil(4 * settings.odds_blur_px)
    farthest = unit * settings.color_weight * settings.max_odds  # that the outline moves, in pixels
    # Only the rectangle around the outline that its colors are learned from.
    room = math.ceil(farthest) + box_radius + blur_radius + 1
    whole = mask
    left, top, wide, high = cv2.boundingRect(whole.view(np.uint8))
    window = slice(max(0, top - room), top + high + room), slice(max(0, left - room), left + wide + room)
    mask = np.ascontiguousarray(whole[window])
    # The distance of each pixel center to the outline, positive inside.
    to_rest, to_mask = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (mask, ~mask))
    distance = np.where(mask, to_rest - 0.5, 0.5 - to_mask).astype(np.float32)
    lab = cv2.cvtColor(np.ascontiguousarray(frame[window]), cv2.COLOR_RGB2LAB).astype(np.float32)
    box = (2 * box_radius + 1,) * 2
    sure = settings.sure_distance_ref * unit
    inside = _measure_colors(lab, distance > sure, box, settings.min_color_spread)
    outside = _measure_colors(lab, distance < -sure, box, settings.min_color_spread)
    known = (inside[0] >= settings.min_pixels) & (outside[0] >= settings.min_pixels)
    band = known & (np.abs(distance) <= farthest + 1.5 * blur_radius + 1)  # from which odds reach the outline
    found = np.zeros(int(band.sum()), np.float32)
    for sign, (_, mean, variance) in ((1, outside), (-1, inside)):
        mean, variance = mean[band], variance[band]
        found += sign * (((lab[band] - mean) ** 2 / variance + np.log(variance)).sum(-1) / 2)
    odds = np.zeros(mask.shape, np.float32)
    odds[band] = found.clip(-settings.max_odds, settings.max_odds)
    odds = cv2.GaussianBlur(odds, (0, 0), settings.odds_blur_px)
    aligned = np.array(whole)
    aligned[window] = distance / unit + settings.color_weight * odds > 0
    return aligned


def _measure_colors(
    lab: np.ndarray, where: np.ndarray, box: tuple[int, int], min_spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the number, mean color and variance of the pixels of `where` in a box around every pixel."""
    weight = where.astype(np.float32)[..., None]
    count = cv2.boxFilter(weight, -1, box, normalize=False)
    least_one = np.maximum(count, 1)[..., None]
    mean = cv2.boxFilter(lab * weight, -1, box, normalize=False) / least_one
    square = cv2.boxFilter(lab * lab * weight, -1, box, normalize=False) / least_one
    return count, mean, np.maximum(square - mean * mean, 0) + min_spread**2

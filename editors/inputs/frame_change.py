"""Finds the paint on a frame of a clip, however the clip was saved.

A video codec changes the fine detail of a frame, and more so where the frame is busy. Local means change little: a
codec preserves them, and paint alters them. So paint is detected where local means deviate far more than is usual for
texels with as much contrast, and followed from there to its edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

Frame = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class FramePaintSettings:
    """Settings of the search for paint in a frame that a codec may have changed. Levels are 8-bit levels."""

    narrow_px: int = 3  # sides of the windows for local means
    small_px: int = 5
    large_px: int = 17
    contrast_levels: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # limits of the classes of equally busy texels
    usual_levels: tuple[float, float] = (0.3, 2.5)  # usual deviations of the best and the worst files
    contrast_per_level: float = 48.0  # an edge may lose one level per so much contrast in any file
    far: float = 21.0  # factor of the usual deviation in the small window that no codec reaches
    far_large: float = 11.0  # the same in the large window
    near: float = 10.0  # factor of the usual deviation in the narrow window for texels connected to paint
    min_spot_texels: int = 9  # least number of such texels for a spot of paint; codecs make smaller ones
    whole_share: float = 0.5  # share of the seen texels above which all of them count as painted


DEFAULTS = FramePaintSettings()


def find_frame_paint(
    painted: Frame,
    base: Frame,
    seen: Bool[np.ndarray, "height width"],
    is_lossy: bool,
    settings: FramePaintSettings = DEFAULTS,
) -> Float[np.ndarray, "height width"] | None:
    """Estimates the opacity of paint in each texel of a frame.

    Args:
        painted: the frame after painting.
        base: the frame before painting.
        seen: texels that show the layer; if most of them are painted, all texels count as painted.
        is_lossy: whether saving may have changed colors.
        settings: thresholds of the search.

    Returns:
        Alpha in [0, 1]; None if there is no paint.
    """
    if not is_lossy:
        off = cv2.absdiff(painted, base)
        off = cv2.max(cv2.max(off[..., 0], off[..., 1]), off[..., 2]).astype(np.float32)
        # One level is what other machines may make of the same lookup.
        return np.clip((off - 1) / 2, 0, 1) if off.max(initial=0) > 1 else None

    # Codecs store brightness well and color roughly; as RGB, noise of color would look three times as strong.
    after = cv2.cvtColor(painted, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    before = cv2.cvtColor(base, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    off = after - before
    smooth = _blur(off, settings.large_px)

    # By what the mean of some texels usually differs, texel by texel: more where the frame is busy. Told by differences
    # without their local mean, which paint may have and noise has not.
    window = (settings.large_px, settings.large_px)
    mean = cv2.blur(before, window)
    square = cv2.blur(before * before, window)
    contrast = np.sqrt(np.maximum(_largest_channel(square - mean * mean), 0))
    rough = _largest_channel(_blur(off - smooth, settings.small_px))
    every = (slice(None, None, 2), slice(None, None, 2))  # enough to tell
    some, kind = rough[every], np.digitize(contrast[every], settings.contrast_levels)
    textured = some[contrast[every] > 0]
    overall = float(np.median(textured)) if len(textured) else 0.0
    table = np.full(len(settings.contrast_levels) + 1, overall, np.float32)
    for number in range(len(table)):
        same = some[kind == number]
        if len(same):
            table[number] = max(overall, float(np.median(same)))
    # Beyond the highest no file would be looked at: it is paint that differs so much everywhere.
    usual = table.clip(*settings.usual_levels)[np.digitize(contrast, settings.contrast_levels)]
    usual = np.maximum(usual, contrast / settings.contrast_per_level)

    far = _largest_channel(_blur(off, settings.small_px)) > settings.far * usual
    far |= _largest_channel(smooth) > settings.far_large * usual
    if not far.any():
        return None

    # Paint is followed from texels that are far out to its edges.
    near = _largest_channel(_blur(off, settings.narrow_px)) > settings.near * usual
    _, labels = cv2.connectedComponents(near.astype(np.uint8), connectivity=8)
    chosen = np.bincount(labels[far & near], minlength=int(labels.max()) + 1) >= settings.min_spot_texels
    chosen[0] = False
    found = chosen[labels]
    if not found.any():
        return None
    if seen.any() and found[seen].mean() > settings.whole_share:
        found |= seen
    kernel = np.ones((settings.small_px, settings.small_px), np.uint8)
    mask = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    return mask * np.minimum(1, 2 * cv2.blur(mask.astype(np.float32), (3, 3)))


def _blur(off: Float[np.ndarray, "height width 3"], side: int) -> Float[np.ndarray, "height width 3"]:
    """Computes local means; beyond the border the difference is 0, so that texels at the border do not count twice."""
    return cv2.blur(off, (side, side), borderType=cv2.BORDER_CONSTANT)


def _largest_channel(values: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """Computes the largest absolute value of the three channels."""
    one, two, three = (cv2.absdiff(plane, 0.0) for plane in cv2.split(values))
    return cv2.max(cv2.max(one, two), three)

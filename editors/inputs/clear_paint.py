"""Tells clear paint from what programs do to a picture: other decoders, compression, resampling, sharpening, dithering.

What programs change is large where the picture is busy, and has no mean; paint has a mean. So the differences are
measured against those of texels that are equally busy: their median, which paint does not raise as long as most texels
are not painted. Paint is what exceeds it many times in the mean of some texels, followed from there to its edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from editors.inputs.noise_model import LEVEL, Gray, Rgb, find_largest_channel


@dataclass(frozen=True)
class ClearPaintSettings:
    """Settings of the search for clear paint. Levels are 8-bit levels of a color."""

    narrow_px: int = 3  # sides of the windows for local means
    small_px: int = 5
    large_px: int = 17
    busy_px: int = 7  # window in which the contrast around a texel is measured
    wide_busy_share: float = 0.6  # weight of the contrast in the large window
    luma_share: float = 0.25  # share of the contrast of brightness that counts for color
    busy_levels: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16, 32, 64)  # limits of the classes of equally busy texels
    min_class_texels: int = 50
    min_usual_levels: float = 0.3  # least usual difference: that of files which change colors least
    far: float = 24.0  # factor of the usual difference in the small window from which it is paint
    far_large: float = 12.0  # the same in the large window
    far_tile_factor: float = 5.0  # and factor of what most tiles of the picture have at most
    max_far: float = 60.0
    tiles_per_side: int = 16  # number of these tiles along the shorter side, of at least 8 texels each
    near: float = 10.0  # factor of the usual difference in the narrow window for texels connected to paint
    min_far_texels: int = 6  # least number of such texels for a spot of paint
    fit_px: int = 15  # window in which the correlation with the original is measured
    fit_levels: float = 4.0  # least standard deviation of brightness for that
    min_correlation: float = 0.7


DEFAULTS = ClearPaintSettings()


@dataclass(frozen=True)
class ClearPaint:
    """Holds where a picture differs clearly from its original.

    Attributes:
        mask: texels of clear paint, its edges included.
        noise: the difference that is usual for texels as busy as each, in [0, 1].
    """

    mask: Bool[np.ndarray, "height width"]
    noise: Gray


def find_clear_paint(
    painted: Rgb,
    expected: Rgb,
    seen: Bool[np.ndarray, "height width"],
    rounding: Gray | None = None,
    settings: ClearPaintSettings = DEFAULTS,
) -> ClearPaint:
    """Finds clear paint.

    Args:
        painted: the painted picture, in [0, 1].
        expected: what it would be without paint, at its size.
        seen: texels that show the original; paint elsewhere is not looked for.
        rounding: how far each color may be off by rounding, in [0, 1]; None for less than a level.
        settings: windows and thresholds.
    """
    after, before = (255 * cv2.cvtColor(one, cv2.COLOR_RGB2YCrCb) for one in (painted, expected))
    off = (after - before) * seen[..., None]
    if rounding is not None:
        off = np.sign(off) * np.maximum(np.abs(off) - 255 * rounding[..., None], 0)
    smooth = _blur(off, settings.large_px)
    # Paint near a texel moves the mean around it; a conversion of all colors moves the texel itself.
    rough = np.minimum(np.abs(_blur(off - smooth, settings.narrow_px)), np.abs(_blur(off, settings.narrow_px)))

    # How busy the original is around each texel, channel by channel.
    spread = np.maximum(
        _measure_spread(before, settings.busy_px), settings.wide_busy_share * _measure_spread(before, settings.large_px)
    )
    spread[..., 1:] = np.maximum(spread[..., 1:], settings.luma_share * spread[..., :1])
    kind = np.digitize(spread, settings.busy_levels)

    # The usual difference of each class, without texels that are painted: they do not look like the original at all,
    # and in the second round those found in the first one.
    correlation = measure_correlation(painted, expected, settings)
    told = seen & (~(correlation < settings.min_correlation))
    if told.sum() < 0.1 * seen.sum():
        told = seen
    for _ in range(2):
        usual = np.stack([_tabulate(rough[..., c], kind[..., c], told, settings)[kind[..., c]] for c in range(3)], -1)
        small = find_largest_channel(np.abs(_blur(off, settings.small_px)) / usual)
        large = find_largest_channel(np.abs(smooth) / usual)
        # Where a picture is dithered, even texels that are equally busy differ widely.
        side = max(8, min(small.shape) // settings.tiles_per_side)
        rows, columns = (length // side for length in small.shape)
        tiles = small[: rows * side, : columns * side].reshape(rows, side, columns, side).max(axis=(1, 3))
        usual_most = float(np.median(tiles)) if tiles.size else 0.0
        least = float(np.clip(settings.far_tile_factor * usual_most, settings.far, settings.max_far))
        near = (
            find_largest_channel(np.abs(_blur(off, settings.narrow_px)) / usual) > settings.near * least / settings.far
        )
        far = seen & near & ((small > least) | (large > least * settings.far_large / settings.far))
        _, labels = cv2.connectedComponents(near.astype(np.uint8), connectivity=8)
        chosen = np.bincount(labels[far], minlength=int(labels.max()) + 1) >= settings.min_far_texels
        chosen[0] = False
        mask = chosen[labels]
        told = told & ~mask
        if not mask.any() or told.sum() < 0.1 * seen.sum():
            break
    return ClearPaint(mask, find_largest_channel(usual).astype(np.float32) * LEVEL)


def measure_correlation(painted: Rgb, expected: Rgb, settings: ClearPaintSettings = DEFAULTS) -> Gray:
    """Measures how well the picture around each texel correlates with the original; not a number where it is flat.

    Args:
        painted: the painted picture, in [0, 1].
        expected: what it would be without paint, at its size.
        settings: the window, and the contrast below which a texel is flat.
    """
    one, other = (255 * cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) for rgb in (painted, expected))
    side = (settings.fit_px,) * 2
    own, their = one - cv2.blur(one, side), other - cv2.blur(other, side)
    product, own_square, their_square = (cv2.blur(v, side) for v in (own * their, own * own, their * their))
    found = product / np.sqrt(np.maximum(own_square * their_square, 1e-6))
    return np.where(their_square > settings.fit_levels**2, found, np.float32(np.nan)).astype(np.float32)


def _blur(off: Float[np.ndarray, "height width 3"], side: int) -> Float[np.ndarray, "height width 3"]:
    """Computes local means; beyond the border the difference is 0, so that texels at the border do not count twice."""
    return cv2.blur(off, (side, side), borderType=cv2.BORDER_CONSTANT)


def _measure_spread(values: Float[np.ndarray, "height width 3"], side: int) -> Float[np.ndarray, "height width 3"]:
    """Measures the standard deviation around each texel."""
    mean = cv2.blur(values, (side, side))
    return np.sqrt(np.maximum(cv2.blur(values * values, (side, side)) - mean * mean, 0))


def _tabulate(
    rough: Gray, kind: np.ndarray, told: Bool[np.ndarray, "height width"], settings: ClearPaintSettings
) -> Float[np.ndarray, " classes"]:
    """Makes the table of the usual difference of each class, which does not decrease with how busy a texel is."""
    least = settings.min_usual_levels
    table = np.zeros(len(settings.busy_levels) + 1, np.float32)
    for number in range(len(table)):
        same = rough[told & (kind == number)]
        if len(same) >= settings.min_class_texels:
            least = max(least, float(np.median(same)))
        table[number] = least
    return table

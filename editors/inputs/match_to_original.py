"""Compares a painted picture with what it must be a copy of, before anything in it counts as paint.

A copy shows the whole original, upright, at any scale. If most of it does not look like the original, features that
both share (SIFT, Lowe 2004) tell what happened: the canvas was cropped, enlarged, shifted, stretched or mirrored. Such
a picture is refused with what it seems to be, because everything in it would become paint.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from editors.inputs.clear_paint import DEFAULTS as CLEAR_PAINT
from editors.inputs.clear_paint import ClearPaint, find_clear_paint, measure_correlation
from editors.inputs.color_match import IDENTITY, ColorMap, estimate_color_map
from editors.inputs.noise_model import Gray, Rgb, find_largest_channel
from editors.inputs.sizes import check_picture_size, format_size
from neural_fields.core.errors import UserError, bad_input
from neural_fields.imaging.alpha import resize_image
from neural_fields.imaging.image_io import Picture
from neural_fields.imaging.ransac import find_transform

YCRCB_NORM = 0.67  # of the rows of the matrix from RGB to YCrCb: no channel changes by more of a distance in RGB
OriginalRgb = Float[np.ndarray, "rows columns 3"]  # of another size than the painted picture


@dataclass(frozen=True)
class MatchSettings:
    """Settings of the comparison of a painted picture with its original."""

    sure_share: float = 0.9  # share of the texels with detail that look like the original, from which it is a copy
    least_share: float = 0.3  # below this it was painted over as a whole
    better_share: float = 0.15  # share by which another place of the picture must fit better
    min_detail_share: float = 0.02  # with less detail than this nothing is told
    template_px: int = 250  # longer side of the pictures in which a crop is looked for first
    min_template: float = 0.8  # least correlation of a crop
    side_px: int = 1000  # longer side of the pictures whose features are compared
    max_ratio: float = 0.75  # largest ratio of the distances to the best and to the second best feature
    tolerance_px: float = 2.0
    min_matches: int = 12
    min_displacement: float = 0.004  # share of the longer side: a smaller displacement is that of resampling
    most_levels: float = 24.0  # larger differences count as this much: they may be paint
    max_colors: int = 256  # a picture with at most so many colors has a palette
    min_color_ratio: int = 4  # and that of the original, so many times more
    flat_colors: int = 8  # the most frequent colors, which may be paint, say nothing about the colors of the rest
    min_color_share: float = 0.7  # share of the rest that so many colors cover, in a picture with a palette
    max_original_color_share: float = 0.5  # and at most so many times that share in the original
    palette_levels: float = 3.0  # a color may be so much farther from the original than the nearest of the palette,
    palette_slack: tuple[float, float] = (1.3, 1.87)  # and this times as far; the second unless each color is nearest
    nearest_quantile: float = 0.9  # which is so if, at this quantile of the texels, the distance
    max_nearest_ratio: float = 0.95  # is at most so many times that
    dither_px: int = 5  # window of the means that tell this, because the picture may be dithered
    plain_palette_share: float = 0.85  # share of the texels that a palette must explain without a conversion of colors
    least_palette_share: float = 0.6  # and with one


DEFAULTS = MatchSettings()


@dataclass(frozen=True)
class Misplacement:
    """Describes a picture that shows the original elsewhere than a copy does.

    Attributes:
        share: share of its texels with detail that look like the original there.
        error: what to tell the user.
    """

    share: float
    error: UserError


@dataclass(frozen=True)
class OriginalMatch:
    """Holds how a picture relates to its original.

    Attributes:
        colors: the conversion from the colors of the original to its own.
        clear: where it differs clearly, at its size; None if all of it was painted over, or graded.
        has_palette: whether it has so few colors that most of those of the original were replaced.
    """

    colors: ColorMap
    clear: ClearPaint | None
    has_palette: bool = False


def match_to_original(
    painted: Rgb,
    expected: Rgb,
    seen: Bool[np.ndarray, "height width"],
    name: str,
    source: str,
    any_colors: bool,
    size: tuple[int, int],
    rounding: Gray | None = None,
    settings: MatchSettings = DEFAULTS,
) -> OriginalMatch:
    """Compares a painted picture with what it would be without paint.

    Args:
        painted: its colors, in [0, 1].
        expected: the original at its size, in [0, 1].
        seen: texels that show the original.
        name: what the original is, for messages, such as "the frame 12".
        source: name of the file of the picture, for messages.
        any_colors: whether any conversion of colors is undone, or only the usual ones.
        size: (width, height) of the original.
        rounding: how far each color may be off by rounding, in [0, 1]; None for less than a level.
        settings: thresholds of the comparison.

    Raises:
        UserError: it is cropped, enlarged, shifted, stretched or mirrored, or has a palette (exit 3).
    """
    height, width = seen.shape
    if width > size[0]:  # what programs enlarged tells nothing more
        small, other = resize_image(painted, size), resize_image(expected, size)
        shown = cv2.resize(seen.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    else:
        small, other, shown = painted, expected, seen
    share = measure_fit(small, other, shown, settings)
    if share is not None and share < settings.sure_share:
        misplaced = find_misplacement(small, other, shown, share, name, source, size, settings)
        if misplaced is not None:
            raise misplaced.error
    if share is not None and share < settings.least_share:
        return OriginalMatch(IDENTITY, None)
    palette, own_share, count = find_palette(painted, settings)
    _, original_share, original_count = find_palette(expected, settings)
    has_palette = count <= settings.max_colors < original_count / settings.min_color_ratio
    has_palette |= (
        own_share >= settings.min_color_share and original_share <= settings.max_original_color_share * own_share
    )
    own = measure_palette_rounding(small, other, shown, palette, settings) if has_palette and shown.any() else None
    if own is not None and own.share >= settings.plain_palette_share:
        colors = IDENTITY
    else:
        colors = estimate_color_map(small, other, shown)
    if not any_colors and colors.is_grade:
        return OriginalMatch(IDENTITY, None)
    if not any_colors and colors.is_told and not colors.name:
        colors = IDENTITY  # such as that of a picture that was sharpened
    if rounding is not None and rounding.shape != shown.shape:
        rounding = cv2.resize(cv2.dilate(rounding, np.ones((3, 3), np.uint8)), shown.shape[::-1])
    if own is not None:
        own = (
            own
            if colors is IDENTITY
            else measure_palette_rounding(small, colors.convert(other), shown, palette, settings)
        )
        if own.share < settings.least_palette_share:
            raise bad_input(
                f"{source or 'the picture'} has a palette of {len(palette)} colors",
                where=source,
                why=f"only {own.share:.0%} of it has the colors of the palette that are nearest to those of {name}, so "
                "that nothing tells paint from what the palette did",
                fix="save it again from the painted document, as PNG with all colors (8 bits per channel)",
            )
        rounding = own.rounding if rounding is None else np.maximum(rounding, own.rounding)
    clear = find_clear_paint(small, colors.convert(other), shown, rounding)
    if clear.mask.shape != seen.shape:
        mask = cv2.resize(clear.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        noise = cv2.resize(clear.noise, (width, height), interpolation=cv2.INTER_NEAREST)
        clear = ClearPaint(mask, noise)
    return OriginalMatch(colors, clear, has_palette)


def measure_fit(
    painted: Rgb, expected: Rgb, seen: Bool[np.ndarray, "height width"], settings: MatchSettings = DEFAULTS
) -> float | None:
    """Measures the share of the texels with detail that look like the original; None if there is too little detail.

    Args:
        painted: the painted picture, in [0, 1].
        expected: the original at its size, in [0, 1].
        seen: texels that show the original.
        settings: the least detail.
    """
    correlation = measure_correlation(painted, expected)
    told = correlation[seen & ~np.isnan(correlation)]
    if len(told) < max(256, settings.min_detail_share * seen.sum()):
        return None
    return float((told >= CLEAR_PAINT.min_correlation).mean())


def find_misplacement(
    painted: Rgb,
    expected: OriginalRgb,
    seen: Bool[np.ndarray, "rows columns"],
    share: float,
    name: str,
    source: str,
    size: tuple[int, int],
    settings: MatchSettings = DEFAULTS,
) -> Misplacement | None:
    """Finds out whether a picture shows the original elsewhere than a copy does.

    Args:
        painted: its colors, in [0, 1].
        expected: the original, in [0, 1], of any size.
        seen: texels of the original that show something.
        share: share of its texels that look like the original where they are.
        name: what the original is, for messages.
        source: name of the file of the picture, for messages.
        size: (width, height) of the original, for messages.
        settings: thresholds of the comparison.

    Returns:
        How much of it fits there, and the error to raise; None if it shows the original nowhere else.
    """
    what, wanted = source or "the picture", f"the canvas must stay {format_size(size)}"
    resized = resize_image(painted, expected.shape[1::-1])
    tried = {"mirrored": (1,), "mirrored upside down": (0,), "turned by 180 degrees": (0, 1)}
    for word, axes in (("stretched", ()), *tried.items()) if painted.shape != expected.shape else tried.items():
        found = measure_fit(resized, np.flip(expected, axes).copy(), np.flip(seen, axes), settings)
        if found is not None and found > max(share + settings.better_share, settings.sure_share / 2):
            why = f"{found:.0%} of it is {name}, {word}"
            fix = f"save it as it was: {wanted}"
            return Misplacement(found, bad_input(f"{what} is {name}, {word}", where=source, why=why, fix=fix))
    placement = find_placement(painted, expected, settings)
    if placement is None:
        return None
    height, width = painted.shape[:2]
    scale = np.array(expected.shape[1::-1]) / (width, height)
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    there = corners @ placement[:2, :2].T + placement[:2, 2]  # in pixels of the original
    if np.abs(there - corners * scale).max() <= max(1.5, settings.min_displacement * max(expected.shape[:2])):
        return None
    moved = cv2.warpAffine(expected, placement[:2], (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    shown = cv2.warpAffine(
        seen.astype(np.uint8), placement[:2], (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    inside = cv2.erode(shown, np.ones((9, 9), np.uint8)) > 0
    found = measure_fit(painted, moved, inside, settings)
    if found is None or found < share + settings.better_share:
        return None
    return Misplacement(found, _make_placement_error(there * (size[0] / expected.shape[1]), found, name, source, size))


def _make_placement_error(
    corners: Float[np.ndarray, "points 2"], share: float, name: str, source: str, size: tuple[int, int]
) -> UserError:
    """Makes the error for a picture whose corners lie at these pixels of the original."""
    (left, top), (right, bottom) = np.rint(corners.min(axis=0)).astype(int), np.rint(corners.max(axis=0)).astype(int)
    if min(left, top) < -1 or right > size[0] + 1 or bottom > size[1] + 1:
        how, fix = "on a larger or shifted canvas", "save it without moving it or enlarging the canvas"
    else:
        how, fix = "cropped", "undo the cropping (also called trim, or crop to content) and save the whole canvas"
    return bad_input(
        f"{source or 'the picture'} is {name}, {how}",
        where=source,
        why=f"{share:.0%} of it is the picture itself, {how}: it shows columns {left} to {right} and rows {top} to "
        f"{bottom} of {format_size(size)}",
        fix=f"{fix}: the canvas must stay {format_size(size)}",
    )


def find_placement(
    painted: Rgb, expected: OriginalRgb, settings: MatchSettings = DEFAULTS
) -> Float[np.ndarray, "3 3"] | None:
    """Finds where a picture shows the original: an affine map from its pixels to those of the original, or None.

    Args:
        painted: the picture, in [0, 1].
        expected: the original, in [0, 1], of any size.
        settings: how features are matched, and how many of them must agree.
    """
    crop = find_crop(painted, expected, settings)
    if crop is not None:
        return crop
    grays, scales = [], []
    for rgb in (painted, expected):
        scale = min(1.0, settings.side_px / max(rgb.shape[:2]))
        gray = np.rint(255 * np.clip(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), 0, 1)).astype(np.uint8)
        side = (max(8, round(gray.shape[1] * scale)), max(8, round(gray.shape[0] * scale)))
        grays.append(cv2.resize(gray, side, interpolation=cv2.INTER_AREA))
        scales.append(np.array(side) / gray.shape[1::-1])
    finder = cv2.SIFT_create(nfeatures=2000, contrastThreshold=0.02)
    (points, own), (others, their) = (finder.detectAndCompute(gray, None) for gray in grays)
    if own is None or their is None or min(len(own), len(their)) < settings.min_matches:
        return None
    pairs = [
        two for two in cv2.BFMatcher().knnMatch(own, their, k=2)
        if len(two) == 2 and two[0].distance < settings.max_ratio * two[1].distance
    ]  # fmt: skip
    if len(pairs) < settings.min_matches:
        return None
    # The center of the first pixel is (0, 0) for features.
    start = (np.array([points[one.queryIdx].pt for one, _ in pairs]) + 0.5) / scales[0]
    end = (np.array([others[one.trainIdx].pt for one, _ in pairs]) + 0.5) / scales[1]
    found = find_transform(start, end, "affine", settings.tolerance_px)
    if found is None:
        return None
    off = np.linalg.norm(start @ found[:2, :2].T + found[:2, 2] - end, axis=1)
    return found if (off <= settings.tolerance_px).sum() >= settings.min_matches else None


def find_crop(
    painted: Rgb, expected: OriginalRgb, settings: MatchSettings = DEFAULTS
) -> Float[np.ndarray, "3 3"] | None:
    """Finds where a picture shows the original if its canvas was cropped or enlarged without scaling.

    Args:
        painted: the picture, in [0, 1].
        expected: the original, in [0, 1], of any size.
        settings: the least correlation.

    Returns:
        A map from its pixels to those of the original, which only shifts them; None if it is no such part.
    """
    step = max(1, round(max(*painted.shape[:2], *expected.shape[:2]) / settings.template_px))
    small, large = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) for rgb in (painted, expected))
    sign = 1 if small.size <= large.size else -1
    small, large = (small, large) if sign == 1 else (large, small)
    if small.shape[0] <= large.shape[0] and small.shape[1] <= large.shape[1] and small.shape != large.shape:
        coarse = cv2.matchTemplate(large[::step, ::step], small[::step, ::step], cv2.TM_CCOEFF_NORMED)
        _, _, _, (x, y) = cv2.minMaxLoc(coarse)
        left, top = max(0, step * (x - 1)), max(0, step * (y - 1))
        part = large[top : top + small.shape[0] + 2 * step, left : left + small.shape[1] + 2 * step]
        if part.shape[0] >= small.shape[0] and part.shape[1] >= small.shape[1]:
            _, best, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(part, small, cv2.TM_CCOEFF_NORMED))
            if best > settings.min_template:
                return np.array([[1, 0, sign * (left + x)], [0, 1, sign * (top + y)], [0, 0, 1.0]])
    return None


def require_whole_picture(
    painted: Picture, base: Float[np.ndarray, "rows columns 4"], name: str, settings: MatchSettings = DEFAULTS
) -> None:
    """Refuses a picture of another shape than its original, or of more than four times its size.

    Args:
        painted: the painted picture.
        base: its original.
        name: what that is, for messages, such as "the frame 12".
        settings: thresholds of the comparison.

    Raises:
        UserError: the shape does not match (exit 3); the message says which part of the original it shows, if any.
    """
    size = (base.shape[1], base.shape[0])
    shown = [np.ascontiguousarray(one[..., :3] * one[..., 3:]) for one in (painted.rgba, base)]
    try:
        check_picture_size(painted, size, name)
    except UserError:
        misplaced = find_misplacement(shown[0], shown[1], base[..., 3] > 0, 0.0, name, painted.source, size)
        if misplaced is not None:
            raise misplaced.error from None
        raise
    crop = None if painted.size == size else find_crop(shown[0], shown[1])
    if crop is None:
        return
    # By chance a cropped canvas may have the shape of the original.
    limit, level = settings.most_levels, 1 / 255
    whole = np.abs(resize_image(shown[0], size) - shown[1])[base[..., 3] > 0.5]
    there = cv2.warpAffine(shown[1], crop[:2], painted.size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    seen = cv2.warpAffine(base[..., 3], crop[:2], painted.size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP) > 0.5
    off = np.abs(shown[0] - there)[seen]
    if off.size and 2 * np.minimum(off, limit * level).mean() < np.minimum(whole, limit * level).mean():
        corners = np.array([[0, 0], painted.size]) + crop[:2, 2]
        share = float((find_largest_channel(off) < limit * level / 2).mean())
        raise _make_placement_error(corners, share, name, painted.source, size)


def find_palette(rgb: Rgb, settings: MatchSettings = DEFAULTS) -> tuple[Float[np.ndarray, "colors 3"], float, int]:
    """Finds the most frequent 8-bit colors of a picture.

    Args:
        rgb: the picture, in [0, 1].
        settings: the number of colors.

    Returns:
        The colors, in [0, 1]; the share of the texels that they cover, without those of the few most frequent ones; and
        the number of different colors.
    """
    numbers, counts = np.unique(np.rint(255 * rgb).astype(np.int64) @ np.array([1, 256, 65536]), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rest = counts[order][settings.flat_colors :]
    share = rest[: settings.max_colors - settings.flat_colors].sum() / max(1, rest.sum())
    most = numbers[order[: settings.max_colors]]
    return np.stack([most >> shift & 255 for shift in (0, 8, 16)], axis=-1) / 255, float(share), len(numbers)


@dataclass(frozen=True)
class PaletteRounding:
    """Holds what a palette did to a picture.

    Attributes:
        rounding: how far the brightness and the chroma of each texel may be off, in [0, 1].
        share: share of the texels that show something and are not farther off, in the mean of some of them.
    """

    rounding: Gray
    share: float


def measure_palette_rounding(
    painted: Rgb,
    expected: Rgb,
    seen: Bool[np.ndarray, "height width"],
    palette: Float[np.ndarray, "colors 3"],
    settings: MatchSettings = DEFAULTS,
) -> PaletteRounding:
    """Measures how far colors may be off because each was replaced by the nearest one of a palette.

    Args:
        painted: the picture with the palette, in [0, 1].
        expected: the original, in [0, 1].
        seen: texels that show the original.
        palette: the colors of the palette, in [0, 1].
        settings: tolerances.
    """
    from scipy.spatial import cKDTree

    steps = np.rint(63 * np.clip(expected, 0, 1)).astype(np.int64) @ np.array([1, 64, 4096])
    numbers, places = np.unique(steps, return_inverse=True)  # colors repeat, to two levels
    nearest, _ = cKDTree(palette).query(np.stack([numbers >> shift & 63 for shift in (0, 6, 12)], axis=-1) / 63)
    distance = (nearest[places].reshape(seen.shape) + settings.palette_levels / 255).astype(np.float32)
    ratio = np.quantile((np.linalg.norm(painted - expected, axis=-1) / distance)[seen], settings.nearest_quantile)
    slack = settings.palette_slack[int(ratio > settings.max_nearest_ratio)]
    distance = cv2.dilate(distance, np.ones((3, 3), np.uint8))
    off = np.linalg.norm(cv2.blur(painted - expected, (settings.dither_px,) * 2), axis=-1)
    share = float((off <= distance)[seen].mean())
    return PaletteRounding(slack * YCRCB_NORM * distance, share)

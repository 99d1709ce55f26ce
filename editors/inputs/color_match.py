"""Finds the conversion of colors that separates a picture from its original: matrix, range, gamma or profile.

Programs decode a video with the matrix or the range of another one, screenshots have the numbers of a display, images
lose their profile. All of that changes every color in the same way, and no paint does. So the conversion is estimated
from smooth texels, robustly against those that were painted, and undone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
from jaxtyping import Bool, Float

LEVEL = 1 / 255

Rgb = Float[np.ndarray, "height width 3"]
Colors = Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class ColorMatchSettings:
    """Settings of the estimation of a conversion of colors. Levels are 8-bit levels of a color."""

    window_px: int = 5  # window of the means that are compared; noise has none
    smooth_share: float = 0.6  # share of the texels that are compared: the smoothest
    color_steps: int = 12  # steps per channel of the classes of colors, so that rare colors count as well
    colors_per_class: int = 24  # most texels of a class
    scale_levels: float = 4.0  # difference at which a texel counts half as an outlier
    min_gain: float = 0.05  # share of the texels that a conversion must explain beyond what none explains
    min_grade_gain: float = 0.3  # the same for what may be a grade
    max_usual_loss: float = 0.1  # share by which a usual conversion may explain less than the best one
    tried_kinds: int = 4  # number of the usual conversions whose power is refined
    plain_bonus: float = 0.01  # share by which a conversion with a matrix must explain more than a mere gamma
    stride: int = 4  # of the samples with which the list of usual conversions is searched
    max_texels: int = 1_000_000  # larger pictures are compared on a grid
    shift_quantile: float = 0.75  # quantile of the changes of the colors that tells how large a conversion is
    told_levels: float = 3.5  # that quantile above which a conversion is reported and undone in paint
    refinements: int = 8  # steps of the robust estimation of the matrix
    curve_steps: int = 16  # parts of the curve that follows it
    max_curve_levels: float = 12.0  # largest value of that curve; what differs more is paint


DEFAULTS = ColorMatchSettings()


@dataclass(frozen=True)
class ColorMap:
    """Describes a conversion of colors: a matrix with an offset, and a power; clipped to [0, 1].

    Attributes:
        matrix: factors of red, green and blue, and the offset, for each channel.
        power: exponent that follows the matrix.
        is_linear: whether the matrix acts on linear light instead of sRGB values.
        name: what the conversion usually is; empty if it is none of the usual ones, which may be a grade.
        curve: what is added to each channel afterwards, at equal distances from 0 to 1; None for nothing.
        shift: how much most colors of the picture change at most, in [0, 1].
        gain: share of the colors that it explains beyond what no conversion explains.
    """

    matrix: Float[np.ndarray, "3 4"]
    power: float = 1.0
    is_linear: bool = False
    name: str = ""
    curve: Float[np.ndarray, "3 steps"] | None = None
    shift: float = 0.0
    gain: float = 0.0

    @property
    def is_grade(self) -> bool:
        """Whether it may be a grade that somebody wants: none of the usual ones, and it explains most of the change."""
        return self.is_told and not self.name and self.gain > DEFAULTS.min_grade_gain

    @property
    def is_told(self) -> bool:
        """Whether the colors change visibly: then paint has to be converted back, and the user is told."""
        return self.shift > DEFAULTS.told_levels * LEVEL

    def convert(self, rgb: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
        """Converts colors of the original to those of the picture."""
        values = decode_srgb(rgb) if self.is_linear else rgb
        values = np.clip(values @ self.matrix[:, :3].T + self.matrix[:, 3], 0, 1)
        values = encode_srgb(values) if self.is_linear else values
        values = values**self.power if self.power != 1 else values
        return np.clip(values + self._bend(values), 0, 1).astype(np.float32)

    def invert(self, rgb: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
        """Converts colors of the picture to those of the original."""
        values = np.clip(rgb - self._bend(rgb), 0, 1) ** (1 / self.power)
        values = decode_srgb(values) if self.is_linear else values
        values = (values - self.matrix[:, 3]) @ np.linalg.inv(self.matrix[:, :3]).T
        values = encode_srgb(values) if self.is_linear else values
        return np.clip(values, 0, 1).astype(np.float32)

    def _bend(self, values: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"] | float:
        """Computes what the curve adds."""
        if self.curve is None:
            return 0.0
        places = np.linspace(0, 1, self.curve.shape[1])
        return np.stack([np.interp(values[..., c], places, self.curve[c]) for c in range(3)], axis=-1)


IDENTITY = ColorMap(np.eye(3, 4))


def decode_srgb(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Converts sRGB values to linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0) + 0.055) / 1.055) ** 2.4)


def encode_srgb(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Converts linear light to sRGB values."""
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * np.maximum(values, 1e-9) ** (1 / 2.4) - 0.055)


def estimate_color_map(
    painted: Rgb,
    base: Rgb,
    seen: Bool[np.ndarray, "height width"],
    settings: ColorMatchSettings = DEFAULTS,
) -> ColorMap:
    """Estimates the conversion from the colors of the original to those of the painted picture.

    Args:
        painted: the painted picture, in [0, 1].
        base: the original at its size, in [0, 1].
        seen: texels that show the original.
        settings: how the texels are chosen, and when a conversion is accepted.

    Returns:
        The conversion; `IDENTITY` if none explains clearly more than none.
    """
    start, end = _choose_samples(painted, base, seen, settings)
    if len(start) < 64:
        return IDENTITY
    without = _measure_misfit(IDENTITY, start, end, settings)
    if without < settings.min_gain:
        return IDENTITY
    some = (start[:: settings.stride], end[:: settings.stride])  # enough to choose from the list
    kinds: dict[str, tuple[float, ColorMap]] = {}
    for one in list_usual_maps():
        misfit = _measure_misfit(one, *some, settings)
        if one.name not in kinds or misfit < kinds[one.name][0]:
            kinds[one.name] = (misfit, one)
    tried = []
    for _, one in sorted(kinds.values(), key=lambda kind: kind[0])[: settings.tried_kinds]:
        step = 0.08  # the power of a gamma is not one of a list
        while step > 0.004:
            near = [replace(one, power=one.power * (1 + sign * step)) for sign in (0, -1, 1)]
            better = min(near, key=lambda other: _measure_misfit(other, *some, settings))
            step = step / 2 if better.power == one.power else step
            one = better
        tried.append((_measure_misfit(one, start, end, settings) + settings.plain_bonus * (one.name != ""), one))
    usual = min(tried, key=lambda kind: kind[0])[1]
    best = _refine_matrix(usual, start, end, settings)
    # The curve of each channel that is left: gammas are powers only roughly.
    found, limit = best.convert(start), settings.max_curve_levels * LEVEL
    close = np.abs(end - found).max(axis=-1) < limit
    places = np.linspace(0, 1, settings.curve_steps + 1)
    curve = np.zeros((3, settings.curve_steps + 1))
    for channel in range(3):
        value, off = found[close, channel], (end - found)[close, channel]
        parts = np.rint(value * settings.curve_steps).astype(int)
        known = [number for number in range(len(places)) if (parts == number).sum() >= settings.colors_per_class // 2]
        if known:
            medians = [float(np.median(off[parts == number])) for number in known]
            curve[channel] = np.interp(places, places[known], medians)
    best = replace(best, curve=curve)
    least, usual_least = (_measure_misfit(one, start, end, settings) for one in (best, usual))
    is_usual = usual_least - least < settings.max_usual_loss
    if without - least < settings.min_gain:
        return IDENTITY
    name = usual.name if is_usual else ""
    if is_usual and not name and abs(usual.power - 1) > 0.03:
        name = "another gamma"
    shift = float(np.quantile(np.abs(best.convert(start) - start).max(axis=-1), settings.shift_quantile))
    return replace(best, name=name, shift=shift, gain=without - least)


@cache
def list_usual_maps() -> tuple[ColorMap, ...]:
    """Lists the conversions that programs make by mistake."""
    found = [IDENTITY]
    to_ycbcr = {}
    for name, (red, blue) in YCBCR.items():
        green, cb, cr = 1 - red - blue, 2 - 2 * blue, 2 - 2 * red
        rows = [[red, green, blue], [-red / cb, -green / cb, 0.5], [0.5, -green / cr, -blue / cr]]
        to_ycbcr[name] = np.array(rows)
    pairs = [(one, other) for one in YCBCR for other in YCBCR if one != other]
    matrices = {
        f"the color matrix of {other} in place of {one}": np.linalg.inv(to_ycbcr[other]) @ to_ycbcr[one]
        for one, other in pairs
    }
    for name, matrix in {"": np.eye(3), **matrices}.items():
        for text, factor, offset in (
            ("", 1.0, 0.0),
            ("limited range", 219 / 255, 16 / 255),
            ("full range", 255 / 219, -16 / 219),
        ):
            both = " and ".join(part for part in (name, text) if part)
            found.append(ColorMap(np.column_stack([factor * matrix, np.full(3, offset)]), name=both))
    for name, primaries in PRIMARIES.items():
        matrix = np.linalg.inv(_make_xyz_matrix(primaries)) @ _make_xyz_matrix(SRGB_PRIMARIES)
        for text, factors in ((f"the color space {name}", matrix), (f"{name} read as sRGB", np.linalg.inv(matrix))):
            found.append(ColorMap(np.column_stack([factors, np.zeros(3)]), is_linear=True, name=text))
    powers = (1 / 2.2, 0.62, 0.75, 0.87, 1.0, 1.15, 1.33, 1.6, 2.2)
    return tuple(replace(one, power=power) for one in found for power in powers)


YCBCR = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722)}  # of red and blue
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
PRIMARIES = {
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "BT.2020": ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
}


def _make_xyz_matrix(primaries: tuple[tuple[float, float], ...]) -> Float[np.ndarray, "3 3"]:
    """Makes the matrix from linear RGB with the white of D65 to XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def _choose_samples(
    painted: Rgb, base: Rgb, seen: Bool[np.ndarray, "height width"], settings: ColorMatchSettings
) -> tuple[Colors, Colors]:
    """Chooses smooth texels of as many different colors as possible; returns their colors in both pictures."""
    window = (settings.window_px,) * 2
    step = max(1, round((seen.size / settings.max_texels) ** 0.5))
    painted, base, seen = painted[::step, ::step], base[::step, ::step], seen[::step, ::step]
    inner = cv2.erode(seen.astype(np.uint8), np.ones(window, np.uint8), borderValue=1) > 0
    gray = base.mean(axis=-1)
    rough = cv2.blur(np.abs(gray - cv2.blur(gray, window)), window)
    if inner.any():
        inner &= rough <= np.quantile(rough[inner], settings.smooth_share)
    start, end = cv2.blur(base, window)[inner], cv2.blur(painted, window)[inner]
    steps = settings.color_steps
    classes = np.clip(start * steps, 0, steps - 1).astype(np.int64) @ np.array([steps * steps, steps, 1])
    order = np.random.default_rng(0).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    ordered = classes[order]
    first = np.searchsorted(ordered, ordered)  # where the class of each begins
    kept = order[np.arange(len(order)) - first < settings.colors_per_class]
    return start[kept].astype(np.float64), end[kept].astype(np.float64)


def _measure_misfit(one: ColorMap, start: Colors, end: Colors, settings: ColorMatchSettings) -> float:
    """Measures the share of the texels that a conversion does not explain; texels far from it count fully."""
    square = (np.abs(one.convert(start) - end).max(axis=-1) / (settings.scale_levels * LEVEL)) ** 2
    return float((square / (square + 1)).mean())


def _refine_matrix(one: ColorMap, start: Colors, end: Colors, settings: ColorMatchSettings) -> ColorMap:
    """Refines the matrix by least squares in which outliers have no weight (Geman-McClure)."""
    values = decode_srgb(start) if one.is_linear else start
    target = np.clip(end, 0, 1) ** (1 / one.power)
    target = decode_srgb(target) if one.is_linear else target
    inside = ((end > 2 * LEVEL) & (end < 1 - 2 * LEVEL)).all(axis=-1)  # what was clipped tells nothing
    rows = np.column_stack([values, np.ones(len(values))])
    best, least = one, _measure_misfit(one, start, end, settings)
    found = one
    for _ in range(settings.refinements):
        square = (np.abs(found.convert(start) - end).max(axis=-1) / (settings.scale_levels * LEVEL)) ** 2
        weight = np.sqrt(inside / (square + 1) ** 2)[:, None]
        matrix = np.linalg.lstsq(rows * weight, target * weight, rcond=None)[0].T
        if abs(np.linalg.det(matrix[:, :3])) < 0.05:
            break
        found = replace(one, matrix=matrix)
        misfit = _measure_misfit(found, start, end, settings)
        if misfit < least:
            best, least = found, misfit
    return best

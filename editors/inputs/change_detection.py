"""Finds the texels of a picture that were painted on, regardless of how the image tool altered the others.

A lossless picture with local changes is compared only there (`find_local_change`). If noise has to be separated from
paint, or if nearly everything was painted over, the entire picture is compared (`find_whole_change`). Both give the
same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from editors.inputs.color_match import IDENTITY, ColorMap, estimate_color_map
from editors.inputs.match_to_original import match_to_original, require_whole_picture
from editors.inputs.noise_model import DEFAULTS as NOISE_DEFAULTS
from editors.inputs.noise_model import (
    LEVEL,
    BaseComparison,
    Gray,
    NoiseModelSettings,
    Rgb,
    compute_color_distance,
    find_largest_channel,
    max_over_channels,
)
from neural_fields.imaging.alpha import premultiply, resize_image, to_floats, unpremultiply
from neural_fields.imaging.image_io import Picture
from neural_fields.imaging.tiles import Part, bounding_part, to_local_range

Rgba = Float[np.ndarray, "height width 4"]
Pixels = UInt8[np.ndarray, "_ _ 4"] | Float[np.ndarray, "_ _ 4"]
Colors = Float[np.ndarray, "colors 3"]


@dataclass(frozen=True)
class ChangeSettings:
    """Settings of the search for paint. Levels are 8-bit levels of a color; alpha and coverage are in [0, 1]."""

    noise: NoiseModelSettings = NOISE_DEFAULTS
    opaque_alpha: float = 0.999  # a texel with at least this alpha counts as opaque
    min_alpha: float = 0.5  # least strength of a change for a painted texel
    fill_levels: float = 24.0  # least difference of paint from a flat fill where the base is transparent
    min_fill_share: float = 0.3  # least share of the unseen texels for a second fill (a checkerboard)
    checker_px: tuple[int, int] = (2, 96)  # range of the cells of a checkerboard
    min_checker_share: float = 0.9  # least share of the unseen texels that agree with a checkerboard
    soft_levels: float = 1.5  # least threshold of texels that are not opaque, because they are rounded
    erased_alpha: float = 0.25  # least decrease of alpha of an erased texel
    min_speck_texels: int = 5  # smaller groups of changed texels are noise
    speck_reach_px: int = 5  # window around larger groups in which faint texels are kept
    exact_gap_px: int = 3  # gaps in paint up to this size are closed
    noisy_gap_px: int = 5  # the same for noisy input
    whole_gap_px: int = 17  # the same for a picture that changed almost everywhere
    whole_share: float = 0.6  # share of the seen texels above which a picture changed almost everywhere
    unseen_reach_px: int = 5  # window around seen texels in which all texels count as seen
    scattered_grid: tuple[int, int] = (16, 9)  # columns and rows of the parts in which small differences are counted
    scattered_share: float = 0.3  # share of these parts from which small differences are noise of the entire picture
    max_scattered_texels: int = 40  # and largest size of such a difference
    rough_share: float = 0.1  # the same for faint differences of both signs, as compression makes them
    max_rough_levels: float = 10.0  # largest mean size of such differences,
    max_rough_mean: float = 0.5  # of which their mean is at most this share,
    rough_px: int = 9  # in a window of this size
    min_rough_texels: float = 0.02  # least share of the texels of a part that have them
    tile_px: int = 256  # side of a tile that is compared at once
    halo_px: int = 4  # margin of a tile, because closing gaps needs neighbors


DEFAULTS = ChangeSettings()


@dataclass(frozen=True)
class Change:
    """Holds the difference between a painted picture and its base.

    Attributes:
        rgba: the painted colors, with the strength of the change as straight alpha, at the painted picture's size.
        notes: what was left out, one sentence each.
    """

    rgba: Rgba
    notes: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no texel was changed: the alpha is 0 everywhere."""
        return not bool((self.rgba[..., 3] > 0).any())


@dataclass(frozen=True)
class _Backdrop:
    """Describes what a tool put behind transparent texels when it dropped the alpha channel.

    Attributes:
        fills: the possible flat colors.
        fill: what is blended with the picture: a color, or for a checkerboard one of each texel; None if the picture's
            hidden colors are shown.
    """

    fills: Colors
    fill: Float[np.ndarray, "3"] | Rgb | None

    def composite(self, rgba: Rgba, hidden: Rgb) -> Rgb:
        """Blends a picture with this backdrop."""
        if self.fill is None:
            return hidden
        coverage = rgba[..., 3]
        planes = zip(cv2.split(rgba)[:3], np.moveaxis(self.fill, -1, 0), strict=True)
        return cv2.merge([plane * coverage + value * (1 - coverage) for plane, value in planes])


def find_local_change(painted: Pixels, base: Pixels, settings: ChangeSettings = DEFAULTS) -> tuple[Part, Change] | None:
    """Finds a local change of a lossless picture.

    Args:
        painted: straight RGBA, uint8 or float32 in [0, 1].
        base: the picture that it was painted on, of the same type.
        settings: thresholds of the search.

    Returns:
        The rows and columns that contain the change (empty if nothing changed), and the change within them. None if the
        entire picture is needed to estimate the noise: the sizes differ, about half of the seen texels changed, or
        small differences are scattered over the picture.
    """
    if painted.shape != base.shape or not painted.size:
        return None
    one = 255 if base.dtype == np.uint8 else 1
    opaque = settings.opaque_alpha * one
    alpha, coverage = cv2.extractChannel(painted, 3), cv2.extractChannel(base, 3)

    # Did the tool drop the alpha?
    backdrop = None
    if cv2.minMaxLoc(alpha)[0] > opaque and cv2.minMaxLoc(coverage)[0] < opaque:
        fills = _find_fills(_floats_at(painted, coverage < LEVEL * one)[:, :3], settings)
        if len(fills) > 1:
            return None  # a checkerboard
        soft = coverage < opaque
        shown, own = _floats_at(painted, soft), _floats_at(base, soft)
        backdrop = _Backdrop(fills, _choose_fill(shown[:, :3], own, own[:, :3], fills, IDENTITY, settings))

    # Nonzero where texels are not what they would be without paint.
    differs = np.zeros(alpha.shape, np.uint8)
    for channel in range(3):
        differs |= cv2.compare(cv2.extractChannel(painted, channel), cv2.extractChannel(base, channel), cv2.CMP_NE)
    if backdrop is None:  # a clear texel may have any hidden color
        differs &= cv2.compare(cv2.max(alpha, coverage), 0, cv2.CMP_GT)
        differs |= cv2.compare(alpha, coverage, cv2.CMP_NE)
    elif backdrop.fill is not None:  # on a flat fill soft texels are rounded
        differs |= cv2.compare(coverage, opaque, cv2.CMP_LT)

    # Fewer than half of those seen: then the median of what differs is zero, and there is no noise.
    noise_window = settings.noise.noise_window_px
    seen = cv2.compare(coverage, settings.noise.min_coverage * one, cv2.CMP_GT)
    changed = cv2.countNonZero(differs & seen)
    if changed and 2 * changed >= cv2.countNonZero(seen):
        return None
    if backdrop is None and (
        is_scattered(differs & seen, settings) or is_rough(painted, base, differs & seen, settings)
    ):
        return None

    part = bounding_part(differs, noise_window) or (slice(0, 0), slice(0, 0))
    change = _compare_tiles(painted[part], base[part], differs[part], backdrop, settings)
    notes: tuple[str, ...] = ()
    if backdrop is None and change.size:
        notes = _erasure_notes(alpha[part], coverage[part], one, settings)
    return part, Change(change, notes)


def _floats_at(pixels: Pixels, mask: np.ndarray) -> Float[np.ndarray, "n 4"]:
    return to_floats(pixels[mask][None])[0]


def _compare_tiles(
    painted: Pixels,
    base: Pixels,
    differs: UInt8[np.ndarray, "height width"],
    backdrop: _Backdrop | None,
    settings: ChangeSettings,
) -> Rgba:
    """Computes the change of a noiseless picture tile by tile, which keeps it in the cache; skips equal tiles."""
    height, width = differs.shape
    side, halo = settings.tile_px, settings.halo_px
    result = np.zeros((height, width, 4), np.float32)
    for top, left in product(range(0, height, side), range(0, width, side)):
        inner = (slice(top, min(height, top + side)), slice(left, min(width, left + side)))
        rows, columns = (slice(max(0, span.start - halo), span.stop + halo) for span in inner)
        if not differs[rows, columns].any():
            continue
        rgba, under = to_floats(painted[rows, columns]), to_floats(base[rows, columns])
        plain, coverage = np.ascontiguousarray(under[..., :3]), under[..., 3]
        threshold = np.full(coverage.shape, settings.noise.exact_levels * LEVEL, np.float32)
        if backdrop is None:
            distance = compute_color_distance(_blend_as_shown(rgba, plain, coverage), plain)
            same = BaseComparison(distance, threshold, exact=True)
            found = _extract_change_by_alpha(rgba, coverage, same, 0.0, False, settings)
        else:
            rgb = np.ascontiguousarray(rgba[..., :3])
            same = BaseComparison(compute_color_distance(rgb, backdrop.composite(under, plain)), threshold, exact=True)
            same = _compare_unseen_with_fills(rgb, coverage, backdrop.fills, plain, same, settings)
            found = _extract_change(rgba, coverage, same, None, False, settings)
        result[inner] = found[to_local_range(inner[0], rows), to_local_range(inner[1], columns)]
    return result


def is_scattered(differs: UInt8[np.ndarray, "height width"], settings: ChangeSettings = DEFAULTS) -> bool:
    """Tells whether small differences are all over a picture: then a program made them, and nobody painted them."""
    height, width = differs.shape
    _, _, stats, centers = cv2.connectedComponentsWithStats(differs, connectivity=8)
    small = centers[1:][stats[1:, cv2.CC_STAT_AREA] <= settings.max_scattered_texels]
    columns, rows = settings.scattered_grid
    parts = (small[:, 1] * rows // height) * columns + small[:, 0] * columns // width
    return len(np.unique(parts)) >= settings.scattered_share * columns * rows


def is_rough(
    painted: Pixels | Rgb,
    base: Pixels | Rgb,
    compared: UInt8[np.ndarray, "height width"],
    settings: ChangeSettings = DEFAULTS,
) -> bool:
    """Tells whether faint differences of both signs are all over a picture, as compression makes them.

    Args:
        painted: the picture, uint8 or float32 in [0, 1].
        base: what it is compared with, of the same type.
        compared: nonzero where they are compared.
        settings: sizes and shares of the differences.
    """
    height, width = compared.shape
    columns, rows = settings.scattered_grid
    if min(height // rows, width // columns) < 2:
        return False

    def are_all_over(found: Bool[np.ndarray, "height width"]) -> bool:
        share = cv2.resize(found.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        return float((share > settings.min_rough_texels).mean()) >= settings.rough_share

    if not are_all_over(compared > 0):  # as after a few strokes: answered without a look at colors
        return False
    level = 1.0 if base.dtype == np.uint8 else LEVEL
    off = (painted[..., :3].astype(np.float32) - base[..., :3].astype(np.float32)) / level
    window = (settings.rough_px,) * 2
    mean = np.abs(cv2.blur(off, window)).sum(axis=-1)
    size = cv2.blur(np.abs(off), window).sum(axis=-1)
    rough = (
        (compared > 0)
        & (size > 0)
        & (find_largest_channel(np.abs(off)) > settings.noise.exact_levels)
        & (mean < settings.max_rough_mean * size)
        & (size < 3 * settings.max_rough_levels)
    )
    return are_all_over(rough)


def find_whole_change(
    painted: Picture,
    base: Rgba,
    name: str = "the exported picture",
    any_colors: bool = False,
    settings: ChangeSettings = DEFAULTS,
) -> Change:
    """Finds the change of a picture, lossy or lossless, of any size with the aspect ratio of `base`.

    Args:
        painted: the painted picture.
        base: the picture that it was painted on, float32 in [0, 1] with straight alpha.
        name: what that is, for messages, such as "the frame 12".
        any_colors: whether any conversion of all colors is undone, or only the usual ones.
        settings: thresholds of the search.

    Returns:
        The change, at the size of the painted picture.

    Raises:
        UserError: it shows the base elsewhere than a copy does (exit 3).
    """
    size = (base.shape[1], base.shape[0])
    exact_size = painted.size == size
    require_whole_picture(painted, base, name)
    ground = base if exact_size else unpremultiply(resize_image(premultiply(base), painted.size))
    rgba, coverage = painted.rgba, ground[..., 3]
    scale = painted.size[0] / base.shape[1]
    soft = coverage < settings.opaque_alpha

    # What the picture would show without paint.
    flattened = bool((rgba[..., 3] > settings.opaque_alpha).all() and soft.any())
    if flattened:  # the tool dropped the alpha
        rgb = np.ascontiguousarray(rgba[..., :3])
        hidden = np.ascontiguousarray(base[..., :3])
        hidden = hidden if exact_size else resize_image(hidden, painted.size)
        fills = _find_fills(rgb[coverage < LEVEL], settings)
        # The ground went through the same conversion of colors as the picture, unless it was clipped.
        colors = estimate_color_map(rgb, np.ascontiguousarray(ground[..., :3]), ~soft)
        is_known = colors.is_told and (any_colors or colors.name != "")
        behind = np.concatenate([fills, colors.invert(fills)]) if is_known else fills
        known = colors if is_known else IDENTITY
        fill = _choose_fill(rgb[soft], ground[soft], hidden[soft], behind, known, settings)
        checker = _find_checkerboard(rgb, coverage < LEVEL, fills, settings) if len(fills) > 1 else None
        if checker is not None:
            fill = colors.invert(checker) if is_known else checker
        expected = _Backdrop(fills, fill).composite(ground, hidden)
    else:
        expected = np.ascontiguousarray(ground[..., :3])
        rgb = _blend_as_shown(rgba, expected, coverage)

    # What programs did to all of it is no paint.
    seen = np.full(coverage.shape, True) if flattened else coverage >= LEVEL
    match = match_to_original(rgb, expected, seen, name, painted.source, any_colors, size, painted.rounding)
    # Small conversions are left to the noise where that is known exactly.
    is_converted = match.colors.is_told or (match.colors.name != "" and painted.quantization is None)
    expected = match.colors.convert(expected) if is_converted else expected
    rough = exact_size and is_rough(rgb, expected, (seen * np.uint8(255)), settings)
    same = BaseComparison.compare_with_base(painted, rgb, expected, coverage, scale, rough, settings.noise)
    told = same.distance > same.threshold
    noisy = painted.rounding is not None or not same.exact or is_converted or match.has_palette
    noisy = noisy or rough or is_scattered((told & seen).astype(np.uint8), settings)
    if match.clear is not None and noisy:
        clear = match.clear.mask | (~seen & (same.distance > settings.fill_levels * LEVEL))
        same = BaseComparison(np.where(clear, same.distance, np.float32(0)), same.threshold, exact=False)
    notes: list[str] = []
    if match.colors.is_told:
        kind = match.colors.name or "another conversion of colors"
        notes.append(f"all of its colors differ in the same way ({kind}): that was undone, only local changes count")
        rgba = np.concatenate([match.colors.invert(rgba[..., :3]), rgba[..., 3:]], axis=-1)

    if flattened:
        same = _compare_unseen_with_fills(rgb, coverage, fills, hidden, same, settings)
        return Change(_extract_change(rgba, coverage, same, None, True, settings), tuple(notes))
    found = _extract_change_by_alpha(rgba, coverage, same, 0.0 if exact_size else scale, True, settings)
    return Change(found, (*notes, *_erasure_notes(rgba[..., 3], coverage, 1, settings)))


def _blend_as_shown(rgba: Rgba, plain: Rgb, coverage: Gray) -> Rgb:
    """Blends painted colors of faint texels by their coverage: straight colors are mostly rounding noise there."""
    share = np.minimum(rgba[..., 3], coverage)
    return plain + (rgba[..., :3] - plain) * cv2.merge([share] * 3)


def _erasure_notes(alpha: np.ndarray, coverage: np.ndarray, one: int, settings: ChangeSettings) -> tuple[str, ...]:
    """Makes a note if alpha was erased; `one` is the value of opaque alpha."""
    if not (cv2.subtract(coverage, alpha) > settings.erased_alpha * one).any():
        return ()
    return ("erased places are left as they are in the video: paint over what should change",)


def _extract_change_by_alpha(
    rgba: Rgba, coverage: Gray, same: BaseComparison, scale: float, whole: bool, settings: ChangeSettings
) -> Rgba:
    """Extracts the change from differences in color, and from alpha that was added where the base is transparent."""
    alpha = rgba[..., 3]
    reach = np.ones((2 * int(np.ceil(scale)) + 1,) * 2, np.uint8)
    gained = np.clip(alpha - cv2.dilate(coverage, reach), 0, 1)
    # How opaque the paint is: on soft coverage, alpha as before means that it is opaque.
    kept = np.minimum(alpha / np.maximum(coverage, LEVEL), 1)
    trust = np.minimum(4 * coverage, 1)
    strength = alpha * (1 - trust) + kept * trust
    distance = np.maximum(same.distance, gained)
    soft_threshold = np.maximum(same.threshold, settings.soft_levels * LEVEL)
    threshold = np.where(coverage < settings.opaque_alpha, soft_threshold, same.threshold)
    return _extract_change(rgba, coverage, BaseComparison(distance, threshold, same.exact), strength, whole, settings)


def _extract_change(
    rgba: Rgba, coverage: Gray, same: BaseComparison, strength: Gray | None, whole: bool, settings: ChangeSettings
) -> Rgba:
    """Extracts the painted colors with the strength of the change as alpha.

    Fills pinholes where paint happens to have the base's color and, on noisy input, drops single specks.

    Args:
        rgba: the painted picture.
        coverage: alpha of the base.
        same: the distance of texels from the base, and the distance that noise explains.
        strength: opacity of the paint; None for opaque.
        whole: whether these are all of the texels, so that nearly all of them may have changed.
        settings: thresholds of the search.
    """
    alpha = np.clip((same.distance - same.threshold) / (same.threshold + LEVEL), 0, 1)
    mask = (alpha > settings.min_alpha).astype(np.uint8)
    if not same.exact:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        speck = stats[:, cv2.CC_STAT_AREA] < settings.min_speck_texels
        mask[speck[labels]] = 0
        # What is left of noise lies alone; a soft edge of paint touches it.
        alpha = np.where(cv2.dilate(mask, np.ones((settings.speck_reach_px,) * 2, np.uint8)) > 0, alpha, 0)
    gap = settings.exact_gap_px if same.exact else settings.noisy_gap_px
    seen = coverage > settings.noise.min_coverage
    if whole and bool(seen.any()) and bool(mask[seen].mean() > settings.whole_share):
        # Who repaints most of a picture has repainted its little-changed places too: a style, a grade.
        gap = settings.whole_gap_px
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap)))
    alpha = np.maximum(alpha, closed).astype(np.float32)
    alpha = alpha if strength is None else alpha * strength
    alpha[alpha < 0.5 * LEVEL] = 0
    changed = alpha > 0
    return cv2.merge([*(plane * changed for plane in cv2.split(rgba)[:3]), alpha])


def _find_fills(unseen: Float[np.ndarray, "n 3"], settings: ChangeSettings) -> Colors:
    """Finds the flat colors that a tool put behind transparent texels: the most frequent ones."""
    if len(unseen) == 0:
        return np.array([[1, 1, 1], [0, 0, 0]], np.float32)
    fills: list[np.ndarray] = []
    rest = unseen
    while len(fills) < 2 and len(rest) >= max(1, settings.min_fill_share * len(unseen) * (len(fills) > 0)):
        bins = np.rint(rest * 15).astype(np.int64) @ np.array([256, 16, 1])  # 16 steps a channel
        color = np.median(rest[bins == np.bincount(bins).argmax()], axis=0)
        near = find_largest_channel(np.abs(rest - color)) < settings.fill_levels * LEVEL
        fills.append(np.median(rest[near], axis=0))
        if near.sum() < settings.min_fill_share * len(unseen) and len(fills) > 1:
            fills.pop()
            break
        rest = rest[~near]
    return np.stack(fills).astype(np.float32)


def _choose_fill(
    seen: Float[np.ndarray, "n 3"],
    own: Float[np.ndarray, "n 4"],
    hidden: Float[np.ndarray, "n 3"],
    fills: Colors,
    colors: ColorMap,
    settings: ChangeSettings,
) -> Float[np.ndarray, "3"] | None:
    """Chooses the flat color over which the soft texels of the base look most like the painted ones.

    Args:
        seen: the painted colors of soft texels.
        own: the base's colors of these texels, with alpha.
        hidden: the base's colors of these texels without alpha.
        fills: the flat colors to choose from.
        colors: the conversion from the colors of the base to the painted ones.
        settings: thresholds of the search.

    Returns:
        The color; None if the hidden colors of the base are shown instead.
    """
    candidates = [hidden, *(own[:, :3] * own[:, 3:] + fill * (1 - own[:, 3:]) for fill in fills)]
    limit = settings.fill_levels * LEVEL
    offs = [np.abs(seen - colors.convert(candidate)) for candidate in candidates]
    best = int(np.argmin([np.minimum(off, limit).mean() for off in offs]))
    return None if best == 0 else fills[best - 1]


def _find_checkerboard(
    rgb: Rgb, unseen: Bool[np.ndarray, "height width"], fills: Colors, settings: ChangeSettings
) -> Rgb | None:
    """Finds the checkerboard that a program shows behind transparent texels, and continues it behind the soft ones."""
    distances = np.stack([np.abs(rgb - fill).sum(axis=-1) for fill in fills[:2]])
    sign = np.where(unseen, np.sign(distances[1] - distances[0]), 0)
    count = np.count_nonzero(sign)
    y, x = np.ogrid[: sign.shape[0], : sign.shape[1]]
    for cell in range(*settings.checker_px):
        # All cells of a checkerboard fall on those of one period.
        place = (y % (2 * cell)) * (2 * cell) + x % (2 * cell)
        folded = np.bincount(place.ravel(), sign.ravel(), minlength=4 * cell * cell)
        if np.abs(folded).sum() >= settings.min_checker_share * count:
            return fills[(folded < 0).astype(int)][place]
    return None


def _compare_unseen_with_fills(
    rgb: Rgb, coverage: Gray, fills: Colors, hidden: Rgb, same: BaseComparison, settings: ChangeSettings
) -> BaseComparison:
    """Compares the texels that no frame shows with the flat fills instead of the base."""
    reach = np.ones((settings.unseen_reach_px,) * 2, np.uint8)
    seen = cv2.dilate((coverage >= LEVEL).astype(np.uint8), reach) > 0
    to_fill = max_over_channels(np.abs(rgb - hidden))
    for fill in fills:
        to_fill = np.minimum(to_fill, max_over_channels(np.abs(rgb - fill)))
    distance = np.where(seen, same.distance, np.minimum(same.distance, to_fill))
    fill_threshold = np.maximum(same.threshold, settings.fill_levels * LEVEL)
    threshold = np.where(seen, same.threshold, fill_threshold).astype(np.float32)
    return BaseComparison(distance, threshold, same.exact)

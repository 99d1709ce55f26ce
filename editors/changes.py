"""The texels of a painted picture that differ from the picture it was painted on, whatever a tool did to the others.

A lossless picture that was changed in places is compared there only (`quick_change`); where noise has to be told from
paint, or nearly all was painted over, all of it is looked at (`whole_change`). Both find the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.sameness import EXACT, LEVEL, NOISE_WINDOW, Gray, Rgb, Sameness, distance_from, largest
from neural_fields.frame_parts import inside
from neural_fields.pictures import Picture, as_floats, premultiplied, resize, straight

FILL_LEVELS = 24  # where nothing was ever seen, paint differs at least this much from a flat fill
WHOLE_GAP = 17  # texels; gaps up to this size are closed in a picture that changed nearly everywhere
TILE = 256  # texels of a side of what is compared at a time
HALO = 4  # texels around a tile that are looked at too: gaps are closed by their neighbours
FILL_SHARE = 0.3  # a second colour is a fill (a checkerboard) from this share of the unseen texels on

Rgba = Float[np.ndarray, "height width 4"]
Pixels = UInt8[np.ndarray, "_ _ 4"] | Float[np.ndarray, "_ _ 4"]
Colours = Float[np.ndarray, "colours 3"]
Part = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Change:
    """Where a painted picture differs from its base.

    Attributes:
        rgba: the painted colours with the strength of the change as straight alpha, at the painted picture's size.
        notes: what was left out, one sentence each.
    """

    rgba: Rgba
    notes: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        return not bool((self.rgba[..., 3] > 0).any())


@dataclass(frozen=True)
class _Ground:
    """What a tool put behind transparent texels when it dropped the alpha.

    Attributes:
        fills: the flat colours that may be there.
        fill: the one that is blended with the picture; None: the picture's hidden colours are shown.
    """

    fills: Colours
    fill: Float[np.ndarray, "3"] | None

    def under(self, rgba: Rgba, hidden: Rgb) -> Rgb:
        """A picture on this ground."""
        if self.fill is None:
            return hidden
        coverage = rgba[..., 3]
        planes = zip(cv2.split(rgba)[:3], self.fill, strict=True)
        return cv2.merge([plane * coverage + value * (1 - coverage) for plane, value in planes])


def quick_change(painted: Pixels, base: Pixels) -> tuple[Part, Change] | None:
    """The change of a lossless picture that was painted in places: the part of it that changed, and how.

    Args:
        painted, base: straight RGBA, both as bytes or both as float32 in [0, 1].

    Returns:
        The rows and columns that hold all that changed (none of them where nothing did) and the change there; None
        where only the whole picture tells what is noise: another size, changes near half of the texels that were seen.
    """
    if painted.shape != base.shape or not painted.size:
        return None
    one = 255 if base.dtype == np.uint8 else 1
    alpha, coverage = cv2.extractChannel(painted, 3), cv2.extractChannel(base, 3)
    ground = None
    if cv2.minMaxLoc(alpha)[0] > 0.999 * one and cv2.minMaxLoc(coverage)[0] < 0.999 * one:
        ground = _ground_of(painted, base, coverage, one)
    differs = _differing(painted, base, alpha, coverage, ground, one)
    seen = cv2.compare(coverage, 0.5 * one, cv2.CMP_GT)
    near = cv2.dilate(differs, np.ones((NOISE_WINDOW,) * 2, np.uint8)) & seen
    # Fewer than half: then the median of what differs is zero, and there is no noise.
    if near.any() and 2 * cv2.countNonZero(near) >= cv2.countNonZero(seen):
        return None
    part = _around(differs)
    change = _in_tiles(painted[part], base[part], differs[part], ground)
    notes = _erased(alpha[part], coverage[part], one) if ground is None and change.size else ()
    return part, Change(change, notes)


def _ground_of(painted: Pixels, base: Pixels, coverage: np.ndarray, one: int) -> _Ground:
    fills = _fills(_chosen(painted, coverage < LEVEL * one)[:, :3])
    soft = coverage < 0.999 * one
    seen, own = (_chosen(pixels, soft) for pixels in (painted, base))
    return _Ground(fills, _best_fill(seen[:, :3], own, own[:, :3], fills))


def _chosen(pixels: Pixels, mask: np.ndarray) -> Float[np.ndarray, "n 4"]:
    return as_floats(pixels[mask][None])[0]


def _differing(
    painted: Pixels, base: Pixels, alpha: np.ndarray, coverage: np.ndarray, ground: _Ground | None, one: int
) -> UInt8[np.ndarray, "height width"]:
    """Other than zero where texels are not what they would be without paint; of clear ones the hidden colour is free.

    On a flat ground soft texels count too: they are rounded.
    """
    differs = np.zeros(alpha.shape, np.uint8)
    for channel in range(3):
        one_channel, other = (cv2.extractChannel(pixels, channel) for pixels in (painted, base))
        differs |= cv2.compare(one_channel, other, cv2.CMP_NE)
    if ground is not None:
        return differs if ground.fill is None else differs | cv2.compare(coverage, 0.999 * one, cv2.CMP_LT)
    differs &= cv2.compare(cv2.max(alpha, coverage), 0, cv2.CMP_GT)
    return differs | cv2.compare(alpha, coverage, cv2.CMP_NE)


def _around(differs: UInt8[np.ndarray, "height width"]) -> Part:
    """The rows and columns that differ, with some more around."""
    left, top, width, height = cv2.boundingRect(differs)
    if not width:
        return slice(0, 0), slice(0, 0)
    spans = zip((top, left), (height, width), differs.shape, strict=True)
    rows, columns = (slice(max(0, a - NOISE_WINDOW), min(n, a + b + NOISE_WINDOW)) for a, b, n in spans)
    return rows, columns


def _in_tiles(
    painted: Pixels, base: Pixels, differs: UInt8[np.ndarray, "height width"], ground: _Ground | None
) -> Rgba:
    """The change where nothing is noise. What is equal is passed over; tiles stay in the processor's cache."""
    height, width = differs.shape
    result = np.zeros((height, width, 4), np.float32)
    for top, left in product(range(0, height, TILE), range(0, width, TILE)):
        inner = (slice(top, min(height, top + TILE)), slice(left, min(width, left + TILE)))
        rows, columns = (slice(max(0, span.start - HALO), span.stop + HALO) for span in inner)
        if not differs[rows, columns].any():
            continue
        rgba, under = (as_floats(pixels[rows, columns]) for pixels in (painted, base))
        found = _in_tile(rgba, under, ground)
        result[inner] = found[inside(inner[0], rows), inside(inner[1], columns)]
    return result


def _in_tile(rgba: Rgba, base: Rgba, ground: _Ground | None) -> Rgba:
    plain, coverage = np.ascontiguousarray(base[..., :3]), base[..., 3]
    threshold = np.full(coverage.shape, EXACT * LEVEL, np.float32)
    if ground is None:
        distance = distance_from(_as_shown(rgba, plain, coverage), plain)
        return _against_alpha(rgba, coverage, Sameness(distance, threshold, exact=True))
    rgb = np.ascontiguousarray(rgba[..., :3])
    distance = distance_from(rgb, ground.under(base, plain))
    distance, threshold = _outside(rgb, coverage, ground.fills, plain, distance, threshold)
    return _change(rgba, coverage, Sameness(distance, threshold, exact=True), None, whole=False)


def whole_change(painted: Picture, base: Rgba) -> Change:
    """The change of a picture of any size of the aspect of `base`, lossy or not."""
    exact_size = painted.size == (base.shape[1], base.shape[0])
    ground = base if exact_size else straight(resize(premultiplied(base), painted.size))
    rgba, coverage = painted.rgba, ground[..., 3]
    scale = painted.size[0] / base.shape[1]
    if (rgba[..., 3] > 0.999).all() and (coverage < 0.999).any():
        rgb = np.ascontiguousarray(rgba[..., :3])
        hidden = np.ascontiguousarray(base[..., :3])
        hidden = hidden if exact_size else resize(hidden, painted.size)
        fills, soft = _fills(rgb[coverage < LEVEL]), coverage < 0.999
        behind = _Ground(fills, _best_fill(rgb[soft], ground[soft], hidden[soft], fills))
        same = Sameness.of(painted, rgb, behind.under(ground, hidden), coverage, scale)
        distance, threshold = _outside(rgb, coverage, fills, hidden, same.distance, same.threshold)
        return Change(_change(rgba, coverage, Sameness(distance, threshold, same.exact), None, whole=True), ())
    plain = np.ascontiguousarray(ground[..., :3])
    same = Sameness.of(painted, _as_shown(rgba, plain, coverage), plain, coverage, scale)
    found = _against_alpha(rgba, coverage, same, 0.0 if exact_size else scale, whole=True)
    return Change(found, _erased(rgba[..., 3], coverage))


def _as_shown(rgba: Rgba, plain: Rgb, coverage: Gray) -> Rgb:
    """Painted colours, of faint texels only as far as they show: straight ones are mostly rounding there."""
    share = np.minimum(rgba[..., 3], coverage)
    return plain + (rgba[..., :3] - plain) * cv2.merge([share] * 3)


def _erased(alpha: np.ndarray, coverage: np.ndarray, one: int = 1) -> tuple[str, ...]:
    """A note where alpha was taken away; `one` is what stands for opaque."""
    if np.count_nonzero(cv2.subtract(coverage, alpha) > 0.25 * one) < 16:
        return ()
    return ("erased places are left as they are in the video: paint over what should change",)


def _against_alpha(rgba: Rgba, coverage: Gray, same: Sameness, scale: float = 0.0, whole: bool = False) -> Rgba:
    """The change by what differs in colour and by what was added where the base was transparent."""
    gained, strength = _added(rgba[..., 3], coverage, scale)
    distance = np.maximum(same.distance, gained)
    threshold = np.where(coverage < 0.999, np.maximum(same.threshold, 1.5 * LEVEL), same.threshold)
    return _change(rgba, coverage, Sameness(distance, threshold, same.exact), strength, whole)


def _change(rgba: Rgba, coverage: Gray, same: Sameness, strength: Gray | None, whole: bool) -> Rgba:
    alpha = np.clip((same.distance - same.threshold) / (same.threshold + LEVEL), 0, 1)
    alpha = _tidy(alpha, coverage, same.exact, whole)
    alpha = alpha if strength is None else alpha * strength
    alpha[alpha < 0.5 * LEVEL] = 0
    seen = alpha > 0
    return cv2.merge([*(plane * seen for plane in cv2.split(rgba)[:3]), alpha])


def _fills(unseen: Float[np.ndarray, "n 3"]) -> Colours:
    """The flat colours a tool put behind transparent texels: the most frequent, and others with a large share."""
    if len(unseen) == 0:
        return np.array([[1, 1, 1], [0, 0, 0]], np.float32)
    bins = np.rint(unseen * 31).astype(np.int64) @ np.array([1024, 32, 1])
    counts = np.bincount(bins, minlength=32**3)
    frequent = [
        place for rank, place in enumerate(np.argsort(counts)[:-4:-1])
        if rank == 0 or counts[place] >= FILL_SHARE * len(unseen)
    ]  # fmt: skip
    return np.stack([np.median(unseen[bins == place], axis=0) for place in frequent]).astype(np.float32)


def _best_fill(
    seen: Float[np.ndarray, "n 3"], own: Float[np.ndarray, "n 4"], hidden: Float[np.ndarray, "n 3"], fills: Colours
) -> Float[np.ndarray, "3"] | None:
    """The flat colour on which soft texels of the base look most like those that are seen; None: their own, hidden."""
    candidates = [hidden, *(own[:, :3] * own[:, 3:] + fill * (1 - own[:, 3:]) for fill in fills)]
    best = int(np.argmin([np.minimum(np.abs(seen - candidate), 0.1).mean() for candidate in candidates]))
    return None if best == 0 else fills[best - 1]


def _outside(
    rgb: Rgb, coverage: Gray, fills: Float[np.ndarray, "colours 3"], hidden: Rgb, distance: Gray, threshold: Gray
) -> tuple[Gray, Gray]:
    """Distance and threshold with the texels that no frame shows measured against the flat fills instead."""
    seen = cv2.dilate((coverage >= LEVEL).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    to_fill = largest(np.abs(rgb - hidden))
    for fill in fills:
        to_fill = np.minimum(to_fill, largest(np.abs(rgb - fill)))
    distance = np.where(seen, distance, np.minimum(distance, to_fill))
    return distance, np.where(seen, threshold, np.maximum(threshold, FILL_LEVELS * LEVEL)).astype(np.float32)


def _added(alpha: Gray, coverage: Gray, scale: float) -> tuple[Gray, Gray]:
    """The alpha that was added where the base was transparent, and how opaque the paint is.

    On soft coverage, alpha as before means that the paint is opaque.
    """
    around = np.ones((2 * int(np.ceil(scale)) + 1,) * 2, np.uint8)
    gained = np.clip(alpha - cv2.dilate(coverage, around), 0, 1)
    kept = np.minimum(alpha / np.maximum(coverage, LEVEL), 1)
    trust = np.minimum(4 * coverage, 1)
    return gained, alpha * (1 - trust) + kept * trust


def _tidy(alpha: Gray, coverage: Gray, exact: bool, whole: bool) -> Gray:
    """Fills pinholes where paint happens to have the base's colour and, on noisy input, drops single specks.

    With `whole`, these are all of the texels, and nearly all may have changed.
    """
    mask = (alpha > 0.5).astype(np.uint8)
    if not exact:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        speck = stats[:, cv2.CC_STAT_AREA] < 5
        mask[speck[labels]] = 0
        # What is left of noise lies alone; a soft edge of paint touches it.
        alpha = np.where(cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0, alpha, 0)
    seen = coverage > 0.5
    whole = whole and bool(seen.any()) and bool(mask[seen].mean() > 0.6)
    # Who repaints most of a picture has repainted its little-changed places too: a style, a grade.
    size = WHOLE_GAP if whole else 3 if exact else 5
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    return np.maximum(alpha, closed).astype(np.float32)

"""Edit by picture: what differs between a painted canonical image and the exported one becomes an overlay.

The comparison has to survive what image tools do to a picture they were not asked to change: lossy compression,
resampling, flattening on a background, dropping hidden colours. So the exported picture is first put through the same
treatment as far as the file tells it, and a difference counts only where it stands out of the noise that is left.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.errors import UserError, bad_input
from neural_fields.pictures import Picture, premultiplied, resize, straight

MAX_SCALE = 4  # a painted picture may be up to four times as large, or as small, as the exported one
LEVEL = 1 / 255
FILL_LEVELS = 24  # where nothing was ever seen, paint differs at least this much from a flat fill
WHOLE_GAP = 17  # texels; gaps up to this size are closed in a picture that changed nearly everywhere
FILL_SHARE = 0.3  # a second colour is a fill (a checkerboard) from this share of the unseen texels on

Gray = Float[np.ndarray, "height width"]
Rgb = Float[np.ndarray, "height width 3"]
Rgba = Float[np.ndarray, "height width 4"]


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


def overlay_from_canonical(painted: Picture, canonical: CanonicalImage) -> Overlay:
    """The change a user made to a canonical image.

    Args:
        painted: the picture that came back from an image tool.
        canonical: the picture it started from, as exported.

    Returns:
        An overlay at the painted picture's size, or at the canonical image's where that is larger.

    Raises:
        UserError: another aspect, more than four times larger or smaller, or no change found (exit 3).
    """
    check_size(painted, canonical.size, f"the exported picture of the layer {canonical.layer}")
    found = find_change(painted, canonical.array())
    if found.is_empty:
        raise no_change(painted, "the exported picture", found.notes)
    notes = [*painted.notes, *found.notes]
    if painted.size != canonical.size:
        notes.append(f"{_text(painted.size)} instead of {_text(canonical.size)}: compared at its own size")
    covered = resize(canonical.array()[..., 3:], painted.size)[..., 0] > 0.5
    if covered.any() and found.rgba[..., 3][covered].mean() > 0.9:
        notes.append("nearly every texel differs: check that the picture belongs to this layer if that is a surprise")
    rgba = found.rgba
    if painted.size[0] < canonical.size[0]:
        rgba = straight(resize(premultiplied(rgba), canonical.size))
    return Overlay(rgba, canonical.box, tuple(notes))


def whole_picture(painted: Picture, canonical: CanonicalImage) -> Overlay:
    """All of a picture, wherever the video shows the layer: for one that an upscaler enlarged.

    Raises:
        UserError: another aspect, or more than four times larger or smaller (exit 3).
    """
    check_size(painted, canonical.size, f"the exported picture of the layer {canonical.layer}")
    own = canonical.array()[..., 3:]
    seen = np.clip(resize(np.ascontiguousarray((own > 0).astype(np.float32)), painted.size)[..., :1], 0, 1)
    rgba = np.concatenate([painted.rgba[..., :3], seen], axis=-1) * (seen > 0)
    note = f"{_text(painted.size)} instead of {_text(canonical.size)}: shown as a whole, in place of the video's pixels"
    return Overlay(rgba.astype(np.float32), canonical.box, (*painted.notes, note))


def check_size(painted: Picture, size: tuple[int, int], base: str) -> None:
    """Refuses a picture whose aspect is not that of `size`, or that was scaled by more than four.

    Raises:
        UserError: with both sizes and the likely cause (exit 3).
    """
    (width, height), (had_width, had_height) = painted.size, size
    scale = (width + height) / (had_width + had_height)
    both = f"{base} has {_text(size)} pixels, the painted one {_text(painted.size)}"
    if abs(width - had_width * scale) > 1 or abs(height - had_height * scale) > 1:
        turned = abs(height / width - had_width / had_height) < 0.02 and painted.size != size
        cause = "it seems to be turned by 90 degrees" if turned else "it seems to be cropped or stretched"
        raise bad_input(
            f"{painted.source or 'the picture'} has another shape: {_text(painted.size)} instead of {_text(size)}",
            where=painted.source,
            why=f"{both}; {cause}",
            fix="paint without cropping, turning or resizing the canvas, and save the whole picture",
        )
    if not 1 / MAX_SCALE - 1e-3 <= scale <= MAX_SCALE + 1e-3:
        raise bad_input(
            f"{painted.source or 'the picture'} has {scale:.3g} times the size: {_text(painted.size)}",
            where=painted.source,
            why=f"{both}; at most {MAX_SCALE} times larger or smaller is accepted",
            fix=f"resize it to {_text(size)} and save it again",
        )


def no_change(painted: Picture, base: str, notes: tuple[str, ...]) -> UserError:
    """The error for a painted picture that equals its base."""
    return bad_input(
        f"no change found in {painted.source or 'the picture'}",
        where=painted.source,
        why="; ".join([f"it equals {base}", *notes]),
        fix="paint on it, save it, and run the same command again",
    )


def find_change(painted: Picture, base: Rgba) -> Change:
    """The texels of a painted picture that differ from its base, beyond noise.

    Args:
        painted: any size of the aspect of `base`.
        base: what it was painted on, float in [0, 1] with straight alpha (one everywhere for a video frame).
    """
    notes: list[str] = []
    base = np.asarray(base, np.float32)
    exact_size = painted.size == (base.shape[1], base.shape[0])
    ground = base if exact_size else straight(resize(premultiplied(base), painted.size))
    flat = bool((painted.rgba[..., 3] > 0.999).all()) and bool((ground[..., 3] < 0.999).any())
    if flat:
        fills = _fills(painted.rgba[..., :3], ground[..., 3])
        hidden = base[..., :3] if exact_size else resize(np.ascontiguousarray(base[..., :3]), painted.size)
        plain = _best_background(painted.rgba[..., :3], ground, hidden, fills)
    else:
        fills = np.zeros((0, 3), np.float32)
        plain = ground[..., :3]
    rgb, alpha, coverage = painted.rgba[..., :3], painted.rgba[..., 3], ground[..., 3]
    scale = painted.size[0] / base.shape[1]
    strength = np.ones_like(alpha)
    if flat:
        same = _Sameness.of(painted, rgb, plain, coverage, scale)
        distance, threshold = _outside(rgb, coverage, fills, hidden, same.distance, same.threshold)
    else:
        # Straight colours of faint texels are mostly rounding: they count as much as they show.
        shown = plain + (rgb - plain) * np.minimum(alpha, coverage)[..., None]
        same = _Sameness.of(painted, shown, plain, coverage, scale)
        gained, strength = _added(alpha, coverage, 0.0 if exact_size else scale)
        distance = np.maximum(same.distance, gained)
        threshold = np.where(coverage < 0.999, np.maximum(same.threshold, 1.5 * LEVEL), same.threshold)
        if (coverage - alpha > 0.25).sum() >= 16:
            notes.append("erased places are left as they are in the video: paint over what should change")
    alpha = np.clip((distance - threshold) / (threshold + LEVEL), 0, 1)
    alpha = _tidy(alpha, coverage, same.exact) * strength
    alpha[alpha < 0.5 * LEVEL] = 0
    clean = np.where(alpha[..., None] > 0, rgb, 0)
    return Change(np.concatenate([clean, alpha[..., None]], axis=-1).astype(np.float32), tuple(notes))


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _fills(rgb: Rgb, coverage: Gray) -> Float[np.ndarray, "colours 3"]:
    """The flat colours a tool put behind transparent texels: the most frequent, and others with a large share."""
    unseen = rgb[coverage < LEVEL]
    if len(unseen) == 0:
        return np.array([[1, 1, 1], [0, 0, 0]], np.float32)
    bins = np.rint(unseen * 31).astype(np.int64) @ np.array([1024, 32, 1])
    counts = np.bincount(bins, minlength=32**3)
    frequent = [
        place for rank, place in enumerate(np.argsort(counts)[:-4:-1])
        if rank == 0 or counts[place] >= FILL_SHARE * len(unseen)
    ]  # fmt: skip
    return np.stack([np.median(unseen[bins == place], axis=0) for place in frequent]).astype(np.float32)


def _best_background(rgb: Rgb, ground: Rgba, hidden: Rgb, fills: Float[np.ndarray, "colours 3"]) -> Rgb:
    """The base as an opaque picture: with its alpha dropped or on one of the flat colours, whichever fits best."""
    alpha = ground[..., 3:]
    candidates = [hidden, *(ground[..., :3] * alpha + fill * (1 - alpha) for fill in fills)]
    soft = ground[..., 3] < 0.999
    misfits = [np.minimum(np.abs(rgb - candidate)[soft], 0.1).mean() for candidate in candidates]
    return candidates[int(np.argmin(misfits))].astype(np.float32)


def _recompressed(rgb: Rgb, painted: Picture) -> Rgb:
    """The picture after the compression of the painted file.

    A JPEG tells its tables and its chroma subsampling. A lossy WebP does not: the usual qualities are tried. Everything
    else comes back as it is.
    """
    if painted.quantisation is not None:
        tables = {index: list(table) for index, table in painted.quantisation.items()}
        if painted.subsampling < 0:
            return _compressed(rgb, "JPEG", gray=True, qtables=tables)
        return _compressed(rgb, "JPEG", qtables=tables, subsampling=painted.subsampling)
    if painted.kind == "WEBP" and painted.lossy:
        tried = [_compressed(rgb, "WEBP", quality=quality) for quality in (75, 80, 85, 90, 95)]
        return min(tried, key=lambda result: float(np.median(np.abs(result - painted.rgba[..., :3]))))
    return rgb


def _compressed(rgb: Rgb, kind: str, gray: bool = False, **options: Any) -> Rgb:
    picture = Image.fromarray(np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    file = io.BytesIO()
    (picture.convert("L") if gray else picture).save(file, kind, **options)
    return np.asarray(Image.open(file).convert("RGB")).astype(np.float32) / 255


@dataclass(frozen=True)
class _Sameness:
    """How far each texel is from what it would be without an edit, and how far it may be by chance."""

    distance: Gray
    threshold: Gray
    exact: bool

    @classmethod
    def of(cls, painted: Picture, rgb: Rgb, plain: Rgb, coverage: Gray, scale: float) -> _Sameness:
        """Compares the colours of a painted picture with its base `plain`, which was scaled by `scale` to that size."""
        resampled = abs(scale - 1) > 1e-6
        reference = plain if resampled else _recompressed(plain, painted)
        noise = _noise(rgb - reference, coverage)
        # A lossless file may hold what a lossy one went through before.
        lossy = painted.lossy or (noise > LEVEL and not resampled)
        imitated = lossy and painted.quantisation is None  # then the compression is not known exactly
        distance = _distance(rgb, reference, scale if resampled or imitated else 0.0)
        limits = (3, 16) if lossy else (2.5, 6) if resampled else (0.75, 6)
        level = np.clip(4 * noise, limits[0] * LEVEL, limits[1] * LEVEL)
        threshold = np.full(distance.shape, level, np.float32)
        if not lossy and not resampled:
            return cls(distance, threshold, exact=True)
        # In a compressed block that was painted on, every texel gets new noise of the size the old one had. Paint
        # rings by some percent of its contrast, in a compressed picture and in a resampled one.
        reach = 33 if lossy else 17  # a block of compressed colour has 16 texels
        ringing = 0.18 * cv2.dilate(distance, np.ones((reach, reach), np.uint8))
        local = _local_noise(plain, reference, noise, coverage) if lossy else np.zeros_like(distance)
        threshold = np.maximum(np.maximum(threshold, 2.5 * local), ringing)
        # Noise and ringing have no mean, a faint glaze has one: it shows in the mean of some texels.
        window = 4 * int(np.ceil(scale)) + 1
        smooth = np.abs(cv2.blur(rgb - reference, (window, window))).max(axis=-1)
        # The mean reaches past the edge of strong paint; the texels there do not differ themselves.
        smooth = np.minimum(smooth, cv2.medianBlur(np.abs(rgb - reference).max(axis=-1), 3))
        if resampled:
            local = np.maximum(local, 0.1 * _range(plain, window))
        smooth_threshold = np.maximum(np.maximum(3 * LEVEL, 0.8 * local), ringing)
        return cls(np.maximum(distance, smooth * threshold / smooth_threshold), threshold, exact=False)


def _distance(rgb: Rgb, reference: Rgb, scale: float) -> Gray:
    """How far each colour is from the reference; where it was resampled, from the range of its neighbourhood.

    Every common resampling filter stays close to the range of the texels around: 15 % of overshoot are let through.
    A scale of 0 compares texel by texel.
    """
    low = high = reference
    if scale > 0:
        around = np.ones((2 * int(np.ceil(scale)) + 1,) * 2, np.uint8)
        low, high = cv2.erode(reference, around), cv2.dilate(reference, around)
        low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    return np.maximum(np.maximum(low - rgb, rgb - high), 0).max(axis=-1)


def _local_noise(plain: Rgb, reference: Rgb, noise: float, coverage: Gray) -> Gray:
    """What compression does to the picture, as a root mean square around each texel.

    Where the compression is not known it is taken to act like a common one, as strongly as the `noise` tells.
    """
    lossy = _compressed(plain, "JPEG", quality=75) if reference is plain else reference
    usual = _noise(lossy - plain, coverage)
    strength = np.clip(noise / max(usual, 1e-6), 1, 4) if reference is plain else 1.0
    return strength * np.sqrt(cv2.blur(((lossy - plain) ** 2).max(axis=-1), (17, 17)))


def _range(rgb: Rgb, window: int) -> Gray:
    around = np.ones((window, window), np.uint8)
    return (cv2.dilate(rgb, around) - cv2.erode(rgb, around)).max(axis=-1)


def _noise(difference: Rgb, coverage: Gray) -> float:
    """Standard deviation of what has no local mean: a robust one, so that paint does not raise it.

    A smooth change of the whole picture (a grade) is not noise: its local mean is taken out.
    """
    rough = np.abs(difference - cv2.blur(difference, (9, 9))).max(axis=-1)
    seen = rough[coverage > 0.5]
    return 1.4826 * float(np.median(seen)) if len(seen) else 0.0


def _outside(
    rgb: Rgb, coverage: Gray, fills: Float[np.ndarray, "colours 3"], hidden: Rgb, distance: Gray, threshold: Gray
) -> tuple[Gray, Gray]:
    """Distance and threshold with the texels that no frame shows measured against the flat fills instead."""
    seen = cv2.dilate((coverage >= LEVEL).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    to_fill = np.abs(rgb - hidden).max(axis=-1)
    for fill in fills:
        to_fill = np.minimum(to_fill, np.abs(rgb - fill).max(axis=-1))
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


def _tidy(alpha: Gray, coverage: Gray, exact: bool) -> Gray:
    """Fills pinholes where paint happens to have the base's colour and, on noisy input, drops single specks."""
    mask = (alpha > 0.5).astype(np.uint8)
    if not exact:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        speck = stats[:, cv2.CC_STAT_AREA] < 5
        mask[speck[labels]] = 0
        # What is left of noise lies alone; a soft edge of paint touches it.
        alpha = np.where(cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0, alpha, 0)
    seen = coverage > 0.5
    whole = seen.any() and mask[seen].mean() > 0.6
    # Who repaints most of a picture has repainted its little-changed places too: a style, a grade.
    size = WHOLE_GAP if whole else 3 if exact else 5
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    return np.maximum(alpha, closed).astype(np.float32)

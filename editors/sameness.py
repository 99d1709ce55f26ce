"""How far a painted picture is from its base, and how far by chance: compression and resampling change texels too."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from neural_fields.pictures import Picture

LEVEL = 1 / 255
EXACT = 0.75  # levels by which a texel may differ where nothing was compressed or resampled
NOISE_WINDOW = 9  # texels across which noise has no mean

Gray = Float[np.ndarray, "height width"]
Rgb = Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Sameness:
    """How far each texel is from what it would be without an edit, and how far it may be by chance."""

    distance: Gray
    threshold: Gray
    exact: bool

    @classmethod
    def of(cls, painted: Picture, rgb: Rgb, plain: Rgb, coverage: Gray, scale: float) -> Sameness:
        """Compares the colours of a painted picture with its base `plain`, which was scaled by `scale` to that size."""
        resampled = abs(scale - 1) > 1e-6
        reference = plain if resampled else _recompressed(plain, painted)
        noise = _noise(rgb - reference, coverage)
        # A lossless file may hold what a lossy one went through before.
        lossy = painted.lossy or (noise > LEVEL and not resampled)
        imitated = lossy and painted.quantisation is None  # then the compression is not known exactly
        distance = distance_from(rgb, reference, scale if resampled or imitated else 0.0)
        limits = (3, 16) if lossy else (2.5, 6) if resampled else (EXACT, 6)
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
        smooth = largest(np.abs(cv2.blur(rgb - reference, (window, window))))
        # The mean reaches past the edge of strong paint; the texels there do not differ themselves.
        smooth = np.minimum(smooth, cv2.medianBlur(largest(np.abs(rgb - reference)), 3))
        if resampled:
            local = np.maximum(local, 0.1 * _range(plain, window))
        smooth_threshold = np.maximum(np.maximum(3 * LEVEL, 0.8 * local), ringing)
        distance = np.maximum(distance, smooth * threshold / smooth_threshold)
        # A frame that is itself such a compressed file may come back as it is, without a second compression.
        same = np.abs(rgb - plain).max(axis=-1) < LEVEL / 2
        return cls(np.where(same, np.float32(0), distance), threshold, exact=False)


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


def distance_from(rgb: Rgb, reference: Rgb, scale: float = 0.0) -> Gray:
    """How far each colour is from the reference; where it was resampled, from the range of its neighbourhood.

    Every common resampling filter stays close to the range of the texels around: 15 % of overshoot are let through.
    A scale of 0 compares texel by texel.
    """
    low = high = reference
    if scale > 0:
        around = np.ones((2 * int(np.ceil(scale)) + 1,) * 2, np.uint8)
        low, high = cv2.erode(reference, around), cv2.dilate(reference, around)
        low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    return largest(np.maximum(np.maximum(low - rgb, rgb - high), 0))


def _local_noise(plain: Rgb, reference: Rgb, noise: float, coverage: Gray) -> Gray:
    """What compression does to the picture, as a root mean square around each texel.

    Where the compression is not known it is taken to act like a common one, as strongly as the `noise` tells.
    """
    lossy = _compressed(plain, "JPEG", quality=75) if reference is plain else reference
    usual = _noise(lossy - plain, coverage)
    strength = np.clip(noise / max(usual, 1e-6), 1, 4) if reference is plain else 1.0
    return strength * np.sqrt(cv2.blur(largest((lossy - plain) ** 2), (17, 17)))


def _range(rgb: Rgb, window: int) -> Gray:
    around = np.ones((window, window), np.uint8)
    return largest(cv2.dilate(rgb, around) - cv2.erode(rgb, around))


def largest(rgb: Rgb) -> Gray:
    """The largest of three channels; many times as fast as numpy along an axis of three."""
    red, green, blue = cv2.split(rgb)
    return cv2.max(cv2.max(red, green), blue)


def _noise(difference: Rgb, coverage: Gray) -> float:
    """Standard deviation of what has no local mean: a robust one, so that paint does not raise it.

    A smooth change of the whole picture (a grade) is not noise: its local mean is taken out.
    """
    rough = largest(np.abs(difference - cv2.blur(difference, (NOISE_WINDOW, NOISE_WINDOW))))
    seen = rough[coverage > 0.5]
    return 1.4826 * float(np.median(seen)) if len(seen) else 0.0

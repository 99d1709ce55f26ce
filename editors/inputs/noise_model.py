"""The distance of a painted picture from its base, and the part of it that compression and resampling explain."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from neural_fields.imaging.image_io import Picture

LEVEL = 1 / 255

Gray = Float[np.ndarray, "height width"]
Rgb = Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class NoiseModelSettings:
    """Settings of the comparison of a painted picture with its base. Levels are 8-bit levels of a color."""

    exact_levels: float = 0.75  # tolerance without compression and resampling
    lossy_levels: tuple[float, float] = (3.0, 16.0)  # range of the threshold of a compressed picture
    resampled_levels: tuple[float, float] = (2.5, 6.0)  # range of the threshold of a resampled picture
    noise_factor: float = 4.0  # the threshold in standard deviations of the noise
    local_noise_factor: float = 2.5  # the threshold in standard deviations of the noise around a texel
    ringing: float = 0.18  # error of the texels beside paint, as a share of its contrast
    lossy_ringing_px: int = 33  # window in which paint rings; a block of compressed color has 16 texels
    resampled_ringing_px: int = 17
    min_mean_levels: float = 3.0  # threshold of the local mean, which reveals a faint glaze
    mean_noise_factor: float = 0.8  # the same in standard deviations of the local noise
    resampled_range_share: float = 0.1  # error by resampling, as a share of the local range
    overshoot: float = 0.15  # overshoot of resampling filters, as a share of the local range
    noise_window_px: int = 9  # window in which the mean of noise is 0
    local_noise_window_px: int = 17  # window in which the strength of noise is constant
    usual_jpeg_quality: int = 75  # quality that stands for an unknown compression
    max_noise_ratio: float = 4.0  # largest ratio of the noise to that of the usual quality
    tried_webp_qualities: tuple[int, ...] = (75, 80, 85, 90, 95)  # a WebP file does not contain its quality
    tried_jpeg_qualities: tuple[int, ...] = (50, 60, 70, 75, 80, 85, 90, 92, 95)  # of a JPEG file saved as another kind
    max_imitated_share: float = 0.5  # of the difference from the picture itself, above which no quality explains it
    min_coverage: float = 0.5  # least coverage of a seen texel; noise is estimated from these


DEFAULTS = NoiseModelSettings()


@dataclass(frozen=True)
class BaseComparison:
    """Holds the distance of each texel from its unedited color, and the threshold below which it counts as noise."""

    distance: Gray
    threshold: Gray
    exact: bool

    @classmethod
    def compare_with_base(
        cls,
        painted: Picture,
        rgb: Rgb,
        plain: Rgb,
        coverage: Gray,
        scale: float,
        is_rough: bool = False,
        settings: NoiseModelSettings = DEFAULTS,
    ) -> BaseComparison:
        """Compares the colors of a painted picture with those of its base.

        Args:
            painted: the painted picture, with its compression.
            rgb: its colors in [0, 1].
            plain: the base at the size of the painted picture, in [0, 1].
            coverage: alpha of the base, in [0, 1].
            scale: factor by which the base was enlarged to that size; 1 if it was not.
            is_rough: whether faint differences of both signs are all over the picture.
            settings: thresholds of the comparison.
        """
        resampled = abs(scale - 1) > 1e-6
        reference = plain if resampled else _recompress_like(plain, painted, settings)
        if is_rough and reference is plain and not resampled:
            reference = _imitate_jpeg(plain, rgb, settings)
        noise = _estimate_noise(rgb - reference, coverage, settings)
        # A lossless file may hold what a lossy one went through before.
        lossy = painted.lossy or (noise > LEVEL and not resampled)
        imitated = lossy and painted.quantization is None  # then the compression is not known exactly
        distance = compute_color_distance(rgb, reference, scale if resampled or imitated else 0.0, settings)
        limits = (settings.exact_levels, math.inf)
        if lossy:
            limits = settings.lossy_levels
        elif resampled:
            limits = settings.resampled_levels
        level = np.clip(settings.noise_factor * noise, limits[0] * LEVEL, limits[1] * LEVEL)
        threshold = np.full(distance.shape, level, np.float32)
        if not lossy and not resampled:
            return cls(distance, threshold, exact=True)
        # In a compressed block that was painted on, every texel gets new noise of the size the old one had. Paint
        # rings by some percent of its contrast, in a compressed picture and in a resampled one.
        reach = settings.lossy_ringing_px if lossy else settings.resampled_ringing_px
        ringing = settings.ringing * cv2.dilate(distance, np.ones((reach, reach), np.uint8))
        local = np.zeros_like(distance)
        if lossy:
            # What compression does to the picture, as a root mean square around each texel. Where the compression is
            # not known it is taken to act like a common one, as strongly as the noise tells.
            compressed, strength = reference, 1.0
            if reference is plain:
                compressed = _compress(plain, "JPEG", quality=settings.usual_jpeg_quality)
                usual = _estimate_noise(compressed - plain, coverage, settings)
                strength = np.clip(noise / max(usual, 1e-6), 1, settings.max_noise_ratio)
            squared = max_over_channels((compressed - plain) ** 2)
            local = strength * np.sqrt(cv2.blur(squared, (settings.local_noise_window_px,) * 2))
        threshold = np.maximum(np.maximum(threshold, settings.local_noise_factor * local), ringing)
        # Noise and ringing have no mean, a faint glaze has one: it shows in the mean of some texels.
        window = 4 * int(np.ceil(scale)) + 1
        smooth = max_over_channels(np.abs(cv2.blur(rgb - reference, (window, window))))
        # The mean reaches past the edge of strong paint; the texels there do not differ themselves.
        smooth = np.minimum(smooth, cv2.medianBlur(max_over_channels(np.abs(rgb - reference)), 3))
        if resampled:
            around = np.ones((window, window), np.uint8)
            local_range = max_over_channels(cv2.dilate(plain, around) - cv2.erode(plain, around))
            local = np.maximum(local, settings.resampled_range_share * local_range)
        min_mean = settings.min_mean_levels * LEVEL
        smooth_threshold = np.maximum(np.maximum(min_mean, settings.mean_noise_factor * local), ringing)
        distance = np.maximum(distance, smooth * threshold / smooth_threshold)
        # A frame that is itself such a compressed file may come back as it is, without a second compression.
        same = find_largest_channel(np.abs(rgb - plain)) < LEVEL / 2
        return cls(np.where(same, np.float32(0), distance), threshold, exact=False)


def find_largest_channel(values: np.ndarray) -> np.ndarray:
    """Returns the largest channel of each pixel; a tenth of the time of a maximum along a short last axis."""
    largest = values[..., 0].copy()
    for channel in range(1, values.shape[-1]):
        np.maximum(largest, values[..., channel], out=largest)
    return largest


def _recompress_like(rgb: Rgb, painted: Picture, settings: NoiseModelSettings) -> Rgb:
    """Compresses a picture like the painted file.

    A JPEG file contains its tables and its chroma subsampling. A lossy WebP file does not: the usual qualities are
    tried. For other formats the picture is returned unchanged.
    """
    if painted.quantization is not None:
        tables = {index: list(table) for index, table in painted.quantization.items()}
        if painted.subsampling < 0:
            return _compress(rgb, "JPEG", gray=True, qtables=tables)
        return _compress(rgb, "JPEG", qtables=tables, subsampling=painted.subsampling)
    if painted.kind == "WEBP" and painted.lossy:
        tried = [_compress(rgb, "WEBP", quality=quality) for quality in settings.tried_webp_qualities]
        return min(tried, key=lambda result: float(np.median(np.abs(result - painted.rgba[..., :3]))))
    return rgb


def _imitate_jpeg(plain: Rgb, rgb: Rgb, settings: NoiseModelSettings) -> Rgb:
    """Compresses a picture like one that was a JPEG file before; unchanged if no usual quality explains it."""

    def measure_difference(reference: Rgb) -> float:
        return float(np.minimum(np.abs(rgb - reference), settings.lossy_levels[1] * LEVEL).mean())

    tried = [_compress(plain, "JPEG", quality=quality) for quality in settings.tried_jpeg_qualities]
    best = min(tried, key=measure_difference)
    return best if measure_difference(best) < settings.max_imitated_share * measure_difference(plain) else plain


def _compress(rgb: Rgb, kind: str, gray: bool = False, **options: Any) -> Rgb:
    picture = Image.fromarray(np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    file = io.BytesIO()
    (picture.convert("L") if gray else picture).save(file, kind, **options)
    return np.asarray(Image.open(file).convert("RGB")).astype(np.float32) / 255


def compute_color_distance(
    rgb: Rgb, reference: Rgb, scale: float = 0.0, settings: NoiseModelSettings = DEFAULTS
) -> Gray:
    """Computes the distance of each color from a reference, or from the range of its neighborhood after resampling.

    Every common resampling filter stays close to the range of the texels around it; some overshoot is allowed.

    Args:
        rgb: colors in [0, 1].
        reference: the colors to compare with, in [0, 1].
        scale: factor by which the reference was resampled; 0 compares texel by texel.
        settings: thresholds of the comparison.

    Returns:
        The largest distance over the channels, in [0, 1].
    """
    low = high = reference
    if scale > 0:
        around = np.ones((2 * int(np.ceil(scale)) + 1,) * 2, np.uint8)
        low, high = cv2.erode(reference, around), cv2.dilate(reference, around)
        low, high = low - settings.overshoot * (high - low), high + settings.overshoot * (high - low)
    return max_over_channels(np.maximum(np.maximum(low - rgb, rgb - high), 0))


def max_over_channels(rgb: Rgb) -> Gray:
    """Computes the largest of three channels, many times faster than numpy along an axis of length 3.

    Example:
        >>> max_over_channels(np.array([[[0.25, 0.5, 0.125]]], np.float32)).tolist()
        [[0.5]]
    """
    red, green, blue = cv2.split(rgb)
    return cv2.max(cv2.max(red, green), blue)


def _estimate_noise(difference: Rgb, coverage: Gray, settings: NoiseModelSettings) -> float:
    """Estimates the standard deviation of the noise robustly, so that paint does not raise it.

    A smooth change of the entire picture (a grade) is not noise: the local mean is subtracted.
    """
    window = (settings.noise_window_px, settings.noise_window_px)
    rough = max_over_channels(np.abs(difference - cv2.blur(difference, window)))
    seen = rough[coverage > settings.min_coverage]
    # Of a normal distribution the standard deviation is 1.4826 times the median of the absolute values.
    return 1.4826 * float(np.median(seen)) if len(seen) else 0.0

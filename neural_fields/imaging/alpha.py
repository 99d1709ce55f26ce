"""Straight and premultiplied alpha, and resizing and eroding with it."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_AS_FLOAT = np.arange(256, dtype=np.float32) / 255


def to_floats(pixels: UInt8[np.ndarray, "_ _ 4"] | Float[np.ndarray, "_ _ 4"]) -> Float[np.ndarray, "_ _ 4"]:
    """Converts bytes to float32 in [0, 1]; floats are returned unchanged.

    Example:
        >>> print(to_floats(np.uint8([[[0, 51, 255, 255]]])))
        [[[0.  0.2 1.  1. ]]]
    """
    return cv2.LUT(pixels, _AS_FLOAT) if pixels.dtype == np.uint8 else pixels


def premultiply(rgba: Float[np.ndarray, "height width 4"]) -> Float[np.ndarray, "height width 4"]:
    """Multiplies colors by alpha. Only premultiplied pictures may be averaged or resampled.

    Example:
        >>> premultiply(np.float32([[[1, 0.5, 0, 0.5]]])).tolist()
        [[[0.5, 0.25, 0.0, 0.5]]]
    """
    result = rgba.copy()
    for channel in range(3):  # plane by plane: many times faster than broadcasting over four channels
        result[..., channel] *= rgba[..., 3]
    return result


def unpremultiply(rgba: Float[np.ndarray, "height width 4"]) -> Float[np.ndarray, "height width 4"]:
    """Divides colors by alpha: the inverse of `premultiply`. Colors are black where alpha is zero."""
    alpha = rgba[..., 3:]
    color = np.where(alpha > 1e-6, rgba[..., :3] / np.maximum(alpha, 1e-6), 0)
    return np.concatenate([np.clip(color, 0, 1), np.clip(alpha, 0, 1)], axis=-1).astype(np.float32)


def resize_image(
    image: Float[np.ndarray, "height width channels"], size: tuple[int, int]
) -> Float[np.ndarray, "rows columns channels"]:
    """Resizes a picture: averages of areas when it shrinks, bilinear interpolation when it grows.

    Args:
        image: the picture; with alpha it must be premultiplied.
        size: (width, height) of the result, in pixels.

    Returns:
        The picture at that size.
    """
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    shrinks = size[0] * size[1] < width * height
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(size[1], size[0], -1)  # OpenCV drops a single channel


def erode_alpha(alpha: Float[np.ndarray, "height width"], radius_px: int) -> Float[np.ndarray, "height width"]:
    """Erodes an alpha: each pixel takes the smallest value of a square that reaches `radius_px` pixels to each side.

    Example:
        >>> erode_alpha(np.float32([[1, 1, 1, 0.5]]), 1).tolist()
        [[1.0, 1.0, 0.5, 0.5]]
    """
    return cv2.erode(alpha, np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8))

"""Grain: the noise of a frame, measured where it is plain, and put on what has less of it.

A block of a frame that shows nothing but a plain surface holds its noise, with its spectrum: film grain, noise of a
sensor, and what a codec left of them. Such blocks, laid over each other at random places, are noise of the same kind
(patch-based synthesis, as in Efros and Freeman, "Image Quilting for Texture Synthesis and Transfer", 2001, without its
seams).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

Image = Float[np.ndarray, "rows columns 3"]


@dataclass(frozen=True)
class GrainSettings:
    """Settings of the measurement and the synthesis of grain."""

    detail_px: float = 2.0  # standard deviation of the blur whose rest is detail, grain among it
    block_px: int = 16  # side of the blocks in which it is measured
    # Plain are this share of the blocks, those with the least detail, and others with up to so many times as much.
    plain_share: float = 0.1
    plain_ratio: float = 2.5
    least_blocks: int = 12  # with fewer blocks nothing is known of the grain
    least_levels: float = 0.4  # standard deviation, in 8-bit levels, below which there is no grain to speak of


DEFAULTS = GrainSettings()


def find_plain_blocks(
    image: Image, known: Bool[np.ndarray, "rows columns"], settings: GrainSettings = DEFAULTS
) -> Float[np.ndarray, "blocks side side 3"]:
    """Finds the blocks of an image that have the least detail.

    Args:
        image: in 8-bit units.
        known: the pixels that count; blocks with others are left out.
        settings: size and share of the blocks.

    Returns:
        The detail of these blocks; none where the image has too few.
    """
    side = settings.block_px
    detail = image - cv2.GaussianBlur(image, (0, 0), settings.detail_px)
    rows, columns = image.shape[0] // side, image.shape[1] // side
    blocks = detail[: rows * side, : columns * side].reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    whole = known[: rows * side, : columns * side].reshape(rows, side, columns, side).swapaxes(1, 2).all(axis=(2, 3))
    # Clipped blocks have no noise, and say nothing about that of others.
    means = cv2.resize(image[: rows * side, : columns * side], (columns, rows), interpolation=cv2.INTER_AREA)
    whole &= ((means.reshape(rows, columns, 3) > 8) & (means.reshape(rows, columns, 3) < 247)).all(axis=2)
    found = blocks[whole]
    if len(found) < settings.least_blocks:
        return found[:0]
    energies = np.square(found).mean(axis=(1, 2, 3))
    least = np.sort(energies)[: max(settings.least_blocks // 2, int(settings.plain_share * len(found)))].mean()
    return found[energies <= settings.plain_ratio * least]


def match_grain(
    image: Image,
    made: Float[np.ndarray, "rows columns 1"],
    random: np.random.Generator,
    settings: GrainSettings = DEFAULTS,
) -> Image:
    """Puts grain on pixels that were made, as much as they lack in comparison with the others.

    Args:
        image: in 8-bit units.
        made: how much of each pixel was made, 0 to 1.
        random: chooses the blocks and their places.
        settings: of measurement and synthesis.

    Returns:
        The image with grain; as it is, where the other pixels have none, or are too few.
    """
    plain = find_plain_blocks(image, made[..., 0] <= 0, settings)
    own = find_plain_blocks(image, made[..., 0] >= 1, settings)
    wanted = float(np.square(plain).mean()) if len(plain) else 0.0
    has = float(np.square(own).mean()) if len(own) else 0.0
    missing = max(0.0, wanted - has)
    if missing < settings.least_levels**2:
        return image

    # Blocks overlap by half; shares whose squares sum to one keep the variance.
    side, half = settings.block_px, settings.block_px // 2
    ramp = np.sin(np.pi * (np.arange(side, dtype=np.float32) + 0.5) / side)
    window = (ramp[:, None] * ramp)[..., None]
    height, width = (-(-count // half) + 1 for count in image.shape[:2])
    grain = np.zeros(((height + 1) * half, (width + 1) * half, 3), np.float32)
    choices, turns = random.integers(0, len(plain), (height, width)), random.integers(0, 4, (height, width))
    for row in range(height):
        for column in range(width):
            block = plain[choices[row, column]]
            block = block[:: 1 - 2 * (int(turns[row, column]) & 1), :: 1 - (int(turns[row, column]) & 2)]
            grain[row * half : row * half + side, column * half : column * half + side] += window * block
    grain = grain[half : half + image.shape[0], half : half + image.shape[1]]
    return image + np.sqrt(missing / wanted).astype(np.float32) * made * grain

"""Conventions of compositing programs for maps of positions, and writers of such maps.

Exporters have positions in a picture as shares of its width and height from the top left corner; this module converts
them to the numbers that a program expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from neural_fields.core.files import atomic_write
from neural_fields.imaging.exr import write_exr


@dataclass(frozen=True)
class MapConvention:
    """Describes how a program stores a map of positions.

    Attributes:
        program: the name of the program.
        pixels: whether positions are pixels, with 0 at the center of the first one, instead of shares in [0, 1].
        from_bottom: whether the second number counts up from the bottom edge.
        mask_in_blue: whether the blue channel repeats A, which the program uses as the mask.
        suffix: ".exr", or ".npy" for an array [3, height, width] of x, y and A.

    Example:
        >>> center_of_first_pixel = np.array([[[0.25, 0.25]]])
        >>> CONVENTIONS["nuke"].encode_positions(center_of_first_pixel, (2, 2)).tolist()
        [[[0.25, 0.75]]]
        >>> CONVENTIONS["opencv"].encode_positions(center_of_first_pixel, (2, 2)).tolist()
        [[[0.0, 0.0]]]
    """

    program: str
    pixels: bool = False
    from_bottom: bool = True
    mask_in_blue: bool = False
    suffix: str = ".exr"

    @property
    def origin(self) -> str:
        """The corner of the picture at (0, 0)."""
        return "bottom-left" if self.from_bottom else "top-left"

    @property
    def unit(self) -> str:
        """The unit of the numbers."""
        return "pixels" if self.pixels else "normalized"

    def encode_positions(
        self, positions: Float[np.ndarray, "height width 2"], size: tuple[int, int]
    ) -> Float[np.ndarray, "height width 2"]:
        """Converts positions, in shares from the top left corner, to the numbers of the program.

        Args:
            positions: shares of the picture's width and height.
            size: (width, height) in pixels of the picture that they point into.

        Returns:
            The numbers, float32.
        """
        if self.from_bottom:
            positions = positions * [1, -1] + [0, 1]
        return (positions * size - 0.5 if self.pixels else positions).astype(np.float32)


CONVENTIONS = {
    "nuke": MapConvention("Nuke"),
    "fusion": MapConvention("Fusion"),
    "blender": MapConvention("Blender", mask_in_blue=True),
    "after_effects": MapConvention("After Effects", from_bottom=False),
    "opencv": MapConvention("OpenCV", pixels=True, from_bottom=False, suffix=".npy"),
}


def write_map(
    path: Path,
    convention: MapConvention,
    positions: Float[np.ndarray, "height width 2"],
    alpha: Float[np.ndarray, "height width"],
    size: tuple[int, int],
    header: Mapping[str, Any],
) -> int:
    """Writes one map of positions.

    Args:
        path: the file, with the suffix of the convention.
        convention: of the program.
        positions: shares of the picture's width and height from its top left corner.
        alpha: the channel A, 0 to 1.
        size: (width, height) in pixels of the picture that the positions point into.
        header: attributes of an .exr file.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: OpenEXR is not installed (exit 3), or no room (exit 4).
    """
    numbers = convention.encode_positions(positions, size)
    alpha = alpha.astype(np.float32)
    if convention.suffix == ".npy":
        _write_array(path, np.stack([numbers[..., 0], numbers[..., 1], alpha]))
    else:
        blue = alpha if convention.mask_in_blue else np.zeros_like(alpha)
        write_exr(path, {"R": numbers[..., 0], "G": numbers[..., 1], "B": blue, "A": alpha}, header)
    return path.stat().st_size


def write_light(
    path: Path, convention: MapConvention, gain: Float[np.ndarray, "height width 3"], header: Mapping[str, Any]
) -> int:
    """Writes the gain of a layer in a frame, as RGB in half floats with A = 1.

    Args:
        path: the file, with the suffix of the convention.
        convention: its suffix decides between .exr and .npy.
        gain: factors on RGB.
        header: attributes of an .exr file.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: OpenEXR is not installed (exit 3), or no room (exit 4).
    """
    half = gain.astype(np.float16)  # as the baked maps keep it
    if convention.suffix == ".npy":
        _write_array(path, half)
    else:
        planes = {name: half[..., number] for number, name in enumerate("RGB")}
        write_exr(path, {**planes, "A": np.ones_like(half[..., 0])}, header)
    return path.stat().st_size


def _write_array(path: Path, values: np.ndarray) -> None:
    """Writes an .npy file."""
    with atomic_write(path) as part:
        np.save(part, values, allow_pickle=False)

"""What one frame says about a layer: its map beyond what is seen, and the smooth part of its light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap, extrapolate_frame_map
from neural_fields.atlas.uv_maps import Maps
from neural_fields.imaging.resampling import sample_bilinear


@dataclass(frozen=True)
class LayerSight:
    """Holds what a frame says about a layer, at the size of the maps.

    Attributes:
        uv_map: extrapolated beyond the visible part.
        is_seen: the pixels that show the layer.
        light: the smooth part of the logarithm of the layer's gain; None: the model has no gain.
    """

    uv_map: ExtrapolatedMap
    is_seen: Bool[np.ndarray, "height width"]
    light: Float[np.ndarray, "height width 3"] | None


def see_layer(maps: Maps, t: int, layer: int, light_sigma: float = 0.03) -> LayerSight | None:
    """Reads what a frame says about a layer.

    Args:
        maps: the baked maps of the run.
        t: frame of the run.
        layer: number of the layer.
        light_sigma: of the Gaussian over what is seen that leaves the smooth part of the light, in longer sides of the
            frame.

    Returns:
        None if the frame hardly shows the layer.
    """
    found = extrapolate_frame_map(maps, t, layer)
    if found is None:
        return None
    weight = maps.read_layer_weight_small(t, layer)
    light = None
    if maps.has_gain:
        sigma = light_sigma * max(maps.size)
        sums = cv2.GaussianBlur(weight[..., None] * np.log(maps.read_gain(t, layer, maps.size)), (0, 0), sigma)
        light = sums / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-3)[..., None]
    return LayerSight(found, weight >= EXTRAPOLATION.min_map_weight, light)


def sample_pixels(
    values: Float[np.ndarray, "height width c"], pixels: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n c"]:
    """Samples values of the pixels of the maps at positions in pixels; those of the edge go on beyond it."""
    x, y = (np.ascontiguousarray(pixels[:, axis] - 0.5, np.float32) for axis in (0, 1))
    return sample_bilinear(np.ascontiguousarray(values), x, y)

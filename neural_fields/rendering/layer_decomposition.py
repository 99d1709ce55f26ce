"""Layer decomposition: splits a frame into the contributions of its layers.

A layer contributes to a pixel its weight times (its lit canonical color plus the residual of the model in the pixel),
so that the contributions of all layers add up to the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.imaging.color_grading import smooth_colors
from neural_fields.imaging.push_pull import pull_push
from neural_fields.imaging.resampling import sample_bilinear
from neural_fields.imaging.tiles import Part
from neural_fields.rendering.base import Canonicals


@dataclass(frozen=True)
class DecompositionSettings:
    """Settings of layer decomposition."""

    # Standard deviation, as a share of the frame's longer side, of the blur of light that fills holes.
    light_sigma_share: float = 0.01
    # The light and the shares of the layers behind a layer are measured where they have more than this weight together.
    min_known_weight: float = 0.9


DEFAULTS = DecompositionSettings()


@dataclass(frozen=True)
class LayerDecomposition:
    """A part of a frame, split around one layer. Colors are in 8-bit units and premultiplied, but for `filled`."""

    own: Float[np.ndarray, "rows columns 4"]  # the contribution of the layer, and its weight
    front: Float[np.ndarray, "rows columns 3"]  # the contribution of the layers in front
    front_weight: Float[np.ndarray, "rows columns 1"]
    rest: Float[np.ndarray, "rows columns 3"]  # the contribution of the layers behind if the layer were removed
    filled: Float[np.ndarray, "rows columns 3"]  # the background of the layer, with nothing in front
    weights: Float[np.ndarray, "layers rows columns"]
    shares: Float[np.ndarray, "behind rows columns"]  # shares of the layers behind in that background; they sum to one

    def replace_weight(
        self, layer: int, own: Float[np.ndarray, "rows columns"]
    ) -> Float[np.ndarray, "layers rows columns"]:
        """Returns the weights of all layers after the weight of the layer has changed to `own`."""
        left = 1 - self.front_weight[..., 0] - own
        return np.concatenate([self.weights[:layer], own[None], self.shares * left])


@dataclass(frozen=True)
class LayerDecomposer:
    """Splits frames into layers.

    Attributes:
        maps: the baked maps of the run.
        canonicals_at: the canonical pictures of all layers as frame `t` shows them.
        settings: thresholds and smoothing.
    """

    maps: Maps
    canonicals_at: Callable[[int], Canonicals]
    settings: DecompositionSettings = DEFAULTS

    def decompose_part(
        self,
        t: int,
        layer: int,
        seen: Float[np.ndarray, "rows columns 3"],
        weights: Float[np.ndarray, "layers rows columns"],
        size: tuple[int, int],
        part: Part,
        doubtful: Bool[np.ndarray, "rows columns"] | None = None,
    ) -> LayerDecomposition:
        """Splits a part of a frame into the layers in front of a layer, the layer, and its background.

        Args:
            t: number of the frame in the run.
            layer: index of the layer, front to back.
            seen: the part of the frame, in 8-bit units.
            weights: weights of all layers in the part, 0 to 1.
            size: (width, height) of the whole frame.
            part: rows and columns of the part.
            doubtful: pixels on and around the layer that do not show the light behind it: it is extrapolated
                smoothly from the other pixels. None: the light is taken from every pixel without the layer.
        """
        lit = np.stack([self.lit_colors(t, number, size, part) for number in range(len(weights))])
        weight = weights[..., None]
        missed = seen - (weight * lit).sum(axis=0)
        premultiplied = weight * (lit + missed)
        behind = weight[layer + 1 :].sum(axis=0)
        shares = background_shares(weights[layer + 1 :], behind[..., 0], self.settings)
        filled = lit[layer] + missed
        if len(shares):
            # In the hole the light is that of the surrounding pixels; the canonical pictures do not contain it.
            around = behind[..., 0] > self.settings.min_known_weight
            seen_behind = lit[layer + 1 :]
            if doubtful is not None:
                around &= ~doubtful
                missed = smooth_colors(
                    missed, around.astype(np.float32), max(1.0, self.settings.light_sigma_share * max(size))
                )
                seen_behind = np.stack(
                    [self.lit_colors(t, number, size, part, around) for number in range(layer + 1, len(weights))]
                )
            light = pull_push(missed, around) if around.any() else np.zeros_like(missed)
            filled = (shares[..., None] * seen_behind).sum(axis=0) + light
        return LayerDecomposition(
            own=np.concatenate([premultiplied[layer], weight[layer]], axis=-1),
            front=premultiplied[:layer].sum(axis=0),
            front_weight=weight[:layer].sum(axis=0),
            rest=premultiplied[layer + 1 :].sum(axis=0) + weight[layer] * filled,
            filled=filled,
            weights=weights,
            shares=shares,
        )

    def lit_colors(
        self,
        t: int,
        layer: int,
        size: tuple[int, int],
        part: Part,
        trusted: Bool[np.ndarray, "rows columns"] | None = None,
    ) -> Float[np.ndarray, "rows columns 3"]:
        """Computes the model's colors of a layer under its light in a part of a frame, in 8-bit units.

        Args:
            t: number of the frame in the run.
            layer: index of the layer, front to back.
            size: (width, height) of the whole frame.
            part: rows and columns of the part.
            trusted: pixels whose light is extrapolated smoothly to all others; None: each pixel has its own light.

        Returns:
            RGB, 0 to 255 and beyond where light is strong.
        """
        image, box = self.canonicals_at(t)[layer]
        uv = self.maps.read_uv_part(t, layer, size, part)
        color = sample_canonical(image, box, uv.reshape(-1, 2))[:, :3].reshape(*uv.shape[:2], 3)
        gain = self.maps.read_gain(t, layer, size, part)
        if trusted is not None and trusted.any() and self.maps.has_gain:
            gain = pull_push(np.ascontiguousarray(gain), trusted)
        return 255 * color * gain


def background_shares(
    weights: Float[np.ndarray, "behind rows columns"],
    total: Float[np.ndarray, "rows columns"],
    settings: DecompositionSettings = DEFAULTS,
) -> Float[np.ndarray, "behind rows columns"]:
    """Returns the shares of the layers in the background; where it is hidden, they continue from the surroundings.

    Args:
        weights: weights of the layers behind a layer, 0 to 1.
        total: the sum of these weights.
        settings: least total weight at which shares are measured.
    """
    if len(weights) < 2:
        return np.ones_like(weights)
    parts = np.moveaxis(weights, 0, -1) / np.maximum(total, 1e-3)[..., None]
    known = total > settings.min_known_weight
    if not known.any():
        return np.concatenate([np.zeros_like(weights[:-1]), np.ones_like(weights[-1:])])
    return np.moveaxis(pull_push(parts.astype(np.float32), known), -1, 0)


def sample_canonical(
    image: Float[np.ndarray, "h w 4"], box: Box, uv: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 4"]:
    """Samples a canonical picture bilinearly; the colors of its edge are repeated outside.

    Args:
        image: straight RGBA in [0, 1].
        box: the part of the canonical plane that it covers, in uv units.
        uv: positions in uv units.

    Returns:
        Straight RGBA in [0, 1].
    """
    x = (uv[:, 0] - box.u0) / box.width * image.shape[1] - 0.5
    y = (uv[:, 1] - box.v0) / box.height * image.shape[0] - 0.5
    return sample_bilinear(image, x.astype(np.float32), y.astype(np.float32))

"""A frame taken apart into what each layer adds to it: the model's colours, and what the model misses of the frame.

What a layer adds to a pixel is weight times (its lit canonical colour plus what the model missed of the pixel), so that
all layers together give the frame back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.baking import Maps
from neural_fields.coords import Box
from neural_fields.frame_parts import Part
from neural_fields.grading import smoothed
from neural_fields.lookup import scattered
from neural_fields.planar.placement import pull_push
from neural_fields.rendering import Canonicals

SMOOTH = 0.01  # of the frame's longer side: over so much light is averaged where it goes on into a hole
FREE = 0.5  # of a pixel: with less of it in front of an object, the frame shows how the object looks there


@dataclass(frozen=True)
class Scene:
    """A part of a frame around a layer. Colours are in 8-bit units and premultiplied, but for `filled`."""

    own: Float[np.ndarray, "rows columns 4"]  # what the layer adds, and its weight
    front: Float[np.ndarray, "rows columns 3"]  # what the layers in front add
    front_weight: Float[np.ndarray, "rows columns 1"]
    rest: Float[np.ndarray, "rows columns 3"]  # what would be seen behind those in front without the layer
    filled: Float[np.ndarray, "rows columns 3"]  # what is behind the layer, as if nothing were in front
    weights: Float[np.ndarray, "layers rows columns"]
    shares: Float[np.ndarray, "behind rows columns"]  # of the layers behind in what would be seen of them; sums to one

    def weights_with(
        self, layer: int, own: Float[np.ndarray, "rows columns"]
    ) -> Float[np.ndarray, "layers rows columns"]:
        """The weights of all layers with a new one of the layer."""
        left = 1 - self.front_weight[..., 0] - own
        return np.concatenate([self.weights[:layer], own[None], self.shares * left])


@dataclass(frozen=True)
class TakingApart:
    """Takes frames apart.

    Attributes:
        maps: the baked maps of the run.
        looks: the canonical pictures of all layers as frame `t` shows them.
    """

    maps: Maps
    looks: Callable[[int], Canonicals]

    def scene(
        self,
        t: int,
        layer: int,
        seen: Float[np.ndarray, "rows columns 3"],
        weights: Float[np.ndarray, "layers rows columns"],
        size: tuple[int, int],
        part: Part,
        doubtful: Bool[np.ndarray, "rows columns"] | None = None,
    ) -> Scene:
        """A part of a frame taken apart into what is in front of a layer, the layer, and what is behind it.

        Args:
            seen: the part of the frame, in 8-bit units.
            weights: of all layers there.
            size: (width, height) of the whole frame.
            doubtful: pixels on and around the layer that say nothing of the light behind it: the light there is then
                that of the others, and smooth. Without them every pixel without the layer says its own.
        """
        lit = np.stack([self.lit(t, number, size, part) for number in range(len(weights))])
        weight = weights[..., None]
        missed = seen - (weight * lit).sum(axis=0)
        premultiplied = weight * (lit + missed)
        behind = weight[layer + 1 :].sum(axis=0)
        shares = shares_behind(weights[layer + 1 :], behind[..., 0])
        filled = lit[layer] + missed
        if len(shares):
            # In the hole the light is that of the pixels around it, which the pictures alone do not know.
            around = behind[..., 0] > 0.9
            seen_behind = lit[layer + 1 :]
            if doubtful is not None:
                around &= ~doubtful
                missed = smoothed(missed, around.astype(np.float32), max(1.0, SMOOTH * max(size)))
                seen_behind = np.stack(
                    [self.lit(t, number, size, part, around) for number in range(layer + 1, len(weights))]
                )
            light = pull_push(missed, around) if around.any() else np.zeros_like(missed)
            filled = (shares[..., None] * seen_behind).sum(axis=0) + light
        return Scene(
            own=np.concatenate([premultiplied[layer], weight[layer]], axis=-1),
            front=premultiplied[:layer].sum(axis=0),
            front_weight=weight[:layer].sum(axis=0),
            rest=premultiplied[layer + 1 :].sum(axis=0) + weight[layer] * filled,
            filled=filled,
            weights=weights,
            shares=shares,
        )

    def lit(
        self,
        t: int,
        layer: int,
        size: tuple[int, int],
        part: Part,
        trusted: Bool[np.ndarray, "rows columns"] | None = None,
    ) -> Float[np.ndarray, "rows columns 3"]:
        """What the model shows of a layer in a part of a frame, in 8-bit units.

        Args:
            trusted: pixels whose light goes on smoothly into all others; by default each has its own.
        """
        image, box = self.looks(t)[layer]
        uv = self.maps.uv_part(t, layer, size, part)
        colour = picture_at(image, box, uv.reshape(-1, 2))[:, :3].reshape(*uv.shape[:2], 3)
        gain = self.maps.gain(t, layer, size, part)
        if trusted is not None and trusted.any() and self.maps.has_gain:
            gain = pull_push(np.ascontiguousarray(gain), trusted)
        return 255 * colour * gain


def shares_behind(
    weights: Float[np.ndarray, "behind rows columns"], total: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "behind rows columns"]:
    """Of which layers the background is made, also where it is hidden: as around."""
    if len(weights) < 2:
        return np.ones_like(weights)
    parts = np.moveaxis(weights, 0, -1) / np.maximum(total, 1e-3)[..., None]
    known = total > FREE
    if not known.any():
        return np.concatenate([np.zeros_like(weights[:-1]), np.ones_like(weights[-1:])])
    return np.moveaxis(pull_push(parts.astype(np.float32), known), -1, 0)


def picture_at(image: Float[np.ndarray, "h w 4"], box: Box, uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 4"]:
    """A canonical picture at any uv; beyond its box the edge goes on."""
    x = (uv[:, 0] - box.u0) / box.width * image.shape[1] - 0.5
    y = (uv[:, 1] - box.v0) / box.height * image.shape[0] - 0.5
    return scattered(image, x.astype(np.float32), y.astype(np.float32))

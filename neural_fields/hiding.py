"""Layers that are not shown any more: what is behind them is, in the light of the pixels around.

Behind a layer its frame tells nothing; the canonical pictures of the layers behind do, where other frames show them.
What no frame shows is up to an overlay on those pictures (`editors/remove.py` inpaints it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage
from neural_fields.frame_parts import around
from neural_fields.rendering import FrameChanger
from neural_fields.taking_apart import TakingApart, shares_behind

Hidden = Mapping[
    str, Sequence[tuple[Callable[[int], float], float]]
]  # by layer: how much in frame t, widened by pixels
DOUBT = 0.008  # of the frame's longer side: so near to a hidden layer its halo colours the pixels
LIGHT = 0.06  # of the frame's longer side: so far around a hidden layer pixels tell the light behind it


def hidden_share(hidden: Hiding, t: int) -> float:
    """How much of a layer several edits hide together in a frame."""
    return 1 - float(np.prod([1 - strength(t) for strength, _ in hidden]))


class Hider(FrameChanger):
    """Takes layers off frames.

    Args:
        maps: the baked maps of the run.
        canonicals: the canonical picture of every layer.
        hidden: the layers; the last one of a run, with nothing behind it, stays.
    """

    def __init__(self, maps: Maps, canonicals: Mapping[str, CanonicalImage], hidden: Mapping[str, Hiding]) -> None:
        self.maps = maps
        self.hidden = {maps.layers.index(name): how for name, how in hidden.items() if name != maps.layers[-1]}
        looks = [(canonicals[name].array(), canonicals[name].box) for name in maps.layers]
        self.apart = TakingApart(maps, lambda t: looks)
        self.shown = without_hidden(maps, hidden)

    @property
    def changes_something(self) -> bool:
        return bool(self.hidden)

    def render_frame(self, t: int, source: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """One frame without the layers."""
        size = (source.shape[1], source.shape[0])
        weights = self.maps.weight(t, size)
        for layer in sorted(self.hidden, reverse=True):
            share = hidden_share(self.hidden[layer], t)
            if share > 0:
                source = self._without(t, layer, source, weights, share)
        return source

    def reach(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Where the layers are seen, widened as they are."""
        found = np.zeros((size[1], size[0]), bool)
        weights = self.maps.weight(t, size)
        for layer, how in self.hidden.items():
            if hidden_share(how, t) > 0:
                found |= (weights[layer] > 0) | (self._rim(t, layer, weights[layer]) > 0)
        return found

    def weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """How much of each pixel each layer fills without the hidden ones; sums to one."""
        return self.shown.weight(t, size)

    def _rim(self, t: int, layer: int, weight: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
        """How much of what is around a layer goes with it: one on the layer, falling to zero."""
        grow = max(grow for _, grow in self.hidden[layer])
        if grow <= 0:
            return np.zeros_like(weight)
        distance = cv2.distanceTransform((weight < 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        return np.clip(grow + 1 - distance, 0, 1).astype(np.float32)

    def _without(
        self,
        t: int,
        layer: int,
        frame: UInt8[np.ndarray, "height width 3"],
        weights: Float[np.ndarray, "layers height width"],
        share: float,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """A frame with `share` of a layer taken off; `weights` become those of the new frame."""
        size = (frame.shape[1], frame.shape[0])
        rim = self._rim(t, layer, weights[layer])
        touched = (weights[layer] > 0) | (rim > 0)
        part = around(touched.astype(np.uint8), round(LIGHT * max(size)))
        if part is None:
            return frame
        here, widened = weights[(slice(None), *part)], rim[part][..., None]
        side = 2 * round(DOUBT * max(size)) + 1
        doubtful = cv2.dilate(touched[part].astype(np.uint8), np.ones((side, side), np.uint8)) > 0
        scene = self.apart.scene(t, layer, frame[part].astype(np.float32), here, size, part, doubtful)
        shown = scene.front + scene.rest
        shown += widened * (scene.front + (1 - scene.front_weight) * scene.filled - shown)
        seen = frame[part].astype(np.float32)
        mixed = np.rint(seen + share * (shown - seen)).clip(0, 255).astype(np.uint8)
        result = frame.copy()
        result[part] = np.where(touched[part][..., None], mixed, frame[part])
        new = scene.weights_with(layer, (1 - share) * here[layer])
        weights[(slice(None), *part)] = np.where(touched[part], new, here)
        return result


def without_hidden(maps: Maps, hidden: Mapping[str, Hiding]) -> Maps:
    """The maps of a run with layers hidden: what they filled belongs to the layers behind them."""
    layers = {maps.layers.index(name): how for name, how in hidden.items() if name != maps.layers[-1]}
    plain = (maps.folder, maps.layers, maps.boxes, maps.size, maps.frame_count, maps.has_gain, maps.charts)
    return _Thinned(*plain, hidden=layers)


@dataclass(frozen=True)
class _Thinned(Maps):
    """Maps whose weights have some layers taken out."""

    hidden: Mapping[int, Hiding] | None = None

    @cached_property
    def _weight(self) -> Any:
        stored = Maps._weight.func(self)  # type: ignore[attr-defined]
        return _Weights(stored, self.hidden or {})


class _Weights:
    """The stored weights of a frame with hidden layers' share given to those behind; one frame is remembered."""

    def __init__(self, stored: Any, hidden: Mapping[int, Hiding]) -> None:
        self.stored = stored
        self.hidden = hidden
        self.last: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index: int | tuple[Any, ...]) -> np.ndarray:
        t, *rest = index if isinstance(index, tuple) else (index,)
        if self.last is None or self.last[0] != t:
            self.last = (t, self._thinned(t))
        return self.last[1][tuple(rest)]

    def _thinned(self, t: int) -> UInt8[np.ndarray, "layers height width"]:
        weights = self.stored[t].astype(np.float32)
        for layer in sorted(self.hidden, reverse=True):
            released = hidden_share(self.hidden[layer], t) * weights[layer]
            behind = weights[layer + 1 :]
            shares = shares_behind(behind / 255, behind.sum(axis=0) / 255)
            weights[layer] -= released
            weights[layer + 1 :] += shares * released
        return np.rint(weights).clip(0, 255).astype(np.uint8)

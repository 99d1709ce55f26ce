"""The removal pass: hides layers and shows the background behind them, in the light of the surrounding pixels.

A frame does not show what is behind a layer; the canonical pictures of the layers behind do, where other frames show
them. What no frame shows has to come from an overlay on those pictures (`editors/effects/remove.py` inpaints it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.uv_maps import Maps
from neural_fields.imaging.grain import match_grain
from neural_fields.imaging.tiles import bounding_part
from neural_fields.rendering.base import RenderPass
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.layer_decomposition import LayerDecomposer, LayerDecomposition, background_shares


@dataclass(frozen=True)
class HiddenShare:
    """Says how much of a layer an edit hides.

    Attributes:
        strength: the share of the layer in frame `t` of the run, 0 to 1.
        grow: width of the rim that is hidden with it, in pixels; None: as far as it stands out.
        has_grain: whether what is shown instead gets the grain of the frame.
    """

    strength: Callable[[int], float]
    grow: float | None = 0.0
    has_grain: bool = True


HiddenShares = Sequence[HiddenShare]


@dataclass(frozen=True)
class RemovalSettings:
    """Settings of the removal of layers."""

    # Width, as a share of the frame's longer side, of the halo of a hidden layer, whose colors are not used.
    halo_share: float = 0.008
    light_share: float = 0.06  # distance, as a share of the frame's longer side, from which light is taken for the hole
    # Outlines and feathers beyond a layer are looked for this far from it, as a share of the longer side, ...
    reach_share: float = 0.02
    least_rim_share: float = 0.0035  # ... and this far around it all goes with it.
    # They differ from the background by more than so many levels, and so many times as much as what is farther away.
    standing_out_levels: float = 6.0
    standing_out_ratio: float = 2.0


DEFAULTS = RemovalSettings()


def hidden_share(hidden: HiddenShares, t: int) -> float:
    """Returns the share of a layer that several edits together hide in frame `t`, 0 to 1."""
    return 1 - float(np.prod([1 - one.strength(t) for one in hidden]))


class RemovalPass(RenderPass):
    """Removes layers from frames.

    Args:
        maps: the baked maps of the run.
        canonicals: the canonical picture of every layer.
        hidden: the layers and the share of each that is hidden; the last layer of a run cannot be hidden.
        settings: how far around a layer its halo and the light behind it reach.
    """

    def __init__(
        self,
        maps: Maps,
        canonicals: Mapping[str, CanonicalImage],
        hidden: Mapping[str, HiddenShares],
        settings: RemovalSettings = DEFAULTS,
    ) -> None:
        self.maps = maps
        self.settings = settings
        self.hidden = {maps.layers.index(name): shares for name, shares in hidden.items() if name != maps.layers[-1]}
        pictures = [(canonicals[name].rgba, canonicals[name].box) for name in maps.layers]
        self.decomposer = LayerDecomposer(maps, lambda t: pictures)
        self.shown_maps = hide_layers(maps, hidden)

    @property
    def changes_something(self) -> bool:
        """Whether any layer is hidden; the last layer of a run never is."""
        return bool(self.hidden)

    def render_frame(
        self, t: int, source: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame without the layers."""
        size = (source.shape[1], source.shape[0])
        weights = self.maps.read_weights(t, size)
        for layer in sorted(self.hidden, reverse=True):
            share = hidden_share(self.hidden[layer], t)
            if share <= 0:
                continue
            rim = self._rim_weight(layer, weights[layer])
            touched = (weights[layer] > 0) | (rim > 0)
            part = bounding_part(touched.astype(np.uint8), round(self.settings.light_share * max(size)))
            if part is None:
                continue

            # What would be visible without the layer.
            here, rim, touched = weights[(slice(None), *part)], rim[part], touched[part]
            side = 2 * round(self.settings.halo_share * max(size)) + 1
            doubtful = cv2.dilate(touched.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
            seen = source[part].astype(np.float32)
            split = self.decomposer.decompose_part(t, layer, seen, here, size, part, doubtful)
            if self._stands_out(layer):
                rim = self._find_outstanding(here[layer], rim, seen, split, max(size))
                touched = (here[layer] > 0) | (rim > 0)
            shown, widened = split.front + split.rest, rim[..., None]
            shown += widened * (split.front + (1 - split.front_weight) * split.filled - shown)
            if any(one.has_grain for one in self.hidden[layer]):
                made = np.maximum(widened * (1 - split.front_weight), here[layer][..., None])
                shown = match_grain(shown, made, np.random.default_rng((t, layer)))

            # Mixed with the frame by the share that is hidden; the weights become those of the new frame.
            mixed = np.rint(seen + share * (shown - seen)).clip(0, 255).astype(np.uint8)
            result = source.copy()
            result[part] = np.where(touched[..., None], mixed, source[part])
            source = result
            new = split.replace_weight(layer, (1 - share) * here[layer])
            weights[(slice(None), *part)] = np.where(touched, new, here)
        return source

    def affected_mask(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns where the layers and the rims that go with them are visible."""
        found = np.zeros((size[1], size[0]), bool)
        weights = self.maps.read_weights(t, size)
        for layer, shares in self.hidden.items():
            if hidden_share(shares, t) > 0:
                found |= (weights[layer] > 0) | (self._rim_weight(layer, weights[layer]) > 0)
        return found

    def layer_weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """Returns the share of each pixel that each layer fills without the hidden ones; the shares sum to one."""
        return self.shown_maps.read_weights(t, size)

    def _stands_out(self, layer: int) -> bool:
        """Returns whether what stands out around a layer is hidden with it."""
        return any(one.grow is None for one in self.hidden[layer])

    def _rim_weight(self, layer: int, weight: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
        """Returns how much of each pixel around a layer may be hidden with it: one on the layer, falling to zero."""
        grow = max((one.grow for one in self.hidden[layer] if one.grow is not None), default=0.0)
        if self._stands_out(layer):
            grow = max(grow, round(self.settings.reach_share * max(weight.shape)))
        if grow <= 0:
            return np.zeros_like(weight)
        distance = cv2.distanceTransform((weight < 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        return np.clip(grow + 1 - distance, 0, 1).astype(np.float32)

    def _find_outstanding(
        self,
        weight: Float[np.ndarray, "rows columns"],
        reach: Float[np.ndarray, "rows columns"],
        seen: Float[np.ndarray, "rows columns 3"],
        split: LayerDecomposition,
        longer: int,
    ) -> Float[np.ndarray, "rows columns"]:
        """Finds what belongs to a layer around it: what is joined to it and differs from the background.

        Args:
            weight: of the layer.
            reach: how much of each pixel may be hidden at most.
            seen: the frame, in 8-bit units.
            split: of the frame around the layer.
            longer: longer side of the frame, in pixels.

        Returns:
            How much of each pixel is hidden.
        """
        settings = self.settings
        off = np.abs(seen - split.filled).max(axis=2) * (1 - split.front_weight[..., 0])
        off = cv2.GaussianBlur(off, (0, 0), 1.0)
        beyond = (reach <= 0).astype(np.float32)
        sigma = max(2.0, settings.reach_share * longer)
        usual = cv2.GaussianBlur(off * beyond, (0, 0), sigma) / np.maximum(
            cv2.GaussianBlur(beyond, (0, 0), sigma), 1e-3
        )
        stands_out = (off > settings.standing_out_ratio * usual + settings.standing_out_levels) & (reach > 0)
        own = weight >= 0.5
        _, labels = cv2.connectedComponents((stands_out | own).astype(np.uint8), connectivity=8)
        joined = np.isin(labels, np.unique(labels[own])) & (stands_out | own)
        grow = max(1.0, settings.least_rim_share * longer)
        distance = cv2.distanceTransform((~joined).astype(np.uint8), cv2.DIST_L2, 3)
        return np.minimum(reach, np.clip(grow + 1 - distance, 0, 1)).astype(np.float32)


def hide_layers(maps: Maps, hidden: Mapping[str, HiddenShares]) -> Maps:
    """Returns the maps of a run with layers hidden: their share of a pixel goes to the layers behind them."""
    layers = {maps.layers.index(name): shares for name, shares in hidden.items() if name != maps.layers[-1]}
    plain = (maps.folder, maps.layers, maps.boxes, maps.size, maps.frame_count, maps.has_gain, maps.charts)
    return _MapsWithoutHidden(*plain, hidden=layers)


@dataclass(frozen=True)
class _MapsWithoutHidden(Maps):
    """Maps whose weights leave out hidden layers."""

    hidden: Mapping[int, HiddenShares] | None = None

    @cached_property
    def _weight_file(self) -> Any:
        return _WeightsWithoutHidden(super()._weight_file, self.hidden or {})


class _WeightsWithoutHidden:
    """The stored weights of a frame, with the share of hidden layers given to those behind; one frame is cached."""

    def __init__(self, stored: Any, hidden: Mapping[int, HiddenShares]) -> None:
        self.stored = stored
        self.hidden = hidden
        self.last: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index: int | tuple[Any, ...]) -> np.ndarray:
        t, *rest = index if isinstance(index, tuple) else (index,)
        if self.last is None or self.last[0] != t:
            weights = self.stored[t].astype(np.float32)
            for layer in sorted(self.hidden, reverse=True):
                released = hidden_share(self.hidden[layer], t) * weights[layer]
                behind = weights[layer + 1 :]
                shares = background_shares(behind / 255, behind.sum(axis=0) / 255)
                weights[layer] -= released
                weights[layer + 1 :] += shares * released
            self.last = (t, np.rint(weights).clip(0, 255).astype(np.uint8))
        return self.last[1][tuple(rest)]

"""Frames between frames: every layer at a moment between two frames, from what both show of it.

A pixel of the moment between is looked up in both frames: where the point of the layer that passes there has been, and
where it goes (`layer_motion.py`). The path between is a line, bent as the frames before and after say. Layers are
looked up apart, with the colour and the opacity that they have of their own, and put on each other again. Where one of
the two frames hides a point or does not reach there, the other alone is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.baking import Maps
from neural_fields.layer_motion import LayerLook, Motion, Motions
from neural_fields.planar.placement import pull_push
from neural_fields.retiming import Plan

ROUNDS = 6  # to find what passes a pixel at a moment
PURE = 0.98  # weight from which a pixel shows a layer's own colour
FREE = 0.5  # of a pixel: with less of it in front of a layer, the pixel does not tell how opaque the layer is
NEAR = 0.015  # of the longer side: so near to something in front, outlines are not sure
HIDDEN = 1e-3  # how much a frame counts where it hides a layer: only if the other does too

Frame = UInt8[np.ndarray, "height width 3"]
Weights = Callable[[int, tuple[int, int]], Float[np.ndarray, "layers height width"]]


class Retimer:
    """Makes the frames of a plan from those of a run.

    Args:
        maps: the baked maps of the run.
        weights: how much of each pixel of frame `t` at a size each layer fills, in the frames that are given; by
            default as the maps say, which is right unless layers were deformed or hidden.
    """

    def __init__(self, maps: Maps, weights: Weights | None = None) -> None:
        self.maps = maps
        self.weights = weights or maps.weight
        self.motions = Motions(maps)

    def frames(self, edited: Iterable[Frame], plan: Plan) -> Iterator[Frame]:
        """The frames of a plan; two of the run's are held at a time.

        Args:
            edited: the frames of the run, in order. Where the plan shows one of them, it comes out as it is.
        """
        source = iter(edited)
        number, here = 0, next(source)
        following: Frame | None = None
        parts: dict[int, list[LayerLook]] = {}
        motions: dict[tuple[int, int, bool], Motion] = {}
        for position in plan.positions:
            t, share = int(position), float(position - int(position))
            while number < t:
                here, following = (next(source) if following is None else following), None
                number += 1
            if not share:
                yield here
                continue
            following = next(source) if following is None else following
            both = {t: here, t + 1: following}
            parts = {k: parts.get(k) or self._parts(k, frame) for k, frame in both.items()}
            late = share >= 0.5
            motions = {key: motion for key, motion in motions.items() if key[0] == t}
            result = np.zeros(here.shape, np.float32)
            for layer in reversed(range(len(self.maps.layers))):
                pair, key = (parts[t][layer], parts[t + 1][layer]), (t, layer, late)
                if key not in motions:
                    motions[key] = self.motions.between(layer, t, share, pair)
                look = self._look(motions[key], share, pair)
                result = result * (1 - look[..., 3:]) + look[..., :3]
            yield np.clip(np.rint(result), 0, 255).astype(np.uint8)

    def _look(
        self, motion: Motion, share: float, pair: tuple[LayerLook, LayerLook]
    ) -> Float[np.ndarray, "height width 4"]:
        """A layer at a share of the time from one frame to the next: premultiplied colour and opacity."""
        height, width = pair[0].sure.shape
        total, counts = np.zeros((height, width, 4), np.float32), np.zeros((height, width), np.float32)
        for k, (part, time, factor) in enumerate(zip(pair, (1 - share, share), motion.counts, strict=True)):
            if not factor:
                continue
            places = self._places(motion, share, k, (width, height))
            look = cv2.remap(part.rgba, places, None, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
            sure = cv2.remap(part.sure, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            sure = (time * factor) * (sure + HIDDEN)
            total += sure[..., None] * look
            counts += sure
        total /= counts[..., None]
        total[..., 3] = np.clip(total[..., 3], 0, 1)
        return total

    def _places(self, motion: Motion, share: float, k: int, size: tuple[int, int]) -> Float[np.ndarray, "h w 2"]:
        """Sample positions in the earlier (`k` = 0) or the later frame of what passes each pixel at a moment."""
        grid, points = self.motions.grid, self.motions.grid.points
        way = share * motion.step - 0.5 * share * (1 - share) * motion.bend
        origin = points
        for _ in range(ROUNDS):
            origin = points - grid.at(way, origin)
        away = origin - points + (grid.at(motion.step, origin) if k else 0)
        scale = np.array(size) / self.maps.size
        x, y = ((np.arange(side) + 0.5) / scale[axis] for axis, side in enumerate(size))
        centres = np.stack(np.meshgrid(x, y), axis=-1)
        return ((centres + grid.at(away, centres)) * scale - 0.5).astype(np.float32)

    def _parts(self, t: int, frame: Frame) -> list[LayerLook]:
        """A frame taken apart: every layer with a colour of its own, also where others cover it or share the pixel."""
        weights = self.weights(t, (frame.shape[1], frame.shape[0])).astype(np.float32)
        seen = frame.astype(np.float32)
        colours = [pull_push(seen, pure) if (pure := plane >= PURE).any() else seen for plane in weights]
        # What that misses of a mixed pixel goes to the layers by how much of the pixel they are.
        missed = seen - sum(plane[..., None] * colour for plane, colour in zip(weights, colours, strict=True))
        missed /= (weights**2).sum(axis=0)[..., None]
        found, free = [], np.ones(frame.shape[:2], np.float32)
        near = (2 * round(NEAR * max(frame.shape[:2]) / 2) + 1,) * 2
        for layer, (plane, colour) in enumerate(zip(weights, colours, strict=True)):
            opacity = np.ones_like(plane)
            if layer < len(weights) - 1:
                opacity = np.clip(plane / np.maximum(free, FREE / 2), 0, 1)
                if (hidden := free < FREE).any() and not hidden.all():
                    opacity = pull_push(opacity[..., None], ~hidden)[..., 0]
            own = np.clip(colour + missed * plane[..., None], 0, 255)
            sure = cv2.blur(cv2.erode(free, np.ones(near)), near) if layer else free
            found.append(LayerLook(np.dstack([own * opacity[..., None], opacity]), sure))
            free = np.clip(free - plane, 0, 1)
        return found

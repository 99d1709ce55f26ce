"""Frame interpolation: every layer at a moment between two frames, from what both show of it.

A pixel of the new frame is sampled in both frames: at the earlier and at the later position of the point of the layer
that passes there (`layer_motion.py`). The path between is a line, bent by the motion before and after. Layers are
sampled separately, with the color and the opacity of their own, and composited again. Where one of the two frames
hides a point or does not contain it, the other alone is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.uv_maps import Maps
from neural_fields.imaging.push_pull import pull_push
from neural_fields.rendering.retiming.layer_motion import LayerAppearance, LayerMotion, LayerMotionEstimator
from neural_fields.rendering.retiming.timeline import FrameSchedule

Frame = UInt8[np.ndarray, "height width 3"]
Weights = Callable[[int, tuple[int, int]], Float[np.ndarray, "layers height width"]]


@dataclass(frozen=True)
class InterpolationSettings:
    """Settings of frame interpolation."""

    path_rounds: int = 6  # iterations to find the point whose path passes a pixel at a time
    min_pure_weight: float = 0.98  # a pixel in which a layer has at least this weight shows the layer's own color
    # The opacity of a layer is known where layers in front leave at least this share of a pixel.
    min_free_share: float = 0.5
    # Confidence is lower this near to a layer in front, as a share of the frame's longer side.
    edge_share: float = 0.015
    # Added to the confidence of a frame, so that hidden colors count where both frames hide them.
    hidden_weight: float = 1e-3


DEFAULTS = InterpolationSettings()


class Retimer:
    """Makes the frames of a plan from those of a run.

    Args:
        maps: the baked maps of the run.
        weights: how much of each pixel of frame `t` at a size each layer fills, in the frames that are given; by
            default as the maps say, which is right unless layers were deformed or hidden.
        settings: thresholds and iterations.
    """

    def __init__(self, maps: Maps, weights: Weights | None = None, settings: InterpolationSettings = DEFAULTS) -> None:
        self.maps = maps
        self.weights = weights or maps.read_weights
        self.settings = settings
        self.motions = LayerMotionEstimator(maps)

    def interpolate_frames(self, edited: Iterable[Frame], schedule: FrameSchedule) -> Iterator[Frame]:
        """Yields the frames of a plan; two of the run's are held at a time.

        Args:
            edited: the rendered frames of the run, in order. A frame that the plan shows itself is passed on unchanged.
            schedule: the position of each output frame among them.
        """
        source = iter(edited)
        number, here = 0, next(source)
        following: Frame | None = None
        appearances: dict[int, list[LayerAppearance]] = {}  # of the two frames, by layer
        motions: dict[tuple[int, int, bool], LayerMotion] = {}
        for position in schedule.positions:
            t, share = int(position), float(position - int(position))
            while number < t:
                here, following = (next(source) if following is None else following), None
                number += 1
            if not share:
                yield here
                continue
            following = next(source) if following is None else following
            both = {t: here, t + 1: following}
            appearances = {k: appearances.get(k) or self._split_layers(k, frame) for k, frame in both.items()}
            late = share >= 0.5
            motions = {key: motion for key, motion in motions.items() if key[0] == t}
            result = np.zeros(here.shape, np.float32)
            for layer in reversed(range(len(self.maps.layers))):
                pair, key = (appearances[t][layer], appearances[t + 1][layer]), (t, layer, late)
                if key not in motions:
                    motions[key] = self.motions.estimate_motion(layer, t, share, pair)
                rgba = self._interpolate_layer(motions[key], share, pair)
                result = result * (1 - rgba[..., 3:]) + rgba[..., :3]
            yield np.clip(np.rint(result), 0, 255).astype(np.uint8)

    def _interpolate_layer(
        self, motion: LayerMotion, share: float, pair: tuple[LayerAppearance, LayerAppearance]
    ) -> Float[np.ndarray, "height width 4"]:
        """Interpolates a layer at a share of the time between two frames: premultiplied color and opacity."""
        height, width = pair[0].confidence.shape
        grid, points = self.motions.grid, self.motions.grid.points
        scale = np.array((width, height)) / self.maps.size
        x, y = ((np.arange(side) + 0.5) / scale[axis] for axis, side in enumerate((width, height)))
        centers = np.stack(np.meshgrid(x, y), axis=-1)

        # The position in the earlier frame of what passes each point of the grid at the moment.
        way = share * motion.step - 0.5 * share * (1 - share) * motion.bend
        origin = points
        for _ in range(self.settings.path_rounds):
            origin = points - grid.interpolate_at(way, origin)

        total, counts = np.zeros((height, width, 4), np.float32), np.zeros((height, width), np.float32)
        for k, (appearance, time, factor) in enumerate(zip(pair, (1 - share, share), motion.counts, strict=True)):
            if not factor:
                continue
            away = origin - points + (grid.interpolate_at(motion.step, origin) if k else 0)
            places = ((centers + grid.interpolate_at(away, centers)) * scale - 0.5).astype(np.float32)
            rgba = cv2.remap(appearance.rgba, places, None, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
            sure = cv2.remap(appearance.confidence, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            sure = (time * factor) * (sure + self.settings.hidden_weight)
            total += sure[..., None] * rgba
            counts += sure
        total /= counts[..., None]
        total[..., 3] = np.clip(total[..., 3], 0, 1)
        return total

    def _split_layers(self, t: int, frame: Frame) -> list[LayerAppearance]:
        """Splits a frame into layers with a color of their own, also where others cover them or share the pixel."""
        settings = self.settings
        weights = self.weights(t, (frame.shape[1], frame.shape[0])).astype(np.float32)
        seen = frame.astype(np.float32)
        colors = []
        for plane in weights:
            pure = plane >= settings.min_pure_weight
            colors.append(pull_push(seen, pure) if pure.any() else seen)
        # The residual of a mixed pixel goes to the layers in proportion to their weights.
        missed = seen - sum(plane[..., None] * color for plane, color in zip(weights, colors, strict=True))
        missed /= (weights**2).sum(axis=0)[..., None]
        appearances, free = [], np.ones(frame.shape[:2], np.float32)
        near = (2 * round(settings.edge_share * max(frame.shape[:2]) / 2) + 1,) * 2
        for layer, (plane, color) in enumerate(zip(weights, colors, strict=True)):
            opacity = np.ones_like(plane)
            if layer < len(weights) - 1:
                opacity = np.clip(plane / np.maximum(free, settings.min_free_share / 2), 0, 1)
                hidden = free < settings.min_free_share
                if hidden.any() and not hidden.all():
                    opacity = pull_push(opacity[..., None], ~hidden)[..., 0]
            own = np.clip(color + missed * plane[..., None], 0, 255)
            sure = cv2.blur(cv2.erode(free, np.ones(near)), near) if layer else free
            appearances.append(LayerAppearance(np.dstack([own * opacity[..., None], opacity]), sure))
            free = np.clip(free - plane, 0, 1)
        return appearances

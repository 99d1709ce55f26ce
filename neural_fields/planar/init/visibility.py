"""The visibility of a layer in each frame, computed when it is asked for: for all frames it would fill memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache

import cv2
import numpy as np
from jaxtyping import Float

KEPT_BYTES = 64 << 20  # of shares that are asked for several times; longer clips compute them again


class LayerVisibility:
    """Holds the visibility of a layer: the share of each pixel that it fills, 0 to 1, in some frames.

    Args:
        share: the layer's share of the pixels [height, width] of a frame of the clip.
        frames: which frames.
        size: (width, height) of what `share` gives.
    """

    def __init__(
        self, share: Callable[[int], Float[np.ndarray, "height width"]], frames: range, size: tuple[int, int]
    ) -> None:
        self.share = share
        self.frames = frames
        self.size = size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Float[np.ndarray, "height width"]:
        """Returns the shares in one of the frames."""
        return self.share(self.frames[index])

    def select_span(self, first: int, last: int, stride: int = 1) -> LayerVisibility:
        """Returns the visibility in a span of frames.

        Args:
            first: first frame of the clip.
            last: last frame of the clip, included.
            stride: distance of the frames.
        """
        return LayerVisibility(self.share, range(first, last + 1, stride), self.size)

    def halve_size(self) -> LayerVisibility:
        """Returns the visibility at half the size."""
        size = (max(32, self.size[0] // 2), max(32, self.size[1] // 2))

        @lru_cache(KEPT_BYTES // (4 * size[0] * size[1]))
        def halve_share(t: int) -> Float[np.ndarray, "height width"]:
            return cv2.resize(self.share(t), size, interpolation=cv2.INTER_AREA)

        return LayerVisibility(halve_share, self.frames, size)

    @cached_property
    def areas_px(self) -> Float[np.ndarray, " time"]:
        """The number of pixels that the layer fills in each frame."""
        return np.array([float(self[index].sum()) for index in range(len(self))])

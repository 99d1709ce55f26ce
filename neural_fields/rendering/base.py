"""The interface of rendering passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.imaging.blend_modes import Blend
from neural_fields.rendering.edge_guide import FrameEdges


class RenderPass(ABC):
    """One pass over the frames of a run that may change them."""

    maps: Maps

    @property
    @abstractmethod
    def changes_something(self) -> bool:
        """Whether the pass can change any frame."""

    @abstractmethod
    def render_frame(
        self, t: int, source: UInt8[np.ndarray, "height width 3"], edges: FrameEdges | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a frame after the pass.

        Args:
            t: number of the frame in the run.
            source: the frame before the pass, of any size.
            edges: of the frame before all passes, if that is another one.

        Returns:
            The frame at the size of `source`, or `source` itself.
        """

    @abstractmethod
    def affected_mask(self, t: int, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns where the pass may change frame `t` at `size` (width, height)."""

    def layer_weights(self, t: int, size: tuple[int, int]) -> Float[np.ndarray, "layers height width"]:
        """Returns the share of each pixel of frame `t` that each layer fills after the pass; the shares sum to one."""
        return self.maps.read_weights(t, size)

    def render_frames(
        self, frames: Iterable[tuple[int, UInt8[np.ndarray, "height width 3"]]]
    ) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yields the frames after the pass for pairs of (frame index of the run, frame before it)."""
        for t, frame in frames:
            yield self.render_frame(t, frame)


Canonicals = Sequence[tuple[Float[np.ndarray, "_ _ 4"], Box]]  # canonical pictures of all layers, front to back


@dataclass(frozen=True)
class OverlayOptions:
    """Sets how overlays are put on frames.

    Attributes:
        strength: the strength of the overlays in frame `t` of the run, 0 to 1.
        blend: the blend mode of the paint with the layer; None: the paint alone. Blended paint is not lit, because the
            layer that it is blended with already is.
        lit: whether the layer's gain is applied to plain paint.
        canonicals_at: the canonical pictures of all layers before the overlays, by frame; None: those that were
            exported.
        shutter: share of the time between frames for which the shutter is open: paint is blurred by as much as it moves
            in that time.
    """

    strength: Callable[[int], float] = lambda t: 1.0
    blend: Blend | None = None
    lit: bool = True
    canonicals_at: Callable[[int], Canonicals] | None = None
    shutter: float = 0.0

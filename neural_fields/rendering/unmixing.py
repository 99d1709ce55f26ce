"""Un-mixes frames into layers that "over", back to front, mixes again.

Colors are those of rendering (`rendering.py`): the model's color of a layer, plus the residual of the pixel. What
then lies outside of [0, 1] is distributed over the layers, so that all of them together still give the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.uv_maps import Maps
from neural_fields.imaging.push_pull import pull_push
from neural_fields.rendering.base import Canonicals, RenderPass
from neural_fields.rendering.compositor import PassChain
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.layer_decomposition import DEFAULTS as DECOMPOSITION
from neural_fields.rendering.layer_decomposition import LayerDecomposer, sample_canonical
from neural_fields.rendering.overlay_pass import DEFAULTS as OVERLAYS
from neural_fields.rendering.removal_pass import RemovalPass, hide_layers
from neural_fields.rendering.warp_pass import WarpPass

Frame = UInt8[np.ndarray, "height width 3"]
Rgb = Float[np.ndarray, "height width 3"]
Rgba = Float[np.ndarray, "height width 4"]  # straight
Planes = Float[np.ndarray, "layers height width"]
Colors = Float[np.ndarray, "layers height width 3"]


@dataclass(frozen=True)
class FrameUnmixer:
    """Un-mixes the frames of a run into layers.

    Attributes:
        maps: its baked maps.
        canonicals: the canonical pictures of its layers, front to back.
    """

    maps: Maps
    canonicals: Canonicals

    def unmix_frame(self, t: int, frame: Frame, model: bool = False) -> list[Rgba]:
        """Separates frame `t` into its layers, front to back; together they give the frame, or its reconstruction.

        The last layer continues behind the others, with the colors of its canonical picture, where some frame shows it.

        Args:
            t: number of the frame in the run.
            frame: at the size of the result.
            model: use the model's colors instead of the frame's.

        Returns:
            For each layer straight RGBA of the size of the frame.
        """
        size = (frame.shape[1], frame.shape[0])
        part = (slice(0, size[1]), slice(0, size[0]))
        weights, plain = FrameEdges(t, frame).read_weights(self.maps), frame / np.float32(255)
        apart = LayerDecomposer(self.maps, lambda t: self.canonicals)
        lit = np.stack([apart.lit_colors(t, layer, size, part) for layer in range(len(weights))]) / np.float32(255)
        missed = plain - (weights[..., None] * lit).sum(axis=0)
        colors = lit.clip(0, 1) if model else unmix_colors(lit + missed, weights, plain)
        alphas = compute_over_alphas(weights)
        clear, hidden = weights[-1] > DECOMPOSITION.min_known_weight, weights[-1] <= 0
        if clear.any() and hidden.any():
            behind = lit[-1] if model else lit[-1] + pull_push(missed, clear)
            colors[-1][hidden] = behind[hidden].clip(0, 1)
            uv = self.maps.read_uv(t, len(weights) - 1, size)[hidden]
            alphas[-1][hidden] = sample_canonical(*self.canonicals[-1], uv)[:, 3]
        return [join_rgba(*pair) for pair in zip(colors, alphas, strict=True)]


def compute_over_alphas(weights: Planes) -> Planes:
    """Computes the alphas, front to back, with which "over" mixes layers by their weights.

    They are 0 where the layers in front leave nothing.
    """
    left = 1 - np.cumsum(np.concatenate([np.zeros_like(weights[:1]), weights[:-1]]), axis=0)
    alphas = np.where(left > 1e-4, weights / np.maximum(left, 1e-4), 0).clip(0, 1)
    alphas[-1] = weights[-1] > 0  # nothing lies behind the last
    return alphas.astype(np.float32)


def unmix_colors(colors: Colors, weights: Planes, frame: Rgb) -> Colors:
    """Computes colors of layers in [0, 1] that mix to a frame, near colors that may lie beyond.

    What clipping removes from the mixture is given to the layers that have room for it. They always have enough: with
    all colors at one end of the range the mixture is at that end, and the frame is not beyond it.

    Args:
        colors: colors of the layers, of any range.
        weights: the share of each pixel that each layer fills.
        frame: the mixture.
    """
    inside, shares = colors.clip(0, 1), weights[..., None]
    rest = frame - (shares * inside).sum(axis=0)
    room = np.where(rest > 0, 1 - inside, -inside)
    total = (shares * room).sum(axis=0)
    used = np.divide(rest, total, out=np.zeros_like(rest), where=np.abs(total) > 1e-9)
    return (inside + room * used.clip(0, 1)).astype(np.float32)


def unmix_edited_frame(changer: RenderPass, t: int, source: Frame) -> list[Rgba]:
    """Separates a frame with edits into its layers, front to back.

    In pixels that layers share, the color of each is extrapolated from the pixels that it fills alone.

    Args:
        changer: renders the edits.
        t: number of the frame in the run.
        source: the frame without edits.

    Returns:
        For each layer straight RGBA of the size of the frame.
    """
    # The edited frame, and how much of each pixel each layer then fills.
    frame, edges = source, FrameEdges(t, source)
    *first, last = changer.passes if isinstance(changer, PassChain) else [changer]
    for step in first:
        frame = step.render_frame(t, frame, edges)
    if isinstance(last, WarpPass):
        frame, weights = last.deform_frame(t, frame, edges)
    else:
        maps = last.maps
        if isinstance(last, RemovalPass):
            maps = hide_layers(maps, {maps.layers[layer]: how for layer, how in last.hidden.items()})
        frame, weights = last.render_frame(t, frame, edges), edges.read_weights(maps)
    plain, alone = frame / np.float32(255), weights >= OVERLAYS.full_weight
    guess = np.stack([pull_push(plain, here) if here.any() else plain for here in alone])
    colors = unmix_colors(guess, weights, plain)
    return [join_rgba(*pair) for pair in zip(colors, compute_over_alphas(weights), strict=True)]


def join_rgba(color: Rgb, alpha: Float[np.ndarray, "height width"]) -> Rgba:
    """Joins colors and alpha to straight RGBA, black where alpha is 0."""
    return cv2.merge([*cv2.split(np.where(alpha[..., None] > 0, color, np.float32(0))), alpha])

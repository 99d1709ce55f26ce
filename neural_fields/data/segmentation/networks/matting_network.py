"""Soft edges by ViTMatte (Yao et al., 2023), through transformers: from a frame and a trimap to an opacity.

The network looks only at windows of the frame in which something is unknown, so that its memory does not grow with the
size of the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from neural_fields.data.segmentation.networks.load_network import load_network
from neural_fields.nn.pretrained import NetworkSource

EXAMPLE = "hustvl/vitmatte-small-composition-1k"
NETWORKS = {"vitmatte": ("VitMatteForImageMatting", "VitMatteImageProcessor")}  # classes in transformers
UNKNOWN = 128  # of a trimap; 0 is surely outside, 255 surely inside


@dataclass(frozen=True)
class MattingNetworkSettings:
    """Holds the settings of `MattingNetwork`."""

    window_px: int = 768  # largest side of what the network looks at at once: memory grows with its fourth power
    overlap_px: int = 96  # of neighboring windows, in which one fades into the other
    margin_px: int = 32  # known pixels around the unknown ones that the network is shown
    reference_side_px: int = 240  # lengths marked `_ref` are pixels of a frame whose shorter side is this long
    inner_band_ref: float = 3.0  # width of the unknown band inside the outline
    outer_band_ref: float = 6.0  # width of the band outside it; wider, as hair sticks out of masks
    known_shares: tuple[float, float] = (0.05, 0.95)  # pixels with a share between these are unknown


DEFAULTS = MattingNetworkSettings()


class MattingNetwork:
    """Computes the opacity of unknown pixels with a network.

    Args:
        source: the network, of the kind vitmatte.
        settings: sizes of windows.
    """

    def __init__(self, source: NetworkSource, settings: MattingNetworkSettings = DEFAULTS) -> None:
        self.source, self.settings = source, settings

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The processor and the network, loaded when they are first asked for.

        Raises:
            UserError: the network does not exist, is of another kind or cannot be read.
        """
        return load_network(self.source, NETWORKS, "for soft edges", EXAMPLE)

    def make_matte(
        self,
        frame: UInt8[np.ndarray, "height width 3"],
        share: UInt8[np.ndarray, "rows columns"] | Bool[np.ndarray, "rows columns"],
    ) -> UInt8[np.ndarray, "height width"]:
        """Computes the share of an object in each pixel of a frame.

        Args:
            frame: RGB.
            share: share of the object in each pixel, 0 to 255, or its mask; of any size.

        Returns:
            The matte, 0 to 255.
        """
        size = (frame.shape[1], frame.shape[0])
        given = cv2.resize(share.astype(np.float32) / (1 if share.dtype == bool else 255), size)
        inside = given >= 0.5
        if not inside.any() or inside.all():
            return inside.astype(np.uint8) * np.uint8(255)
        unit = max(1.0, min(size) / self.settings.reference_side_px)
        depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)
        height = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
        low, high = self.settings.known_shares
        known_inside = (depth > self.settings.inner_band_ref * unit) & (given >= high)
        known_outside = (height > self.settings.outer_band_ref * unit) & (given <= low)
        trimap = np.where(known_inside, 255, np.where(known_outside, 0, UNKNOWN)).astype(np.uint8)
        return np.rint(255 * self.compute_alpha(frame, trimap)).astype(np.uint8)

    def compute_alpha(
        self, frame: UInt8[np.ndarray, "height width 3"], trimap: UInt8[np.ndarray, "height width"]
    ) -> Float[np.ndarray, "height width"]:
        """Computes the opacity of an object.

        Args:
            frame: RGB.
            trimap: 255 surely the object, 0 surely not, anything between is unknown.

        Returns:
            0 to 1; exactly 0 and 1 where the trimap knows.
        """
        settings = self.settings
        unknown = (trimap > 0) & (trimap < 255)
        alpha = np.where(trimap == 255, 1.0, 0.0).astype(np.float32)
        total, weight = np.zeros_like(alpha), np.zeros_like(alpha)
        if not unknown.any():
            return alpha
        given = np.where(unknown, UNKNOWN, trimap).astype(np.uint8)
        spans = []
        for side, axis in zip(trimap.shape, (1, 0), strict=True):
            used = np.flatnonzero(unknown.any(axis=axis))
            first, last = max(0, used[0] - settings.margin_px), min(side, used[-1] + 1 + settings.margin_px)
            spans.append(split_span(int(first), int(last), settings.window_px, settings.overlap_px))
        processor, network = self.loaded
        for rows in spans[0]:
            for columns in spans[1]:
                if not unknown[rows, columns].any():
                    continue
                picture = np.array(frame[rows, columns])
                inputs = processor(images=picture, trimaps=given[rows, columns], return_tensors="pt")
                with torch.inference_mode():
                    alphas = network(**inputs.to(network.device)).alphas[0, 0]
                found = alphas[: len(picture), : picture.shape[1]].float().cpu().numpy()  # without the padding
                fades = [_fade(len(found), settings.overlap_px), _fade(found.shape[1], settings.overlap_px)]
                fade = np.outer(*fades).astype(np.float32)
                total[rows, columns] += fade * found
                weight[rows, columns] += fade
        alpha[unknown] = (total[unknown] / weight[unknown]).clip(0, 1)
        return alpha


def split_span(first: int, last: int, window: int, overlap: int) -> list[slice]:
    """Splits a span of pixels into windows of one size that overlap.

    Args:
        first: first pixel.
        last: pixel after the last one.
        window: largest length of a window, in pixels.
        overlap: least overlap of neighboring windows, in pixels.

    Example:
        >>> split_span(10, 110, 60, 20)
        [slice(10, 70, None), slice(50, 110, None)]
    """
    length = last - first
    if length <= window:
        return [slice(first, last)]
    count = -(-(length - overlap) // (window - overlap))
    starts = [first + round(place * (length - window) / (count - 1)) for place in range(count)]
    return [slice(start, start + window) for start in starts]


def _fade(length: int, overlap: int) -> Float[np.ndarray, " length"]:
    """Weights of the pixels of a window: 1 in its middle, less toward its ends."""
    ends = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(1.0, ends / max(1, overlap))

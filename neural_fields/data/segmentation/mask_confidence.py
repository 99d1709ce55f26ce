"""How sure the mask of an object is in one frame: about the IoU with the true mask that it can be expected to have.

A mask is in doubt where as much speaks against its pixels as for them, and where its outline lies on nothing: a true
outline separates colors or motions. Lengths are pixels of frames whose shorter side is 240.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8


@dataclass(frozen=True)
class MaskConfidenceSettings:
    """Holds the settings of `measure_confidence`. They were chosen so that it comes near the IoU."""

    believed_odds: float = 0.5  # share of log odds that is believed: what is added up is not independent
    expected_power: float = 0.5  # of the IoU that follows from them, beside the share of the outline on edges
    edge_levels: float = 8.0  # least difference of color across an edge, in 8-bit CIELAB, ...
    edge_share: float = 0.85  # ... and least share of the mean difference around it: texture is no edge
    around_px: int = 11  # side of the square in which that mean is taken
    edge_motion_px: float = 1.0  # a difference of motion from this is an edge too
    color_sigma_px: float = 1.0  # Gaussian of the colors that are compared


DEFAULTS = MaskConfidenceSettings()


def measure_confidence(
    mask: Bool[np.ndarray, "height width"],
    odds: Float[np.ndarray, "height width"],
    frame: UInt8[np.ndarray, "height width 3"],
    flow: Float[np.ndarray, "height width 2"],
    settings: MaskConfidenceSettings = DEFAULTS,
) -> float:
    """Measures how sure a mask is.

    Args:
        mask: the object.
        odds: log odds of the object, from which the mask was cut.
        frame: RGB.
        flow: to a neighboring frame, in pixels.
        settings: what counts as an edge.

    Returns:
        The confidence, 0 to 1; 0 for an empty mask.
    """
    if not mask.any():
        return 0.0
    share = 1 / (1 + np.exp(-settings.believed_odds * odds.clip(-60, 60)))
    expected = float(np.minimum(share, mask).sum() / np.maximum(share, mask).sum())
    colors = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
    colors = cv2.GaussianBlur(colors, (0, 0), settings.color_sigma_px).astype(np.float32)
    on_edge, length = 0, 0
    for a, b in ((np.s_[:, :-2], np.s_[:, 2:]), (np.s_[:-2], np.s_[2:])):
        outline = mask[a] != mask[b]
        difference = cv2.sqrt(cv2.transform(np.square(colors[a] - colors[b]), np.ones((1, 3))))
        least = settings.edge_share * cv2.blur(difference, 2 * (settings.around_px,))[outline]
        is_edge = difference[outline] > np.maximum(settings.edge_levels, least)
        is_edge |= np.linalg.norm(flow[a][outline] - flow[b][outline], axis=-1) > settings.edge_motion_px
        on_edge += int(is_edge.sum())
        length += len(is_edge)
    return expected**settings.expected_power * (on_edge / length if length else 1.0)

"""Outlines of masks: moved to where the colours change, and as soft as the picture is there.

In a narrow band around the outline, the colours of both sides nearby (mean and spread, in boxes, as Bai et al. 2009,
"Video SnapCut", do with mixtures) say how likely a pixel is the object's; the distance to the given outline says how
likely it was. Both add up in log odds. Where the two sides look alike, the given outline stands.

How soft an outline is, colours of one frame say badly: on textured surfaces the share that fits the mean colours of
both sides nearby is further from the truth than the mask. Once a model has pictures of its layers, what either side
shows in that very pixel is known.

Distances are pixels of a picture whose shorter side is 240; larger pictures have them in proportion.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

REFERENCE_SIDE = 240
BAND = 3.0  # half the width of the band around the outline
SURE = 2.0  # pixels this far from the outline teach the colours of their side
REACH = 5.0  # half the side of the box that colours are learnt in
LEAST_PIXELS = 10  # that must teach a side
SPREAD = 6.0  # least standard deviation of a side's colour, in CIELAB steps of 8-bit pictures: compression and noise
COLOUR_WEIGHT = 0.3  # neighbouring pixels repeat each other, so each says less than it seems to
MOST_ODDS = 6.0  # of one pixel's colour
SOFT = 2.0  # pixels to either side of an outline that may be part of both
EVIDENCE = 1.0  # pixels, Gaussian: how far around what colours say is weighed together
PRIOR = 0.05  # of a share against its colours: a picture of a layer is wrong by so much, squared, at its rim


def align_outline(
    frame: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """The mask with its outline moved by up to BAND pixels to where the colours of its two sides part."""
    if not mask.any() or mask.all():
        return mask
    unit = max(1.0, min(mask.shape) / REFERENCE_SIDE)
    distance = signed_distance(mask)
    inside, outside, lab = _sides(frame, distance, unit)
    odds = np.zeros(mask.shape, np.float32)
    for sign, (_, mean, spread) in ((1, outside), (-1, inside)):
        odds += sign * (((lab - mean) ** 2 / spread + np.log(spread)).sum(-1) / 2)
    known = (inside[0] >= LEAST_PIXELS) & (outside[0] >= LEAST_PIXELS)
    odds = cv2.GaussianBlur(np.where(known, odds, 0).clip(-MOST_ODDS, MOST_ODDS), (0, 0), 1.0)
    moved = distance / unit + COLOUR_WEIGHT * odds > 0
    return np.where(np.abs(distance) <= BAND * unit, moved, mask)


def near_outline(masks: Bool[Tensor, "*n height width"]) -> Bool[Tensor, "*n height width"]:
    """Pixels with both sides of a mask within SOFT pixels, in a square: there a pixel may be part of both."""
    height, width = masks.shape[-2:]
    reach = round(SOFT * max(1.0, min(height, width) / REFERENCE_SIDE))
    values = masks.reshape(-1, 1, height, width).float()

    def most(picture: Tensor) -> Tensor:
        across = F.max_pool2d(picture, (1, 2 * reach + 1), 1, (0, reach))
        return F.max_pool2d(across, (2 * reach + 1, 1), 1, (reach, 0))

    return (most(values) + most(1 - values) > 1).view(masks.shape)


def covered_share(
    rgb: Float[Tensor, "n 3"],
    front: Float[Tensor, "n 3"],
    behind: Float[Tensor, "n 3"],
    prior: Float[Tensor, " n"],
    band: Bool[Tensor, "height width"],
) -> Float[Tensor, " n"]:
    """How much of each pixel of a band (0 to 1) what is in front covers: the compositing equation, in least squares.

    Neighbours share what speaks against the prior: pixel by pixel outlines would be as rough as colours are noisy.

    Args:
        rgb: what the n pixels of the band show, 0 to 1.
        front, behind: what either side would show alone.
        prior: the share that stands where the two look alike.
    """
    step = front - behind
    missing = ((rgb - behind) * step).sum(-1) - prior * step.square().sum(-1)
    evidence = torch.zeros(*band.shape, 2)
    evidence[band] = torch.stack([missing, step.square().sum(-1)], -1)
    width = EVIDENCE * max(1.0, min(band.shape) / REFERENCE_SIDE)
    shared = torch.from_numpy(cv2.GaussianBlur(evidence.numpy(), (0, 0), width))[band]
    return (prior + shared[:, 0] / (PRIOR + shared[:, 1])).clamp(0, 1)


def signed_distance(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Distance of each pixel centre to the outline in pixels, positive inside."""
    inside, outside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (mask, ~mask))
    return np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float32)


def _sides(
    frame: np.ndarray, distance: np.ndarray, unit: float
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """(pixels, mean colour, variance) around every pixel on the object's side and on the other; the frame in CIELAB."""
    lab = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2LAB).astype(np.float32)
    least = SURE * unit
    box = (2 * max(1, round(REACH * unit)) + 1,) * 2

    def learn(where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = where.astype(np.float32)[..., None]
        count = cv2.boxFilter(weight, -1, box, normalize=False)
        least_one = np.maximum(count, 1)[..., None]
        mean = cv2.boxFilter(lab * weight, -1, box, normalize=False) / least_one
        square = cv2.boxFilter(lab * lab * weight, -1, box, normalize=False) / least_one
        return count, mean, np.maximum(square - mean * mean, 0) + SPREAD**2

    return learn(distance > least), learn(distance < -least), lab

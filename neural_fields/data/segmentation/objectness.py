"""Tells objects from what only moves: ripples, reflections, strips of sky or ground along the border of the frame.

An object lasts, is found again, and has an outline: colors differ there, and where it reaches the border of the frame,
motion too. A person whom the lower border cuts has such an outline on both sides and above; water that reaches the
border fades into other water. Lengths are pixels of frames whose shorter side is 240.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import mask_iou
from neural_fields.data.segmentation.motion_evidence import read_flow

Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class ObjectnessSettings:
    """Holds what makes an object. Shares of an outline are means over frames, each of at most 1."""

    # It lasts.
    min_agreement: float = 0.6  # mean IoU with masks of frames from which it was not followed
    min_confidence: float = 0.3  # of its look, mean over the clip
    min_seen_share: float = 0.1  # of the frames

    # It has an outline.
    gap_px: int = 1  # beside the outline, where colors and motions are mixed
    band_px: int = 5  # on each side of that, where they are compared, ...
    reach_px: float = 4.0  # ... by means under a Gaussian of this sigma along the outline
    color_step: float = 12.0  # difference of colors that makes an outline, in steps of 8-bit CIELAB
    min_closed_share: float = 0.5  # of the outline inside the frame that has such a difference

    # It is no strip along the border.
    max_border_share: float = 0.45  # of its outline that lies on the border of the frame
    free_border_share: float = 0.02  # with so much or less, an object counts as inside the frame; beyond that, a ...
    max_contact: float = 1.2  # ... further object is at least nearly as high over the border as its contact is long,
    motion_step_px: float = 1.0  # and moves apart from what is beside it, by so many pixels a frame, ...
    min_apart_share: float = 0.2  # ... along this share of its outline inside the frame


DEFAULTS = ObjectnessSettings()


@dataclass(frozen=True)
class Outline:
    """Describes the outline of a mask in a frame.

    Attributes:
        border_share: share of it that lies on the border of the frame.
        contact: length of that, in object sizes: square roots of the area.
        closed_share: share of the rest along which colors differ.
        apart_share: share of the rest along which motions differ.
    """

    border_share: float
    contact: float
    closed_share: float
    apart_share: float


def lasts(
    masks: Bool[np.ndarray, "time height width"],
    confidence: Float[np.ndarray, " time"],
    unused: Mapping[int, Mask],
    settings: ObjectnessSettings = DEFAULTS,
) -> bool:
    """Whether what was followed is seen long enough, keeps its look, and is found again where it is known to be.

    Args:
        masks: what was followed.
        confidence: of its look, 0 to 1.
        unused: masks of frames from which it was not followed.
        settings: thresholds.
    """
    seen = np.flatnonzero(masks.any((1, 2)))
    if len(seen) < settings.min_seen_share * len(masks) or confidence[seen].mean() < settings.min_confidence:
        return False
    agreements = [mask_iou(masks[number], mask) for number, mask in unused.items()]
    return not agreements or float(np.mean(agreements)) >= settings.min_agreement


def has_outline(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    masks: Mapping[int, Mask],
    is_first: bool,
    settings: ObjectnessSettings = DEFAULTS,
) -> bool:
    """Whether masks have the outline of an object, and are no strips along the border of the frame.

    Args:
        frames: RGB, 0 to 255.
        flow: of the clip, at the size of the frames.
        masks: by the number of their frames.
        is_first: whether nothing else was found. What moves most clearly may be wide along the border; what moves
            beside it is often its reflection, its waves or its shadow.
        settings: thresholds.
    """
    found = [measure_outline(frames, flow, number, mask, settings) for number, mask in masks.items() if mask.any()]
    if not found:
        return False
    border_share, contact, closed_share, apart_share = np.mean(
        [(line.border_share, line.contact, line.closed_share, line.apart_share) for line in found], axis=0
    )
    if border_share > settings.max_border_share or closed_share < settings.min_closed_share:
        return False
    if is_first or border_share <= settings.free_border_share:
        return True
    return bool(contact <= settings.max_contact and apart_share >= settings.min_apart_share)


def measure_outline(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    number: int,
    mask: Mask,
    settings: ObjectnessSettings = DEFAULTS,
) -> Outline:
    """Measures the outline of a mask.

    Args:
        frames: RGB, 0 to 255.
        flow: of the clip, at the size of the frames.
        number: of the frame that the mask is of.
        mask: what may be an object; not empty.
        settings: what counts as different.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    outline = mask & (cv2.erode(padded, np.ones((3, 3), np.uint8)) == 0)[1:-1, 1:-1]
    on_border = outline.copy()
    on_border[1:-1, 1:-1] = False
    border_px, outline_px, area_px = int(on_border.sum()), int(outline.sum()), int(mask.sum())
    contact = border_px / np.sqrt(area_px)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    room = settings.gap_px + settings.band_px + round(2 * settings.reach_px)
    window = tuple(slice(max(0, int(part[0]) - room), int(part[-1]) + 1 + room) for part in (rows, columns))
    mask, line = mask[window], (outline & ~on_border)[window]

    # Means of the colors and of the motions near each pixel, on both sides of the outline.
    sides = []
    for side in (mask, ~mask):
        depth = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 3)
        sides.append((depth > settings.gap_px) & (depth <= settings.gap_px + settings.band_px))
    weights = [cv2.GaussianBlur(side.astype(np.float32), (0, 0), settings.reach_px) for side in sides]
    line &= (weights[0] > 0.02) & (weights[1] > 0.02)  # thin parts have no inside to compare
    if not line.any():
        return Outline(border_px / outline_px, contact, 0.0, 0.0)
    lab = cv2.cvtColor(np.ascontiguousarray(frames[number][window]), cv2.COLOR_RGB2LAB).astype(np.float32)
    flows = [read_flow(flow, number, to)[0][window] for to in (1, -1) if 0 <= number + to < len(frames)]
    steps = []
    for values in (lab, *flows):
        means = [
            cv2.GaussianBlur(values * side[..., None], (0, 0), settings.reach_px)[line] / weight[line][:, None]
            for side, weight in zip(sides, weights, strict=True)
        ]
        steps.append(np.linalg.norm(means[0] - means[1], axis=1))
    apart = np.max(steps[1:], axis=0) > settings.motion_step_px
    return Outline(border_px / outline_px, contact, float((steps[0] > settings.color_step).mean()), float(apart.mean()))

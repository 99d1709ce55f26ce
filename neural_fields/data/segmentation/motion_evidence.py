"""What motion says about an object: pixels that move like the background do not belong to it, others may.

All lengths are pixels of frames whose shorter side is 240.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.data.flow.compute import FlowField
from neural_fields.imaging.ransac import find_transform

Vectors = Float[np.ndarray, "height width 2"]
Share = Float[np.ndarray, "height width"]


@dataclass(frozen=True)
class MotionEvidenceSettings:
    """Holds the settings of motion evidence."""

    trust_tolerance_px: float = 1.0  # error of a flow vector followed back, at which its trust falls to 1/e
    trust_tolerance_share: float = 0.1  # added to that, as a share of the vector's length
    grid_step_px: int = 8  # between flow vectors to which the background's homography is fitted
    margin_px: int = 4  # around the object, where flow is not the background's alone
    min_vectors: int = 20  # least flow vectors of the background, and of the object
    fit_tolerance_px: float = 1.5  # largest error of a flow vector that agrees with a transform
    background_error_px: float = 0.6  # error of flow in the background, ...
    background_error_share: float = 0.08  # ... and what is added for its motion: parallax, as a share of its length
    min_motion: float = 1.5  # the object moves if its median vector differs by so many such errors
    object_error: float = 1.5  # a vector so many such errors from the object's motion is hardly the object's
    min_object_share: float = 0.6  # share of the object in a pixel that counts for its motion
    max_vectors: int = 1500  # of the object, to which its affine motion is fitted
    rigid_tolerance_px: float = 1.0  # largest error of a vector that a rigid object explains


DEFAULTS = MotionEvidenceSettings()


@dataclass(frozen=True)
class MotionEvidence:
    """Holds what motion says about the pixels of a frame.

    Attributes:
        background: how surely each pixel moves with the background, 0 to 1; 0 where the object stands still.
        object: how surely each pixel moves with the object and not with the background, 0 to 1.
        is_moving: whether the object moves against the background.
        rigidity: share of the object whose motion is that of one affine transform, 0 to 1; 0 where it stands still.
    """

    background: Share
    object: Share
    is_moving: bool
    rigidity: float


def compute_trust(flow: Vectors, reverse: Vectors, settings: MotionEvidenceSettings = DEFAULTS) -> Share:
    """Computes how far flow can be trusted: 1 where following it and its reverse leads back, 0 outside the frame.

    Args:
        flow: from one frame to the other, in pixels.
        reverse: from the other frame back, in pixels.
        settings: the tolerance.
    """
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    back = cv2.remap(reverse, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) + flow
    error = np.hypot(back[..., 0], back[..., 1])
    tolerance = settings.trust_tolerance_px + settings.trust_tolerance_share * np.hypot(flow[..., 0], flow[..., 1])
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    return (np.exp(-np.square(error / tolerance)) * inside).astype(np.float32)


def read_trusted_flow(
    flow: FlowField, number: int, to: int, settings: MotionEvidenceSettings = DEFAULTS
) -> tuple[Vectors, Share]:
    """Reads the flow of a frame to a neighbor, and how far it can be trusted.

    Args:
        flow: of the clip.
        number: of the frame.
        to: 1 for the next frame, -1 for the one before.
        settings: the tolerance.
    """
    pair = number if to > 0 else number - 1
    vectors, reverse = [np.asarray(part[pair], np.float32) for part in (flow.forward, flow.backward)][::to]
    return vectors, compute_trust(vectors, reverse, settings)


def warp_backward(values: np.ndarray, flow: Vectors) -> np.ndarray:
    """Samples values of another frame where the flow of each pixel leads to; 0 outside."""
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def transform_flow(matrix: Float[np.ndarray, "3 3"], size: tuple[int, int]) -> Vectors:
    """Returns the flow of all pixels (width, height) under a transform of pixel positions."""
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
    a = matrix.astype(np.float32)
    scale = a[2, 0] * x + a[2, 1] * y + a[2, 2]
    right, down = a[0, 0] * x + a[0, 1] * y + a[0, 2], a[1, 0] * x + a[1, 1] * y + a[1, 2]
    return np.dstack([right / scale - x, down / scale - y])


def fit_affine_motion(
    where: Bool[np.ndarray, "height width"], flow: Vectors, settings: MotionEvidenceSettings = DEFAULTS
) -> Float[np.ndarray, "3 3"] | None:
    """Fits an affine transform of pixel positions to the flow of some pixels.

    Args:
        where: the pixels.
        flow: from the frame to another one, in pixels.
        settings: of the fit.

    Returns:
        The transform of homogeneous positions; None where there are too few pixels, or none is found.
    """
    rows, columns = np.nonzero(where)
    if len(rows) < settings.min_vectors:
        return None
    step = max(1, len(rows) // settings.max_vectors)
    start = np.stack([columns[::step], rows[::step]], -1).astype(np.float32)
    return find_transform(start, start + flow[rows[::step], columns[::step]], "affine", settings.fit_tolerance_px)


def measure_departure(
    flow: Vectors, beyond: Bool[np.ndarray, "height width"], settings: MotionEvidenceSettings = DEFAULTS
) -> tuple[Share, Share] | None:
    """Measures how far the flow of each pixel is from the background's, which is that of a homography.

    Args:
        flow: from the frame to another one, in pixels.
        beyond: the pixels that may be background.
        settings: of the fit.

    Returns:
        The distance in usual errors of the background's flow, and such an error in pixels; None where no homography
        is found.
    """
    height, width = beyond.shape
    margin, step = settings.margin_px, settings.grid_step_px
    rows, columns = np.mgrid[margin:height:step, margin:width:step].reshape(2, -1)
    used = beyond[rows, columns]
    rows, columns = rows[used], columns[used]
    if len(rows) < settings.min_vectors:
        return None
    start = np.stack([columns, rows], -1).astype(np.float32)
    matrix = find_transform(start, start + flow[rows, columns], "homography", settings.fit_tolerance_px, 200)
    if matrix is None:
        return None
    expected = transform_flow(matrix, (width, height))
    error_px = settings.background_error_px + settings.background_error_share * np.hypot(*np.moveaxis(expected, 2, 0))
    return np.hypot(*np.moveaxis(flow - expected, 2, 0)) / error_px, error_px


def weigh_motion(
    flows: Sequence[tuple[Vectors, Share]],
    share: Share,
    window: tuple[slice, slice],
    settings: MotionEvidenceSettings = DEFAULTS,
) -> MotionEvidence:
    """Weighs the flow to neighboring frames: does a pixel move with the background or with the object?

    What a frame uncovers has no trusted flow to the frame before, but to the one after: so both are asked.

    Args:
        flows: flow from this frame to others with its trust, the frame before (in the order of work) first.
        share: expected share of the object in each pixel.
        window: rows and columns of the frame that are asked for.
        settings: tolerances.

    Returns:
        The evidence, of the size of the window.
    """
    height, width = share.shape
    expected = share > 0.5
    side = 2 * settings.margin_px + 1
    beyond = cv2.dilate(expected.astype(np.uint8), np.ones((side, side), np.uint8)) == 0
    shape = share[window].shape
    background, own, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    is_moving, rigidity = False, 0.0
    for number, (flow, trust) in enumerate(flows):
        departure = measure_departure(flow, beyond, settings)
        if departure is None:
            continue
        away, tolerance = departure
        sure = (share > settings.min_object_share) & (trust > 0.3)
        if sure.sum() < settings.min_vectors or np.median(away[sure]) < settings.min_motion:
            continue
        background += trust[window] * np.exp(-np.square(away[window]))
        weight += trust[window]
        affine = fit_affine_motion(sure, flow, settings)
        if affine is None:
            continue
        error = np.hypot(*np.moveaxis(flow - transform_flow(affine, (width, height)), 2, 0))
        agreeing = float((error[sure] < settings.rigid_tolerance_px).mean())
        if number == 0:
            is_moving = True
            rigidity = agreeing * float((trust[share > settings.min_object_share] > 0.3).mean())
        near = np.exp(-np.square(error[window] / tolerance[window] / settings.object_error))
        own += agreeing * trust[window] * near * (1 - np.exp(-np.square(away[window] / 2)))
    scale = np.minimum(weight, 1) / np.maximum(weight, 1e-3)
    return MotionEvidence(background * scale, own * scale, is_moving, rigidity)

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
Window = tuple[slice, slice]  # rows and columns
WindowShare = Float[np.ndarray, "rows columns"]
WHOLE = (slice(None), slice(None))


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


def compute_trust(
    flow: Vectors, reverse: Vectors, settings: MotionEvidenceSettings = DEFAULTS, window: Window = WHOLE
) -> WindowShare:
    """Computes how far flow can be trusted: 1 where following it and its reverse leads back, 0 outside the frame.

    Args:
        flow: from one frame to the other, in pixels.
        reverse: from the other frame back, in pixels.
        settings: the tolerance.
        window: rows and columns that are asked for; the result has their size.
    """
    height, width = flow.shape[:2]
    flow = flow[window]
    x, y = _follow(flow, window)
    back = cv2.remap(reverse, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) + flow
    tolerance = settings.trust_tolerance_px + settings.trust_tolerance_share * measure_length(flow)
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    return np.exp(-np.square(measure_length(back) / tolerance)) * inside


def measure_length(vectors: Vectors) -> Share:
    """Returns the length of each vector."""
    return cv2.magnitude(*cv2.split(vectors))


def _follow(flow: Vectors, window: Window) -> tuple[Share, Share]:
    """Returns the columns and the rows where the flow of the pixels of a window leads to."""
    height, width = flow.shape[:2]
    top, left = window[0].start or 0, window[1].start or 0
    x = flow[..., 0] + np.arange(left, left + width, dtype=np.float32)
    return x, flow[..., 1] + np.arange(top, top + height, dtype=np.float32)[:, None]


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
    vectors, reverse = read_flow(flow, number, to)
    return vectors, compute_trust(vectors, reverse, settings)


def read_flow(flow: FlowField, number: int, to: int) -> tuple[Vectors, Vectors]:
    """Reads the flow of a frame to a neighbor, and the neighbor's flow back.

    Args:
        flow: of the clip.
        number: of the frame.
        to: 1 for the next frame, -1 for the one before.
    """
    pair = number if to > 0 else number - 1
    vectors, reverse = [np.asarray(part[pair], np.float32) for part in (flow.forward, flow.backward)][::to]
    return vectors, reverse


def warp_backward(values: np.ndarray, flow: Vectors) -> np.ndarray:
    """Samples values of another frame where the flow of each pixel leads to; 0 outside."""
    return cv2.remap(values, *_follow(flow, WHOLE), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def transform_flow(matrix: Float[np.ndarray, "3 3"], window: Window) -> Vectors:
    """Returns the flow of the pixels of a window under a transform of pixel positions."""
    y, x = (np.arange(part.start, part.stop, dtype=np.float32) for part in window)
    y = y[:, None]
    a = matrix.astype(np.float32)
    scale = a[2, 0] * x + a[2, 1] * y + a[2, 2]
    right, down = a[0, 0] * x + a[0, 1] * y + a[0, 2], a[1, 0] * x + a[1, 1] * y + a[1, 2]
    return cv2.merge([right / scale - x, down / scale - y])


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
    flow: Vectors,
    beyond: Bool[np.ndarray, "height width"],
    settings: MotionEvidenceSettings = DEFAULTS,
    window: Window = WHOLE,
) -> tuple[WindowShare, WindowShare] | None:
    """Measures how far the flow of each pixel is from the background's, which is that of a homography.

    Args:
        flow: from the frame to another one, in pixels.
        beyond: the pixels that may be background.
        settings: of the fit.
        window: rows and columns that are asked for; the results have their size.

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
    top, bottom, _ = window[0].indices(height)
    left, right, _ = window[1].indices(width)
    expected = transform_flow(matrix, (slice(top, bottom), slice(left, right)))
    error_px = settings.background_error_px + settings.background_error_share * measure_length(expected)
    return measure_length(flow[window] - expected) / error_px, error_px


def weigh_motion(
    flows: Sequence[tuple[Vectors, WindowShare]],
    share: Share,
    window: tuple[slice, slice],
    settings: MotionEvidenceSettings = DEFAULTS,
) -> MotionEvidence:
    """Weighs the flow to neighboring frames: does a pixel move with the background or with the object?

    What a frame uncovers has no trusted flow to the frame before, but to the one after: so both are asked.

    Args:
        flows: flow from this frame to others, the frame before (in the order of work) first; each with its trust in
            the window.
        share: expected share of the object in each pixel.
        window: rows and columns of the frame that are asked for; the object is inside.
        settings: tolerances.

    Returns:
        The evidence, of the size of the window.
    """
    side = 2 * settings.margin_px + 1
    beyond = cv2.dilate((share > 0.5).astype(np.uint8), np.ones((side, side), np.uint8)) == 0
    within = share[window] > settings.min_object_share
    inner = (slice(0, within.shape[0]), slice(0, within.shape[1]))
    background, own, weight = np.zeros((3, *within.shape), np.float32)
    is_moving, rigidity = False, 0.0
    for number, (flow, trust) in enumerate(flows):
        departure = measure_departure(flow, beyond, settings, window)
        if departure is None:
            continue
        away, tolerance = departure
        sure = within & (trust > 0.3)
        if sure.sum() < settings.min_vectors or np.median(away[sure]) < settings.min_motion:
            continue
        background += trust * np.exp(-np.square(away))
        weight += trust
        affine = fit_affine_motion(sure, flow[window], settings)
        if affine is None:
            continue
        error = measure_length(flow[window] - transform_flow(affine, inner))
        agreeing = float((error[sure] < settings.rigid_tolerance_px).mean())
        if number == 0:
            is_moving = True
            rigidity = agreeing * float((trust[within] > 0.3).mean())
        near = np.exp(-np.square(error / tolerance / settings.object_error))
        own += agreeing * trust * near * (1 - np.exp(-np.square(away / 2)))
    scale = np.minimum(weight, 1) / np.maximum(weight, 1e-3)
    return MotionEvidence(background * scale, own * scale, is_moving, rigidity)

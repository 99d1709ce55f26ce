"""Transforms of the plane fitted to matched points, robust against outliers (OpenCV)."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Shaped


def find_transform(
    start: Shaped[np.ndarray, "points ..."],
    end: Shaped[np.ndarray, "points ..."],
    kind: str,
    tolerance: float,
    max_iterations: int = 1000,
    confidence: float = 0.995,
) -> Float[np.ndarray, "3 3"] | None:
    """Fits a transform to matched points: a homography by MAGSAC (Barath et al. 2019), the others by RANSAC.

    Args:
        start: points [n, 2] or [n, 1, 2], in any unit.
        end: the points that they are matched with, in the same unit.
        kind: homography, affine or similarity.
        tolerance: matches further off than this, in the unit of the points, are outliers.
        max_iterations: samples that are tried for a homography; the others have OpenCV's 2000.
        confidence: at which a homography ends sooner, in (0, 1); the others have OpenCV's 0.99.

    Returns:
        The transform of homogeneous points; None where none is found, or the points are too few for its kind.
    """
    if len(start) < {"homography": 4, "affine": 3, "similarity": 2}[kind]:
        return None
    if kind == "homography":
        found, _ = cv2.findHomography(
            start, end, cv2.USAC_MAGSAC, tolerance, maxIters=max_iterations, confidence=confidence
        )
        return found
    estimate = cv2.estimateAffine2D if kind == "affine" else cv2.estimateAffinePartial2D
    found, _ = estimate(start, end, method=cv2.RANSAC, ransacReprojThreshold=tolerance)
    return None if found is None else np.vstack([found, [0, 0, 1]])


def find_transform_or_identity(
    start: Shaped[np.ndarray, "points ..."], end: Shaped[np.ndarray, "points ..."], kind: str, tolerance: float
) -> Float[np.ndarray, "3 3"]:
    """Fits a transform like `find_transform`, which has the same arguments; returns the identity where none is found.

    Args:
        start: positions (x, y), in the unit of `tolerance`.
        end: where these points move to.
        kind: "homography", "affine" or "similarity".
        tolerance: largest distance of a point that counts as an inlier.

    Returns:
        A matrix for homogeneous coordinates.
    """
    found = find_transform(start, end, kind, tolerance)
    return np.eye(3) if found is None else found

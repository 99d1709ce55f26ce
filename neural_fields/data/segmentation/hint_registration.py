"""The mask of the hinted frame itself, carried to a frame far from it by registering the two frames.

Masks that are passed on from frame to frame add up their errors; where the object still looks as it did when the user
pointed at it, the hinted mask itself says where its outline is. An affine transform of the object is followed from
frame to frame, and corrected by optical flow between the frame and the hinted frame warped by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.data.segmentation.motion_evidence import (
    MotionEvidenceSettings,
    fit_affine_motion,
    warp_backward,
)


@dataclass(frozen=True)
class RegistrationSettings:
    """Holds the settings of `HintRegistration`. Lengths are pixels of frames whose shorter side is 240."""

    light_sigma_px: float = 6.0  # differences of light wider than this do not count
    difference_sigma_px: float = 2.0  # Gaussian that averages differences
    difference_levels: float = 8.0  # difference of gray, 0 to 255, at which the trust falls to 1/e
    max_correction_px: float = 8.0  # correction of the transform by flow at which the trust falls to 1/e
    min_trust: float = 0.4  # of pixels to which the transform is fitted again
    min_unchanged_share: float = 0.5  # of the object that must match without correction for it to have kept its shape
    min_side_px: int = 16  # smaller windows are not registered
    motion: MotionEvidenceSettings = field(default_factory=MotionEvidenceSettings)


class HintRegistration:
    """Follows the object of a hinted frame.

    Args:
        frame: the hinted frame, RGB.
        mask: share of the object in its pixels, 0 to 1.
        settings: tolerances.
    """

    def __init__(
        self,
        frame: UInt8[np.ndarray, "height width 3"],
        mask: Float[np.ndarray, "height width"],
        settings: RegistrationSettings | None = None,
    ) -> None:
        self.settings = settings or RegistrationSettings()
        self._gray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        self._mask = mask
        self._to_hint: np.ndarray | None = np.eye(3)  # pixels of the frame reached so far to those of the hinted one
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def advance(
        self,
        frame: UInt8[np.ndarray, "height width 3"],
        flow: Float[np.ndarray, "height width 2"],
        trust: Float[np.ndarray, "rows columns"],
        share: Float[np.ndarray, "height width"],
        window: tuple[slice, slice],
    ) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "rows columns"]] | None:
        """Carries the hinted mask one frame further.

        Args:
            frame: RGB.
            flow: from this frame to the one before, in the order of work.
            trust: of the flow, in the window.
            share: expected share of the object in each pixel.
            window: rows and columns of the frame in which the object is looked for; it is inside.

        Returns:
            The hinted mask in the window, 0 to 1, and how far it can be trusted, 0 to 1. None once the object is lost.
        """
        settings = self.settings
        chosen = np.zeros(share.shape, bool)
        chosen[window] = (share[window] > 0.5) & (trust > 0.3)
        step = fit_affine_motion(chosen, flow, settings.motion)
        if step is None or self._to_hint is None:
            self._to_hint = None
            return None
        to_hint = self._to_hint @ step
        self._to_hint = to_hint
        rows, columns = window
        size = (columns.stop - columns.start, rows.stop - rows.start)
        if min(size) < settings.min_side_px:
            return None
        corner = np.array([[1, 0, columns.start], [0, 1, rows.start], [0, 0, 1]], float)
        matrix = (to_hint @ corner)[:2]
        flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        gray = cv2.cvtColor(np.ascontiguousarray(frame[window]), cv2.COLOR_RGB2GRAY)
        hinted = cv2.warpAffine(self._gray, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        mask = cv2.warpAffine(self._mask, matrix, size, flags=flags)
        correction = self._flow.calc(gray, hinted, None)
        found, sure = self._compare(gray, hinted, mask, correction)
        # What has kept its shape matches without correction, too; at thin parts the correction is of the background.
        plain, plain_sure = self._compare(gray, hinted, mask, np.zeros_like(correction))
        inside = (plain > 0.5) & (share[window] > 0.5) & (trust > 0.3)
        if inside.any() and (plain_sure[inside] > 0.5).mean() > settings.min_unchanged_share:
            found, sure = np.where(plain_sure > sure, plain, found), np.maximum(plain_sure, sure)
        # The transform again, from what the correction found.
        chosen = (share[window] > 0.5) & (found > 0.5) & (sure > settings.min_trust)
        fitted = fit_affine_motion(chosen, correction, settings.motion)
        if fitted is not None:
            self._to_hint = to_hint @ corner @ fitted @ np.linalg.inv(corner)
        return found, sure.astype(np.float32)

    def _compare(
        self, gray: np.ndarray, hinted: np.ndarray, mask: np.ndarray, correction: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moves the hinted mask by a correction; returns it, and how well its frame matches in each pixel, 0 to 1."""
        settings = self.settings
        difference = warp_backward(hinted.astype(np.float32), correction) - gray
        difference -= cv2.GaussianBlur(difference, (0, 0), settings.light_sigma_px)
        difference = cv2.GaussianBlur(np.abs(difference), (0, 0), settings.difference_sigma_px)
        sure = np.exp(-np.square(difference / settings.difference_levels))
        sure = sure * np.exp(-np.square(correction).sum(2) / settings.max_correction_px**2)
        return warp_backward(mask, correction), sure

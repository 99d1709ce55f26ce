"""Stands for what finds objects: takes boxes and masks as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from neural_fields.core.progress import ProgressReporter
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.segmentation.segmenter import ClipSegmentation, FrameHints, ObjectSegmenter


class BoxSegmenter(ObjectSegmenter):
    """Finds in every frame what is in the box or the mask of the first hinted frame."""

    def __init__(self, confidence: tuple[float, ...] | None = None, problem: BaseException | None = None) -> None:
        self.confidence = confidence
        self.problem = problem
        self.asked: list[list[str]] = []

    def segment(
        self,
        frames: np.ndarray,
        flow: FlowField,
        objects: Mapping[str, Mapping[int, FrameHints]],
        report: ProgressReporter,
    ) -> ClipSegmentation:
        self.asked.append(list(objects))
        if self.problem is not None:
            raise self.problem
        shares = np.zeros((len(objects), *frames.shape[:3]), np.uint8)
        for index, hints in enumerate(objects.values()):
            whole = [hint for _, hint in sorted(hints.items()) if hint.box is not None or hint.mask is not None]
            hint = whole[0] if whole else hints[min(hints)]
            if hint.box is not None:
                left, top, right, bottom = hint.box
                shares[index, :, top:bottom, left:right] = 255
            elif hint.mask is not None:
                shares[index, :, hint.mask] = 255
        sure = np.array(self.confidence or [1.0] * len(frames))
        return ClipSegmentation(tuple(objects), shares, np.tile(sure, (len(objects), 1)), ("as the boxes say",))

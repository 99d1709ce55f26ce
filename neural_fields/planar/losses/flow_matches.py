"""Points that optical flow matches with a neighboring frame, for losses along the flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.data.dataset import Batch


@dataclass(frozen=True)
class FlowMatches:
    """Holds the points of a batch that optical flow matches with a neighboring frame."""

    row: Int[Tensor, " m"]  # which points of the batch
    xyt: Float[Tensor, "m 3"]  # where they are in the other frame
    forward: bool  # the other frame is the next one, not the one before


def find_flow_matches(batch: Batch) -> list[FlowMatches]:
    """Finds the reliable matches of a batch's points in the next and in the previous frame.

    Args:
        batch: points of a clip.

    Returns:
        The forward and the backward matches; empty for a clip without flow.
    """
    clip = batch.clip
    if clip.flow is None:
        return []
    (width, height), (flow_width, flow_height) = clip.size, clip.flow.size
    scale = np.array([width / flow_width, height / flow_height], np.float32)  # the flow may be stored smaller
    position = batch.positions
    t, row, column = position.numpy().T
    found = []
    for step, forward in ((1, True), (-1, False)):
        # Displacements in pixels of the clip at the batch's points, and where they are trusted.
        vectors, trusted = clip.flow.forward, clip.flow.forward_ok
        if not forward:
            vectors, trusted = clip.flow.backward, clip.flow.backward_ok
        pair = t if forward else t - 1
        exists = (pair >= 0) & (pair < len(vectors))
        place = (pair.clip(0, len(vectors) - 1), row * flow_height // height, column * flow_width // width)
        vector = torch.from_numpy(np.asarray(vectors[place], np.float32) * scale)
        ok = torch.from_numpy(np.asarray(trusted[place]) & exists)
        # The points that are found again.
        kept = ok.nonzero()[:, 0]
        xy = position[kept][:, [2, 1]] + 0.5 + vector[kept]
        found.append(FlowMatches(kept, batch.normalize_positions(xy, position[kept, 0] + step), forward))
    return found

"""A start for the skinning volume from masks alone: where each bone carries nothing, because nobody was seen there.

The visual hull (Laurentini 1994) of every bone by itself: a place at rest that a bone takes through the views falls on
the person in nearly all of them, or the person has nothing there on that bone. Closed form, and soft: masks have
errors, poses too, and what hides the person in some views takes nothing away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from neural_fields.data.capture import Capture, state_at
from neural_fields.volume.body import Skinning

MOST_VIEWS = 64  # evenly chosen ones say as much as all
# Share of the views on the person: below the first number a bone keeps `LEAST`, above the second all of its prior.
GONE, KEPT = 0.5, 0.9
LEAST = 0.02


def carve(skinning: Skinning, capture: Capture, views: Sequence[int] | None = None) -> None:
    """Makes the prior of each bone smaller where what it carries would be seen outside the masks.

    Args:
        views: those that may be looked at; by default all.
    """
    views = list(range(capture.view_count)) if views is None else list(views)
    if capture.masks is None or capture.motion is None or not views:
        return
    chosen = [views[i] for i in np.unique(np.linspace(0, len(views) - 1, MOST_VIEWS).round().astype(int))]
    share = torch.tensor(_shares(skinning, capture, chosen), dtype=torch.float32)
    skinning.lessen(((share - GONE) / (KEPT - GONE)).clamp(LEAST, 1).to(skinning.prior))


def _shares(skinning: Skinning, capture: Capture, views: Sequence[int]) -> Float[np.ndarray, "bones z y x"]:
    """Share of the views in which each bone's voxels fall on the person; 1 where no picture shows them.

    What is carried changes its shape with its state: it may be where it is in any one of them.
    """
    assert capture.motion is not None
    points = skinning.voxels().double().cpu().numpy()
    prior = skinning.prior[:-1].cpu().numpy().reshape(skinning.bones, -1)
    shares = np.ones_like(prior)
    states = np.array([state_at(capture.switches, capture.times[view]) for view in views])
    for bone in range(skinning.bones):
        reached = np.flatnonzero(prior[bone])
        shown, hit = (np.stack(side) for side in zip(*_counts(capture, views, bone, points[reached]), strict=True))
        groups = [np.ones(len(views), bool)]
        if bone in capture.motion.skeleton.objects:
            groups = [states == state for state in np.unique(states)]
        found = [np.where(shown[g].any(0), hit[g].sum(0) / np.maximum(shown[g].sum(0), 1), 1.0) for g in groups]
        shares[bone, reached] = np.max(found, axis=0)
    return shares.reshape(skinning.bones, *skinning.prior.shape[1:])


def _counts(
    capture: Capture, views: Sequence[int], bone: int, points: Float[np.ndarray, "points 3"]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each view, which points of a bone are in the picture, and which of them on the person."""
    assert capture.motion is not None and capture.masks is not None
    found = []
    for view in views:
        placed = capture.motion.transforms[capture.times[view], bone]
        pixels, _, inside = capture.cameras[view].project(points @ placed[:3, :3].T + placed[:3, 3])
        hit = np.zeros(len(points), bool)
        columns, rows = pixels[inside].astype(int).T
        hit[inside] = capture.masks[view][rows, columns]
        found.append((inside, hit))
    return found

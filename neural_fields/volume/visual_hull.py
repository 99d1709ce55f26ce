"""A start for the skinning volume from masks alone: a bone carries nothing where its points fall outside the masks.

The visual hull (Laurentini 1994) of every bone by itself: a place at rest that a bone takes through the views falls on
the person in nearly all of them, or the person has nothing there on that bone. Closed form, and soft: masks have
errors, poses too, and what hides the person in some views takes nothing away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neural_fields.data.capture.capture import Capture, find_object_state
from neural_fields.volume.skinning import SkinningVolume


@dataclass(frozen=True)
class CarvingSettings:
    """Settings of the visual hull."""

    max_views: int = 64  # evenly chosen ones say as much as all
    min_person_share: float = 0.5  # of the views on the person: below, the prior is scaled by `min_prior_scale`
    full_person_share: float = 0.9  # of the views on the person: above, the prior stays
    min_prior_scale: float = 0.02


DEFAULTS = CarvingSettings()


def carve_prior(
    skinning: SkinningVolume, capture: Capture, views: Sequence[int] | None = None, settings: CarvingSettings = DEFAULTS
) -> None:
    """Scales the prior of each bone down where the points that it carries would be seen outside the masks.

    Args:
        skinning: whose prior is changed in place.
        capture: cameras, masks and bones; without masks or bones nothing is changed.
        views: the views to use; by default all.
        settings: of the visual hull.
    """
    views = list(range(capture.view_count)) if views is None else list(views)
    if capture.masks is None or capture.motion is None or not views:
        return
    chosen = [views[i] for i in np.unique(np.linspace(0, len(views) - 1, settings.max_views).round().astype(int))]
    states = np.array([find_object_state(capture.switches, capture.times[view]) for view in chosen])
    points = skinning.voxel_centers().double().cpu().numpy()
    prior = skinning.prior[:-1].cpu().numpy().reshape(skinning.bones, -1)
    # Share of the views in which each bone's voxels fall on the person; 1 where no picture shows them.
    shares = np.ones_like(prior)
    for bone in range(skinning.bones):
        reached = np.flatnonzero(prior[bone])
        visible = np.zeros((len(chosen), len(reached)), bool)
        on_person = np.zeros_like(visible)
        for index, view in enumerate(chosen):
            transform = capture.motion.transforms[capture.times[view], bone]
            world = points[reached] @ transform[:3, :3].T + transform[:3, 3]
            pixels, _, inside = capture.cameras[view].project_points(world)
            columns, rows = pixels[inside].astype(int).T
            visible[index] = inside
            on_person[index, inside] = capture.masks[view][rows, columns]
        # A carried object changes its shape with its state: it may be where it is in any one of them.
        groups = [np.ones(len(chosen), bool)]
        if bone in capture.motion.skeleton.object_joints:
            groups = [states == state for state in np.unique(states)]
        in_groups = []
        for group in groups:
            count = visible[group].sum(0)
            in_groups.append(np.where(visible[group].any(0), on_person[group].sum(0) / np.maximum(count, 1), 1.0))
        shares[bone, reached] = np.max(in_groups, axis=0)
    share = torch.tensor(shares.reshape(skinning.bones, *skinning.prior.shape[1:]), dtype=torch.float32)
    low, high = settings.min_person_share, settings.full_person_share
    skinning.scale_prior(((share - low) / (high - low)).clamp(settings.min_prior_scale, 1).to(skinning.prior))

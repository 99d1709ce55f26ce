"""All losses of 3D scenes, and their weights."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from neural_fields.volume.background_losses import (
    CLEARANCE,
    COLOR,
    DISTORTION,
    INTERLEVEL,
    OPACITY,
    BackgroundLossWeights,
)
from neural_fields.volume.human_losses import CYCLE, FLOW, MASK, OFFSET, POSE, PersonLossWeights
from neural_fields.volume.loss import SceneLossInputs

SCENE_LOSSES = (COLOR, INTERLEVEL, DISTORTION, OPACITY, CLEARANCE, MASK, CYCLE, FLOW, OFFSET, POSE)


@dataclass(frozen=True)
class VolumeLossWeights(PersonLossWeights, BackgroundLossWeights):
    """Holds the weights of all losses; a loss of weight 0 is not computed."""


def compute_scene_losses(weights: VolumeLossWeights, inputs: SceneLossInputs) -> dict[str, Float[Tensor, ""]]:
    """Computes the losses that are active in a step, times their weights; training minimizes their sum.

    Args:
        weights: of all losses.
        inputs: of the step.

    Returns:
        The weighted losses by name, in the order of the table.
    """
    active = [loss for loss in SCENE_LOSSES if loss.is_active(weights, inputs)]
    return {loss.name: loss.compute_weighted(weights, inputs) for loss in active}

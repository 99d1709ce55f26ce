"""Losses of the person: masks, optical flow, the cycle of backward and forward skinning, and sizes of corrections.

HOSNeRF (Liu et al. 2023), section 3.4. N rays, S samples of a ray, K samples of the person that were evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neural_fields.volume.human import PersonModel, PersonSamples
from neural_fields.volume.loss import SceneLoss, SceneLossInputs, SceneLossWeightGroup
from neural_fields.volume.rays import Rays
from neural_fields.volume.skinning import SkinningVolume


@dataclass(frozen=True)
class PersonLossWeights(SceneLossWeightGroup):
    """Holds the weights of the losses of the person."""

    mask: float = 0.05  # cross-entropy of the person's opacity against the masks; a tenth of it from half of the stage
    flow: float = 0.003  # distance in pixels between the person's motion by flow and by bones; 0.01 in the paper
    cycle: float = 0.01  # skinning back and forth leads to the same place; the paper's weight
    offset: float = 1.0  # squared length of the pose-dependent offset, in units of the body's span
    pose: float = 3.0  # mean square of the poses' corrections


@dataclass(frozen=True)
class MaskLossSettings:
    """Sets how the weight of the masks falls."""

    sure_share: float = 0.5  # of the person's stage in which masks count in full
    late_factor: float = 0.1  # of their weight after that: their outlines are not exact


DEFAULTS = MaskLossSettings()


def mask_loss(opacity: Float[Tensor, " rays"], mask: Bool[Tensor, " rays"]) -> Float[Tensor, ""]:
    """Computes the binary cross-entropy of the opacities against the masks.

    Args:
        opacity: of the rays, 0 to 1.
        mask: whether the pixels show the person.
    """
    margin = 1e-4  # an opacity is never surer than this: the loss stays finite
    sure = opacity.clamp(margin, 1 - margin)
    return torch.nn.functional.binary_cross_entropy(sure, mask.to(sure))


def flow_loss(
    skinning: SkinningVolume,
    samples: PersonSamples,
    weights: Float[Tensor, "rays samples"],
    target_rays: Rays,
    valid: Bool[Tensor, " rays"],
    transforms: Float[Tensor, "moments bones 4 4"],
    focal: float,
) -> Float[Tensor, ""]:
    """Computes the distance in pixels between samples and their optical flow at another moment, weighted by visibility.

    Forward skinning takes the samples to the moment of `target_rays`. The paper projects them and compares pixels. Here
    it is the distance from the ray of the matched pixel, divided by the depth and multiplied by the focal length: on
    the optical axis that is the same for every lens, and it works without a lens model and behind the camera.

    Args:
        skinning: of the person.
        samples: the samples, with the skinning weights that were used.
        weights: rendering weights of the samples of the person, after merging where there is a background.
        target_rays: rays of the pixels that the flow leads to, one for each ray.
        valid: rays whose flow can be trusted.
        transforms: bones, rest to world.
        focal: focal length in pixels.
    """
    chosen = valid[samples.ray].nonzero()[:, 0]
    ray = samples.ray[chosen]
    there = skinning.skin_forward(samples.weights, samples.rest[chosen], target_rays.time[ray], transforms).points
    towards = there - target_rays.origin[ray]
    ahead = (towards * target_rays.direction[ray]).sum(dim=1)
    aside = (towards - ahead[:, None] * target_rays.direction[ray]).square().sum(dim=1)
    pixels = focal * (aside + 1e-12).sqrt() / ahead.abs().clamp_min(1e-6)
    amount = weights.reshape(-1)[samples.slot[chosen]]
    return (amount * pixels).sum() / valid.sum().clamp_min(1)


def cycle_loss(
    skinning: SkinningVolume, samples: PersonSamples, transforms: Float[Tensor, "moments bones 4 4"], span: float
) -> Float[Tensor, ""]:
    """Computes half the squared distance between samples and their positions after backward and forward skinning.

    Args:
        skinning: of the person.
        samples: the samples, with the skinning weights that were used.
        transforms: bones, rest to world.
        span: of the body in world units: the unit of the distance.
    """
    back = skinning.skin_forward(samples.weights, samples.rest, samples.moment, transforms).points
    return ((back - samples.world) / span).square().sum(dim=1).mean() / 2 if len(back) else back.sum()


def offset_loss(samples: PersonSamples, span: float) -> Float[Tensor, ""]:
    """Computes the mean square of the offsets; 0 while none are computed.

    Args:
        samples: of the person.
        span: of the body in world units: the unit of the offsets.
    """
    if samples.offset is None or not len(samples.offset):
        return samples.likelihood.new_zeros(())
    return (samples.offset / span).square().sum(dim=1).mean()


# --- in a step ------------------------------------------------------------------------------------------------------


def _require_person(at: SceneLossInputs) -> tuple[PersonModel, PersonSamples, Float[Tensor, "moments bones 4 4"]]:
    """Returns the person, and its samples and bones in the rendering of a step."""
    person, samples, bones = at.scene.person, at.rendering.person_samples, at.rendering.bones
    assert person is not None and samples is not None and bones is not None, "the person was rendered"
    return person, samples, bones


def mask_weight_factor(at: SceneLossInputs, settings: MaskLossSettings = DEFAULTS) -> float:
    """Returns the factor on the weight of the masks in a step.

    Args:
        at: inputs of the step.
        settings: of its fall.
    """
    return 1.0 if at.stage == "person" and at.progress < settings.sure_share else settings.late_factor


def _cycle_loss_of_step(at: SceneLossInputs) -> Float[Tensor, ""]:
    person, samples, bones = _require_person(at)
    return cycle_loss(person.skinning, samples, bones, person.offset.span)


def _flow_loss_of_step(at: SceneLossInputs) -> Float[Tensor, ""]:
    person, samples, bones = _require_person(at)
    assert at.flow is not None and at.rendering.weights is not None, "the person was rendered"
    target_rays, valid = at.flow
    # Flow teaches which bone carries what. Through the weights it would only make the person transparent; through the
    # poses it would move those of moments that no training view shows, by the errors of the flow.
    weights, bones = at.rendering.weights.detach(), bones.detach()
    return flow_loss(person.skinning, samples, weights, target_rays, valid, bones, at.focal)


def _flow_weight_factor(at: SceneLossInputs) -> Float[Tensor, ""]:
    """Returns the share of the rays whose flow can be trusted."""
    assert at.flow is not None
    return at.flow[1].float().mean()


def _offset_loss_of_step(at: SceneLossInputs) -> Float[Tensor, ""]:
    person, samples, _ = _require_person(at)
    return offset_loss(samples, person.offset.span)


def _pose_loss_of_step(at: SceneLossInputs) -> Float[Tensor, ""]:
    assert at.rendering.pose_change is not None, "the person was rendered"
    return at.rendering.pose_change


MASK = SceneLoss(
    "mask",
    lambda at: mask_loss(
        at.rendering.opacity if at.stage == "person" else at.rendering.person_opacity, at.batch.person
    ),
    stages=("person", "joint"),
    factor=mask_weight_factor,
)
CYCLE = SceneLoss("cycle", _cycle_loss_of_step, stages=("person", "joint"))
FLOW = SceneLoss("flow", _flow_loss_of_step, stages=("person", "joint"), factor=_flow_weight_factor, flow=True)
OFFSET = SceneLoss("offset", _offset_loss_of_step, stages=("person", "joint"), offsets=True)
POSE = SceneLoss("pose", _pose_loss_of_step, stages=("person", "joint"))

"""Losses of the person: colors, masks, optical flow, and the cycle of backward and forward skinning.

HOSNeRF (Liu et al. 2023), section 3.4. N rays, S samples of a ray, K samples of the person that were evaluated.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from neural_fields.data.capture.cameras import Camera
from neural_fields.volume.human import PersonSamples
from neural_fields.volume.rays import Rays, camera_rays
from neural_fields.volume.skinning import SkinningVolume


def color_term(
    rendered: Float[Tensor, "rays 3"],
    target: Float[Tensor, "rays 3"],
    mask: Bool[Tensor, " rays"],
    behind: Float[Tensor, "3"],
) -> Float[Tensor, ""]:
    """Computes the mean squared error of the person over a plain color, against the masked picture over that color.

    Args:
        rendered: the person rendered over `behind`, RGB.
        target: colors of the pixels, RGB in [0, 1].
        mask: whether a pixel shows the person.
        behind: the plain color, a new one in each step: otherwise the field might learn the background's colors instead
            of being transparent there.
    """
    return (rendered - torch.where(mask[:, None], target, behind)).square().mean()


def mask_term(opacity: Float[Tensor, " rays"], mask: Bool[Tensor, " rays"]) -> Float[Tensor, ""]:
    """Computes the binary cross-entropy of the opacities against the masks.

    Args:
        opacity: of the rays, 0 to 1.
        mask: whether the pixels show the person.
    """
    margin = 1e-4  # an opacity is never surer than this: the loss stays finite
    sure = opacity.clamp(margin, 1 - margin)
    return torch.nn.functional.binary_cross_entropy(sure, mask.to(sure))


def flow_rays(camera: Camera, other: Camera, flow: Float[NDArray, "height width 2"], time: int) -> Rays:
    """Computes the rays of another view through the pixels that optical flow matches with those of this view.

    Args:
        camera: of the view itself.
        other: camera of the view that the flow leads to.
        flow: from this view to the other, in pixels.
        time: moment of the other view.

    Returns:
        The rays on the CPU, row by row.
    """
    columns, rows = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    pixels = np.stack([columns, rows], axis=-1) + flow
    return camera_rays(other, pixels.reshape(-1, 2), time)


def flow_term(
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


def cycle_term(
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


def offset_term(samples: PersonSamples, span: float) -> Float[Tensor, ""]:
    """Computes the mean square of the offsets; 0 while none are computed.

    Args:
        samples: of the person.
        span: of the body in world units: the unit of the offsets.
    """
    if samples.offset is None or not len(samples.offset):
        return samples.likelihood.new_zeros(())
    return (samples.offset / span).square().sum(dim=1).mean()

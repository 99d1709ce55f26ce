"""Losses of the person: colors, masks, flow, and skinning that leads back to where it came from.

HOSNeRF (Liu et al. 2023), section 3.4. N rays, S samples of a ray, K samples of the person that were looked up.
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
    """Computes the mean squared error of the person before one color, against the picture cut out by the mask.

    Args:
        rendered: the rendered person before `behind`.
        target: colors of the pixels in [0, 1].
        mask: whether a pixel shows the person.
        behind: another color every step: else the field may paint the background instead of leaving it open.
    """
    return (rendered - torch.where(mask[:, None], target, behind)).square().mean()


def mask_term(opacity: Float[Tensor, " rays"], mask: Bool[Tensor, " rays"]) -> Float[Tensor, ""]:
    """Computes the binary cross entropy of the opacities against the masks."""
    margin = 1e-4  # an opacity is never surer than this: the loss stays finite
    sure = opacity.clamp(margin, 1 - margin)
    return torch.nn.functional.binary_cross_entropy(sure, mask.to(sure))


def flow_rays(
    camera: Camera, other: Camera, flow: Float[NDArray, "height width 2"], time: int, device: torch.device | None = None
) -> Rays:
    """Computes the rays of another view along which it sees the points that the pixels of this view show, row by row.

    Args:
        camera: of the view itself.
        other: camera of the view that the flow leads to.
        flow: in pixels, from the view to the other.
        time: moment of the view that the flow leads to.
        device: of the rays.
    """
    columns, rows = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    pixels = np.stack([columns, rows], axis=-1) + flow
    return camera_rays(other, pixels.reshape(-1, 2), time, device)


def flow_term(
    skinning: SkinningVolume,
    samples: PersonSamples,
    weights: Float[Tensor, "rays samples"],
    target_rays: Rays,
    valid: Bool[Tensor, " rays"],
    transforms: Float[Tensor, "moments bones 4 4"],
    focal: float,
) -> Float[Tensor, ""]:
    """Computes how far samples are from where the flow sees them at another moment, in pixels, weighted by visibility.

    The samples go forward to the bones of `seen.time`, which is the moment that the flow leads to and no other. The
    paper projects them and compares pixels. Here the distance from the ray of the flow's pixel, over the depth and
    times the focal length, is the same on the axis of every lens, needs no model of any, and has no fold behind the
    camera.

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
    """Computes half the squared distance between samples and where skinning back and forth puts them.

    Args:
        skinning: of the person.
        samples: the samples, with the skinning weights that were used.
        transforms: bones, rest to world.
        span: of the body in world units: the unit of the distance.
    """
    back = skinning.skin_forward(samples.weights, samples.rest, samples.moment, transforms).points
    return ((back - samples.world) / span).square().sum(dim=1).mean() / 2 if len(back) else back.sum()


def offset_term(samples: PersonSamples, span: float) -> Float[Tensor, ""]:
    """Computes the mean square of the offsets, in spans of the body; 0 while none is computed."""
    if samples.offset is None or not len(samples.offset):
        return samples.likelihood.new_zeros(())
    return (samples.offset / span).square().sum(dim=1).mean()

"""Samples a canonical picture for several frames, and merges several frames into a canonical picture.

Sampling is bilinear, as in rendering. Its transpose splats each pixel onto the four texels around it; where several
pixels meet, a texel takes their weighted mean or, over frames, their weighted median (StableVideo, Chai et al., ICCV
2023, 3.3, merges its keyframes by the median of atlases). Both are softer than the input, because a texel between
pixels mixes them. Alternating between the two and adding the residual (iterative back-projection, Irani and Peleg,
1991) converges to the picture that reproduces all pixels best.

Values may have any channels: colors, the latents of a diffusion model, premultiplied paint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from editors.inputs.merging_settings import DEFAULTS, FrameMergingSettings
from neural_fields.core import coords
from neural_fields.core.box import Box


@dataclass(frozen=True)
class TexelFootprints:
    """Holds the positions of the pixels of several frames in one canonical picture.

    Attributes:
        texels: texel coordinates (x, y); the center of the texel in row i and column j is (j + 0.5, i + 0.5).
        weight: weight of each pixel, in [0, 1]; 0 if the pixel shows something else.
        size: (width, height) of the canonical picture in texels.
    """

    texels: Float[Tensor, "n rows columns 2"]
    weight: Float[Tensor, "n rows columns"]
    size: tuple[int, int]

    def to(self, device: torch.device) -> TexelFootprints:
        """Moves the footprints to another device."""
        return TexelFootprints(self.texels.to(device), self.weight.to(device), self.size)


@dataclass(frozen=True)
class MergedFrames:
    """Holds several frames merged into one picture.

    Attributes:
        values: the merged values; 0 where no frame shows the texel.
        weight: visibility of each texel in pixels, summed over the frames; 0 where no frame shows it.
        spread: weighted mean over the frames of the distance from `values`, in the channel where it is largest.
    """

    values: Float[Tensor, "channels height width"]
    weight: Float[Tensor, "height width"]
    spread: Float[Tensor, "height width"]

    @property
    def seen_mask(self) -> Bool[Tensor, "height width"]:
        """Texels that at least one frame shows."""
        return self.weight > 0

    def find_conflicts(self, limit: float) -> Bool[Tensor, "height width"]:
        """Finds texels where the frames disagree by more than `limit`, in the units of `values`."""
        return self.seen_mask & (self.spread > limit)


def sample_frames(
    values: Float[Tensor, "channels height width"], footprints: TexelFootprints
) -> Float[Tensor, "n channels rows columns"]:
    """Samples a canonical picture bilinearly for every frame; its edges are replicated.

    Args:
        values: the canonical picture.
        footprints: positions of the frames' pixels in it.
    """
    width, height = footprints.size
    image = values[None].expand(len(footprints.texels), -1, -1, -1)
    return coords.sample_canonical(image, Box(0.0, 0.0, float(width), float(height)), footprints.texels.to(values))


def splat_each_frame(
    values: Float[Tensor, "n channels rows columns"],
    footprints: TexelFootprints,
    settings: FrameMergingSettings = DEFAULTS,
) -> tuple[Float[Tensor, "n channels height width"], Float[Tensor, "n height width"]]:
    """Splats each frame into a separate canonical picture.

    Args:
        values: the frames.
        footprints: positions of their pixels in the canonical picture.
        settings: least weight of a pixel.

    Returns:
        One picture per frame, 0 where the frame shows nothing, and the visibility of each texel in pixels.
    """
    width, height = footprints.size
    n, channels = values.shape[:2]
    texels = footprints.texels.reshape(n, -1, 2) - 0.5
    corner = texels.floor()
    part = texels - corner
    flat = torch.cat([values, torch.ones_like(values[:, :1])], dim=1).reshape(n, channels + 1, -1)
    total = flat.new_zeros(n, channels + 1, height * width)
    for right in (0, 1):
        for below in (0, 1):
            x, y = corner[..., 0] + right, corner[..., 1] + below
            share = (
                (1 - right - part[..., 0]).abs() * (1 - below - part[..., 1]).abs() * footprints.weight.reshape(n, -1)
            )
            share = share * ((x >= 0) & (x < width) & (y >= 0) & (y < height))
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            total.scatter_add_(2, index[:, None].expand(-1, channels + 1, -1), flat * share.to(flat)[:, None])
    weight = total[:, channels]
    known = weight > settings.min_weight
    mean = torch.where(known[:, None], total[:, :channels] / weight.clamp(min=settings.min_weight)[:, None], 0)
    return mean.view(n, channels, height, width), (weight * known).view(n, height, width)


def splat_frames(
    values: Float[Tensor, "n channels rows columns"],
    footprints: TexelFootprints,
    settings: FrameMergingSettings = DEFAULTS,
) -> MergedFrames:
    """Merges frames by their weighted mean in every texel.

    Args:
        values: the frames.
        footprints: positions of their pixels in the canonical picture.
        settings: least weight of a pixel.
    """
    each, weight = splat_each_frame(values, footprints, settings)
    total = weight.sum(dim=0)
    mean = (each * weight[:, None]).sum(dim=0) / total.clamp(min=settings.min_weight)
    return MergedFrames(mean, total, _compute_spread(each, weight, mean, settings))


def merge_frames(
    values: Float[Tensor, "n channels rows columns"],
    footprints: TexelFootprints,
    settings: FrameMergingSettings = DEFAULTS,
) -> MergedFrames:
    """Merges frames by their weighted median in every texel, without losing sharpness.

    A frame that disagrees with the others leaves no trace as long as the others weigh more: residuals are merged by the
    median as well. Texels stay within the range of the pixels around them, which prevents ringing where few pixels are
    visible.

    Args:
        values: the frames.
        footprints: positions of their pixels in the canonical picture.
        settings: rounds of back-projection, and weights.
    """
    each, weight = splat_each_frame(values, footprints, settings)
    found = compute_weighted_median(each, weight, settings)
    first = MergedFrames(found, weight.sum(dim=0), _compute_spread(each, weight, found, settings))

    # The range of the pixels in and next to each texel, and a little more; zero where there are none.
    width, height = footprints.size
    column, row = (footprints.texels[..., axis].floor().long() for axis in (0, 1))
    known = (footprints.weight > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (row * width + column)[known].expand(values.shape[1], -1)
    pixels = values.movedim(1, 0)[:, known]
    ends = []
    for sign in (-1, 1):  # the smallest, the largest
        empty = values.new_full((values.shape[1], height * width), -torch.inf)
        most = empty.scatter_reduce(1, index, sign * pixels, "amax").view(1, -1, height, width)
        around = sign * max_pool2d(most, 3, stride=1, padding=1)[0]
        ends.append(torch.where(around.isfinite(), around, 0.0))
    slack = settings.range_slack * (ends[1] - ends[0])
    low, high = ends[0] - slack, ends[1] + slack

    for _ in range(settings.rounds):
        rest, _ = splat_each_frame(values - sample_frames(found, footprints), footprints, settings)
        found = torch.where(
            first.seen_mask, (found + compute_weighted_median(rest, weight, settings)).clamp(low, high), 0
        )
    return MergedFrames(found, first.weight, first.spread)


def fit_canonical(
    values: Float[Tensor, "n channels rows columns"],
    footprints: TexelFootprints,
    settings: FrameMergingSettings = DEFAULTS,
) -> Float[Tensor, "channels height width"]:
    """Computes the canonical picture whose samples are nearest to all frames (weighted least squares).

    The result is linear in the values.

    Args:
        values: the frames.
        footprints: positions of their pixels in the canonical picture.
        settings: rounds of back-projection.
    """
    found = splat_frames(values, footprints, settings).values
    for _ in range(settings.rounds):
        found = found + splat_frames(values - sample_frames(found, footprints), footprints, settings).values
    return found


def project_to_canonical(
    values: Float[Tensor, "n channels rows columns"],
    footprints: TexelFootprints,
    settings: FrameMergingSettings = DEFAULTS,
) -> Float[Tensor, "n channels rows columns"]:
    """Projects frames onto the nearest frames that one canonical picture can show.

    Args:
        values: the frames.
        footprints: positions of their pixels in the canonical picture; pixels without weight stay unchanged.
        settings: rounds of back-projection.
    """
    seen = sample_frames(fit_canonical(values, footprints, settings), footprints)
    return values + footprints.weight[:, None].to(values) * (seen - values)


def compute_weighted_median(
    values: Float[Tensor, "n channels height width"],
    weight: Float[Tensor, "n height width"],
    settings: FrameMergingSettings = DEFAULTS,
) -> Float[Tensor, "channels height width"]:
    """Computes the weighted median over the frames, per channel: half of the weight is on either side.

    With fewer than `min_votes` frames there is no majority; then it returns the weighted mean.

    Args:
        values: values of each frame.
        weight: weights of each frame, at least 0.
        settings: least weight of a frame, and least number of frames.

    Returns:
        The median; 0 where there is no weight.

    Example:
        >>> values = torch.tensor([0.1, 0.2, 0.9]).reshape(3, 1, 1, 1)
        >>> round(compute_weighted_median(values, torch.ones(3, 1, 1)).item(), 3)
        0.2
    """
    total = weight.sum(dim=0)
    mean = (values * weight[:, None]).sum(dim=0) / total.clamp(min=settings.min_weight)
    order = values.argsort(dim=0)
    ranked = values.gather(0, order)
    share = weight[:, None].expand_as(values).gather(0, order).cumsum(dim=0)
    half = total / 2
    # Of an even number of equals there are two in the middle; rounding must not decide between them.
    slack = settings.tie_share * total
    lower = ranked.gather(0, (share < half - slack).sum(dim=0, keepdim=True).clamp(max=len(values) - 1))[0]
    upper = ranked.gather(0, (share <= half + slack).sum(dim=0, keepdim=True).clamp(max=len(values) - 1))[0]
    robust = (weight > settings.min_weight).sum(dim=0) >= settings.min_votes
    return torch.where(robust, (lower + upper) / 2, mean)


def _compute_spread(
    each: Float[Tensor, "n channels height width"],
    weight: Float[Tensor, "n height width"],
    merged: Float[Tensor, "channels height width"],
    settings: FrameMergingSettings,
) -> Float[Tensor, "height width"]:
    off = (each - merged).abs().amax(dim=1)
    return (off * weight).sum(dim=0) / weight.sum(dim=0).clamp(min=settings.min_weight)

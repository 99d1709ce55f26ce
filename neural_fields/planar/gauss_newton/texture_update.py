"""The step of a layer's texture that a pass over the frames gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def solve_texture_step(
    sums: Float[Tensor, "4 rows columns"],
    image: Float[Tensor, "3 rows columns"],
    smoothness: float,
    stiffness: float,
    damping: float = 0.05,
    iterations: int = 4,
) -> Float[Tensor, "3 rows columns"]:
    """Solves for the change of a texture, by conjugate gradients.

    The matrix of a bilinear lookup is taken to be that of pixels that lie evenly between the texels: the average of a
    texel and its neighbors with 1/8, 3/4, 1/8 along both axes, scaled by the weights of the texels.

    Args:
        sums: the gradient of the colors, and the weight of each texel.
        image: the texture.
        smoothness: weight of squared steps between neighboring texels, as a share of the weight of the texels.
        stiffness: weight of squared steps and of squared bends, in pixels that show a texel. Steps: what frames hardly
            show is as smooth as its surroundings. Bends: pixels between texels see a checkered texture as a plain one,
            and would let it grow.
        damping: added to the weights (Levenberg and Marquardt): texels of which frames say next to nothing stay.
        iterations: of conjugate gradients.
    """
    weight = sums[3]
    root = weight.sqrt()
    kernel = torch.tensor([1 / 8, 3 / 4, 1 / 8], device=sums.device)

    def difference(values: Tensor) -> Tensor:
        """Multiplies with the matrix of squared steps and bends."""
        result = torch.zeros_like(values)
        for axis in (1, 2):
            length = values.shape[axis] - 1
            share = weight.narrow(axis - 1, 1, length) + weight.narrow(axis - 1, 0, length)
            step = values.diff(dim=axis).mul_(share.mul_(smoothness / 2).add_(stiffness))
            result.narrow(axis, 1, length).add_(step)
            result.narrow(axis, 0, length).sub_(step)
            bend = values.diff(n=2, dim=axis).mul_(stiffness)
            for offset, factor in enumerate((1, -2, 1)):
                result.narrow(axis, offset, length - 1).add_(bend, alpha=factor)
        return result

    def multiply(values: Tensor) -> Tensor:
        scaled = (values * root)[:, None]
        scaled = F.conv2d(scaled, kernel.view(1, 1, 3, 1), padding=(1, 0))
        scaled = F.conv2d(scaled, kernel.view(1, 1, 1, 3), padding=(0, 1))[:, 0]
        return (scaled * root).add_(difference(values)).add_(values, alpha=damping)

    rest = sums[:3] - difference(image)
    diagonal = weight * (9 / 16 + 4 * smoothness) + damping + 16 * stiffness
    inverse = torch.where(weight > 1e-6, 1 / diagonal.clamp_min(1e-12), 0)
    step = torch.zeros_like(rest)
    direction = rest * inverse
    energy = (rest * direction).sum()
    for _ in range(iterations):
        image_of = multiply(direction)
        length = energy / ((direction * image_of).sum() + 1e-20)
        step.add_(length * direction)
        rest.sub_(length * image_of)
        conditioned = rest * inverse
        before, energy = energy, (rest * conditioned).sum()
        direction = conditioned.add_(energy / (before + 1e-20) * direction)
    return step

"""The step of a layer's texture that a pass over the frames gives."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.nn.compiled_loops import can_compile_loops


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
    across, down = (
        (weight.narrow(axis, 1, weight.shape[axis] - 1) + weight.narrow(axis, 0, weight.shape[axis] - 1))
        .mul_(smoothness / 2)
        .add_(stiffness)
        for axis in (1, 0)
    )

    def multiply(values: Tensor) -> Tensor:
        return add_steps(values, across, down, stiffness, blur_lookups(values, root, damping))

    rest = sums[:3] - add_steps(image, across, down, stiffness, torch.zeros_like(image))
    diagonal = weight * (9 / 16 + 4 * smoothness) + damping + 16 * stiffness
    inverse = torch.where(weight > 1e-6, 1 / diagonal.clamp_min(1e-12), 0)
    step = torch.zeros_like(rest)
    direction = rest * inverse
    energy = (rest * direction).sum()
    for _ in range(iterations):
        image_of = multiply(direction)
        length = float(energy / ((direction * image_of).sum() + 1e-20))
        step.add_(direction, alpha=length)
        rest.sub_(image_of, alpha=length)
        conditioned = torch.mul(rest, inverse, out=image_of)
        before, energy = energy, (rest * conditioned).sum()
        direction = conditioned.add_(direction, alpha=float(energy / (before + 1e-20)))
    return step


def blur_lookups(
    values: Float[Tensor, "channel rows columns"], root: Float[Tensor, "rows columns"], damping: float
) -> Float[Tensor, "channel rows columns"]:
    """Multiplies texels with the matrix of their lookups, and adds them times the damping.

    Args:
        values: of the texels.
        root: root of the weight of each.
        damping: factor of the values themselves.
    """
    if _is_compiled(values):
        from neural_fields.planar.gauss_newton.solver_kernels import blur_texels  # numba takes a second

        result = torch.empty_like(values)
        blur_texels(values.numpy(), root.numpy(), np.float32(damping), result.numpy())
        return result
    kernel = torch.tensor([1 / 8, 3 / 4, 1 / 8], device=values.device)
    scaled = F.conv2d((values * root)[:, None], kernel.view(1, 1, 3, 1), padding=(1, 0))
    scaled = F.conv2d(scaled, kernel.view(1, 1, 1, 3), padding=(0, 1))[:, 0]
    return (scaled * root).add_(values, alpha=damping)


def add_steps(
    values: Float[Tensor, "channel rows columns"],
    across: Float[Tensor, "rows columns-1"],
    down: Float[Tensor, "rows-1 columns"],
    stiffness: float,
    result: Float[Tensor, "channel rows columns"],
) -> Float[Tensor, "channel rows columns"]:
    """Adds the product of texels with the matrix of squared steps and bends.

    Args:
        values: of the texels.
        across: weight of each step to the next texel of a row.
        down: weight of each step to the next row.
        stiffness: weight of the bends.
        result: added to, and returned.
    """
    if _is_compiled(values):
        from neural_fields.planar.gauss_newton.solver_kernels import add_texel_steps  # numba takes a second

        weights = across.contiguous().numpy(), down.contiguous().numpy()
        add_texel_steps(values.numpy(), *weights, np.float32(stiffness), result.numpy())
        return result
    for axis, share in ((2, across), (1, down)):
        length = values.shape[axis] - 1
        step = values.diff(dim=axis).mul_(share)
        result.narrow(axis, 1, length).add_(step)
        result.narrow(axis, 0, length).sub_(step)
        bend = values.diff(n=2, dim=axis).mul_(stiffness)
        for offset, factor in enumerate((1, -2, 1)):
            result.narrow(axis, offset, length - 1).add_(bend, alpha=factor)
    return result


def _is_compiled(values: Tensor) -> bool:
    return values.device.type == "cpu" and can_compile_loops()

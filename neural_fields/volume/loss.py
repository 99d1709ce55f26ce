"""The definition of a loss of a 3D scene: a function, its weight, and the stages and values that it needs.

`background_losses.py` and `human_losses.py` hold the functions, a dataclass of their weights, whose comments say what
each loss measures and in which unit, and a `SceneLoss` for each of them. `loss_table.py` joins the files; losses are
computed and added in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_fields.volume.ray_batches import RayBatch
from neural_fields.volume.rays import Rays
from neural_fields.volume.scene import Scene, SceneRendering

StageName = Literal["background", "person", "joint"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)  # in the order of the training


@dataclass(frozen=True)
class SceneLossWeightGroup:
    """Holds the weights of the losses of a file. A weight has the name of its loss, and 0 turns the loss off."""


@dataclass(frozen=True)
class SceneLossInputs:
    """Holds the inputs of the losses in a training step.

    Attributes:
        scene: the trained scene.
        batch: the rays of the step.
        state: of the carried object, for each ray.
        target: the colors that the rays should have, RGB in [0, 1].
        rendering: of the rays.
        stage: the stage of the training.
        progress: share of the stage that is done, 0 to 1.
        generator: of all that is random in the step.
        focal: mean focal length of the views, in pixels.
        flow: the rays of another moment that optical flow leads to, and where the flow can be trusted; None without
            flow.
    """

    scene: Scene
    batch: RayBatch
    state: Int[Tensor, " rays"]
    target: Float[Tensor, "rays 3"]
    rendering: SceneRendering
    stage: StageName
    progress: float
    generator: torch.Generator
    focal: float = 1.0
    flow: tuple[Rays, Bool[Tensor, " rays"]] | None = None


@dataclass(frozen=True)
class SceneLoss:
    """Describes a loss: its name, which is also the name of its weight, its function and its requirements.

    Example:
        >>> SceneLoss("opacity", lambda at: (1 - at.rendering.opacity).mean(), stages=("background",)).stages
        ('background',)
    """

    name: str
    compute: Callable[[SceneLossInputs], Float[Tensor, ""]]  # without its weight
    stages: tuple[StageName, ...] = STAGE_NAMES  # in which it is computed
    factor: Callable[[SceneLossInputs], float | Float[Tensor, ""]] | None = None  # on its weight, in a step
    flow: bool = False  # follows optical flow
    offsets: bool = False  # looks at the pose-dependent offsets, which start during the person's stage

    def is_active(self, weights: SceneLossWeightGroup, inputs: SceneLossInputs) -> bool:
        """Tells whether the loss is computed in a step.

        Args:
            weights: of all losses.
            inputs: of the step.
        """
        samples = inputs.rendering.person_samples
        return (
            bool(getattr(weights, self.name))
            and inputs.stage in self.stages
            and (inputs.flow is not None or not self.flow)
            and ((samples is not None and samples.offset is not None) or not self.offsets)
        )

    def compute_weighted(self, weights: SceneLossWeightGroup, inputs: SceneLossInputs) -> Float[Tensor, ""]:
        """Computes the loss times its weight.

        Args:
            weights: of all losses.
            inputs: of the step.
        """
        weight = getattr(weights, self.name)
        if self.factor is not None:
            weight = weight * self.factor(inputs)
        return weight * self.compute(inputs)

"""All losses of planar models, and their weights."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from neural_fields.planar.losses import codef, deformable_sprites, hashing_nvd, layered_neural_atlases, narcan, tables

LOSSES = (
    layered_neural_atlases.COLOR,
    deformable_sprites.COMPOSITE_L1,
    deformable_sprites.LAPLACIAN,
    deformable_sprites.CONTRAST,
    narcan.COLOR_L1,
    layered_neural_atlases.GRADIENT,
    codef.SOBEL,
    layered_neural_atlases.MASK,
    layered_neural_atlases.SPARSITY,
    layered_neural_atlases.RIGIDITY,
    layered_neural_atlases.GLOBAL_RIGIDITY,
    layered_neural_atlases.FLOW,
    codef.FLOW_L1,
    layered_neural_atlases.ALPHA_FLOW,
    hashing_nvd.DECISIVE_OPACITY,
    codef.BACKGROUND_COLOR,
    narcan.RESIDUAL_JACOBIAN,
    tables.RESIDUAL_SMOOTHNESS,
    tables.RESIDUAL_ANCHOR,
    tables.TEXTURE_SMOOTHNESS,
    hashing_nvd.GAIN_DEVIATION,
    hashing_nvd.GAIN_CONSISTENCY,
    tables.GAIN_SIZE,
    tables.GAIN_SMOOTHNESS,
)


@dataclass(frozen=True)
class LossWeights(
    tables.TableWeights,
    hashing_nvd.HashingNvdWeights,
    narcan.NarcanWeights,
    codef.CodefWeights,
    deformable_sprites.DeformableSpritesWeights,
    layered_neural_atlases.LayeredAtlasWeights,
):
    """Holds the weights of all losses; a loss of weight 0 is not computed.

    `..._until` is the step at which a loss ends, `..._from` the step at which something begins. In a file, the groups
    are in reverse order of the base classes.

    Example:
        >>> LossWeights(color=1.0).uses_flow, LossWeights(color=1.0, flow=0.01).uses_flow
        (False, True)
    """

    @property
    def uses_flow(self) -> bool:
        """Whether a loss needs optical flow."""
        return any(loss.flow and loss.weigh(self) for loss in LOSSES)

    def scale_steps(self, total: int, final: int) -> LossWeights:
        """Adapts the weights to the number of steps of a training.

        An `..._until` is not scaled, but ends at the latest after a quarter of the training: these losses need their
        steps at the beginning, and with fewer of them, layers may be swapped.

        Args:
            total: number of steps of the training.
            final: number of steps that the weights are given for.

        Returns:
            The weights with their times scaled.
        """
        quarter = -(-total // 4)
        scaled: dict[str, Any] = {}
        for item in fields(self):
            if item.name.endswith("_until"):
                scaled[item.name] = min(getattr(self, item.name), quarter)
            elif item.name.endswith("_from"):
                scaled[item.name] = round(getattr(self, item.name) * total / final)
        return replace(self, **scaled)

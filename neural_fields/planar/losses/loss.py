"""The definition of a loss: a function, its weight, and its requirements on the training and the parts of the model.

A loss is a function in a file of this folder; a file may hold the losses of one paper. Besides the functions, a file
has a dataclass of their weights, whose comments say what each loss measures and in which unit, and a `Loss` for each of
them. `table.py` joins the files; losses are computed and added in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import get_args

from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.planar.appearance.kinds import GainKind, OpacityKind, TextureKind
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples
from neural_fields.planar.losses.flow_matches import FlowMatches
from neural_fields.planar.mappings.kinds import MappingKind

PART_KINDS = {"mapping": MappingKind, "texture": TextureKind, "opacity": OpacityKind, "gain": GainKind}


@dataclass(frozen=True)
class LossWeightGroup:
    """Holds the weights of the losses of a file; squared colors are means over points and the three channels.

    A weight has the name of its loss, and 0 turns the loss off. `<name>_until` is the step at which a loss ends (0:
    never). Steps are those of `final` quality.
    """


@dataclass(frozen=True)
class LossInputs:
    """Holds the inputs of the losses in a training step."""

    model: PlanarModel
    weights: LossWeightGroup
    batch: Batch
    samples: LayerSamples  # of the model at the batch's points
    held: LayerSamples  # the same for losses of the color, which may leave the opacity alone for the first steps
    matches: list[FlowMatches]  # of the batch's points; empty where no loss needs flow
    shared: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # what one loss has computed for another


@dataclass(frozen=True)
class Loss:
    """Describes a loss: its name, which is also the name of its weight, its function and its requirements.

    A requirement on a part is a tuple of classes, kinds or `PointFunction`, one of which the part's settings must be an
    instance of. With an empty tuple, the loss works with every kind.

    Example:
        >>> Loss("sobel", lambda at: at.samples.weight.mean(), whole_frames=True).explain_unmet_need({}, False)
        'terms.sobel needs training.batch: frames'
    """

    name: str
    compute: Callable[[LossInputs], Float[Tensor, ""]]  # without its weight, unless that is a number for each layer
    front: bool = False  # is computed for models with a layer in front of the background
    gains: bool = False  # is computed for models whose layers have gains
    flow: bool = False  # compares points that optical flow matches
    whole_frames: bool = False  # looks at the neighbors of pixels in the batch
    mapping: tuple[type, ...] = ()
    texture: tuple[type, ...] = ()
    opacity: tuple[type, ...] = ()
    gain: tuple[type, ...] = ()

    def weigh(self, weights: LossWeightGroup) -> float:
        """Returns the weight of the loss; for a loss with a weight for each layer, 1 unless all of them are 0."""
        value = getattr(weights, self.name)
        return float(any(value)) if isinstance(value, tuple) else value

    def is_active(self, inputs: LossInputs, step: int) -> bool:
        """Tells whether the loss is computed in a step.

        Args:
            inputs: of the step.
            step: of the training, counted from 0.
        """
        end = getattr(inputs.weights, f"{self.name}_until", 0)
        return (
            bool(self.weigh(inputs.weights))
            and not (end and step >= end)
            and (len(inputs.model.layers) > 1 or not self.front)
            and (bool(inputs.matches) or not self.flow)
            and (len(inputs.model.gains) > 0 or not self.gains)
        )

    def explain_unmet_need(self, parts: Mapping[str, object], whole_frames: bool) -> str:
        """Explains which requirement of the loss a config does not meet.

        Args:
            parts: settings of the parts, by the names of `PART_KINDS`.
            whole_frames: whether the batches are whole frames.

        Returns:
            A sentence for the user; empty where all requirements are met.
        """
        if self.whole_frames and not whole_frames:
            return f"terms.{self.name} needs training.batch: frames"
        for name in PART_KINDS:
            accepted = getattr(self, name)
            if accepted and not isinstance(parts[name], accepted):
                return f"terms.{self.name} needs {name} kind {list_kinds(name, accepted)}"
        return ""


def list_kinds(part: str, accepted: tuple[type, ...]) -> str:
    """Lists the kinds of a part that are of the accepted classes.

    Example:
        >>> from neural_fields.planar.appearance.hash_texture import HashTextureConfig
        >>> from neural_fields.planar.appearance.siren_texture import SirenTextureConfig
        >>> list_kinds("texture", (HashTextureConfig, SirenTextureConfig))
        'hash or siren'
    """
    kinds = [member.kind for member in get_args(PART_KINDS[part]) if issubclass(member, accepted)]
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)

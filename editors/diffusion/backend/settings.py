"""The base of diffusion editors: the settings that they share are flags of `unwrap edit RUN --editor NAME`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from editors.core.editor import PlanarEditor
from editors.diffusion.backend.weights import WeightsSource
from neural_fields.config.flags import Repeated
from neural_fields.core.errors import ExitCode, UserError


@dataclass(frozen=True, kw_only=True)
class DiffusionEditor(PlanarEditor):
    """Defines the base of editors of videos that give a prompt to a model, with the settings that they share."""

    model: str
    """A folder in diffusers' layout, or the name of a model on the hub."""
    prompt: str
    """What the edited layer should show."""
    negative: str = ""
    """What it should not show."""
    steps: int = 30
    """Number of denoising steps from pure noise to a picture."""
    guidance: float = 7.5
    """Scale of classifier-free guidance: how strongly the prompt is followed; 1 is without guidance."""
    seed: int = 0
    """Seed of the noise; another seed gives another picture."""
    side: int | None = None
    """Longer side in pixels at which the region is edited (default: the side that the model was trained on)."""
    feather: float = 0.0
    """Pixels of that size over which the edit fades in from the edge of the region."""
    lora: Repeated = ()
    """A LoRA of the model (a style, a person), a safetensors FILE or FILE@STRENGTH. Repeatable."""
    embedding: Repeated = ()
    """A textual inversion, a safetensors file; its name is the word to use in the prompt. Repeatable."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that runs the model."""
    unsafe_weights: bool = False
    """Also read weights that are not safetensors. Such files can run code: use them only if you trust their source."""

    def __post_init__(self) -> None:
        for wrong, flag, value, why, fix in (
            (not self.prompt.strip(), "prompt", self.prompt, "it says what to make", '--prompt "blue dots"'),
            (self.steps < 1, "steps", self.steps, "at least one is needed", "--steps 30"),
            (not 0 <= self.guidance < math.inf, "guidance", self.guidance, "it is 0 or more", "--guidance 7.5"),
            (self.side is not None and self.side < 1, "side", self.side, "it counts pixels", "leave --side out"),
            (not 0 <= self.feather < math.inf, "feather", self.feather, "it is 0 or more", "--feather 4"),
        ):
            if wrong:
                raise wrong_setting_error(flag, value, why, fix)

    def weights_source(self) -> WeightsSource:
        """Returns the model to load, with its adapters and embeddings."""
        return WeightsSource(self.model, self.device, self.unsafe_weights, self.lora, self.embedding)


def wrong_setting_error(flag: str, value: object, why: str, fix: str) -> UserError:
    """Makes the error for a setting that an editor cannot use (exit 2).

    Args:
        flag: name of the setting's flag, without dashes.
        value: the value that was given.
        why: the values that are possible.
        fix: a flag and value that would work.

    Example:
        >>> print(wrong_setting_error("steps", 0, "at least one is needed", "--steps 30"))
        error: --steps is 0
          why   at least one is needed
          try   --steps 30
    """
    shown = repr(value) if isinstance(value, str) else value
    return UserError(ExitCode.USAGE, f"--{flag} is {shown}", why=why, fix=fix)

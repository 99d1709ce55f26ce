"""Settings that diffusion editors share: each is a flag of `unwrap edit RUN --editor NAME`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from editors.diffusion.backend.weights import WeightsSource
from neural_fields.config.flags import Repeated
from neural_fields.core.errors import ExitCode, UserError


@dataclass(frozen=True, kw_only=True)
class PromptedSettings:
    """Settings of editors that give a prompt to a model."""

    model: str
    """A folder in diffusers' layout, or the name of a model on the hub."""
    prompt: str
    """What the edited layer should show."""
    negative: str = ""
    """What it should not show."""
    steps: int = 30
    """Steps of a whole run from noise to a picture."""
    guidance: float = 7.5
    """How strongly the prompt is followed; 1 is without classifier-free guidance."""
    seed: int = 0
    """Another seed makes another picture."""
    side: int | None = None
    """Longer side in pixels at which the region is worked on (default: what the model was trained on)."""
    feather: float = 0.0
    """Pixels of that size over which the edit fades in from the edge of the region."""
    lora: Repeated = ()
    """A safetensors file of low-rank changes of the model (a style, a person), FILE or FILE@STRENGTH. Repeatable."""
    embedding: Repeated = ()
    """A safetensors file of textual inversion; the file's name is the word to use in the prompt. May be repeated."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    unsafe_weights: bool = False
    """Also read weights that are not safetensors. Such files can run code: only from people you trust."""

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
        """Names the model to read, with its adapters and embeddings."""
        return WeightsSource(self.model, self.device, self.unsafe_weights, self.lora, self.embedding)


def wrong_setting_error(flag: str, value: object, why: str, fix: str) -> UserError:
    """Makes the error for a setting that an editor cannot use (exit 2)."""
    shown = repr(value) if isinstance(value, str) else value
    return UserError(ExitCode.USAGE, f"--{flag} is {shown}", why=why, fix=fix)

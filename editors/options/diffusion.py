"""The settings that editors with a diffusion model share, and those of `instruct`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from editors.options.wrong_setting import wrong_setting_error
from neural_fields.config.flags import Repeated


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """Holds the settings that all editors with a prompt share."""

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


@dataclass(frozen=True, kw_only=True)
class InstructOptions(DiffusionOptions):
    """Holds the settings of `Instruct`."""

    name: ClassVar[str] = "instruct"

    prompt: str
    """The instruction, such as "turn the car into a taxi"."""
    steps: int = 50
    """Number of denoising steps from pure noise to a picture."""
    guidance: float = 0.0
    """How strongly the instruction is followed (0: as the model's authors chose; 7.5 for InstructPix2Pix)."""
    image_guidance: float = 1.5
    """How strongly InstructPix2Pix keeps to the picture; 1 to 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.image_guidance < float("inf"):
            raise wrong_setting_error("image-guidance", self.image_guidance, "it is 0 or more", "--image-guidance 1.5")

"""Models that follow instructions and come with a loop of their own: FLUX.1 Kontext, Qwen-Image-Edit and their like.

They are called through diffusers with what their call takes: a picture, an instruction, and as many of the settings as
it has a name for. What is left out keeps the value that the model's authors chose.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.sampling import Step
from neural_fields.errors import bad_input

Images = Float[Tensor, "n 3 height width"]


@dataclass(frozen=True)
class Instruction:
    """What a model is told.

    Attributes:
        prompt, negative: in words.
        steps: of its loop.
        guidance: how strongly the prompt is followed; None for what its authors chose.
        image_guidance: how strongly the picture is kept, for models that know of it.
        seed: of its noise.
        own_size: lets the model choose the size it works at, where it wants to.
    """

    prompt: str
    negative: str = ""
    steps: int = 50
    guidance: float | None = None
    image_guidance: float = 1.5
    seed: int = 0
    own_size: bool = True


def check_call(model: str, kind: str, takes: Mapping[str, Any]) -> None:
    """Refuses a pipeline that does not edit a picture by an instruction.

    Args:
        model: what the user named.
        kind: the pipeline's class.
        takes: the arguments of its call.

    Raises:
        UserError: it takes no picture, or an amount of noise instead of an instruction (exit 3).
    """
    if "image" in takes and "prompt" in takes and not {"strength", "mask_image", "control_image"} & takes.keys():
        return
    raise bad_input(
        f"{model} is a {kind or 'part of a model'}",
        why="this editor needs a model that follows instructions, such as InstructPix2Pix, FLUX.1 Kontext or "
        "Qwen-Image-Edit",
        fix="--editor img2img for a text-to-image model",
    )


def instructed(pipeline: Any, image: Images, told: Instruction, step: Step | None = None) -> Images:
    """What a pipeline makes of a picture by an instruction, at the size of the picture.

    Args:
        pipeline: a loaded pipeline of diffusers.
        image: one picture in [0, 1].
        step: called after each step.
    """
    takes = {name: p.default for name, p in inspect.signature(pipeline.__call__).parameters.items()}
    height, width = image.shape[-2:]

    # Diffusers hands over and expects back the tensors of its loop; the number of the step is all that is used here.
    def after_step(_pipeline: Any, done: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step is not None:
            step(done + 1, told.steps)
        return values

    values: dict[str, Any] = {
        "image": _as_pillow(image),
        "prompt": told.prompt,
        "num_inference_steps": told.steps,
        "image_guidance_scale": told.image_guidance,
        "generator": torch.Generator().manual_seed(told.seed),
        "height": height,
        "width": width,
        "max_area": height * width,
        "_auto_resize": told.own_size,
        "output_type": "pt",
        "callback_on_step_end": after_step,
        **_guidance(told, takes),
    }
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(**{name: value for name, value in values.items() if name in takes}).images
    made = made.float().cpu().clamp(0, 1)
    if made.shape[-2:] == (height, width):
        return made
    return torch.nn.functional.interpolate(made, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def _guidance(told: Instruction, takes: Mapping[str, Any]) -> dict[str, Any]:
    """How strongly the prompt is followed, under the name a pipeline has for it.

    Some know two: guidance against a negative prompt, and an input of a model that was distilled from such guidance.
    """
    has_true = (takes.get("true_cfg_scale") or 1.0) > 1
    values: dict[str, Any] = {}
    if told.negative or has_true:
        values["negative_prompt"] = told.negative or " "
    if told.guidance is not None:
        values["true_cfg_scale" if has_true else "guidance_scale"] = told.guidance
    return values


def _as_pillow(image: Images) -> Any:
    from PIL import Image

    array = (image[0].permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array)

"""Models that follow instructions with a sampling loop of their own, such as FLUX.1 Kontext and Qwen-Image-Edit.

They are called through diffusers with the arguments that their call accepts: a picture, an instruction, and the
settings that it has. All other arguments keep the defaults of the model's authors.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.model_pictures import check_finite
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing

Images = Float[Tensor, "n 3 height width"]


@dataclass(frozen=True)
class Instruction:
    """Holds an instruction and the settings of the sampling.

    Attributes:
        prompt: the instruction.
        negative: what the result should not show.
        steps: number of sampling steps.
        guidance: scale of the guidance by the prompt; None for the default of the model.
        image_guidance: scale of the guidance by the picture, for models that have this setting.
        seed: seed of the noise.
        own_size: whether the model chooses the size at which it works, if it can.
    """

    prompt: str
    negative: str = ""
    steps: int = 50
    guidance: float | None = None
    image_guidance: float = 1.5
    seed: int = 0
    own_size: bool = True


def check_instruction_pipeline(model: str, kind: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a pipeline that does not edit a picture by an instruction.

    Args:
        model: the model, as the user named it.
        kind: name of the pipeline's class.
        arguments: the arguments of its call, with their defaults.

    Raises:
        UserError: it takes no picture, or a strength of noise instead of an instruction (exit 3).
    """
    if (
        "image" in arguments
        and "prompt" in arguments
        and not {"strength", "mask_image", "control_image"} & arguments.keys()
    ):
        return
    raise bad_input(
        f"{model} is a {kind or 'part of a model'}",
        why="this editor needs a model that follows instructions, such as InstructPix2Pix, FLUX.1 Kontext or "
        "Qwen-Image-Edit",
        fix="--editor img2img for a text-to-image model",
    )


def run_instruction(
    pipeline: Any, image: Images, instruction: Instruction, report: ProgressReporter = report_nothing
) -> Images:
    """Edits a picture by an instruction; the result has the size of the picture.

    Args:
        pipeline: a loaded pipeline of diffusers.
        image: one picture in [0, 1].
        instruction: the instruction, and the settings of the sampling.
        report: called after each step.

    Raises:
        UserError: the model computed values that are no numbers (exit 3).
    """
    from PIL import Image

    takes = {name: p.default for name, p in inspect.signature(pipeline.__call__).parameters.items()}
    height, width = image.shape[-2:]
    array = (image[0].permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()

    # Diffusers passes the tensors of its loop and expects them back; only the number of the step is used here.
    def report_step(_pipeline: Any, done: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Reports a step of the pipeline.

        Args:
            _pipeline: the pipeline.
            done: number of the step, from 0.
            _time: its noise time.
            values: tensors of the loop, which are returned as they are.
        """
        report(Progress("denoising", done + 1, instruction.steps))
        return values

    values: dict[str, Any] = {
        "image": Image.fromarray(array),
        "prompt": instruction.prompt,
        "num_inference_steps": instruction.steps,
        "image_guidance_scale": instruction.image_guidance,
        "generator": torch.Generator().manual_seed(instruction.seed),
        "height": height,
        "width": width,
        "max_area": height * width,
        "_auto_resize": instruction.own_size,
        "output_type": "pt",
        "callback_on_step_end": report_step,
    }
    # Some pipelines have two kinds of guidance: against a negative prompt ("true"), and an input of a model that was
    # distilled from such guidance. The instruction sets the first where a pipeline uses it.
    has_true = (takes.get("true_cfg_scale") or 1.0) > 1
    if instruction.negative or has_true:
        values["negative_prompt"] = instruction.negative or " "
    if instruction.guidance is not None:
        values["true_cfg_scale" if has_true else "guidance_scale"] = instruction.guidance
    pipeline.set_progress_bar_config(disable=True)
    edited = pipeline(**{name: value for name, value in values.items() if name in takes}).images
    check_finite(edited, "the model")
    edited = edited.float().cpu().clamp(0, 1)
    if edited.shape[-2:] == (height, width):
        return edited
    return torch.nn.functional.interpolate(edited, (height, width), mode="bicubic", antialias=True).clamp(0, 1)

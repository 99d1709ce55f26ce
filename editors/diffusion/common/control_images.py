"""Control pictures for ControlNets: edges of the canonical picture, its depth, or a picture from the user.

Edges are detected without weights: with Canny's method (1986), or as soft edges that replace those of HED (Xie and Tu,
ICCV 2015), whose ControlNets accept any bright edges of graded strength. Depth needs a depth network or a picture; a
pose is a picture drawn with any tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float

from editors.core.source import EditSource
from editors.diffusion.backend.device_placement import fetch_model
from editors.diffusion.backend.diffusers_model import ControlInput, DiffusionModel, Images, load_controlnet
from editors.diffusion.backend.weights import WeightsSource, check_model_folder, explain_load_errors
from editors.diffusion.common.canvas import Canvas, join_pictures
from editors.inputs.sizes import check_picture_size, compute_pixel_limit
from editors.options.controls import ControlRequest
from neural_fields.core.errors import bad_input
from neural_fields.imaging.image_io import read_picture


@dataclass(frozen=True)
class SoftEdgeSettings:
    """Settings of detecting soft edges."""

    blur_sigmas_px: tuple[float, ...] = (1.0, 2.0, 4.0)  # at which edges are looked for
    full_quantile: float = 0.99  # of the gradients: it counts as a full edge
    min_full_gradient: float = 1.0  # of 8-bit gray: the noise of a flat picture is no edge


DEFAULTS = SoftEdgeSettings()


def detect_edges(images: Images, low: int = 100, high: int = 200) -> Images:
    """Detects edges with Canny's method, as white lines on black.

    Args:
        images: RGB in [0, 1].
        low: gradient of 8-bit gray from which a line continues. The defaults are those of the ControlNets' training.
        high: gradient of 8-bit gray from which a line starts.
    """
    detected = [cv2.Canny(gray, low, high) for gray in _convert_to_gray(images)]
    lines = torch.from_numpy(np.stack(detected)).float()[:, None] / 255
    return lines.expand(-1, 3, -1, -1).contiguous()


def detect_soft_edges(images: Images, settings: SoftEdgeSettings = DEFAULTS) -> Images:
    """Detects edges of graded strength: the largest gradient of brightness over several widths of blur.

    Args:
        images: RGB in [0, 1].
        settings: widths of the blur, and scaling.

    Returns:
        Strengths in [0, 1].
    """
    detected = []
    for gray in _convert_to_gray(images):
        strongest = np.zeros(gray.shape, np.float32)
        for width in settings.blur_sigmas_px:
            blurred = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), width)
            across, down = (cv2.Sobel(blurred, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
            gradient = width * np.hypot(across, down)  # times the width: a wide edge counts as much as a thin one
            strongest = np.maximum(strongest, gradient)
        full = max(float(np.quantile(strongest, settings.full_quantile)), settings.min_full_gradient)
        detected.append(np.clip(strongest / full, 0, 1))
    return torch.from_numpy(np.stack(detected))[:, None].expand(-1, 3, -1, -1).contiguous()


def load_depth_estimator(weights: WeightsSource) -> Callable[[Images], Images]:
    """Loads a depth network.

    Args:
        weights: the network to load, and its device.

    Returns:
        A function from pictures to inverse depth in [0, 1]: near is bright.

    Raises:
        UserError: transformers is not installed, or the model does not exist or is of another kind (exit 3).
    """
    weights.check_name()
    with explain_load_errors(weights):
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        folder = weights.local_folder or fetch_model(weights)
        config = check_model_folder(folder, weights.unsafe)
        network = AutoModelForDepthEstimation.from_pretrained(folder, use_safetensors=not weights.unsafe or None)
        prepare = AutoImageProcessor.from_pretrained(folder)
    network.eval()
    metric_types = ("zoedepth", "prompt_depth_anything", "depth_pro")  # their output is in meters: near is small
    is_metric = config.get("depth_estimation_type") == "metric" or config.get("model_type") in metric_types

    @torch.no_grad()
    def estimate_depth(images: Images) -> Images:
        eight_bit = [(255 * image).round().to(torch.uint8).cpu().numpy() for image in images]
        output = network(**prepare(images=eight_bit, return_tensors="pt")).predicted_depth.float()
        nearness = -output if is_metric else output
        full = torch.nn.functional.interpolate(nearness[:, None], images.shape[-2:], mode="bicubic")
        low, high = full.amin(dim=(2, 3), keepdim=True), full.amax(dim=(2, 3), keepdim=True)
        min_range = (1e-6 * full.abs().amax(dim=(2, 3), keepdim=True)).clamp(min=1e-30)  # a flat output stays flat
        return ((full - low) / torch.maximum(high - low, min_range)).expand(-1, 3, -1, -1).contiguous()

    return estimate_depth


def load_controls(
    model: DiffusionModel,
    canvases: Sequence[Canvas],
    requests: Sequence[ControlRequest],
    make_picture: Callable[[ControlRequest, Canvas], Images],
    unsafe: bool = False,
) -> list[ControlInput]:
    """Loads ControlNets, each with the joined control pictures of all canvases.

    Args:
        model: the model that they control.
        canvases: the canvases that the model edits together.
        requests: the ControlNets to load.
        make_picture: makes the control picture of a ControlNet for a canvas.
        unsafe: whether weights that can run code are read.

    Raises:
        UserError: a model without a UNet, or a ControlNet for another model (exit 3).
    """
    if model.unet is None:
        raise bad_input(
            "this model cannot follow a ControlNet",
            why="only those for Stable Diffusion 1, 2 and XL are read",
            fix="--model FOLDER with such a model",
        )
    controls = []
    for follow in requests:
        network = load_controlnet(WeightsSource(follow.model, str(model.device), unsafe), model)
        wanted, given = network.config.cross_attention_dim, model.unet.config.cross_attention_dim
        if wanted != given:
            raise bad_input(
                f"{follow.model} was made for another kind of model",
                why=f"its text has {wanted} features, the model's {given}",
                fix="use a ControlNet for the version of Stable Diffusion that --model is",
            )
        picture = join_pictures([make_picture(follow, canvas) for canvas in canvases], canvases, model.side_multiple)
        controls.append(ControlInput(network, picture, follow.scale))
    return controls


def read_control_picture(path: Path, source: EditSource, canvas: Canvas) -> Images:
    """Reads the part of a user's picture that the canvas covers.

    Args:
        path: path of the picture, which has the aspect ratio of the layer's canonical picture. Transparent parts become
            black.
        source: the run.
        canvas: canvas of the layer.

    Raises:
        UserError: a file that cannot be read, or has the wrong shape (exit 3).
    """
    picture = source.pictures[canvas.layer]
    painted = read_picture(path, max_pixels=compute_pixel_limit(picture.size))
    check_picture_size(painted, picture.size, f"the picture of the layer {canvas.layer}")
    shown: Float[np.ndarray, "height width 3"] = painted.rgba[..., :3] * painted.rgba[..., 3:]
    return canvas.crop_picture(shown, picture.box).clamp(0, 1)


def _convert_to_gray(images: Images) -> list[np.ndarray]:
    """Converts pictures to 8-bit arrays of brightness."""
    arrays = (255 * images.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2GRAY) for array in arrays]

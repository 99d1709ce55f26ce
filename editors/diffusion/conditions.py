"""Pictures that a result has to follow: edges of the canonical picture, its depth, or a picture of the user's.

Edges are found here, without weights: Canny's (1986), and soft edges in place of those of HED (Xie and Tu, ICCV 2015),
whose ControlNets take any edges that are bright and of graded strength. Depth needs a network that estimates it, or a
picture; a pose is a picture drawn by any tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float

from editors.base import Source
from editors.diffusion.canvas import Canvas, together
from editors.diffusion.placing import fetched
from editors.diffusion.settings import wrong_setting
from editors.diffusion.weights import Weights, check_folder, loading
from editors.diffusion.wrapper import Control, DiffusionModel, Images, load_control
from editors.image import check_size
from neural_fields.errors import bad_input
from neural_fields.pictures import read_picture

KINDS = ("edges", "soft-edges", "depth", "pose", "picture")
SCALES = (1.0, 2.0, 4.0)  # pixels: widths of the blur at which soft edges are looked for
STRONG = 0.99  # quantile of the gradients that counts as a full edge
NEAR_IS_SMALL = ("zoedepth", "prompt_depth_anything", "depth_pro")  # networks that answer in metres


@dataclass(frozen=True)
class Follow:
    """A ControlNet and what it is shown.

    Attributes:
        kind: one of `KINDS`.
        model: its folder, or its name on the hub.
        scale: how strongly it is followed; 1 as trained.
    """

    kind: str
    model: str
    scale: float = 1.0


def follow_of(text: str) -> Follow:
    """What `--control KIND=FOLDER` or `KIND=FOLDER@SCALE` asks for.

    Raises:
        UserError: another form, an unknown kind, a scale that is negative (exit 2).
    """
    kind, equals, rest = text.partition("=")
    model, at, number = rest.rpartition("@")
    try:
        scale = float(number) if at else 1.0
    except ValueError:
        model, at, scale = rest, "", 1.0
    model = model if at else rest
    if not equals or not model or kind not in KINDS:
        raise wrong_setting(
            "control", text, f"it is KIND=FOLDER, and the kinds are: {', '.join(KINDS)}", "--control edges=FOLDER@0.8"
        )
    if not 0 <= scale < float("inf"):
        raise wrong_setting("control", text, "the number behind @ is 0 or more", f"--control {kind}={model}@1")
    return Follow(kind, model, scale)


def pictures_of(texts: Sequence[str]) -> dict[str, Path]:
    """The files of `--control-picture KIND=FILE`, by kind.

    Raises:
        UserError: another form or an unknown kind (exit 2).
    """
    found = {}
    for text in texts:
        kind, equals, file = text.partition("=")
        if not equals or not file or kind not in KINDS:
            fix = "--control-picture pose=pose.png"
            raise wrong_setting("control-picture", text, f"it is KIND=FILE, and the kinds are: {', '.join(KINDS)}", fix)
        found[kind] = Path(file)
    return found


def edges(images: Images, low: int = 100, high: int = 200) -> Images:
    """White lines on black by Canny's detector; the thresholds are those that ControlNets of edges were trained with.

    Args:
        images: RGB in [0, 1].
        low, high: gradients of 8-bit grey from which a line goes on, and from which one begins.
    """
    found = [cv2.Canny(grey, low, high) for grey in _greys(images)]
    lines = torch.from_numpy(np.stack(found)).float()[:, None] / 255
    return lines.expand(-1, 3, -1, -1).contiguous()


def soft_edges(images: Images) -> Images:
    """Edges of graded strength: the largest gradient of brightness over several widths of blur, in [0, 1]."""
    answers = []
    for grey in _greys(images):
        strongest = np.zeros(grey.shape, np.float32)
        for width in SCALES:
            blurred = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), width)
            across, down = (cv2.Sobel(blurred, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
            strongest = np.maximum(
                strongest, width * np.hypot(across, down)
            )  # a wide edge counts as much as a thin one
        full = max(float(np.quantile(strongest, STRONG)), 1.0)  # noise of a flat picture is no edge
        answers.append(np.clip(strongest / full, 0, 1))
    return torch.from_numpy(np.stack(answers))[:, None].expand(-1, 3, -1, -1).contiguous()


def depth_by(weights: Weights) -> Callable[[Images], Images]:
    """What a network that estimates depth says of pictures: near is bright, in [0, 1] over each picture.

    Raises:
        UserError: transformers is not installed, there is no such model, or it is another one (exit 3).
    """
    weights.check_name()
    with loading(weights):
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        folder = weights.local or fetched(weights)
        config = check_folder(folder, weights.unsafe)
        network = AutoModelForDepthEstimation.from_pretrained(folder, use_safetensors=not weights.unsafe or None)
        prepare = AutoImageProcessor.from_pretrained(folder)
    network.eval()
    metres = config.get("depth_estimation_type") == "metric" or config.get("model_type") in NEAR_IS_SMALL

    @torch.no_grad()
    def ask(images: Images) -> Images:
        eight_bit = [(255 * image).round().to(torch.uint8).cpu().numpy() for image in images]
        answer = network(**prepare(images=eight_bit, return_tensors="pt")).predicted_depth.float()
        nearness = -answer if metres else answer
        full = torch.nn.functional.interpolate(nearness[:, None], images.shape[-2:], mode="bicubic")
        low, high = full.amin(dim=(2, 3), keepdim=True), full.amax(dim=(2, 3), keepdim=True)
        least = (1e-6 * full.abs().amax(dim=(2, 3), keepdim=True)).clamp(min=1e-30)  # a flat answer stays flat
        return ((full - low) / torch.maximum(high - low, least)).expand(-1, 3, -1, -1).contiguous()

    return ask


def controls_for(
    model: DiffusionModel,
    canvases: Sequence[Canvas],
    follows: Sequence[Follow],
    seen_by: Callable[[Follow, Canvas], Images],
    unsafe: bool = False,
) -> list[Control]:
    """The ControlNets with their pictures of all canvases together.

    Raises:
        UserError: a model without a UNet, a ControlNet of another model (exit 3).
    """
    if model.unet is None:
        raise bad_input(
            "this model cannot follow a ControlNet",
            why="only those for Stable Diffusion 1, 2 and XL are read",
            fix="--model FOLDER with such a model",
        )
    controls = []
    for follow in follows:
        network = load_control(Weights(follow.model, str(model.device), unsafe), model)
        wanted, given = network.config.cross_attention_dim, model.unet.config.cross_attention_dim
        if wanted != given:
            raise bad_input(
                f"{follow.model} was made for another kind of model",
                why=f"its text has {wanted} features, the model's {given}",
                fix="use a ControlNet for the version of Stable Diffusion that --model is",
            )
        picture = together([seen_by(follow, canvas) for canvas in canvases], canvases, model.multiple)
        controls.append(Control(network, picture, follow.scale))
    return controls


def control_picture(path: Path, source: Source, canvas: Canvas) -> Images:
    """The part of a user's picture that lies where a canvas does.

    Args:
        path: of the shape of the layer's canonical picture. Transparent places are black.

    Raises:
        UserError: a file that cannot be read, or of another shape (exit 3).
    """
    picture = source.pictures[canvas.layer]
    painted = read_picture(path, max_pixels=max(16_000_000, 16 * picture.size[0] * picture.size[1]))
    check_size(painted, picture.size, f"the picture of the layer {canvas.layer}")
    shown: Float[np.ndarray, "height width 3"] = painted.rgba[..., :3] * painted.rgba[..., 3:]
    return canvas.part_of(shown, picture.box).clamp(0, 1)


def _greys(images: Images) -> list[np.ndarray]:
    """Brightness of pictures as 8-bit arrays."""
    arrays = (255 * images.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2GRAY) for array in arrays]

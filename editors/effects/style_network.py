"""A feed-forward style network (Johnson et al., "Perceptual Losses for Real-Time Style Transfer", ECCV 2016, 3.1).

The network is the one of pytorch/examples `fast_neural_style`: three convolutions down to a quarter of the size, five
residual blocks, nearest-neighbor upsampling, instance normalization (Ulyanov et al., 2016) after every convolution but
the last, reflection padding. It maps RGB to RGB, in the range 0 to 255.

Weights are read from its state dict, or from a file of the program ncnn: the arrays in the order of the layers, those
of convolutions as float16 after a tag and padded to four bytes, all others as float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from editors.core.model_pictures import check_model_picture
from neural_fields.core.errors import UserError, bad_input

NCNN_FLOAT16_TAG = (0x01306B47).to_bytes(4, "little")  # ncnn: the array that follows is float16
# name, channels in and out, kernel, stride, factor of enlargement before, name of the norm behind it ("" for none)
_RESIDUAL = [(f"res{i}.conv{j}", 128, 128, 3, 1, 1, f"res{i}.in{j}") for i in range(1, 6) for j in (1, 2)]
NETWORK_LAYERS = [
    ("conv1", 3, 32, 9, 1, 1, "in1"),
    ("conv2", 32, 64, 3, 2, 1, "in2"),
    ("conv3", 64, 128, 3, 2, 1, "in3"),
    *_RESIDUAL,
    ("deconv1", 128, 64, 3, 1, 2, "in4"),
    ("deconv2", 64, 32, 3, 1, 2, "in5"),
    ("deconv3", 32, 3, 9, 1, 1, ""),
]
# Of old checkpoints of PyTorch; the network does not use them.
_UNUSED = re.compile(r"(.*\.)?in\d+\.(running_mean|running_var|num_batches_tracked)")
_FIX = "--weights with a .bin (ncnn), .pth or .safetensors file of a fast_neural_style network"


class StyleNetwork(nn.Module):
    """Applies a style in one forward pass.

    Args:
        weights: the arrays of the state dict, by name.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value.float())

    def forward(self, rgb: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
        """Paints pictures in the style; RGB from 0 to 255, both sides multiples of 4 and at least 16 pixels."""
        x, kept = rgb, rgb
        for name, *_, norm in NETWORK_LAYERS:
            if norm.endswith(".in1"):
                kept = x
            x = self._apply_layer(name, x)
            x = x + kept if norm.endswith(".in2") else F.relu(x) if norm else x
        return x.clamp(0, 255)

    def compute_features(self, rgb: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 128 _ _"]:
        """Computes the encoder's activations, at a quarter of the size; RGB from 0 to 255."""
        for name in ("conv1", "conv2", "conv3"):
            rgb = F.relu(self._apply_layer(name, rgb))
        return rgb

    def _apply_layer(self, name: str, x: Tensor) -> Tensor:
        _, _, _, kernel, stride, larger, norm = next(row for row in NETWORK_LAYERS if row[0] == name)
        if larger > 1:
            x = F.interpolate(x, scale_factor=larger, mode="nearest")
        x = F.pad(x, [kernel // 2] * 4, mode="reflect")
        x = F.conv2d(x, self._get_weights(f"{name}.conv2d.weight"), self._get_weights(f"{name}.conv2d.bias"), stride)
        if not norm:
            return x
        return F.instance_norm(x, weight=self._get_weights(f"{norm}.weight"), bias=self._get_weights(f"{norm}.bias"))

    def _get_weights(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "_"))


def read_style_network(path: Path, max_bytes: int = 64 << 20) -> StyleNetwork:
    """Reads a style network from a file.

    Args:
        path: a .bin file of ncnn, or a .pth or .safetensors state dict.
        max_bytes: largest size of the file. The network has 1.7 million weights, 7 MB as float32; a checkpoint may
            contain more.

    Raises:
        UserError: the file does not exist, or its arrays are not exactly those of this network (exit 3).
    """
    if not path.is_file():
        raise bad_input(f"there is no file {path}", where="--weights", fix=_FIX)
    if path.stat().st_size > max_bytes:
        raise _not_a_network(path, f"it has {path.stat().st_size} bytes, more than {max_bytes}")
    if path.suffix == ".bin":
        expected = sum(_count_ncnn_bytes(shape) for _, shape in _iterate_shapes())
        data = path.read_bytes()
        if len(data) != expected:
            raise _not_a_network(path, f"it has {len(data)} bytes, and the network in this format {expected}")
        weights, at = {}, 0
        for name, shape in _iterate_shapes():
            count = int(np.prod(shape))
            if len(shape) == 4:
                if data[at : at + 4] != NCNN_FLOAT16_TAG:
                    raise _not_a_network(path, f"at byte {at}, where {name} begins, there is no float16 array")
                values = np.frombuffer(data, "<f2", count, at + 4)
            else:
                values = np.frombuffer(data, "<f4", count, at)
            weights[name] = torch.from_numpy(values.astype(np.float32).reshape(shape))
            at += _count_ncnn_bytes(shape)
    elif path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = _check_state(path, load_file(path))
        except (SafetensorError, OSError, ValueError) as problem:
            raise _not_a_network(path, str(problem).splitlines()[0]) from problem
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # border: torch raises some ten unrelated types for a file that is not a checkpoint
            why = f"it is no checkpoint that can be read safely ({type(error).__name__})"
            raise _not_a_network(path, why) from error
        weights = _check_state(path, state)
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise _not_a_network(path, f"{name} holds values that are not finite")
    return StyleNetwork(weights).eval()


@torch.inference_mode()
def stylize_picture(
    network: StyleNetwork, rgb: Float[np.ndarray, "height width 3"], side: int | None = None
) -> Float[np.ndarray, "height width 3"]:
    """Paints a picture in the network's style.

    Args:
        network: the style network.
        rgb: the picture, in [0, 1].
        side: longer side of the network's input in pixels; by default that of the picture. Strokes have a fixed size in
            pixels: a smaller side makes them larger, and takes less time.

    Returns:
        RGB in [0, 1], at the size of the picture.

    Raises:
        UserError: the network made no picture (exit 3).
    """
    height, width = rgb.shape[:2]
    scale = 1.0 if side is None else side / max(height, width)
    work = max(1, round(width * scale)), max(1, round(height * scale))
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = rgb if work == (width, height) else cv2.resize(np.ascontiguousarray(rgb), work, interpolation=mode)
    min_side = 32  # the borders that are reflected need some picture to reflect
    right, bottom = (-(-max(length, min_side) // 4) * 4 - length for length in work)
    # There may be too little to reflect.
    how = cv2.BORDER_REFLECT_101 if right < work[0] and bottom < work[1] else cv2.BORDER_REPLICATE
    padded = cv2.copyMakeBorder(np.ascontiguousarray(small), 0, bottom, 0, right, how)
    pixels = torch.from_numpy(padded).movedim(2, 0)[None].float() * 255
    made = network(pixels)
    check_model_picture(made / 255, pixels / 255)
    found = made[0, :, : work[1], : work[0]].movedim(0, 2).numpy() / np.float32(255)
    if work != (width, height):
        found = cv2.resize(found, (width, height), interpolation=cv2.INTER_CUBIC if scale < 1 else cv2.INTER_AREA)
    return np.clip(found, 0, 1).astype(np.float32)


def _iterate_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields names and shapes of all arrays of the network in the order of its layers."""
    for name, less, more, kernel, _, _, norm in NETWORK_LAYERS:
        yield f"{name}.conv2d.weight", (more, less, kernel, kernel)
        yield f"{name}.conv2d.bias", (more,)
        if norm:
            yield f"{norm}.weight", (more,)
            yield f"{norm}.bias", (more,)


def _count_ncnn_bytes(shape: tuple[int, ...]) -> int:
    """Counts the bytes of an array in a file of ncnn."""
    count = int(np.prod(shape))
    return 4 + -(-2 * count // 4) * 4 if len(shape) == 4 else 4 * count


def _check_state(path: Path, state: object) -> dict[str, Tensor]:
    """Checks that the arrays of a state dict are those of the network, and returns them."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise _not_a_network(path, "it holds no state dict")
    given = {name: value for name, value in state.items() if not _UNUSED.fullmatch(name)}
    wanted = dict(_iterate_shapes())
    odd = sorted(given.keys() ^ wanted.keys())
    if odd:
        raise _not_a_network(path, f"{odd[0]} is {'missing' if odd[0] in wanted else 'no part of the network'}")
    for name, shape in wanted.items():
        value = given[name]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
            raise _not_a_network(path, f"{name} is not an array of {' x '.join(map(str, shape))} numbers")
    return {name: given[name].float() for name in wanted}


def _not_a_network(path: Path, why: str) -> UserError:
    return bad_input(f"{path.name} does not hold a style network", where=str(path), why=why, fix=_FIX)

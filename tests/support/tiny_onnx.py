"""A tiny ONNX network in the layout of onnx-community/BiRefNet_lite-ONNX: what is bright stands out.

The few messages are written as protobuf by hand, so that no package is needed for them; numbers of fields are those of
onnx.proto.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

SIDE = 32  # of the picture that the network looks at
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GAIN = 20.0  # of brightness above the middle, as a logit


def number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def message(field: int, *parts: bytes | str) -> bytes:
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _tensor(field: int, name: str, shape: tuple[int | str, ...]) -> bytes:
    """The name, type and shape of an input or output; sides with a name have any length."""
    sides = [message(1, number(1, side) if isinstance(side, int) else message(2, side)) for side in shape]
    return message(field, message(1, name), message(2, message(1, number(1, 1), message(2, *sides))))


def _node(kind: str, inputs: tuple[str, ...], output: str, *attributes: bytes) -> bytes:
    return message(1, *(message(1, name) for name in inputs), message(2, output), message(4, kind), *attributes)


def write_birefnet(
    folder: Path,
    size: tuple[int | str, int | str] = (SIDE, SIDE),
    channels: int = 3,
    ends_with_sigmoid: bool = False,
    weights: str | None = None,
) -> Path:
    """Writes the folder and returns it.

    Args:
        folder: which need not exist.
        size: (height, width) of what the network takes: numbers, or names of any number.
        channels: number of channels that it takes.
        ends_with_sigmoid: whether it gives shares from 0 to 1 and no logits.
        weights: path of a file of weights from that of the network; None has them inside.
    """
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    gain = struct.pack("<f", GAIN)
    if weights is None:
        content = message(9, gain)
    else:
        (folder / "onnx" / weights).write_bytes(gain)
        content = message(13, message(1, "location"), message(2, weights)) + number(14, 1)
    axes = message(5, message(1, "axes"), number(8, 1), number(20, 7))
    last = "logits" if ends_with_sigmoid else "output_image"
    graph = [
        _node("ReduceMean", ("input_image",), "brightness", axes),
        _node("Mul", ("brightness", "gain"), last),
        _node("Sigmoid", (last,), "output_image") if ends_with_sigmoid else b"",
        message(2, "tiny"),
        message(5, number(1, 1), number(2, 1), message(8, "gain"), content),
        _tensor(11, "input_image", (1, channels, *size)),
        _tensor(12, "output_image", (1, 1, *size)),
    ]
    model = number(1, 8) + message(7, *graph) + message(8, message(1, ""), number(2, 13))
    (folder / "onnx/model.onnx").write_bytes(model)
    (folder / "config.json").write_text(json.dumps({"model_type": "birefnet"}))
    preparation = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": SPREAD,
        "rescale_factor": 1 / 255,
        "size": {"width": SIDE, "height": SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder

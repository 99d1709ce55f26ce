"""Finds the main thing in a frame by BiRefNet (Zheng et al., 2024), from an ONNX file, through onnxruntime.

Its weights for transformers come with code of their own, which is never run; an ONNX file only names operators of
onnxruntime. What is found is a hint like those of the user, from which any segmenter follows the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.validated_input import FormatError, locate_format_errors, parse_number, parse_numbers
from neural_fields.nn.device import choose_device
from neural_fields.nn.pretrained import (
    NetworkSource,
    explain_network_errors,
    find_model_folder,
    read_model_json,
    require_module,
)

EXAMPLE = "onnx-community/BiRefNet_lite-ONNX"
PURPOSE = "that finds the main thing"
NETWORK_FILE, PREPARATION_FILE = "onnx/model.onnx", "preprocessor_config.json"
FETCHED = ("config.json", PREPARATION_FILE, NETWORK_FILE, f"{NETWORK_FILE}_data*")  # from the hub
MAX_SIDE_PX = 4096  # of the picture that a network looks at: more is no size but damage


@dataclass(frozen=True)
class MainObjectSettings:
    """Holds the settings of `MainObjectFinder`."""

    mask_share: float = 0.5  # least share of a pixel that belongs to the mask
    min_part_share: float = 0.01  # of the largest part; smaller ones are specks


DEFAULTS = MainObjectSettings()


@dataclass(frozen=True, eq=False)
class PicturePreparation:
    """Holds what becomes of a picture before a network looks at it.

    Attributes:
        size: (width, height) of the picture in pixels.
        scale: factor of colors from 0 to 255.
        mean: of the scaled channels, which is taken off.
        spread: of the scaled channels, by which they are divided after that.
    """

    size: tuple[int, int]
    scale: float
    mean: Float[np.ndarray, "3"]
    spread: Float[np.ndarray, "3"]

    def prepare(self, frame: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "1 3 rows columns"]:
        """Makes of a frame what the network takes."""
        shrinks = frame.shape[1] > self.size[0] or frame.shape[0] > self.size[1]
        small = cv2.resize(frame, self.size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        values = (small * self.scale - self.mean) / self.spread
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


class MainObjectFinder:
    """Finds the main thing in a frame with a network.

    Args:
        source: the network: a folder with onnx/model.onnx and preprocessor_config.json in it, or a name on the hub.
        settings: thresholds.
    """

    def __init__(self, source: NetworkSource, settings: MainObjectSettings = DEFAULTS) -> None:
        self.source, self.settings = source, settings

    @cached_property
    def loaded(self) -> tuple[PicturePreparation, Any]:
        """What becomes of a frame first, and the session of onnxruntime; loaded when they are first asked for.

        Raises:
            UserError: the network does not exist, is of another kind or cannot be read.
        """
        model = self.source.model
        device = choose_device(self.source.device)
        folder = find_model_folder(model, FETCHED, "onnxruntime", PURPOSE, EXAMPLE)
        for name in (NETWORK_FILE, PREPARATION_FILE):
            if not (folder / name).is_file():
                raise self._explain_other_kind(f"there is no {name} in {folder}")
        values = read_model_json(folder / PREPARATION_FILE)
        require_module(model, "onnxruntime")
        with explain_network_errors(model):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # what is wrong is said by the error that is raised
            options.intra_op_num_threads = torch.get_num_threads()
            # Threads that wait for work sleep; spinning ones would take the cores of others.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            known, gpu = onnxruntime.get_available_providers(), "CUDAExecutionProvider"
            providers = [*([gpu] if device.type == "cuda" and gpu in known else []), "CPUExecutionProvider"]
            # It refuses weights in other files unless they are beside this one.
            session = onnxruntime.InferenceSession(str(folder / NETWORK_FILE), options, providers=providers)
        if self.source.device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise bad_input(
                f"{model} cannot run on the GPU",
                why="the installed onnxruntime is one for CPUs, or does not find the libraries of CUDA",
                fix="pip install onnxruntime-gpu, or --device cpu",
            )
        inputs = session.get_inputs()
        sides = inputs[0].shape if len(inputs) == 1 else []
        fits = len(sides) == 4 and (sides[1] == 3 or not isinstance(sides[1], int))  # any number of channels has a name
        if not fits or inputs[0].type != "tensor(float)":
            given = ", ".join(f"{item.type} {item.shape}" for item in inputs)
            raise self._explain_other_kind(f"it should take one picture of 3 channels, and takes {given or 'nothing'}")
        return _read_preparation(folder / PREPARATION_FILE, values, sides[2:]), session

    def find_in_frame(self, frame: UInt8[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "height width"]:
        """Finds the main thing in a frame: all that the network says, but for specks.

        Args:
            frame: RGB.

        Returns:
            Its pixels; none where nothing stands out.

        Raises:
            UserError: the network does not exist, cannot be run, or gives no mask.
        """
        settings = self.settings
        preparation, session = self.loaded
        with explain_network_errors(self.source.model):
            # Exports for training have coarser masks too; the last one is the finest.
            result = np.asarray(session.run(None, {session.get_inputs()[0].name: preparation.prepare(frame)})[-1])
        is_mask = result.dtype.kind == "f" and result.ndim == 4 and result.shape[:2] == (1, 1) and result.size > 0
        if not (is_mask and np.isfinite(result).all()):
            raise self._explain_other_kind(f"it gave no mask but {result.dtype} of the shape {result.shape}")
        values = torch.from_numpy(result[0, 0].astype(np.float32))
        # Exports end with logits, as the network was trained, or with a sigmoid; shares are never outside 0 to 1.
        share = values.sigmoid() if values.min() < 0 or values.max() > 1 else values
        mask = cv2.resize(share.numpy(), frame.shape[1::-1], interpolation=cv2.INTER_LINEAR) >= settings.mask_share
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        if count == 1:
            return mask
        areas = stats[:, cv2.CC_STAT_AREA]
        is_part = areas >= settings.min_part_share * areas[1:].max()
        is_part[0] = False  # what is around it
        return is_part[labels]

    def _explain_other_kind(self, why: str) -> UserError:
        return bad_input(
            f"{self.source.model} is not a network {PURPOSE}",
            why=why,
            fix=f"name a folder of such a network, or {EXAMPLE}",
        )


def _read_preparation(path: Path, values: dict[str, Any], sides: list[Any]) -> PicturePreparation:
    """Reads what becomes of a picture; its size is the network's own where that has one.

    Args:
        path: preprocessor_config.json.
        values: what is in it.
        sides: height and width that the network takes, each a number, or something else where any will do.
    """
    with locate_format_errors(path, fix=f"fetch it again, or use {EXAMPLE}"):
        given = values.get("size")
        named = [given.get("height"), given.get("width")] if isinstance(given, dict) else [given, given]
        height, width = (own if isinstance(own, int) else side for own, side in zip(sides, named, strict=True))
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            raise FormatError(f"the size is {width}x{height}; two whole numbers above 0 were expected")
        if max(height, width) > MAX_SIDE_PX:
            raise FormatError(f"the size is {width}x{height}; up to {MAX_SIDE_PX}x{MAX_SIDE_PX} can be used")
        scale = parse_number(values.get("rescale_factor", 1 / 255))
        mean, spread = (parse_numbers(values.get(name), 3) for name in ("image_mean", "image_std"))
        if scale <= 0 or spread.min() <= 0:
            raise FormatError("rescale_factor and image_std must be above 0")
    return PicturePreparation((width, height), scale, mean, spread)

"""RAFT (Teed and Deng 2020): its weights, wherever they come from, and the flow of one pair.

The network is torchvision's, which is imported nowhere else.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from neural_fields.core.errors import ExitCode, UserError, bad_input

Frame = UInt8[np.ndarray, "height width 3"]


def load_hub_weights(method: str) -> dict[str, torch.Tensor]:
    """Loads the weights of "raft" (small) or "raft-large" from torch's hub folder, downloaded there the first time.

    Raises:
        UserError: they are not there and cannot be fetched.
    """
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    weights: Any = Raft_Small_Weights.DEFAULT if method == "raft" else Raft_Large_Weights.DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as problem:  # URLError is an OSError; a wrong hash or a cut file a RuntimeError.
        raise bad_input(
            f"the weights of {method} could not be fetched: {problem}",
            where=f"--flow {method}",
            why="they are downloaded once and then kept in torch's hub folder; this machine seems to be offline",
            fix="--flow PATH.pth with a RAFT state dict on disk, or --flow dis, which needs none",
        ) from None


def build_raft(state: dict[str, torch.Tensor], where: str, device: str) -> torch.nn.Module:
    """Builds the RAFT network, small or large, for which `state` has the weights.

    Args:
        state: the weights, in torchvision's names.
        where: what `state` came from, for the error.
        device: device on which the network runs.

    Returns:
        The network, ready to run.

    Raises:
        UserError: `state` fits neither.
    """
    from torchvision.models.optical_flow import raft_large, raft_small

    first = state.get("feature_encoder.convnormrelu.0.weight")
    network = raft_small() if first is not None and len(first) == 32 else raft_large()
    try:
        network.load_state_dict(state)
    except RuntimeError as problem:
        reason = "; ".join(line.strip() for line in str(problem).splitlines()[1:3])[:200]
        raise bad_input(
            f"{where} does not fit RAFT small or large",
            where=where,
            why=reason or "no tensors of RAFT",
            fix="--flow dis",
        ) from None
    return network.eval().to(device)


def compute_raft_flow(network: torch.nn.Module, first: Frame, second: Frame) -> Float[np.ndarray, "height width 2"]:
    """Computes the flow from one frame to another; frames of any size are padded to what RAFT takes.

    Args:
        network: a network made by `build_raft`.
        first: the frame that the flow starts in, RGB, 0 to 255.
        second: the frame that it leads to, RGB, 0 to 255.

    Returns:
        (dx, dy) in pixels at each pixel of the first frame.
    """
    height, width = first.shape[:2]
    min_side = 128  # the coarsest of RAFT's four correlation levels needs 16 feature cells of 8 pixels
    right = max(min_side, -(-width // 8) * 8) - width
    bottom = max(min_side, -(-height // 8) * 8) - height
    device = next(network.parameters()).device
    batches = []
    for frame in (first, second):
        padded = np.pad(frame, [(0, bottom), (0, right), (0, 0)], mode="edge")
        batches.append(torch.from_numpy(padded).to(device).movedim(-1, 0)[None].float() / 127.5 - 1)
    with torch.inference_mode():
        flow = network(*batches, num_flow_updates=12)[-1][0]
    return flow.movedim(0, -1)[:height, :width].float().cpu().numpy()


def read_raft_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads a RAFT state dict of the user, with torchvision's names; only tensors are unpickled.

    Raises:
        UserError: no such file, a file that cannot be read, or one that holds more than tensors.
    """
    if not path.is_file():
        raise bad_input(f"no file {path}", where="--flow", fix="give an existing .pth file, or --flow dis")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            ExitCode.UNSAFE_FILE,
            f"{path.name} holds more than tensors and was not opened",
            where=str(path),
            why="only plain state dicts are read: anything else in such a file could run code",
            fix="save it again with torch.save(model.state_dict(), PATH)",
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as problem:
        text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise bad_input(f"{path.name} cannot be read: {text}", where=str(path), fix="--flow dis") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise bad_input(
            f"{path.name} is not a state dict", where=str(path), why="expected name: tensor", fix="--flow dis"
        )
    return rename_raft_state(state)


_RENAMES = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^((?:feature|context)_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^((?:feature|context)_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^((?:feature|context)_encoder)\.conv2\.", r"\1.conv."),
    (r"\.(layer\d\.\d)\.conv(\d)\.", r".\1.convnormrelu\2.0."),
    (r"^update_block\.encoder\.conv([cf])(\d)\.", r"motion_encoder.conv\1\2.0."),
    (r"^motion_encoder\.convc(\d)\.", r"motion_encoder.convcorr\1."),
    (r"^motion_encoder\.convf(\d)\.", r"motion_encoder.convflow\1."),
    (r"^update_block\.encoder\.conv\.", "motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])1\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.gru\.conv([zrq])2\.", r"update_block.recurrent_block.convgru2.conv\1."),
    (r"^update_block\.gru\.", "update_block.recurrent_block.convgru1."),
    (r"^motion_encoder\.", "update_block.motion_encoder."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def rename_raft_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a RAFT state dict from the original names ("module.fnet...") to torchvision's."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        # The last norm of an original residual block is stored twice, as normN and as downsample.1:
        # the copy has no convolution of that number and is left out below.
        blocks = re.match(r"(.*\.layer\d\.\d)\.norm(\d)\.(.*)", name)
        if blocks is not None:
            name = f"{blocks[1]}.convnormrelu{blocks[2]}.1.{blocks[3]}"
        renamed[name] = value
    kept = {}
    for name, value in renamed.items():
        norm = re.match(r"(.*\.layer\d\.\d\.convnormrelu\d)\.1\.", name)
        if norm is None or f"{norm[1]}.0.weight" in renamed:
            kept[name] = value
    return kept

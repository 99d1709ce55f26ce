"""Fetches a model, adds the user's adapters and embeddings to it, and moves it to the device that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from editors.diffusion.backend.weights import LoadingPlan, WeightsSource, count_parameters, plan_loading
from neural_fields.core.errors import bad_input


def fetch_model(weights: WeightsSource) -> Path:
    """Downloads a model from the hub, or finds it in the cache; returns its folder."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    unwanted = ["*.fp16.*", "*.non_ema.*", "*onnx*", "*flax*", "*openvino*"]
    if weights.unsafe:
        patterns += ["*.bin"]
    return Path(snapshot_download(weights.model, allow_patterns=patterns, ignore_patterns=unwanted))


def plan_placement(weights: WeightsSource, folder: Path) -> tuple[torch.device, LoadingPlan]:
    """Chooses the device of a model, and how the model is held in its memory.

    Args:
        weights: the model, with the device that the user asked for.
        folder: folder of the model.

    Returns:
        The device, and the plan.

    Raises:
        UserError: there is no such device, or the model does not fit into its memory.
    """
    has_gpu = torch.cuda.is_available()
    if weights.device == "cuda" and not has_gpu:
        raise bad_input("--device cuda, but there is no CUDA device", fix="--device cpu")
    name = "cpu" if weights.device == "cpu" or not has_gpu else "cuda"
    if name == "cuda":
        free = float(torch.cuda.mem_get_info()[0])
    else:
        import psutil

        free = float(int(psutil.virtual_memory().available))
    return torch.device(name), plan_loading(count_parameters(folder), name, free)


def add_user_weights(pipeline: Any, weights: WeightsSource) -> None:
    """Adds low-rank adapters (LoRA) and embeddings of textual inversion to a pipeline.

    Args:
        pipeline: a loaded pipeline of diffusers.
        weights: names the files of the adapters and embeddings.

    Raises:
        UserError: a file that is missing, is not safetensors, or does not match the model.
    """
    names = []
    for number, (path, _) in enumerate(weights.find_lora_files()):
        names.append(f"lora{number}")
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=names[-1])
    if names:
        pipeline.set_adapters(names, [strength for _, strength in weights.find_lora_files()])
    for path in weights.find_embedding_files():
        pipeline.load_textual_inversion(str(path.parent), weight_name=path.name, token=path.stem)


def move_pipeline(pipeline: Any, device: torch.device, plan: LoadingPlan) -> None:
    """Moves a pipeline to its device.

    Args:
        pipeline: a loaded pipeline of diffusers.
        device: the device.
        plan: how the pipeline is held in memory.
    """
    if plan.offload == "parts":
        pipeline.enable_model_cpu_offload(device=device)
    elif plan.offload == "layers":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if plan.tiled:
        pipeline.vae.enable_tiling()
        pipeline.vae.enable_slicing()

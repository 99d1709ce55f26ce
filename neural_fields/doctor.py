"""`unwrap doctor`: what this machine has, which back ends are active, and why others are not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "av", "pillow", "safetensors")
OPTIONAL = {
    "lpips": "LPIPS in unwrap eval: pip install 'unwrap-video[metrics]'",
    "diffusers": "diffusion editors: pip install 'unwrap-video[diffusion]'",
    "OpenEXR": "EXR files of unwrap export: pip install 'unwrap-video[exr]'",
    "psd_tools": ".psd documents: pip install 'unwrap-video[psd]'",
    "pytorch3d": "built from source by its own instructions; finds neighbours in volume_style",
    "ai_edge_litert": "pose networks of unwrap capture: pip install 'unwrap-video[pose]'",
    "nerfstudio": "pip install nerfstudio, in an environment of its own; ns-train then knows unwrap-background",
}


def examine() -> dict[str, str]:
    """Facts by name, one line each."""
    import torch

    from neural_fields import __version__
    from neural_fields.encodings.tcnn import unavailable_reason
    from neural_fields.threads import available_cores

    facts = {
        "unwrap": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cores": f"{available_cores()} usable, {torch.get_num_threads()} torch threads, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}",
    }
    for name in PACKAGES:
        facts[name] = _version(name)
    facts["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu (torch sees no CUDA device)"
    reason = unavailable_reason(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    facts["hash grid"] = f"torch ({reason})" if reason else "tiny-cuda-nn"
    facts["compiler"] = _compiler()
    facts["RAFT"] = _raft_weights()
    for name, hint in OPTIONAL.items():
        facts[name] = _version(name) if importlib.util.find_spec(name) else f"not installed ({hint})"
    return facts


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    """Whether torch.compile has a compiler to work with."""
    found = next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)
    return f"{found} (torch.compile can be used)" if found else "none found: torch.compile is not used"


def _raft_weights() -> str:
    """Whether RAFT's weights are in the torch hub cache."""
    import torch

    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    found = [name for name in os.listdir(folder) if name.startswith("raft")] if os.path.isdir(folder) else []
    return ", ".join(found) if found else "no weights in the hub cache: flow is DIS unless --flow names a file"

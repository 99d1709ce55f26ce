"""`unwrap doctor`: the environment of this machine, which back ends are active, and why others are not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

REQUIRED_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "av", "pillow", "safetensors")
OPTIONAL_MODULES = {  # module: what it is for and how to install it
    "lpips": "LPIPS in unwrap eval: pip install -e '.[metrics]' in the folder of Unwrap",
    "transformers": "networks for masks, diffusion editors: pip install -e '.[diffusion]' in the folder of Unwrap",
    "onnxruntime": "the main thing in a frame, for unwrap mask: pip install -e '.[onnx]' in the folder of Unwrap",
    "timm": "EdgeTAM in unwrap mask: pip install timm",
    "diffusers": "diffusion editors: pip install -e '.[diffusion]' in the folder of Unwrap",
    "OpenEXR": "EXR files of unwrap export: pip install -e '.[exr]' in the folder of Unwrap",
    "psd_tools": ".psd documents: pip install -e '.[psd]' in the folder of Unwrap",
    "pytorch3d": "built from source by its own instructions; finds neighbors in volume_style",
    "ai_edge_litert": "pose networks of unwrap capture: pip install -e '.[pose]' in the folder of Unwrap",
    "nerfstudio": "pip install nerfstudio, in a separate environment; ns-train then knows unwrap-background",
}


def collect_versions() -> dict[str, str]:
    """Collects what a training runs on by name, one line each: versions, processor, device, what fits and encodes."""
    import torch

    from neural_fields.core.threads import available_cores
    from neural_fields.core.version import __version__
    from neural_fields.nn.compiled_loops import can_compile_loops
    from neural_fields.nn.tcnn import explain_unavailable

    found = {
        "unwrap": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cores": f"{available_cores()} usable, {torch.get_num_threads()} torch threads, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}",
    }
    for name in REQUIRED_PACKAGES:
        found[name] = _package_version(name)
    found["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu (torch sees no CUDA device)"
    reason = explain_unavailable(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    loops = f"numba {_package_version('numba')}" if can_compile_loops() else "torch"
    found["hash grid"] = f"{loops} ({reason})" if reason else "tiny-cuda-nn"

    # The fit of the default preset has loops that numba compiles.
    found["fit"] = f"numba {_package_version('numba')}" if can_compile_loops() else "torch (numba is not installed)"
    return found


def collect_environment() -> dict[str, str]:
    """Collects the versions, devices and back ends of this machine by name, and what is missing; one line each."""
    import torch

    from neural_fields.nn.pretrained import describe_known_networks

    found = collect_versions()
    # torch.compile needs a C++ compiler.
    compilers = [path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))]
    if compilers:
        found["compiler"] = f"{compilers[0]} (torch.compile can be used)"
    else:
        found["compiler"] = "none found: torch.compile is not used"

    # RAFT needs its weights in the torch hub cache.
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    weights = [name for name in os.listdir(folder) if name.startswith("raft")] if os.path.isdir(folder) else []
    found["RAFT"] = ", ".join(weights) or "no weights in the hub cache: flow is DIS unless --flow names a file"

    for name, hint in OPTIONAL_MODULES.items():
        found[name] = _package_version(name) if importlib.util.find_spec(name) else f"not installed ({hint})"
    return found | describe_known_networks()


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""The hash grid on tiny-cuda-nn: the only file that imports `tinycudann`, and only when a grid runs on a GPU.

The native encoding is used as a function: it is built once for each shape, its own parameters are dropped, and the flat
vector of `HashGrid` is handed in at every call. So the state dict is the same with and without tiny-cuda-nn.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.nn.hash_layout import HashGridConfig

NEEDED_DEVICE = "cuda"


@functools.cache
def _import_tinycudann() -> tuple[ModuleType | None, str]:
    """Returns the imported module, or the reason why there is none. Tried once in a process."""
    try:
        import tinycudann
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "tinycudann":
            return None, "tiny-cuda-nn is not installed"
        return None, f"tiny-cuda-nn is installed but does not load: {error}"
    except OSError as error:  # what it raises without a GPU, or when built for another GPU
        return None, f"tiny-cuda-nn is installed but does not work here: {error}"
    return tinycudann, ""


def explain_unavailable(device: torch.device) -> str:
    """Says in one sentence why tiny-cuda-nn cannot run on `device`; empty when it can.

    On any device but a GPU the answer is given without importing tiny-cuda-nn.
    """
    if device.type != NEEDED_DEVICE:
        return "tiny-cuda-nn needs a CUDA GPU"
    return _import_tinycudann()[1]


@functools.lru_cache(maxsize=32)
def _build_native(in_dim: int, config: HashGridConfig, device: torch.device) -> tuple[nn.Module, int]:
    """Builds the native encoding without its parameters, and says how many it wants. One for each shape and device."""
    module, reason = _import_tinycudann()
    if module is None:
        what, fix = "the hash grid back end 'tcnn' does not work here", "set the back end to auto"
        raise UserError(ExitCode.USAGE, what, where="encoding.backend", why=reason, fix=fix)
    options = {
        "otype": "HashGrid",
        "n_levels": config.n_levels,
        "n_features_per_level": config.n_features,
        "log2_hashmap_size": config.log2_table,
        "base_resolution": config.base_resolution,
        "per_level_scale": config.growth,
        "interpolation": config.interpolation.capitalize(),
    }
    with torch.inference_mode(False):  # kept for later calls, which may need gradients
        native = module.Encoding(in_dim, options, dtype=torch.float32)
        wanted = native.params.numel()
        native.params = nn.Parameter(torch.empty(0, device=device))
    return native, wanted


def encode_points(
    x: Float[Tensor, "points in_dim"], params: Float[Tensor, " size"], in_dim: int, config: HashGridConfig
) -> Float[Tensor, "points features"]:
    """Returns the features of the points in [0, 1] from the flat `params`, in float32.

    Gradients reach x and params. Gradients of the gradient by x exist, those of the gradient by params do not.

    Args:
        x: points, on a GPU.
        params: the parameters of a `HashGrid`.
        in_dim: axes of the points.
        config: shape of the grid.

    Raises:
        UserError: this build of tiny-cuda-nn lays the grid out in another way.
    """
    with torch.cuda.device_of(x):  # the native code works on the current device
        native, wanted = _build_native(in_dim, config, x.device)
        if wanted != params.numel():
            raise UserError(
                ExitCode.USAGE,
                f"this tiny-cuda-nn wants {wanted:,} parameters for the grid, the run has {params.numel():,}",
                where="encoding.backend",
                why="the two lay out some level with different resolutions",
                fix="set the back end to torch",
            )
        features = torch.func.functional_call(native, {"params": params}, (x.float(),))
    return features[: len(x), : config.n_levels * config.n_features].float()

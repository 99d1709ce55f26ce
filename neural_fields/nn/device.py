"""The device of computations, and the peak memory of the process."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

import torch

from neural_fields.core.errors import bad_input


def choose_device(name: str) -> torch.device:
    """Returns the device for "auto", "cpu" or "cuda"; "auto" is a GPU where there is one.

    Raises:
        UserError: an unknown name, or "cuda" without a GPU (exit 3).

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name not in ("auto", "cpu", "cuda"):
        raise bad_input(f"unknown device '{name}'", why="expected auto, cpu or cuda", fix="--device auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise bad_input(
            "no CUDA device can be used",
            why="torch sees no GPU on this machine",
            fix="--device cpu, or unwrap doctor to see why",
        )
    wanted = "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def peak_memory_mib() -> float:
    """Returns the peak memory of this process, in MiB."""
    with suppress(OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
    return 0.0

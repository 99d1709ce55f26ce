"""LPIPS, with a backbone from a file, the cache or torchvision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from numpy import ndarray

from neural_fields.evaluation.metrics import Frame, _to_unit_float


class LpipsResult(NamedTuple):
    """Holds the result of `LpipsDistance`: the distance, or None with the reason in a sentence."""

    distance: float | None
    reason: str


class LpipsDistance:
    """Computes the mean LPIPS distance over frames (Zhang et al. 2018, version 0.1); lower is better. Never downloads.

    Whatever is missing, the distance is None and the reason says what would help.

    Args:
        weights: a torchvision state dict of SqueezeNet 1.1, AlexNet or VGG-16. Without it the first of these in the
            torch hub's cache is taken.
    """

    def __init__(self, weights: Path | None = None) -> None:
        self._model, self._note = _load_lpips(weights)
        self._distances: list[float] = []

    def add(self, a: Frame, b: Shaped[ndarray, "rows columns 3"]) -> None:
        """Adds a pair of frames to compare."""
        least_side = 32  # pixels; below it the deepest features of the backbones have no extent
        if self._model is not None and min(a.shape[:2]) < least_side:
            self._model, self._note = None, f"LPIPS left out: frames have a side under {least_side} pixels"
        if self._model is None:
            return
        # lpips wants pictures in [-1, 1].
        x, y = (torch.from_numpy(_to_unit_float(image) * 2 - 1).permute(2, 0, 1)[None] for image in (a, b))
        with torch.no_grad():
            self._distances.append(float(self._model(x, y)))

    @property
    def result(self) -> LpipsResult:
        """The mean over the frames that were added."""
        if self._model is None:
            return LpipsResult(None, self._note)
        if not self._distances:
            return LpipsResult(None, "LPIPS left out: no frames")
        return LpipsResult(float(np.mean(self._distances)), self._note)


def _load_lpips(weights: Path | None) -> tuple[torch.nn.Module | None, str]:
    """Loads the LPIPS network with a backbone, and names it; without a network, says why there is none."""
    path = weights
    if path is None:
        # The first backbone in the torch hub's cache, the smallest network first.
        folder, cached = Path(torch.hub.get_dir()) / "checkpoints", []
        for pattern in ("squeezenet1_1-*.pth", "alexnet-owt-*.pth", "vgg16-*.pth"):
            cached += sorted(folder.glob(pattern))
        path = cached[0] if cached else None
    if path is None:
        return None, "LPIPS left out: no backbone in the torch hub cache; pass a local SqueezeNet 1.1 file"
    if not path.is_file():
        return None, f"LPIPS left out: no file {path}"
    try:
        import lpips
    except ImportError:
        return None, "LPIPS left out: install the extra with pip install -e '.[metrics]' in the folder of Unwrap"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # border: torch raises some ten unrelated types for a file that is not a checkpoint
        state = None

    # Each network of torchvision is known by the shape of a layer that only it has.
    marks = {
        "squeeze": ("features.12.expand3x3.weight", (256, 64, 3, 3)),
        "alex": ("features.0.weight", (64, 3, 11, 11)),
        "vgg": ("features.28.weight", (512, 512, 3, 3)),
    }
    net = None
    for name, (layer, shape) in marks.items():
        if net is None and isinstance(state, dict) and layer in state and tuple(state[layer].shape) == shape:
            net = name
    if net is None:
        return None, f"LPIPS left out: {path} holds no SqueezeNet 1.1, AlexNet or VGG-16 weights"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # random numbers before the weights are read
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision by names that are deprecated
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # lpips keeps torchvision's layer numbers inside slices: slice2.3.weight is features.3.weight.
    model.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in model.net.state_dict()})
    return model, f"{net} backbone"

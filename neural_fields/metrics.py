"""Measures of a fit and of an edit. Pictures are RGB, uint8 or float in [0, 1]; clips may be any iterable of frames.

Whatever takes a clip reads it once, frame by frame, so memory does not grow with its length. Iterables that belong
together must have the same length: a short one raises ValueError.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray

from neural_fields import coords

Frame = Shaped[ndarray, "height width 3"]
Mask = Shaped[ndarray, "height width"]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004
LPIPS_LEAST_SIDE = 32  # below it the deepest features of the backbones have no extent
HUB_FILES = {"squeeze": "squeezenet1_1-*.pth", "alex": "alexnet-owt-*.pth", "vgg": "vgg16-*.pth"}


def psnr(a: Shaped[ndarray, "*n"], b: Shaped[ndarray, "*n"], mask: Shaped[ndarray, "*m"] | None = None) -> float:
    """Peak signal-to-noise ratio in dB: -10 log10 of the mean squared error in [0, 1]; inf when there is no error.

    `mask` (the shape without the colour axis) weighs the pixels: bool, or float >= 0. Nothing under it gives nan.
    """
    squared = (_unit(a) - _unit(b)) ** 2
    if mask is None:
        error = float(squared.mean(dtype=np.float64))
    else:
        weight = np.asarray(mask, np.float64)
        total = float(weight.sum())
        error = float((squared.mean(axis=-1) * weight).sum()) / total if total else math.nan
    return math.inf if error == 0 else -10 * math.log10(error)


def psnr_per_frame(a: Iterable[Frame], b: Iterable[Frame], masks: Iterable[Mask] | None = None) -> list[float]:
    """`psnr` of each frame, in order."""
    if masks is None:
        return [psnr(x, y) for x, y in zip(a, b, strict=True)]
    return [psnr(x, y, mask) for x, y, mask in zip(a, b, masks, strict=True)]


def ssim(a: Frame, b: Shaped[ndarray, "rows columns 3"]) -> float:
    """Structural similarity of two pictures (Wang et al. 2004, equation 13), mean over channels.

    Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, only where the window lies inside the picture.
    A picture with a side under 11 pixels gets the largest odd window that fits.
    """
    x, y = _unit(a), _unit(b)
    if x.shape != y.shape:
        raise ValueError(f"pictures of different shape: {x.shape} and {y.shape}")
    window = min(SSIM_WINDOW, *(side - 1 + side % 2 for side in x.shape[:2]))
    mean_x, mean_y = _window_mean(x, window), _window_mean(y, window)
    var_x = _window_mean(x * x, window) - mean_x**2
    var_y = _window_mean(y * y, window) - mean_y**2
    covariance = _window_mean(x * y, window) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dtype=np.float64))


def ssim_per_frame(a: Iterable[Frame], b: Iterable[Frame]) -> list[float]:
    """`ssim` of each frame, in order."""
    return [ssim(x, y) for x, y in zip(a, b, strict=True)]


def alpha_iou(alpha: Iterable[Mask], truth: Iterable[Mask], threshold: float = 0.5) -> float:
    """Intersection over union of two opacities cut at `threshold`, pixels of all frames pooled; 1 if both are empty."""
    both = either = 0
    for a, b in zip(alpha, truth, strict=True):
        x, y = _cut(a, threshold), _cut(b, threshold)
        both += int((x & y).sum())
        either += int((x | y).sum())
    return both / either if either else 1.0


def boundary_f(alpha: Iterable[Mask], truth: Iterable[Mask], threshold: float = 0.5, tolerance: float = 0.008) -> float:
    """Mean over frames of the F measure of outlines (Perazzi et al. 2016, section 5): the harmonic mean of precision
    and recall of outline pixels, matched within `tolerance` of the frame's diagonal (at least a pixel)."""
    scores = [_outline_f(_cut(a, threshold), _cut(b, threshold), tolerance) for a, b in zip(alpha, truth, strict=True)]
    return float(np.mean(scores)) if scores else math.nan


class WarpError:
    """Mean squared difference in [0, 1] between frame t and frame t+1 brought back along the forward flow.

    The mean runs over channels and over all pixels of the pairs added that `ok` marks and whose target pixel centre
    lies inside frame t+1; lookup is bilinear (Lai et al. 2018, section 4.2, with plain means).
    """

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(
        self,
        first: Frame,
        second: Shaped[ndarray, "rows columns 3"],
        flow: Float[ndarray, "flow_rows flow_columns 2"],
        ok: Bool[ndarray, "ok_rows ok_columns"],
    ) -> None:
        """Adds a pair of neighbouring frames. Flow is in pixels of these frames."""
        if not flow.shape[:2] == ok.shape == first.shape[:2]:
            sizes = f"flow of {flow.shape[:2]} and mask of {ok.shape} for frames of {first.shape[:2]}"
            raise ValueError(f"{sizes}: resize the flow first")
        warped, inside = _warp(_unit(second), np.asarray(flow, np.float32))
        use = inside & ok
        self._total += float(((warped - _unit(first)) ** 2).mean(axis=-1, dtype=np.float64)[use].sum())
        self._count += int(use.sum())

    @property
    def value(self) -> float | None:
        """None where no pixel qualifies, such as in a clip of one frame."""
        return self._total / self._count if self._count else None


def warp_error(
    frames: Iterable[Frame],
    forward: Iterable[Float[ndarray, "rows columns 2"]],
    ok: Iterable[Bool[ndarray, "ok_rows ok_columns"]],
) -> float | None:
    """`WarpError` of a clip: flow and masks are one less than there are frames."""
    error = WarpError()
    for (first, second), flow, valid in zip(pairwise(frames), forward, ok, strict=True):
        error.add(first, second, flow, valid)
    return error.value


def mark_centroids(
    edited: Iterable[Frame], plain: Iterable[Frame], color: tuple[float, float, float] | None = None
) -> Float[ndarray, "frames 2"]:
    """Pixel position of the centre of a painted mark in each frame; nan where it is not seen.

    The mark is where the edited frame differs from the plain one. With its `color` (RGB in [0, 1]) each pixel counts by
    how far it went from the plain colour towards it, so the picture under the mark does not pull the centre. Without,
    it counts by its difference, saturated at half the strongest. Changes under 0.1 are taken for coding noise.
    """
    found = [_centroid(_mark_opacity(_unit(a), _unit(b), color)) for a, b in zip(edited, plain, strict=True)]
    return np.array(found).reshape(-1, 2)


def mark_drift(
    edited: Iterable[Frame],
    plain: Iterable[Frame],
    positions: Float[ndarray, "positions 2"],
    color: tuple[float, float, float] | None = None,
) -> Float[ndarray, "frames"]:
    """Distance in pixels, frame by frame, between the painted mark and where it should be; nan where it is not seen.

    `positions` are the true centres: `SyntheticClip.mark_positions`, or `mark_centroids` of the true edited clip.
    """
    found = mark_centroids(edited, plain, color)
    if found.shape != positions.shape:
        raise ValueError(f"{len(positions)} true positions for {len(found)} frames")
    return np.hypot(*(found - positions).T)


class Perceptual(NamedTuple):
    """Result of `lpips_distance`: the distance, or None with the reason in one sentence."""

    distance: float | None
    reason: str


def lpips_distance(a: Iterable[Frame], b: Iterable[Frame], weights: Path | None = None) -> Perceptual:
    """Mean LPIPS distance over the frames (Zhang et al. 2018, version 0.1), lower is nearer; never downloads.

    `weights` is a torchvision state dict of SqueezeNet 1.1, AlexNet or VGG-16. Without it the first of these in the
    torch hub's cache is taken. Whatever is missing, the distance is None and the reason says what would help.
    """
    path = weights if weights is not None else _cached_backbone()
    if path is None:
        return Perceptual(None, "LPIPS left out: no backbone in the torch hub cache; pass a local SqueezeNet 1.1 file")
    if not path.is_file():
        return Perceptual(None, f"LPIPS left out: no file {path}")
    try:
        import lpips
    except ImportError:
        return Perceptual(None, "LPIPS left out: install the extra with pip install 'unwrap-video[metrics]'")
    state = _load_backbone(path)
    net = None if state is None else _backbone_kind(state)
    if state is None or net is None:
        return Perceptual(None, f"LPIPS left out: {path} holds no SqueezeNet 1.1, AlexNet or VGG-16 weights")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # random numbers before the weights are read
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision by names that are deprecated
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    model.net.load_state_dict({name: state[_torchvision_name(name)] for name in model.net.state_dict()})
    distances = []
    for x, y in zip(a, b, strict=True):
        if min(x.shape[:2]) < LPIPS_LEAST_SIDE:
            return Perceptual(None, f"LPIPS left out: frames have a side under {LPIPS_LEAST_SIDE} pixels")
        with torch.no_grad():
            distances.append(float(model(_signed(x), _signed(y))))
    if not distances:
        return Perceptual(None, "LPIPS left out: no frames")
    return Perceptual(float(np.mean(distances)), f"{net} backbone")


def _unit(image: Shaped[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """The picture as float32 in [0, 1]."""
    values = np.asarray(image)
    return values.astype(np.float32) / 255 if values.dtype == np.uint8 else values.astype(np.float32)


def _cut(alpha: Mask, threshold: float) -> Bool[ndarray, "height width"]:
    values = np.asarray(alpha)
    return values if values.dtype == bool else values >= threshold


def _window_mean(image: Float[ndarray, "h w 3"], window: int) -> Float[ndarray, "hh ww 3"]:
    margin = window // 2
    height, width = image.shape[:2]
    smooth = cv2.GaussianBlur(image, (window, window), SSIM_SIGMA)
    return smooth[margin : height - margin, margin : width - margin]


def _outline(mask: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Pixels of the mask that touch its outside; the frame's edge is no outline."""
    inner = cv2.erode(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), borderValue=1)
    return mask & (inner == 0)


def _outline_f(mask: Bool[ndarray, "h w"], truth: Bool[ndarray, "h w"], tolerance: float) -> float:
    reach = max(1, math.ceil(tolerance * math.hypot(*mask.shape)))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disc = (x * x + y * y <= reach * reach).astype(np.uint8)
    ours, theirs = _outline(mask), _outline(truth)
    if not ours.any() and not theirs.any():
        return 1.0
    if not ours.any() or not theirs.any():
        return 0.0
    precision = float((cv2.dilate(theirs.astype(np.uint8), disc) > 0)[ours].mean())
    recall = float((cv2.dilate(ours.astype(np.uint8), disc) > 0)[theirs].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _warp(
    image: Float[ndarray, "h w 3"], flow: Float[ndarray, "h w 2"]
) -> tuple[Float[ndarray, "h w 3"], Bool[ndarray, "h w"]]:
    """The picture looked up at pixel + flow, and where that lies between the outermost pixel centres."""
    height, width = image.shape[:2]
    target = coords.pixel_centres(width, height) + torch.from_numpy(flow)
    picture = torch.from_numpy(image).permute(2, 0, 1)[None]
    box = coords.frame_box(width, height)
    seen = coords.sample(picture, box, coords.normalise_pixels(target, width, height)[None])
    x, y = target.unbind(-1)
    inside = (x >= 0.5) & (x <= width - 0.5) & (y >= 0.5) & (y <= height - 0.5)
    return seen[0].permute(1, 2, 0).numpy(), inside.numpy()


def _mark_opacity(
    edited: Float[ndarray, "h w 3"], plain: Float[ndarray, "h w 3"], color: tuple[float, float, float] | None
) -> Float[ndarray, "h w"]:
    """How much of each pixel the mark covers, 0 to 1."""
    change = edited - plain
    size = np.linalg.norm(change, axis=-1)
    if color is None:
        cover = np.minimum(size / max(float(size.max()) / 2, 1e-6), 1)
    else:
        way = np.asarray(color, np.float32) - plain
        cover = (change * way).sum(axis=-1) / (way * way).sum(axis=-1).clip(1e-3)
    return np.where(size > 0.1, cover.clip(0, 1), 0)


def _centroid(weight: Float[ndarray, "h w"]) -> tuple[float, float]:
    total = float(weight.sum(dtype=np.float64))
    if total == 0:
        return math.nan, math.nan
    height, width = weight.shape
    x = float((weight.sum(axis=0, dtype=np.float64) * (np.arange(width) + 0.5)).sum()) / total
    return x, float((weight.sum(axis=1, dtype=np.float64) * (np.arange(height) + 0.5)).sum()) / total


def _cached_backbone() -> Path | None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next(_found(folder), None)


def _found(folder: Path) -> Iterator[Path]:
    for pattern in HUB_FILES.values():
        yield from sorted(folder.glob(pattern))


def _load_backbone(path: Path) -> dict[str, torch.Tensor] | None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # border: torch raises some ten unrelated types for a file that is not a checkpoint
        return None
    return state if isinstance(state, dict) else None


def _backbone_kind(state: dict[str, torch.Tensor]) -> str | None:
    """Which network of torchvision a state dict belongs to, by the shape of a layer that only it has."""
    marks = {
        "squeeze": ("features.12.expand3x3.weight", (256, 64, 3, 3)),
        "alex": ("features.0.weight", (64, 3, 11, 11)),
        "vgg": ("features.28.weight", (512, 512, 3, 3)),
    }
    for net, (name, shape) in marks.items():
        if name in state and tuple(state[name].shape) == shape:
            return net
    return None


def _torchvision_name(name: str) -> str:
    """lpips keeps torchvision's layer numbers inside slices: slice2.3.weight is features.3.weight."""
    return "features." + name.split(".", 1)[1]


def _signed(image: Frame) -> Float[torch.Tensor, "1 3 h w"]:
    """The picture in [-1, 1], as lpips wants it."""
    return torch.from_numpy(_unit(image) * 2 - 1).permute(2, 0, 1)[None]

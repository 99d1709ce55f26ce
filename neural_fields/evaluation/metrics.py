"""Metrics of a reconstruction and of an edit.

Pictures are RGB, uint8 or float in [0, 1]; clips may be any iterable of frames. Functions of clips read them once,
frame by frame, so that memory does not grow with the length. Iterables that belong together must have the same length;
otherwise `ValueError` is raised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray

Frame = Shaped[ndarray, "height width 3"]
Mask = Shaped[ndarray, "height width"]


def psnr(a: Shaped[ndarray, "*n"], b: Shaped[ndarray, "*n"], mask: Shaped[ndarray, "*m"] | None = None) -> float:
    """Computes the peak signal-to-noise ratio in dB: -10 log10 of the mean squared error in [0, 1].

    Args:
        a: the first picture.
        b: the second picture, of the same shape.
        mask: weights of the pixels, bool or float >= 0, of the shape without the color axis.

    Returns:
        The ratio in dB; inf when there is no error, nan when the mask is empty.

    Example:
        >>> psnr(np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.5)).__round__(2)
        6.02
    """
    squared = (_to_unit_float(a) - _to_unit_float(b)) ** 2
    if mask is None:
        error = float(squared.mean(dtype=np.float64))
    else:
        weight = np.asarray(mask, np.float64)
        total = float(weight.sum())
        error = float((squared.mean(axis=-1) * weight).sum()) / total if total else math.nan
    return math.inf if error == 0 else -10 * math.log10(error)


def psnr_per_frame(a: Iterable[Frame], b: Iterable[Frame]) -> list[float]:
    """Computes the `psnr` of each frame, in order.

    Args:
        a: the frames of the first clip.
        b: the frames of the second clip, as many and of the same size.

    Returns:
        The ratio of each frame, in dB.
    """
    return [psnr(x, y) for x, y in zip(a, b, strict=True)]


def ssim(a: Frame, b: Shaped[ndarray, "rows columns 3"]) -> float:
    """Computes the structural similarity of two pictures (Wang et al. 2004, equation 13), mean over channels.

    The window is a Gaussian of 11 pixels with sigma 1.5, K1 = 0.01 and K2 = 0.03; only windows inside the picture
    count. A picture with a side under 11 pixels gets the largest odd window that fits.

    Args:
        a: the first picture.
        b: the second picture, of the same shape.

    Returns:
        The similarity, at most 1.

    Raises:
        ValueError: pictures of different shapes.

    Example:
        >>> picture = np.zeros((16, 16, 3))
        >>> ssim(picture, picture)
        1.0
    """
    x, y = _to_unit_float(a), _to_unit_float(b)
    if x.shape != y.shape:
        raise ValueError(f"pictures of different shape: {x.shape} and {y.shape}")
    window = min(11, *(side - 1 + side % 2 for side in x.shape[:2]))
    mean_x, mean_y = _window_means(x, window), _window_means(y, window)
    var_x = _window_means(x * x, window) - mean_x**2
    var_y = _window_means(y * y, window) - mean_y**2
    covariance = _window_means(x * y, window) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dtype=np.float64))


def alpha_iou(alpha: Iterable[Mask], truth: Iterable[Mask]) -> float:
    """Computes the intersection over union of two opacities, thresholded at 0.5, over the pixels of all frames.

    Args:
        alpha: opacity of each frame, bool or float in [0, 1].
        truth: the true opacity of each frame.

    Returns:
        The ratio, 0 to 1; 1 for two empty clips.

    Example:
        >>> alpha_iou([np.array([[1.0, 0.8, 0.2, 0.0]])], [np.array([[True, False, False, False]])])
        0.5
    """
    both = either = 0
    for a, b in zip(alpha, truth, strict=True):
        x, y = _binarize(a), _binarize(b)
        both += int((x & y).sum())
        either += int((x | y).sum())
    return both / either if either else 1.0


def boundary_f(alpha: Iterable[Mask], truth: Iterable[Mask]) -> float:
    """Computes the F measure of outlines (Perazzi et al. 2016, section 5), mean over frames.

    It is the harmonic mean of precision and recall of the outline pixels of opacities thresholded at 0.5, matched
    within 0.008 of the frame's diagonal (at least a pixel), as in the DAVIS benchmark.

    Args:
        alpha: opacity of each frame, bool or float in [0, 1].
        truth: the true opacity of each frame.

    Returns:
        The measure, 0 to 1; nan for a clip without frames.

    Example:
        >>> square = np.pad(np.ones((4, 4), bool), 4)
        >>> boundary_f([square], [square])
        1.0
    """
    scores = []
    for a, b in zip(alpha, truth, strict=True):
        ours, theirs = _outline_pixels(_binarize(a)), _outline_pixels(_binarize(b))
        if not ours.any() or not theirs.any():
            scores.append(1.0 if not ours.any() and not theirs.any() else 0.0)
            continue
        reach = max(1, math.ceil(0.008 * math.hypot(*ours.shape)))
        y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
        disc = (x * x + y * y <= reach * reach).astype(np.uint8)
        precision = float((cv2.dilate(theirs.astype(np.uint8), disc) > 0)[ours].mean())
        recall = float((cv2.dilate(ours.astype(np.uint8), disc) > 0)[theirs].mean())
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(scores)) if scores else math.nan


class WarpError:
    """Measures the mean squared difference, in [0, 1], of frame t and frame t+1 warped back along the forward flow.

    The mean is over channels and over the pixels of all pairs that `ok` marks and that the flow takes to a place inside
    frame t+1; frame t+1 is sampled bilinearly (Lai et al. 2018, section 4.2, with plain means).
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
        """Adds a pair of neighboring frames.

        Args:
            first: frame t.
            second: frame t+1.
            flow: flow from `first` to `second`, in pixels of these frames.
            ok: the pixels of `first` that count.

        Raises:
            ValueError: a flow or a mask of another size than the frames.
        """
        import torch

        from neural_fields.core import coords

        if not flow.shape[:2] == ok.shape == first.shape[:2]:
            sizes = f"flow of {flow.shape[:2]} and mask of {ok.shape} for frames of {first.shape[:2]}"
            raise ValueError(f"{sizes}: resize the flow first")
        # The second frame, sampled at pixel + flow, counts where that lies between the outermost pixel centers.
        height, width = first.shape[:2]
        target = coords.pixel_centers(width, height) + torch.from_numpy(np.asarray(flow, np.float32))
        picture = torch.from_numpy(_to_unit_float(second)).permute(2, 0, 1)[None]
        box = coords.frame_box(width, height)
        sampled = coords.sample_canonical(picture, box, coords.normalize_pixels(target, width, height)[None])
        warped = sampled[0].permute(1, 2, 0).numpy()
        x, y = target.unbind(-1)
        inside = (x >= 0.5) & (x <= width - 0.5) & (y >= 0.5) & (y <= height - 0.5)
        use = inside.numpy() & ok
        self._total += float(((warped - _to_unit_float(first)) ** 2).mean(axis=-1, dtype=np.float64)[use].sum())
        self._count += int(use.sum())

    @property
    def value(self) -> float | None:
        """The error; None where no pixel counts, such as in a clip of one frame."""
        return self._total / self._count if self._count else None


def warp_error(
    frames: Iterable[Frame],
    forward: Iterable[Float[ndarray, "rows columns 2"]],
    ok: Iterable[Bool[ndarray, "ok_rows ok_columns"]],
) -> float | None:
    """Computes the `WarpError` of a clip.

    Args:
        frames: frames of the clip.
        forward: the flow from each frame but the last to the next one, in pixels.
        ok: the pixels that count of each frame but the last.

    Returns:
        The error in [0, 1]; None where no pixel counts.

    Example:
        >>> still, flow, ok = np.full((4, 4, 3), 0.5), np.zeros((4, 4, 2), np.float32), np.ones((4, 4), bool)
        >>> warp_error([still, still], [flow], [ok])
        0.0
    """
    error = WarpError()
    for (first, second), flow, valid in zip(pairwise(frames), forward, ok, strict=True):
        error.add(first, second, flow, valid)
    return error.value


def locate_marks(
    edited: Iterable[Frame], plain: Iterable[Frame], color: tuple[float, float, float] | None = None
) -> Float[ndarray, "frames 2"]:
    """Locates the center of a painted mark in each frame.

    The mark is where the edited frame differs from the plain one. With a `color`, each pixel is weighted by how far it
    moved from the plain color towards that color, so that the picture under the mark does not shift the center. Without
    one, it is weighted by its difference, saturated at half of the largest. Changes under 0.1 count as coding noise.

    Args:
        edited: the frames with the mark.
        plain: the same frames without it.
        color: color of the mark, RGB in [0, 1].

    Returns:
        The centers in pixels; nan where the mark is hidden.

    Example:
        >>> plain, edited = np.zeros((4, 6, 3)), np.zeros((4, 6, 3))
        >>> edited[1:3, 2:4] = 1
        >>> locate_marks([edited], [plain]).tolist()
        [[3.0, 2.0]]
    """
    centers = []
    for frame, unedited in zip(edited, plain, strict=True):
        # How much of each pixel the mark covers, 0 to 1.
        base = _to_unit_float(unedited)
        change = _to_unit_float(frame) - base
        size = np.linalg.norm(change, axis=-1)
        if color is None:
            cover = np.minimum(size / max(float(size.max()) / 2, 1e-6), 1)
        else:
            way = np.asarray(color, np.float32) - base
            cover = (change * way).sum(axis=-1) / (way * way).sum(axis=-1).clip(1e-3)
        opacity = np.where(size > 0.1, cover.clip(0, 1), 0)

        total = float(opacity.sum(dtype=np.float64))
        if total == 0:
            centers.append((math.nan, math.nan))
            continue
        height, width = opacity.shape
        x = float((opacity.sum(axis=0, dtype=np.float64) * (np.arange(width) + 0.5)).sum()) / total
        y = float((opacity.sum(axis=1, dtype=np.float64) * (np.arange(height) + 0.5)).sum()) / total
        centers.append((x, y))
    return np.array(centers).reshape(-1, 2)


def measure_mark_drift(
    edited: Iterable[Frame],
    plain: Iterable[Frame],
    positions: Float[ndarray, "positions 2"],
    color: tuple[float, float, float] | None = None,
) -> Float[ndarray, " frames"]:
    """Computes the distance between the painted mark and its true position, frame by frame.

    Args:
        edited: the frames with the mark.
        plain: the same frames without it.
        positions: the true centers: `SyntheticClip.compute_mark_positions`, or `locate_marks` of the true edited clip.
        color: color of the mark, as in `locate_marks`.

    Returns:
        The distances in pixels; nan where the mark is hidden.

    Raises:
        ValueError: another number of positions than of frames.
    """
    found = locate_marks(edited, plain, color)
    if found.shape != positions.shape:
        raise ValueError(f"{len(positions)} true positions for {len(found)} frames")
    return np.hypot(*(found - positions).T)


def _to_unit_float(image: Shaped[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """Converts a picture to float32 in [0, 1]."""
    values = np.asarray(image)
    return values.astype(np.float32) / 255 if values.dtype == np.uint8 else values.astype(np.float32)


def _binarize(alpha: Mask) -> Bool[ndarray, "height width"]:
    """Thresholds an opacity at one half; a mask is returned unchanged."""
    values = np.asarray(alpha)
    return values if values.dtype == bool else values >= 0.5


def _window_means(image: Float[ndarray, "h w 3"], window: int) -> Float[ndarray, "hh ww 3"]:
    """Computes the Gaussian means (sigma 1.5) of all windows that lie inside a picture."""
    margin = window // 2
    height, width = image.shape[:2]
    smooth = cv2.GaussianBlur(image, (window, window), 1.5)
    return smooth[margin : height - margin, margin : width - margin]


def _outline_pixels(mask: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Finds the pixels of the mask that touch its outside; the frame's edge is no outline."""
    inner = cv2.erode(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), borderValue=1)
    return mask & (inner == 0)

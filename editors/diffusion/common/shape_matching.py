"""Matches the points of two objects: by their outlines, and by the features of a diffusion model.

The features of a denoising network at one noise level are semantic enough to match points between pictures (DIFT, Tang
et al., "Emergent Correspondence from Image Diffusion", NeurIPS 2023, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from editors.diffusion.backend.diffusers_model import DiffusionModel, Images

Mask = Bool[np.ndarray, "height width"]
Points = Float[np.ndarray, "_ 2"]


@dataclass(frozen=True)
class ShapeMatchingSettings:
    """Settings of matching two objects."""

    outline_points: int = 20  # number of matched points
    outline_oversampling: int = 6  # times as many points are tried for the first of them
    distance_weight: float = 0.02  # weight of the distance of points in the cost of a match of outlines
    noise_level: float = 0.26  # share of the schedule's times at which features are read: step 261 of 1000 as in DIFT
    n_noises: int = 4  # over which features are averaged; DIFT takes 8
    feature_cells: int = 64  # at least so many along each side, if the masks have them, are compared
    min_similarity: float = 0.6  # least cosine of matching features
    max_stray: float = 0.15  # largest distance of a match from the prediction by the outlines, in object sizes
    max_matches: int = 60  # largest number of matches inside the object


DEFAULTS = ShapeMatchingSettings()


def match_outlines(before: Mask, after: Mask, settings: ShapeMatchingSettings = DEFAULTS) -> tuple[Points, Points]:
    """Matches points at equal steps along the outlines of two objects, and their centers.

    The first point is chosen so that an affine map from the points to their partners fits best, and the points move
    little once the objects are aligned.

    Args:
        before: mask of the first object.
        after: mask of the second object.
        settings: number of points, and weight of the distance.

    Returns:
        Points of the first object and their partners on the second, in pixels.
    """
    count = settings.outline_oversampling * settings.outline_points
    outline_before, outline_after = _sample_outline(before, count), _sample_outline(after, count)
    a, b = _standardize_points(outline_before), _standardize_points(outline_after)
    basis = np.linalg.qr(np.column_stack([a, np.ones(len(a))]))[0]
    costs = []
    for shift in range(len(b)):
        rolled = np.roll(b, -shift, axis=0)
        residual = rolled - basis @ (basis.T @ rolled)
        costs.append(float((residual**2).sum() + settings.distance_weight * ((a - rolled) ** 2).sum()))
    outline_after = np.roll(outline_after, -int(np.argmin(costs)), axis=0)
    start, end = outline_before[:: settings.outline_oversampling], outline_after[:: settings.outline_oversampling]
    return np.concatenate([start, _compute_center(before)[None]]), np.concatenate([end, _compute_center(after)[None]])


def match_box_corners(before: Mask, after: Mask) -> tuple[Points, Points]:
    """Matches the corners of the bounding boxes of two objects, which gives the coarsest deformation.

    Args:
        before: mask of the first object.
        after: mask of the second object.

    Returns:
        Corners of the first box and their partners on the second, in pixels.
    """
    corners = []
    for mask in (before, after):
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        corners.append(np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]], np.float64))
    return corners[0], corners[1]


@torch.no_grad()
def compute_features(
    model: DiffusionModel, image: Images, prompt: str, seed: int, settings: ShapeMatchingSettings = DEFAULTS
) -> Float[Tensor, "channels rows columns"]:
    """Computes the features of the model's UNet for a picture, normalized at every position.

    Args:
        model: a model with a UNet.
        image: one picture in [0, 1], with sides that are multiples of `model.multiple`.
        prompt: what the picture shows.
        seed: seed of the noise.
        settings: noise level, and number of noises.

    Raises:
        ValueError: the model has no UNet.
    """
    if model.unet is None:
        raise ValueError("features are those of a U-Net")
    kept: list[Tensor] = []
    blocks = model.unet.up_blocks
    hook = blocks[min(1, len(blocks) - 1)].register_forward_hook(lambda module, given, out: kept.append(out))
    try:
        clean, text = model.encode_images(image.to(model.device)), model.encode_prompt(prompt)
        n_times = len(model.schedule.signal)
        time = min(n_times - 1, round(settings.noise_level * n_times))
        extra_channels = int(model.denoiser.config.in_channels) - model.latent_channels
        extra = clean.new_zeros(1, extra_channels, *clean.shape[2:]) if extra_channels else None
        for number in range(settings.n_noises):
            noised = model.schedule.add_noise(clean, model.draw_noise(clean, seed + number), time)
            model.predict_denoised(noised, time, text, 1.0, extra=extra)
    finally:
        hook.remove()
    mean = torch.stack([part[0].float() for part in kept if part.shape == kept[0].shape]).mean(dim=0)
    return normalize(mean, dim=0).cpu()


def match_features(
    features_before: Float[Tensor, "channels rows columns"],
    features_after: Float[Tensor, "channels rows columns"],
    before: Mask,
    after: Mask,
    outline_matches: tuple[Points, Points],
    settings: ShapeMatchingSettings = DEFAULTS,
) -> tuple[Points, Points]:
    """Matches points of two objects whose features are mutual nearest neighbors.

    Args:
        features_before: features of the first picture, as `compute_features` returns them.
        features_after: features of the second picture.
        before: mask of the first object.
        after: mask of the second object.
        outline_matches: matches of their outlines. Matches far from an affine map through them are left out.
        settings: thresholds of the matching.

    Returns:
        Points of the first object and their partners on the second, in the pixels of the masks; there may be none.
    """
    least = settings.feature_cells
    size = (before.shape[0] // max(1, before.shape[0] // least), before.shape[1] // max(1, before.shape[1] // least))
    scale = np.array([before.shape[1] / size[1], before.shape[0] / size[0]])
    cells_before, cells_after = _list_object_cells(before, size), _list_object_cells(after, size)
    if min(len(cells_before), len(cells_after)) == 0:
        return np.zeros((0, 2)), np.zeros((0, 2))
    # Pairs of cells that are each other's nearest
    a, b = _sample_cells(features_before, cells_before, size), _sample_cells(features_after, cells_after, size)
    similarity = (a.T @ b).numpy()
    forth, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    mutual = (back[forth] == np.arange(len(forth))) & (similarity.max(axis=1) > settings.min_similarity)
    start = (cells_before[mutual] + 0.5) * scale
    end = (cells_after[forth[mutual]] + 0.5) * scale
    # Pairs that the outlines agree with, and not too many of them
    affine = np.linalg.lstsq(
        np.column_stack([outline_matches[0], np.ones(len(outline_matches[0]))]), outline_matches[1], rcond=None
    )[0]
    stray = np.linalg.norm(np.column_stack([start, np.ones(len(start))]) @ affine - end, axis=1)
    near = stray < settings.max_stray * np.ptp(outline_matches[1], axis=0).max()
    start, end = start[near], end[near]
    step = max(1, -(-len(start) // settings.max_matches))
    return start[::step], end[::step]


def _sample_outline(mask: Mask, count: int) -> Points:
    """Samples the outline of the largest part of a mask at equal steps, clockwise as seen."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    line = max(contours, key=cv2.contourArea)[:, 0].astype(np.float64) + 0.5
    if cv2.contourArea(line.astype(np.float32), oriented=True) < 0:
        line = line[::-1]
    closed = np.concatenate([line, line[:1]])
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    wanted = np.linspace(0, lengths[-1], count, endpoint=False)
    return np.stack([np.interp(wanted, lengths, closed[:, axis]) for axis in (0, 1)], axis=1)


def _standardize_points(points: Points) -> Points:
    return (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 1e-6)


def _compute_center(mask: Mask) -> Float[np.ndarray, "2"]:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def _list_object_cells(mask: Mask, size: tuple[int, int]) -> Int[np.ndarray, "cells 2"]:
    """Lists (column, row) of the cells of a coarser grid of `size` (rows, columns) that lie in a mask."""
    small = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    rows, columns = np.nonzero(small > 0.5)
    return np.stack([columns, rows], axis=-1)


def _sample_cells(
    values: Float[Tensor, "channels rows columns"], cells: Int[np.ndarray, "cells 2"], size: tuple[int, int]
) -> Float[Tensor, "channels cells"]:
    """Samples features at cells (column, row) of a grid of `size` (rows, columns), of length one at each."""
    grid = normalize(interpolate(values[None], size, mode="bilinear")[0], dim=0)
    return grid[:, cells[:, 1], cells[:, 0]]

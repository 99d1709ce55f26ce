"""Which points of an object are which of another: by their outlines, and by what a diffusion model sees in them.

The features of a denoising network at one noise level tell what is shown well enough to match it between pictures
(DIFT, Tang et al., "Emergent Correspondence from Image Diffusion", NeurIPS 2023, section 4).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from editors.diffusion.wrapper import DiffusionModel, Images

LEVEL = 0.26  # how far along the schedule's times the picture is noised: step 261 of 1000, as in DIFT
NOISES = 4  # over which features are averaged; DIFT takes 8
AROUND = 20  # points of an outline
FINER = 6  # times as many are tried for the first of them
NEAREST = 0.02  # share of the way to go in what a match of outlines costs
INSIDE = 60  # matches inside the object, at most
ALIKE = 0.6  # cosine from which two features are the same thing
STRAY = 0.15  # of the object's extent: so far a match may lie from where the outlines say

Mask = Bool[np.ndarray, "height width"]
Points = Float[np.ndarray, "_ 2"]


def match_outlines(before: Mask, after: Mask, count: int = AROUND) -> tuple[Points, Points]:
    """Points around two objects at equal shares of their outlines, in pixels, and their centres.

    The first point is chosen so that an affine map takes the points to their partners best; of equals, where they go
    least far once the objects are laid on each other.
    """
    one, other = (_outline(mask, FINER * count) for mask in (before, after))
    a, b = _standard(one), _standard(other)
    across = np.linalg.qr(np.column_stack([a, np.ones(len(a))]))[0]
    costs = []
    for shift in range(len(b)):
        rolled = np.roll(b, -shift, axis=0)
        bent = rolled - across @ (across.T @ rolled)
        costs.append(float((bent**2).sum() + NEAREST * ((a - rolled) ** 2).sum()))
    other = np.roll(other, -int(np.argmin(costs)), axis=0)
    start, end = one[::FINER], other[::FINER]
    return np.concatenate([start, _centre(before)[None]]), np.concatenate([end, _centre(after)[None]])


def boxes(before: Mask, after: Mask) -> tuple[Points, Points]:
    """The corners of the rectangles around two objects: the coarsest of all deformations."""
    found = []
    for mask in (before, after):
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        found.append(np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]], np.float64))
    return found[0], found[1]


@torch.no_grad()
def features(model: DiffusionModel, image: Images, prompt: str, seed: int) -> Float[Tensor, "channels rows columns"]:
    """What the model's U-Net sees in a picture, of length one at every position.

    Args:
        image: one picture in [0, 1], with sides that are multiples of `model.multiple`.

    Raises:
        ValueError: the model has no U-Net.
    """
    if model.unet is None:
        raise ValueError("features are those of a U-Net")
    kept: list[Tensor] = []
    blocks = model.unet.up_blocks
    hook = blocks[min(1, len(blocks) - 1)].register_forward_hook(lambda module, given, out: kept.append(out))
    try:
        clean, text = model.encode(image.to(model.device)), model.text(prompt)
        time = min(len(model.schedule.signal) - 1, round(LEVEL * len(model.schedule.signal)))
        more = int(model.denoiser.config.in_channels) - model.channels
        extra = clean.new_zeros(1, more, *clean.shape[2:]) if more else None
        for number in range(NOISES):
            noised = model.schedule.add_noise(clean, model.noise(clean, seed + number), time)
            model.predict(noised, time, text, 1.0, extra=extra)
    finally:
        hook.remove()
    mean = torch.stack([part[0].float() for part in kept if part.shape == kept[0].shape]).mean(dim=0)
    return normalize(mean, dim=0).cpu()


def match_features(
    one: Float[Tensor, "channels rows columns"],
    other: Float[Tensor, "channels rows columns"],
    before: Mask,
    after: Mask,
    guess: tuple[Points, Points],
) -> tuple[Points, Points]:
    """Points of two objects that are each other's nearest by their features, in the pixels of the masks.

    Args:
        one, other: features of the two pictures, as `features` gives them.
        before, after: where the objects are.
        guess: matches of their outlines. What lies far from where an affine map through them leads is left out.
    """
    size = (before.shape[0] // max(1, before.shape[0] // 64), before.shape[1] // max(1, before.shape[1] // 64))
    planes = [normalize(interpolate(f[None], size, mode="bilinear")[0], dim=0) for f in (one, other)]
    scale = np.array([before.shape[1] / size[1], before.shape[0] / size[0]])
    cells = [_cells(mask, size) for mask in (before, after)]
    if min(len(places) for places in cells) == 0:
        return np.zeros((0, 2)), np.zeros((0, 2))
    a, b = (plane[:, places[:, 1], places[:, 0]] for plane, places in zip(planes, cells, strict=True))
    alike = (a.T @ b).numpy()
    there, back = alike.argmax(axis=1), alike.argmax(axis=0)
    mutual = (back[there] == np.arange(len(there))) & (alike.max(axis=1) > ALIKE)
    start = (cells[0][mutual] + 0.5) * scale
    end = (cells[1][there[mutual]] + 0.5) * scale
    affine = np.linalg.lstsq(np.column_stack([guess[0], np.ones(len(guess[0]))]), guess[1], rcond=None)[0]
    off = np.linalg.norm(np.column_stack([start, np.ones(len(start))]) @ affine - end, axis=1)
    near = off < STRAY * np.ptp(guess[1], axis=0).max()
    start, end = start[near], end[near]
    step = max(1, -(-len(start) // INSIDE))
    return start[::step], end[::step]


def _outline(mask: Mask, count: int) -> Points:
    """Points at equal steps along the outline of the largest part of a mask, clockwise as seen."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    line = max(found, key=cv2.contourArea)[:, 0].astype(np.float64) + 0.5
    if cv2.contourArea(line.astype(np.float32), oriented=True) < 0:
        line = line[::-1]
    closed = np.concatenate([line, line[:1]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    wanted = np.linspace(0, along[-1], count, endpoint=False)
    return np.stack([np.interp(wanted, along, closed[:, axis]) for axis in (0, 1)], axis=1)


def _standard(points: Points) -> Points:
    return (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 1e-6)


def _centre(mask: Mask) -> Float[np.ndarray, "2"]:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def _cells(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    """(column, row) of the cells of a coarser grid of `size` (rows, columns) that lie in a mask."""
    small = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    rows, columns = np.nonzero(small > 0.5)
    return np.stack([columns, rows], axis=-1)

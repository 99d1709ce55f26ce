"""Geometry first: an atlas placed by optical flow, homographies and weighted averages before any gradient step.

For each layer: (1) the flow inside its mask gives a homography (background) or an affine map (front layers) between
neighbouring frames, by RANSAC; (2) chained outwards from a reference frame they predict where every frame lies, and
long-range flow puts it there (`placement.py`); (3) what flow adds to the transforms is kept on a coarse grid; (4) the
canonical image is the weighted mean of the frames. Deformable Sprites (Ye et al. 2022) groups and aligns by the same
two stages; everything here is closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields import coords
from neural_fields.coords import Box
from neural_fields.data.clip import Clip
from neural_fields.data.flow import FlowField
from neural_fields.planar.placement import make_view, place, project

MIN_MATCHES = 24  # fewer flow vectors than this place no transform
MAX_MATCHES = 1500
WORTH = 0.95  # how much closer to the matches a freer transform must lie to be taken
FAR = 8.0  # pixels: matches further away than this from a transform are none of its business
MAX_REACH = 5.0  # a chained frame may reach this many frame lengths from the reference frame
MAX_MAGNIFICATION = 5.0  # and be this much larger or smaller than it


@dataclass(frozen=True)
class LayerGeometry:
    """Where one layer lies: a transform and a grid of shifts per frame, and the box that they fill."""

    homography: Float[np.ndarray, "time 3 3"]  # xy units to uv units
    residual: Float[np.ndarray, "time rows columns 2"]  # uv units, spans the frame
    box: Box
    magnification: float  # uv units a texel must resolve, relative to one pixel of the reference frame (>= 1: finer)


def layer_geometry(
    clip: Clip, visible: Float[np.ndarray, "time h w"], is_background: bool, grid: tuple[int, int]
) -> LayerGeometry:
    """The geometry of one layer.

    Args:
        visible: 0 to 1, where the layer is seen, at the size of `clip.flow` (or of the frames, without flow).
        is_background: the background may be warped by a homography, a front layer by an affine map.
        grid: (columns, rows) of the residual.
    """
    if clip.flow is None or len(visible) < 2:
        return _still(visible, grid)
    reference = _reference_frame(visible, is_background)
    kind, pairs = choose_transforms(clip.flow, visible, reference, is_background)
    placed = place(
        lambda t: make_view(clip.frames[t], visible[t]), pairs, reference, _fit_or_keep(kind, clip.flow.size)
    )
    transforms = np.stack([frame.transform for frame in placed])
    if not _is_sane(transforms, clip.flow.size):
        transforms = _without_zoom(transforms)
    residual = np.stack([cv2.resize(frame.shift, grid, interpolation=cv2.INTER_AREA) for frame in placed])
    box = _box(visible, transforms, residual)
    return LayerGeometry(transforms.astype(np.float32), residual, box, _magnification(visible, transforms))


def _still(visible: np.ndarray, grid: tuple[int, int]) -> LayerGeometry:
    """The geometry of a clip without motion: every frame lies where the first does."""
    count = len(visible)
    identity = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    residual = np.zeros((count, grid[1], grid[0], 2), np.float32)
    return LayerGeometry(identity, residual, _box(visible, identity, residual), 1.0)


def _reference_frame(visible: np.ndarray, is_background: bool) -> int:
    """The frame that a layer's canonical image looks like: the middle one, or where a front layer is seen largest.

    Among the frames in which a front layer has at least 0.9 of its largest area, the one nearest the middle.
    """
    middle = len(visible) // 2
    if is_background:
        return middle
    area = visible.sum((1, 2))
    if area.max() <= 0:
        return middle
    large = np.flatnonzero(area >= 0.9 * area.max())
    return int(large[np.abs(large - middle).argmin()])


# --- transforms between frames --------------------------------------------------------------------------------------


def choose_transforms(
    flow: FlowField, visible: np.ndarray, reference: int, is_background: bool
) -> tuple[str, list[np.ndarray]]:
    """The kind of transform for a layer, and the transforms [3, 3] from each frame to the next, in xy units.

    The richest kind whose chain stays sane is taken: small errors of a homography's perspective part multiply along a
    chain until a frame is torn apart, which a similarity cannot do.
    """
    kinds = ("homography", "affine", "similarity") if is_background else ("affine", "similarity")
    for kind in kinds:
        pairs = [_pair_transform(flow, visible, t, kind) for t in range(len(visible) - 1)]
        if _is_sane(_chain(pairs, reference), flow.size):
            break
    return kind, pairs


def _pair_transform(flow: FlowField, visible: np.ndarray, t: int, kind: str) -> np.ndarray:
    """The transform from frame t to frame t + 1 in xy units; the identity where too few vectors can be trusted."""
    width, height = flow.size
    rows, columns = np.nonzero(flow.forward_ok[t] & (visible[t] > 0.9))
    if len(rows) < MIN_MATCHES:
        return np.eye(3)
    chosen = np.random.default_rng(t).permutation(len(rows))[:MAX_MATCHES]
    rows, columns = rows[chosen], columns[chosen]
    start = np.stack([columns, rows], -1) + 0.5
    end = start + flow.forward[t][rows, columns]
    centre, scale = np.array([width, height]) / 2, 2 / max(width, height)
    a, b = ((points - centre) * scale for points in (start, end))
    return _fit(np.ascontiguousarray(a[:, None]), np.ascontiguousarray(b[:, None]), kind, scale)


def _fit(start: np.ndarray, end: np.ndarray, kind: str, pixel: float) -> np.ndarray:
    """The transform of `kind` between matched points, or a similarity where that lies nearly as close to them.

    A freer transform always comes a little closer: to parts of an object that no mask names, say, and drifts with them.
    """
    stiff = _ransac(start, end, "similarity", pixel)
    if kind == "similarity":
        return stiff
    free = _ransac(start, end, kind, pixel)
    distances = (np.linalg.norm(project(m, start[:, 0]) - end[:, 0], axis=1) for m in (stiff, free))
    far_stiff, far_free = (np.minimum(distance, FAR * pixel).mean() for distance in distances)
    return free if far_free < WORTH * far_stiff else stiff


def _ransac(start: np.ndarray, end: np.ndarray, kind: str, pixel: float) -> np.ndarray:
    """RANSAC fit of one kind of transform; the identity where it fails."""
    if kind == "homography":
        found, _ = cv2.findHomography(start, end, cv2.USAC_MAGSAC, pixel, maxIters=1000)
        return np.eye(3) if found is None else found
    estimate = cv2.estimateAffine2D if kind == "affine" else cv2.estimateAffinePartial2D
    found, _ = estimate(start, end, method=cv2.RANSAC, ransacReprojThreshold=pixel)
    return np.eye(3) if found is None else np.vstack([found, [0, 0, 1]])


def _fit_or_keep(kind: str, size: tuple[int, int]) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """A fit of `kind` to matched points that keeps the prediction where there are too few of them."""

    def fit(xy: np.ndarray, uv: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        if len(xy) < MIN_MATCHES:
            return predicted
        chosen = np.random.default_rng(len(xy)).permutation(len(xy))[:MAX_MATCHES]
        start, end = (np.ascontiguousarray(points[chosen, None], np.float64) for points in (xy, uv))
        return _fit(start, end, kind, 2 / max(size))

    return fit


def _chain(pairs: list[np.ndarray], reference: int) -> np.ndarray:
    """Transforms from every frame to the reference frame."""
    chained = [np.eye(3)] * (len(pairs) + 1)
    for t in range(reference + 1, len(chained)):
        chained[t] = chained[t - 1] @ np.linalg.pinv(pairs[t - 1])
    for t in range(reference - 1, -1, -1):
        chained[t] = chained[t + 1] @ pairs[t]
    return np.stack([matrix / matrix[2, 2] if abs(matrix[2, 2]) > 1e-9 else np.eye(3) for matrix in chained])


def _is_sane(chained: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether every frame lies near the reference frame, unfolded and of comparable size."""
    box = coords.frame_box(*size)
    corners = np.array([[box.u0, box.v0, 1], [box.u1, box.v0, 1], [box.u1, box.v1, 1], [box.u0, box.v1, 1]])
    placed = np.einsum("tij,cj->tci", chained, corners)
    depth = placed[..., 2]
    if not np.isfinite(placed).all() or (depth < 0.2).any():
        return False
    xy = placed[..., :2] / depth[..., None]
    x, y = xy[..., 0], xy[..., 1]
    area = 0.5 * (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)
    relative = area / (box.width * box.height)
    zoom = MAX_MAGNIFICATION**2
    return bool((np.abs(xy) < 2 * MAX_REACH).all() and (relative > 1 / zoom).all() and (relative < zoom).all())


def _without_zoom(chained: np.ndarray) -> np.ndarray:
    """Chained similarities with their zoom limited and their reach bounded: for clips that move far."""
    linear = chained[:, :2, :2]
    zoom = np.sqrt(np.abs(np.linalg.det(linear))).clip(1e-9)
    limited = zoom.clip(1 / MAX_MAGNIFICATION, MAX_MAGNIFICATION)
    result = chained.copy()
    result[:, :2, :2] = linear * (limited / zoom)[:, None, None]
    result[:, :2, 2] = result[:, :2, 2].clip(-2 * MAX_REACH, 2 * MAX_REACH)
    return result


# --- the canonical box ----------------------------------------------------------------------------------------------


def _box(visible: np.ndarray, homography: np.ndarray, residual: np.ndarray) -> Box:
    """The box that holds the layer in all frames, less the outermost points, plus a margin of a few pixels."""
    count, height, width = visible.shape
    xy = coords.frame_xy(width, height).numpy()
    kept = []
    for t in range(count):
        shift = cv2.resize(residual[t], (width, height), interpolation=cv2.INTER_LINEAR)
        seen = visible[t] > 0.5
        kept.append((project(homography[t], xy) + shift)[::2, ::2][seen[::2, ::2]])
    points = np.concatenate(kept)
    if not len(points):
        return coords.frame_box(width, height)
    margin = 16 / max(width, height)
    low, high = np.percentile(points, [0.01, 99.99], axis=0)
    reach = 2 * MAX_REACH
    low, high = np.clip(low - margin, -reach, reach), np.clip(high + margin, -reach, reach)
    return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _magnification(visible: np.ndarray, homography: np.ndarray) -> float:
    """How much finer than the reference frame the layer is seen where it is seen largest (1 to MAX_MAGNIFICATION)."""
    seen = visible.sum((1, 2)) > 0
    zoom = np.sqrt(np.abs(np.linalg.det(homography[seen, :2, :2]))) if seen.any() else np.ones(1)
    return float((1 / np.percentile(zoom, 10)).clip(1, MAX_MAGNIFICATION))


# --- closed-form textures -------------------------------------------------------------------------------------------


class TextureMean:
    """The weighted mean of frames splatted onto a canonical image, with holes filled smoothly."""

    def __init__(self, box: Box, width: int, height: int) -> None:
        self.box = box
        self.total = torch.zeros(1, 4, height, width)

    def add(
        self,
        uv: Float[Tensor, "rows columns 2"],
        rgb: Float[Tensor, "rows columns 3"],
        weight: Float[Tensor, "rows columns"],
    ) -> None:
        """Adds the pixels of a frame. A splat is the transpose of a lookup, so it is the lookup's gradient."""
        canvas = torch.zeros_like(self.total, requires_grad=True)
        values = torch.cat([rgb * weight[..., None], weight[..., None]], dim=-1)
        with torch.enable_grad():
            seen = coords.sample(canvas, self.box, uv[None], padding="zeros")
            # A scalar's backward: torch.autograd.grad with weights imports two seconds of symbolic mathematics.
            (seen * values.permute(2, 0, 1)[None]).sum().backward()
        assert canvas.grad is not None
        self.total += canvas.grad

    def image(self) -> Float[Tensor, "3 height width"]:
        """The mean; a texel that nothing fell on takes the colour of its surroundings."""
        return fill_holes(self.total[:, :3], self.total[:, 3:])[0]


def fill_holes(
    total: Float[Tensor, "batch channel height width"], weight: Float[Tensor, "batch 1 height width"]
) -> Float[Tensor, "batch channel height width"]:
    """total / weight, and where the weight is small the mean of ever larger surroundings (pull-push)."""
    pyramid = [(total, weight)]
    while max(pyramid[-1][0].shape[-2:]) > 1:
        pyramid.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True) for part in pyramid[-1]))  # type: ignore[arg-type]
    filled = pyramid[-1][0] / pyramid[-1][1].clamp_min(1e-6)
    for sums, weights in reversed(pyramid[:-1]):
        coarse = F.interpolate(filled, sums.shape[-2:], mode="bilinear", align_corners=False)
        filled = (sums + 0.02 * coarse) / (weights + 0.02)
    return filled

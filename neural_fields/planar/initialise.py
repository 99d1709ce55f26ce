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
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Float

from neural_fields import coords
from neural_fields.coords import Box
from neural_fields.data.clip import Clip
from neural_fields.data.flow import FlowField
from neural_fields.data.memory import LET_GO_EVERY, let_go
from neural_fields.planar.placement import View, make_view, place, project
from neural_fields.planar.sheets import GAP, Sheet, Span, SpanGeometry, divide, lay_out, unexplained
from neural_fields.planar.visible import Visible

MIN_MATCHES = 24  # fewer flow vectors than this place no transform
MAX_MATCHES = 1500
WORTH = 0.95  # how much closer to the matches a freer transform must lie to be taken
FAR = 8.0  # pixels: matches further away than this from a transform are none of its business
COARSELY = 2  # every so many frames are enough to see what one picture can explain
MOST_POINTS = 4e6  # that a canonical box is measured from
MAX_REACH = 5.0  # a chained frame may reach this many frame lengths from the reference frame
MAX_MAGNIFICATION = 5.0  # and be this much larger or smaller than it


@dataclass(frozen=True)
class LayerGeometry:
    """Where one layer lies: a transform and a grid of shifts per frame, and the box that they fill."""

    homography: Float[np.ndarray, "time 3 3"]  # xy units to uv units
    residual: Float[np.ndarray, "time rows columns 2"]  # uv units, spans the frame
    box: Box
    magnification: float  # uv units a texel must resolve, relative to one pixel of the reference frame (>= 1: finer)
    sheets: tuple[Sheet, ...] = ()  # the parts of the plane that belong to spans of frames; none: one for all


def layer_geometry(
    clip: Clip,
    visible: Visible,
    is_background: bool,
    grid: tuple[int, int],
    cuts: tuple[int, ...] = (),
) -> LayerGeometry:
    """The geometry of one layer.

    Args:
        visible: where the layer is seen, at the size of `clip.flow` (or of the frames, without flow).
        is_background: the background may be warped by a homography, a front layer by an affine map.
        grid: (columns, rows) of the residual.
        cuts: the first frames of all shots but the first.
    """
    if clip.flow is None or len(visible) < 2:
        return _still(visible, grid)
    pairs = _Pairs(clip.flow, visible)
    coarse = visible.at_half_size()  # enough to see what one picture can explain

    def place_coarsely(span: Span) -> SpanGeometry:
        stride = 1 if span[1] - span[0] < 3 * COARSELY else COARSELY
        return _place_span(clip.frames, pairs, coarse, is_background, grid, span, stride)

    def error(part: SpanGeometry) -> float:
        return unexplained(part, lambda t: clip.frames[t], coarse)

    shots = list(zip((0, *cuts), (*(cut - 1 for cut in cuts), len(visible) - 1), strict=True))
    spans = [
        _place_span(clip.frames, pairs, visible, is_background, grid, span)
        for span in divide(shots, place_coarsely, error)
    ]
    finer = [_magnification(visible.span(span.first, span.last), span.homography) for span in spans]
    spans, sheets, box = lay_out(spans, finer, GAP * 2 / max(clip.flow.size))
    homography = np.concatenate([span.homography for span in spans]).astype(np.float32)
    residual = np.concatenate([span.residual for span in spans])
    return LayerGeometry(homography, residual, box, finer[0] if len(spans) == 1 else 1.0, sheets)


def _place_span(
    frames: np.ndarray,
    pairs: _Pairs,
    visible: Visible,
    is_background: bool,
    grid: tuple[int, int],
    span: Span,
    stride: int = 1,
) -> SpanGeometry:
    """Places every `stride`-th frame of a span on a plane of their own, looking at them at the size of `visible`."""
    first, last = span
    seen = visible.span(first, last, stride)
    if len(seen) == 1:
        still = _still(seen, grid)
        return SpanGeometry(first, still.homography, still.residual, still.box)
    reference = _reference_frame(seen, is_background)
    kind, steps = choose_transforms(pairs, seen.frames, reference, is_background)
    fit = _fit_or_keep(kind, pairs.flow.size)
    placed = place(lambda index: _view(frames, seen.frames[index], seen[index]), steps, reference, fit, grid)
    transforms = np.stack([frame.transform for frame in placed])
    if not _is_sane(transforms, pairs.flow.size):
        transforms = _without_zoom(transforms)
    residual = np.stack([frame.shift for frame in placed])
    return SpanGeometry(first, transforms, residual, _box(seen, transforms, residual), stride)


def _view(frames: np.ndarray, t: int, share: np.ndarray) -> View:
    """The layer as a frame shows it."""
    if t % LET_GO_EVERY == 0:
        let_go(frames)
    return make_view(frames[t], share)


def _still(visible: Visible, grid: tuple[int, int]) -> LayerGeometry:
    """The geometry of a clip without motion: every frame lies where the first does."""
    count = len(visible)
    identity = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    residual = np.zeros((count, grid[1], grid[0], 2), np.float32)
    return LayerGeometry(identity, residual, _box(visible, identity, residual), 1.0)


def _reference_frame(visible: Visible, is_background: bool) -> int:
    """The frame that a layer's canonical image looks like: the middle one, or where a front layer is seen largest.

    Among the frames in which a front layer has at least 0.9 of its largest area, the one nearest the middle.
    """
    middle = len(visible) // 2
    if is_background:
        return middle
    area = visible.area
    if area.max() <= 0:
        return middle
    large = np.flatnonzero(area >= 0.9 * area.max())
    return int(large[np.abs(large - middle).argmin()])


# --- transforms between frames --------------------------------------------------------------------------------------


class _Pairs:
    """Transforms from each frame of a clip to the next, in xy units, each found once for each kind."""

    def __init__(self, flow: FlowField, visible: Visible) -> None:
        self.flow = flow
        self.visible = visible
        self.found: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, t: int, kind: str) -> Float[np.ndarray, "3 3"]:
        if t % LET_GO_EVERY == 0:
            let_go(self.flow.forward)
            let_go(self.flow.forward_ok)
        if (t, kind) not in self.found:
            self.found[t, kind] = _pair_transform(self.flow, self.visible[t], t, kind)
        return self.found[t, kind]


def choose_transforms(
    pairs: _Pairs, frames: range, reference: int, is_background: bool
) -> tuple[str, list[np.ndarray]]:
    """The kind of transform for a layer, and the transforms [3, 3] from each of `frames` to the next, in xy units.

    The richest kind whose chain stays sane is taken: small errors of a homography's perspective part multiply along a
    chain until a frame is torn apart, which a similarity cannot do.

    Args:
        reference: which of the frames the others are placed around.
    """
    kinds = ("homography", "affine", "similarity") if is_background else ("affine", "similarity")
    for kind in kinds:
        steps = [_joined([pairs(t, kind) for t in range(a, b)]) for a, b in pairwise(frames)]
        if _is_sane(_chain(steps, reference), pairs.flow.size):
            break
    return kind, steps


def _joined(steps: list[np.ndarray]) -> Float[np.ndarray, "3 3"]:
    """One transform for several, the first one first."""
    whole = np.eye(3)
    for step in steps:
        whole = step @ whole
    return whole


def _pair_transform(flow: FlowField, visible: np.ndarray, t: int, kind: str) -> np.ndarray:
    """The transform from frame t to frame t + 1 in xy units; the identity where too few vectors can be trusted."""
    width, height = flow.size
    rows, columns = np.nonzero(flow.forward_ok[t] & (visible > 0.9))
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
    stiff = ransac(start, end, "similarity", pixel)
    if kind == "similarity":
        return stiff
    free = ransac(start, end, kind, pixel)
    distances = (np.linalg.norm(project(m, start[:, 0]) - end[:, 0], axis=1) for m in (stiff, free))
    far_stiff, far_free = (np.minimum(distance, FAR * pixel).mean() for distance in distances)
    return free if far_free < WORTH * far_stiff else stiff


def ransac(start: np.ndarray, end: np.ndarray, kind: str, pixel: float) -> Float[np.ndarray, "3 3"]:
    """A robust fit of one kind of transform to matched points, true to a pixel; the identity where it fails."""
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


def _box(visible: Visible, homography: np.ndarray, residual: np.ndarray) -> Box:
    """The box that holds the layer in all frames, less the outermost points, plus a margin of a few pixels."""
    width, height = visible.size
    xy = coords.frame_xy(width, height).numpy()
    step = max(2, round((len(visible) * width * height / MOST_POINTS) ** 0.5))
    kept = []
    for t in range(len(visible)):
        shift = cv2.resize(residual[t], (width, height), interpolation=cv2.INTER_LINEAR)
        seen = visible[t] > 0.5
        kept.append((project(homography[t], xy) + shift)[::step, ::step][seen[::step, ::step]])
    points = np.concatenate(kept)
    if not len(points):
        return coords.frame_box(width, height)
    margin = 16 / max(width, height)
    low, high = np.percentile(points, [0.01, 99.99], axis=0)
    reach = 2 * MAX_REACH
    low, high = np.clip(low - margin, -reach, reach), np.clip(high + margin, -reach, reach)
    return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def scale(matrix: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, " n"]:
    """How many times larger transforms make what lies at the centre of the frame."""
    return np.sqrt(np.abs(np.linalg.det(matrix) / matrix[:, 2, 2] ** 3))


def _magnification(visible: Visible, homography: np.ndarray) -> float:
    """How much finer than the reference frame the layer is seen where it is seen largest (1 to MAX_MAGNIFICATION)."""
    seen = visible.area > 0
    zoom = scale(homography[seen]) if seen.any() else np.ones(1)
    return float((1 / np.percentile(zoom, 10)).clip(1, MAX_MAGNIFICATION))

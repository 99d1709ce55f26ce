"""Several charts for one layer: a clip that one canonical picture cannot explain gets one for each part of it.

A chart is a rectangle of the layer's canonical plane that belongs to a span of frames. All charts of a layer lie side
by side in one image, so whoever paints sees them together (NaRCan, 2024, edits the images of its segments as one
grid); what is painted on one is propagated to the others through the frames where they meet
(`editors/core/chart_propagation.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields.atlas.chart import LayerChart
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.imaging.texture_splatting import TextureMean
from neural_fields.planar.init.frame_registration import apply_transform
from neural_fields.planar.init.visibility import LayerVisibility


@dataclass(frozen=True)
class ChartSettings:
    """Settings of the division of a layer into charts."""

    frames_per_chart: int = 25  # where a clip is divided as finely as it can be
    max_whole_frames: int = 75  # of a shot that is placed at full size at once: it is rarely divided
    middle_margin_db: float = 1.5  # by which such a shot must be explained better: only its middle was placed so far
    explained_psnr_db: float = 26.0  # a layer that one image explains so well is never divided
    min_gain_db: float = 2.0  # that the finest division must gain
    max_loss_db: float = 0.8  # a coarser division that comes so near to the finest is taken instead
    max_sampled_frames: int = 20  # of a span, from which its explanation is measured
    sampled_side_px: int = 240  # longer side of the frames, to measure it
    max_sampled_texels: int = 4000  # along each side of the image, to measure it
    min_sampled_px: float = 16.0  # of the layer in a frame, to measure it there
    sides_per_gain_sigma: float = 50.0  # longer side of the frame / sigma of the Gaussian of the lighting gain
    gain_regularization: float = 1e-3  # added to both sums of the closed-form gain: black says nothing about light
    gap_px: int = 24  # pixels of the training size between charts


DEFAULTS = ChartSettings()


@dataclass(frozen=True)
class SpanGeometry:
    """Holds the placement of the frames of a span on a canonical plane."""

    first: int  # frame
    homography: Float[np.ndarray, "time 3 3"]  # xy units to uv units
    residual: Float[np.ndarray, "time rows columns 2"]  # uv units, spans the frame
    box: Box
    stride: int = 1  # from one of the placed frames to the next

    @property
    def last(self) -> int:
        """The last frame that was placed."""
        return self.first + self.stride * (len(self.homography) - 1)


Span = tuple[int, int]  # first and last frame
SpanPlacer = Callable[[Span], SpanGeometry]
SpanErrorMeasure = Callable[[SpanGeometry], float]  # the squared error per frame that is left, averaged


def divide_into_charts(
    shots: Sequence[Span],
    place_span: SpanPlacer,
    place_coarsely: SpanPlacer,
    compute_error: SpanErrorMeasure,
    settings: ChartSettings = DEFAULTS,
) -> list[Span]:
    """Returns the spans of the charts of a layer: one for every shot, or as many as it takes to explain the layer.

    Args:
        shots: first and last frame of each shot.
        place_span: begins to place a span for good: short shots, which one image mostly explains, begin so at once.
        place_coarsely: places a span, as far as is needed to see how well one image explains it.
        compute_error: the squared color error that is left.
        settings: how well a division must explain the layer.
    """
    result: list[Span] = []
    for shot in shots:
        most = (shot[1] - shot[0] + 1) // settings.frames_per_chart
        best = [shot]
        is_short = shot[1] - shot[0] < settings.max_whole_frames
        surely_psnr = settings.explained_psnr_db + settings.middle_margin_db
        if most > 1 and is_short and _compute_psnr(best, place_span, compute_error) >= surely_psnr:
            most = 1
        whole = _compute_psnr(best, place_coarsely, compute_error) if most > 1 else settings.explained_psnr_db
        if whole < settings.explained_psnr_db:
            finest = _split_span(shot, most)
            finest_psnr = _compute_psnr(finest, place_coarsely, compute_error)
            if finest_psnr >= whole + settings.min_gain_db:
                middle = _split_span(shot, most // 2)
                enough_psnr = finest_psnr - settings.max_loss_db
                is_near = most >= 4 and _compute_psnr(middle, place_coarsely, compute_error) >= enough_psnr
                best = middle if is_near else finest
        result += best
    return result


def _split_span(span: Span, count: int) -> list[Span]:
    """Cuts a span into `count` parts of about the same length."""
    edges = np.linspace(span[0], span[1] + 1, count + 1).round().astype(int)
    return [(int(a), int(b) - 1) for a, b in pairwise(edges)]


def _compute_psnr(spans: Sequence[Span], place: SpanPlacer, error: SpanErrorMeasure) -> float:
    """Computes the PSNR (dB) over all frames of some spans, each explained by one image."""
    lengths = [last - first + 1 for first, last in spans]
    mean = sum(n * error(place(span)) for n, span in zip(lengths, spans, strict=True)) / sum(lengths)
    return float(-10 * np.log10(max(mean, 1e-9)))


def compute_unexplained_error(
    geometry: SpanGeometry,
    frames: Callable[[int], np.ndarray],
    visible: LayerVisibility,
    settings: ChartSettings = DEFAULTS,
) -> float:
    """Computes the mean squared color error of a layer rendered from the mean of its frames, lit by a closed-form gain.

    Args:
        geometry: the placement of the frames.
        frames: RGB uint8 [height, width, 3] of a frame of the clip.
        visible: the visibility of the layer in the clip.
        settings: from how many frames, and at what size, the error is measured.
    """
    width, height = visible.size
    shrink = min(1.0, settings.sampled_side_px / max(width, height))
    width, height = max(8, round(width * shrink)), max(8, round(height * shrink))
    density = max(width, height) / 2
    box = geometry.box
    columns, rows = (max(2, min(settings.max_sampled_texels, round(s * density))) for s in (box.width, box.height))
    mean = TextureMean(box, columns, rows)
    # The mean of some frames, at a small size.
    sampled = np.linspace(0, len(geometry.homography) - 1, settings.max_sampled_frames).round().astype(int)
    xy = coords.frame_xy(width, height).numpy()
    samples = []
    for index in np.unique(sampled).tolist():
        t = geometry.first + index * geometry.stride
        rgb = cv2.resize(np.ascontiguousarray(frames(t)), (width, height), interpolation=cv2.INTER_AREA)
        share = cv2.resize(visible[t], (width, height), interpolation=cv2.INTER_AREA)
        shift = cv2.resize(geometry.residual[index], (width, height), interpolation=cv2.INTER_LINEAR)
        uv = (apply_transform(geometry.homography[index], xy) + shift).astype(np.float32)
        samples.append((torch.from_numpy(uv), torch.from_numpy(rgb.astype(np.float32) / 255), torch.from_numpy(share)))
        mean.add_frame(*samples[-1])
    # What the mean, under the light of each frame, leaves unexplained of it.
    image = mean.compute_image()[None]
    sigma = max(width, height) / settings.sides_per_gain_sigma
    errors = []
    for uv_of_frame, rgb_of_frame, visibility in samples:
        if visibility.sum() < settings.min_sampled_px:
            continue
        texel = coords.sample_canonical(image, box, uv_of_frame[None])[0].permute(1, 2, 0)
        products = _blur_weighted(texel * rgb_of_frame, visibility, sigma) + settings.gain_regularization
        squares = _blur_weighted(texel * texel, visibility, sigma) + settings.gain_regularization
        gain = torch.from_numpy(products / squares)
        error = (texel * gain - rgb_of_frame).square().mean(-1)
        errors.append(float((error * visibility).sum() / visibility.sum()))
    return float(np.mean(errors)) if errors else 0.0


def _blur_weighted(values: torch.Tensor, weight: torch.Tensor, sigma: float) -> np.ndarray:
    """Blurs values [height, width, 3] times a weight [height, width] with a Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur((values * weight[..., None]).numpy(), (0, 0), sigma)


def lay_out_charts(
    parts: Sequence[SpanGeometry], finer: Sequence[float], gap: float
) -> tuple[list[SpanGeometry], tuple[LayerChart, ...], Box]:
    """Moves the planes of spans so that they lie side by side; returns them, their charts and the box of all.

    A single plane stays where it is: its reference frame shows itself. Several are drawn to scale with each other: the
    same number of texels serves a pixel on all of them.

    Args:
        parts: the spans, each placed on a plane of its own.
        finer: for each span, how many times finer than its reference frame it is seen.
        gap: uv units between charts.
    """
    if len(parts) == 1:
        return [parts[0]], (LayerChart(parts[0].first, parts[0].last, parts[0].box),), parts[0].box
    scaled = []
    for part, scale in zip(parts, finer, strict=True):
        box = Box(*(scale * side for side in part.box.as_tuple()))
        homography = np.diag([scale, scale, 1.0]) @ part.homography
        scaled.append(SpanGeometry(part.first, homography, part.residual * scale, box))
    total = sum((part.box.width + gap) * (part.box.height + gap) for part in scaled)
    row_width = max(max(part.box.width for part in scaled), (2 * total) ** 0.5)  # about twice as wide as high
    moved, charts = [], []
    u, v, row_height = 0.0, 0.0, 0.0
    for part in scaled:
        box = part.box
        if u and u + box.width > row_width:
            u, v, row_height = 0.0, v + row_height + gap, 0.0
        placed = Box(u, v, u + box.width, v + box.height)
        translation = np.eye(3)
        translation[:2, 2] = np.array([u - box.u0, v - box.v0])
        moved.append(SpanGeometry(part.first, translation @ part.homography, part.residual, placed))
        charts.append(LayerChart(part.first, part.last, placed))
        u, row_height = u + box.width + gap, max(row_height, box.height)
    whole = Box(0.0, 0.0, max(chart.box.u1 for chart in charts), max(chart.box.v1 for chart in charts))
    return moved, tuple(charts), whole

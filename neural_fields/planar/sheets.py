"""Several sheets for one layer: a clip that one canonical picture cannot explain gets one for each part of it.

A sheet is a rectangle of the layer's canonical plane that belongs to a span of frames. All sheets of a layer lie side
by side in one picture, so whoever paints sees them together (NaRCan, 2024, edits the pictures of its segments as one
grid); what is painted on one is carried to the others through the frames where they meet (`editors/carry.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields import coords
from neural_fields.coords import Box
from neural_fields.planar.placement import project
from neural_fields.planar.texture_mean import TextureMean
from neural_fields.planar.visible import Visible

USUAL = 25  # frames of a sheet where a clip is divided as finely as it can be
EXPLAINED = 26.0  # dB: a layer that its picture explains so well is never divided
WORTH = 2.0  # dB that the finest division must gain
NEARLY = 0.8  # dB: a coarser division that comes so near to the finest is taken instead
LOOKED_AT = 20  # frames of a span, at most, from which its explanation is measured
LONG_SIDE = 240  # pixels, to measure it
GAP = 24  # pixels of the fit between sheets


@dataclass(frozen=True)
class Sheet:
    """Part of a layer's canonical plane."""

    first: int  # frame
    last: int  # frame, included
    box: Box

    @staticmethod
    def from_json(value: dict) -> Sheet:
        return Sheet(int(value["first"]), int(value["last"]), Box(**value["box"]))


@dataclass(frozen=True)
class Chart:
    """A sheet, or a whole layer, that shows a span of frames; one series of charts shows the same thing over time."""

    layer: str
    first: int  # frame
    last: int  # frame, included
    box: Box

    @staticmethod
    def from_json(value: dict) -> Chart:
        return Chart(str(value["layer"]), int(value["first"]), int(value["last"]), Box(**value["box"]))


@dataclass(frozen=True)
class SpanGeometry:
    """Where the frames of a span lie on a plane of their own."""

    first: int
    homography: Float[np.ndarray, "time 3 3"]  # xy units to uv units
    residual: Float[np.ndarray, "time rows columns 2"]  # uv units, spans the frame
    box: Box
    stride: int = 1  # from one of the placed frames to the next

    @property
    def last(self) -> int:
        return self.first + self.stride * (len(self.homography) - 1)


Span = tuple[int, int]  # first and last frame
Placer = Callable[[Span], SpanGeometry]
Explainer = Callable[[SpanGeometry], float]  # the squared error per frame that is left, averaged


def divide(shots: Sequence[Span], place: Placer, error: Explainer) -> list[Span]:
    """The spans of the sheets of a layer: every shot one, or as many as it takes to explain the layer.

    Args:
        place: places a span, as far as is needed to see how well one picture explains it.
        error: the squared colour error that is left.
    """
    result: list[Span] = []
    for shot in shots:
        most = (shot[1] - shot[0] + 1) // USUAL
        best = [shot]
        whole = _quality(best, place, error) if most > 1 else EXPLAINED
        if whole < EXPLAINED:
            finest = _equal_parts(shot, most)
            finest_quality = _quality(finest, place, error)
            if finest_quality >= whole + WORTH:
                middle = _equal_parts(shot, most // 2)
                near = most >= 4 and _quality(middle, place, error) >= finest_quality - NEARLY
                best = middle if near else finest
        result += best
    return result


def _equal_parts(span: Span, count: int) -> list[Span]:
    """A span cut into `count` parts of about the same length."""
    edges = np.linspace(span[0], span[1] + 1, count + 1).round().astype(int)
    return [(int(a), int(b) - 1) for a, b in pairwise(edges)]


def _quality(spans: Sequence[Span], place: Placer, error: Explainer) -> float:
    """PSNR over all frames of some spans."""
    lengths = [last - first + 1 for first, last in spans]
    mean = sum(n * error(place(span)) for n, span in zip(lengths, spans, strict=True)) / sum(lengths)
    return float(-10 * np.log10(max(mean, 1e-9)))


def unexplained(geometry: SpanGeometry, frames: Callable[[int], np.ndarray], visible: Visible) -> float:
    """Mean squared colour error of a layer shown from the mean of its frames, lit by a closed-form gain.

    Args:
        frames: RGB uint8 [height, width, 3] of a frame of the clip.
        visible: where the layer is seen, in the whole clip.
    """
    width, height = visible.size
    shrink = min(1.0, LONG_SIDE / max(width, height))
    width, height = max(8, round(width * shrink)), max(8, round(height * shrink))
    density = max(width, height) / 2
    box = geometry.box
    mean = TextureMean(box, *(max(2, min(4000, round(side * density))) for side in (box.width, box.height)))
    chosen = np.unique(np.linspace(0, len(geometry.homography) - 1, LOOKED_AT).round().astype(int)).tolist()
    looked = []
    for index in chosen:
        t = geometry.first + index * geometry.stride
        rgb = cv2.resize(np.ascontiguousarray(frames(t)), (width, height), interpolation=cv2.INTER_AREA)
        share = cv2.resize(visible[t], (width, height), interpolation=cv2.INTER_AREA)
        uv = _uv(geometry, index, width, height)
        looked.append((torch.from_numpy(uv), torch.from_numpy(rgb.astype(np.float32) / 255), torch.from_numpy(share)))
        mean.add(*looked[-1])
    picture = mean.image()[None]
    errors = []
    for place, colour, seen in looked:
        if seen.sum() < 16:
            continue
        texel = coords.sample(picture, box, place[None])[0].permute(1, 2, 0)
        error = (texel * _gain(texel, colour, seen) - colour).square().mean(-1)
        errors.append(float((error * seen).sum() / seen.sum()))
    return float(np.mean(errors)) if errors else 0.0


def _uv(geometry: SpanGeometry, index: int, width: int, height: int) -> np.ndarray:
    """uv of the pixels of a small frame."""
    xy = coords.frame_xy(width, height).numpy()
    shift = cv2.resize(geometry.residual[index], (width, height), interpolation=cv2.INTER_LINEAR)
    return (project(geometry.homography[index], xy) + shift).astype(np.float32)


def _gain(texel: torch.Tensor, rgb: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The smooth factor that brings a picture nearest to a frame."""
    radius = max(rgb.shape[:2]) / 50

    def smooth(values: torch.Tensor) -> np.ndarray:
        return cv2.GaussianBlur((values * share[..., None]).numpy(), (0, 0), radius)

    return torch.from_numpy((smooth(texel * rgb) + 1e-3) / (smooth(texel * texel) + 1e-3))


def lay_out(
    parts: Sequence[SpanGeometry], finer: Sequence[float], gap: float
) -> tuple[list[SpanGeometry], tuple[Sheet, ...], Box]:
    """Moves the planes of spans so that they lie side by side; returns them, their sheets and the box of all.

    A single plane stays where it is: its reference frame shows itself. Several are drawn to scale with each other: the
    same number of texels serves a pixel on all of them.

    Args:
        finer: for each span, how many times finer than its reference frame it is seen.
        gap: uv units between sheets.
    """
    if len(parts) == 1:
        return [parts[0]], (Sheet(parts[0].first, parts[0].last, parts[0].box),), parts[0].box
    parts = [_scaled(part, scale) for part, scale in zip(parts, finer, strict=True)]
    total = sum((p.box.width + gap) * (p.box.height + gap) for p in parts)
    row_width = max(max(p.box.width for p in parts), (2 * total) ** 0.5)  # about twice as wide as high
    moved, sheets = [], []
    u, v, row_height = 0.0, 0.0, 0.0
    for part in parts:
        box = part.box
        if u and u + box.width > row_width:
            u, v, row_height = 0.0, v + row_height + gap, 0.0
        by = np.array([u - box.u0, v - box.v0])
        placed = Box(u, v, u + box.width, v + box.height)
        shift = np.eye(3)
        shift[:2, 2] = by
        moved.append(SpanGeometry(part.first, shift @ part.homography, part.residual, placed))
        sheets.append(Sheet(part.first, part.last, placed))
        u, row_height = u + box.width + gap, max(row_height, box.height)
    whole = Box(0.0, 0.0, max(s.box.u1 for s in sheets), max(s.box.v1 for s in sheets))
    return moved, tuple(sheets), whole


def _scaled(part: SpanGeometry, scale: float) -> SpanGeometry:
    """The plane of a span, `scale` times as large."""
    box = Box(*(scale * side for side in part.box.as_tuple()))
    return SpanGeometry(part.first, np.diag([scale, scale, 1.0]) @ part.homography, part.residual * scale, box)

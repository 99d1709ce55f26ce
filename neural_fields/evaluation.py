"""`unwrap eval`: how well a run shows its video."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from neural_fields import metrics
from neural_fields.data.facts import Video
from neural_fields.data.flow import FlowField, resize_mask, resize_vectors
from neural_fields.data.masks import LayerMasks, load_masks
from neural_fields.data.memory import LET_GO_EVERY, let_go
from neural_fields.data.video import read
from neural_fields.errors import bad_input
from neural_fields.fit_record import read_fit_record, require_source
from neural_fields.fitting import load_model
from neural_fields.planar.model import LayerSamples, PlanarModel, composite
from neural_fields.report import FitCost, survey_all, write_report
from neural_fields.report.steadiness import run_flow
from neural_fields.run import Run, read_metrics


def evaluate(run: Run, masks: Sequence[str] = (), lpips: Path | None = None, html: bool = False) -> dict[str, Any]:
    """Measures a run against its source at the size of the fit; plain values for JSON.

    Args:
        masks: true masks, "[NAME=]PATH" for each front layer, front first; without them `alpha_iou` is null.
        lpips: weights of an LPIPS backbone; without them the one in the torch hub's cache, if any.
        html: also writes `report.html` into the run, and adds its numbers as `report`.

    Returns:
        `psnr` and `ssim` are means over the frames of 8-bit reconstructions; `psnr_per_layer` is over the pixels in
        which the layer has at least half of the weight; `alpha_iou` is the mean over the frames; `warp_error` is the
        mean squared difference of neighbouring reconstructed frames along the flow, `source_warp_error` that of the
        source. `train_seconds` and `peak_mib` are those of the fit.

    Raises:
        UserError: a damaged run, a source video that is gone, masks that do not fit.
    """
    model, step = load_model(run)
    source = read_source(run)
    truth = _truth(masks, source, model)
    survey = survey_all(run, model) if html else None
    per_frame, ssim, layers, ious = [], [], [], []
    for t, (shown, samples) in enumerate(_reconstructions(model)):
        frame = np.asarray(source.frames[t])
        if t % LET_GO_EVERY == 0:
            let_go(source.frames)
        per_frame.append(metrics.psnr(shown, frame))
        ssim.append(metrics.ssim(shown, frame))
        if survey is not None:
            survey.add(t, frame, shown, samples)
        weight = samples.weight.view(*frame.shape[:2], -1).numpy()
        layers.append([_psnr_where(shown, frame, weight[..., i] >= 0.5) for i in range(len(model.layers))])
        if truth is not None:
            ious.append([metrics.alpha_iou([weight[..., i]], [mask[t]]) for i, mask in enumerate(truth.masks)])
    perceptual = metrics.lpips_distance((shown for shown, _ in _reconstructions(model)), source.frames, lpips)
    flow = run_flow(run, read_fit_record(run), source.frames)
    cost = _cost(run, step)
    report = write_report(run, survey, source.frames, cost) if survey is not None else None
    return {
        "run": str(run.path),
        "psnr": _mean(per_frame),
        "ssim": _mean(ssim),
        "psnr_per_frame": [_finite(value) for value in per_frame],
        "psnr_per_layer": {name: _mean([row[i] for row in layers]) for i, name in enumerate(model.layers)},
        "alpha_iou": None if truth is None else {n: _mean([row[i] for row in ious]) for i, n in enumerate(truth.names)},
        "warp_error": _warp_error((shown for shown, _ in _reconstructions(model)), flow, model),
        "source_warp_error": _warp_error(iter(source.frames), flow, model),
        "lpips": perceptual.distance,
        "lpips_note": perceptual.reason,
        "frames": model.shape.frame_count,
        "size": list(model.shape.size),
        "layers": list(model.layers),
        **asdict(cost),
        **({"report": report.to_json()} if report is not None else {}),
    }


def read_source(run: Run) -> Video:
    """The frames that a run was fitted to, from its cache or decoded again.

    Raises:
        UserError: the source video is not where it was, or is another one now.
    """
    record = read_fit_record(run)
    path, (width, height), frames = require_source(run, record), record.size, record.frames
    video = read(path, run.cache, f"{width}x{height}", f"{frames.start}:{frames.stop}:{frames.step}")
    if video.facts.sha256 != record.sha256:
        raise bad_input(
            f"{path.name} is not the video that this run was fitted to",
            where=str(path),
            why="its content has changed since",
            fix="put the old file back, or fit the new one with another --out",
        )
    return video


def _reconstructions(model: PlanarModel) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], LayerSamples]]:
    """8-bit reconstructed frames, with the samples they are made of."""
    width, height = model.shape.size
    for t in range(model.shape.frame_count):
        with torch.no_grad():
            samples = model.frame(t, (width, height))
            shown = composite(samples).clamp(0, 1).view(height, width, 3)
        yield (shown * 255).round().to(torch.uint8).numpy(), samples


def _truth(specs: Sequence[str], source: Video, model: PlanarModel) -> LayerMasks | None:
    """The true masks, one for each front layer."""
    if not specs:
        return None
    front = model.layers[:-1]
    if len(specs) != len(front):
        raise bad_input(
            f"{len(specs)} masks for {len(front)} front layers",
            why=f"the layers of this run, front to back: {', '.join(model.layers)}",
            fix="one --masks for each front layer, front first",
        )
    facts = source.facts
    chosen = range(*source.frame_range)
    found = load_masks(specs, facts.frame_count, model.shape.size, chosen, (facts.width, facts.height))
    return LayerMasks(front, found.masks)


def _warp_error(frames: Iterator[np.ndarray], flow: FlowField | None, model: PlanarModel) -> float | None:
    if flow is None:
        return None
    size = model.shape.size
    forward = (resize_vectors(v, size) for v in flow.forward)
    ok = (resize_mask(mask, size) for mask in flow.forward_ok)
    return metrics.warp_error(frames, forward, ok)


def _psnr_where(shown: np.ndarray, frame: np.ndarray, mask: np.ndarray) -> float:
    return metrics.psnr(shown, frame, mask) if mask.any() else math.nan


def _cost(run: Run, step: int) -> FitCost:
    """Steps, time and memory of the fit."""
    events = [line for line in read_metrics(run) if "train_seconds" in line]
    last = events[-1] if events else {}
    return FitCost(step, last.get("train_seconds"), last.get("peak_mib"))


def _mean(values: Sequence[float]) -> float | None:
    """The mean of the finite values; None where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return round(float(np.mean(finite)), 5) if finite else None


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def contact_sheet(frames: Sequence[np.ndarray], columns: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Frames side by side, each `width` pixels wide."""
    height = round(frames[0].shape[0] * width / frames[0].shape[1])
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    small += [np.zeros_like(small[0])] * (-len(small) % columns)
    rows = [np.concatenate(small[i : i + columns], axis=1) for i in range(0, len(small), columns)]
    return np.concatenate(rows)

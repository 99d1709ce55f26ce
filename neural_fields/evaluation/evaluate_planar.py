"""`unwrap eval` of a planar run: compares the model's reconstructions with the source video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neural_fields.core.errors import bad_input
from neural_fields.core.memmap import RELEASE_INTERVAL, release_memory
from neural_fields.data.flow.compute import resize_mask, resize_vectors
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks
from neural_fields.data.video.metadata import Video
from neural_fields.evaluation import metrics
from neural_fields.evaluation.lpips import LpipsDistance
from neural_fields.evaluation.report import TrainingCost, begin_full_survey, write_report
from neural_fields.planar.init.load import load_planar_model
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.samples import composite_layers
from neural_fields.runs.planar_record import read_planar_record
from neural_fields.runs.run import Run, read_metrics
from neural_fields.runs.source import read_run_flow, read_source


def evaluate(run: Run, masks: Sequence[str] = (), lpips: Path | None = None, html: bool = False) -> dict[str, Any]:
    """Measures a run against its source at the size of the run, in one pass over the frames; plain values for JSON.

    Args:
        run: a trained planar run.
        masks: true masks, "[NAME=]PATH" for each front layer, front first; without them `alpha_iou` is null.
        lpips: weights of an LPIPS backbone; without them the one in the torch hub's cache, if any.
        html: also writes `report.html` into the run, and adds its numbers as `report`.

    Returns:
        `psnr` and `ssim` are means over the frames of 8-bit reconstructions; `psnr_per_layer` is over the pixels in
        which the layer has at least half of the weight; `alpha_iou` is the mean over the frames; `warp_error` is the
        mean squared difference of neighboring reconstructed frames along the flow, `source_warp_error` that of the
        source. `train_seconds` and `peak_mib` are those of the training.

    Raises:
        UserError: a damaged run, a source video that is gone, masks that do not fit.
    """
    model, step = load_planar_model(run)
    source = read_source(run)
    truth = _load_true_masks(masks, source, model)
    flow = read_run_flow(run, read_planar_record(run), source.frames)
    survey = begin_full_survey(run, model) if html else None
    perceptual = LpipsDistance(lpips)
    warp_error, source_warp_error = metrics.WarpError(), metrics.WarpError()
    size = model.shape.size
    psnrs, ssims, layer_psnrs, ious = [], [], [], []
    previous: tuple[np.ndarray, np.ndarray] | None = None  # reconstruction and source of the frame before
    for t in range(model.shape.frame_count):
        with torch.no_grad():
            samples = model.sample_frame(t, size)
            picture = composite_layers(samples).clamp(0, 1).view(size[1], size[0], 3)
        shown = (picture * 255).round().to(torch.uint8).numpy()  # the reconstruction in 8 bits
        frame = np.asarray(source.frames[t])
        if t % RELEASE_INTERVAL == 0:
            release_memory(source.frames)
        psnrs.append(metrics.psnr(shown, frame))
        ssims.append(metrics.ssim(shown, frame))
        perceptual.add(shown, frame)
        if survey is not None:
            survey.add_frame(t, frame, shown, samples)
        weight = samples.weight.view(*frame.shape[:2], -1).numpy()
        seen = [weight[..., i] >= 0.5 for i in range(len(model.layers))]
        layer_psnrs.append([metrics.psnr(shown, frame, mask) if mask.any() else math.nan for mask in seen])
        if truth is not None:
            ious.append([metrics.alpha_iou([weight[..., i]], [mask[t]]) for i, mask in enumerate(truth.masks)])
        if flow is not None and previous is not None:
            forward, ok = resize_vectors(flow.forward[t - 1], size), resize_mask(flow.forward_ok[t - 1], size)
            warp_error.add(previous[0], shown, forward, ok)
            source_warp_error.add(previous[1], frame, forward, ok)
        previous = shown, frame
    events = [line for line in read_metrics(run) if "train_seconds" in line]
    last = events[-1] if events else {}
    cost = TrainingCost(step, last.get("train_seconds"), last.get("peak_mib"))
    report = write_report(run, survey, source.frames, cost) if survey is not None else None
    return {
        "run": str(run.path),
        "psnr": _mean_of_finite(psnrs),
        "ssim": _mean_of_finite(ssims),
        "psnr_per_frame": [round(value, 4) if math.isfinite(value) else None for value in psnrs],
        "psnr_per_layer": {n: _mean_of_finite([row[i] for row in layer_psnrs]) for i, n in enumerate(model.layers)},
        "alpha_iou": None
        if truth is None
        else {n: _mean_of_finite([row[i] for row in ious]) for i, n in enumerate(truth.names)},
        "warp_error": warp_error.value,
        "source_warp_error": source_warp_error.value,
        "lpips": perceptual.result.distance,
        "lpips_note": perceptual.result.reason,
        "frames": model.shape.frame_count,
        "size": list(size),
        "layers": list(model.layers),
        **asdict(cost),
        **({"report": report.to_json()} if report is not None else {}),
    }


def _load_true_masks(specs: Sequence[str], source: Video, model: PlanarModel) -> LayerMasks | None:
    """Loads the true masks, one for each front layer; None where none are given."""
    if not specs:
        return None
    front = model.layers[:-1]
    if len(specs) != len(front):
        raise bad_input(
            f"{len(specs)} masks for {len(front)} front layers",
            why=f"the layers of this run, front to back: {', '.join(model.layers)}",
            fix="one --masks for each front layer, front first",
        )
    facts = source.metadata
    chosen = range(*source.frame_range)
    found = load_masks(specs, facts.frame_count, model.shape.size, chosen, (facts.width, facts.height))
    return LayerMasks(front, found.masks)


def _mean_of_finite(values: Sequence[float]) -> float | None:
    """Computes the mean of the finite values; None where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return round(float(np.mean(finite)), 5) if finite else None

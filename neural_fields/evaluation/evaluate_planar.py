"""`unwrap eval` of a planar run: compares the model's reconstructions with the source video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from neural_fields.core.errors import bad_input
from neural_fields.core.memmap import RELEASE_INTERVAL, release_memory
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.compute import resize_mask, resize_vectors
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks, split_mask_spec
from neural_fields.evaluation import metrics
from neural_fields.evaluation.lpips import LpipsDistance
from neural_fields.evaluation.options import EvalOptions
from neural_fields.evaluation.report import TrainingCost, begin_full_survey, write_report
from neural_fields.open_runs.opening import RunLike, require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.runs.run import read_metrics


def evaluate(
    run: RunLike, options: EvalOptions | None = None, report: ProgressReporter = report_nothing
) -> dict[str, Any]:
    """Measures a run against its source at the training size, in one pass over the frames.

    Args:
        run: a trained run of a video, or its folder.
        options: true masks (without them `alpha_iou` is null), weights for LPIPS (by default those in the cache of the
            torch hub, if any), and whether `report.html` is written, whose values are added as `report`.
        report: called after each frame.

    Returns:
        Plain values for JSON. `psnr` (dB) and `ssim` are means over the frames of 8-bit reconstructions;
        `psnr_per_layer` is over the pixels in which the layer has at least half of the weight; `alpha_iou` is the mean
        over the frames; `warp_error` is the mean squared difference of neighboring reconstructed frames along the flow,
        `source_warp_error` that of the source. `train_seconds` and `peak_mib` are those of the training.

    Raises:
        UserError: a source video that is gone or masks that do not fit (exit 3), or a damaged run (exit 5).
    """
    options, run = options or EvalOptions(), require_planar(run, "this evaluation")
    model = run.model
    truth = _load_true_masks(options.masks, run, model)  # before frames are decoded
    source = run.video
    flow = run.flow
    survey = begin_full_survey(run) if options.html else None
    perceptual = LpipsDistance(options.lpips)
    warp_error, source_warp_error = metrics.WarpError(), metrics.WarpError()
    size = model.shape.size
    psnrs, ssims, layer_psnrs, ious = [], [], [], []
    for note in truth.notes if truth is not None else ():
        report(Progress("measuring", 0, model.shape.frame_count, note=note))
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
        report(Progress("measuring", t + 1, model.shape.frame_count))
    events = [line for line in read_metrics(run.files) if "train_seconds" in line]
    last = events[-1] if events else {}
    cost = TrainingCost(run.step, last.get("train_seconds"), last.get("peak_mib"))
    page = write_report(run, survey, source.frames, flow, cost, report=report) if survey is not None else None
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
        **({"report": page.to_json()} if page is not None else {}),
    }


def _load_true_masks(specs: Sequence[str], run: PlanarRun, model: PlanarModel) -> LayerMasks | None:
    """Loads the true masks, one for each front layer; None where none are given.

    Masks whose names are those of the layers may come in any order.
    """
    if not specs:
        return None
    front = tuple(model.layers[:-1])
    found = load_masks(specs, run.metadata, model.shape.size, run.frames)
    given = [name for spec in specs if (name := split_mask_spec(spec)[0])]
    unknown = [name for name in given if name not in front]
    if len(found.names) != len(front) or unknown:
        raise bad_input(
            f"there is no front layer {unknown[0]}"
            if unknown
            else f"{len(found.names)} masks for {len(front)} front layers",
            where="--masks",
            why=f"the layers of this run, front to back: {', '.join(model.layers)}",
            fix="one --masks for each front layer, front first",
        )
    if set(found.names) == set(front):
        order = [found.names.index(name) for name in front]
        return LayerMasks(front, found.masks[order], notes=found.notes)
    return LayerMasks(front, found.masks, notes=found.notes)


def _mean_of_finite(values: Sequence[float]) -> float | None:
    """Computes the mean of the finite values; None where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return round(float(np.mean(finite)), 5) if finite else None

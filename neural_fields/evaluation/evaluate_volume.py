"""`unwrap eval` for 3D scenes: PSNR of the views that were trained on and of those left out, and of the person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.evaluation import metrics
from neural_fields.open_runs.opening import RunLike, require_scene
from neural_fields.runs.run import read_metrics


def choose_measured_views(count: int, held_out: Sequence[int], most: int = 16) -> list[int]:
    """Chooses the views that are measured.

    Args:
        count: number of views.
        held_out: indices of the views that were left out of the training.
        most: most views of either kind; of more, evenly spaced ones are chosen.

    Returns:
        Indices of views, rising.
    """
    trained = [view for view in range(count) if view not in set(held_out)]
    chosen: list[int] = []
    for views in (trained, list(held_out)):
        if views:
            places = np.linspace(0, len(views) - 1, min(most, len(views))).round().astype(int)
            chosen += [views[place] for place in places]
    return sorted(chosen)


def evaluate_volume(run: RunLike, report: ProgressReporter = report_nothing) -> dict[str, Any]:
    """Measures a run of a 3D scene against its views.

    Args:
        run: a trained run of a 3D scene, or its folder.
        report: called after each view.

    Returns:
        Plain values for JSON. `psnr` (dB) and `ssim` are means over the trained views; `psnr_held_out` is the mean over
        the held-out views, null where there are none; `psnr_person` and `psnr_person_held_out` are in the box around
        the person's mask; `mask_iou` is that of the person's opacity and the masks, null without a person. Of many
        views, a part of either kind is measured: `measured` are their numbers, and `psnr_per_frame` has their values.

    Raises:
        UserError: a source that is gone (exit 3), or a damaged run (exit 5).
    """
    run = require_scene(run, "this evaluation")
    record, scene, capture = run.record, run.scene, run.capture
    moments = record.make_moments()
    psnrs: list[float] = []
    ssims: list[float] = []
    in_boxes: list[float | None] = []
    ious: list[float | None] = []
    measured = choose_measured_views(len(record.cameras), record.held_out)
    for done, view in enumerate(measured, start=1):
        rendered = scene.render_view(record.cameras[view], record.times[view], moments)
        truth = capture.frames[view].astype(np.float32) / 255
        picture = rendered.color.numpy()
        psnrs.append(metrics.psnr(picture, truth))
        ssims.append(metrics.ssim(picture, truth))
        mask = None if capture.masks is None else capture.masks[view]
        psnr_person = iou = None
        if mask is not None and mask.any():  # in the smallest box around the mask
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            psnr_person = metrics.psnr(picture[box], truth[box])
        if mask is not None and scene.person is not None:
            person = rendered.person_opacity.numpy() >= 0.5
            if (person | mask).any():
                iou = float((person & mask).sum() / (person | mask).sum())
        in_boxes.append(psnr_person)
        ious.append(iou)
        report(Progress("measuring", done, len(measured)))
    held = [index for index, view in enumerate(measured) if view in set(record.held_out)]
    trained = [index for index in range(len(measured)) if index not in set(held)]
    lines = read_metrics(run.files)
    return {
        "run": str(run.path),
        "psnr": _mean_of_chosen(psnrs, trained),
        "ssim": _mean_of_chosen(ssims, trained),
        "psnr_per_frame": [round(value, 4) for value in psnrs],
        "psnr_held_out": _mean_of_chosen(psnrs, held),
        "psnr_person": _mean_of_chosen(in_boxes, trained),
        "psnr_person_held_out": _mean_of_chosen(in_boxes, held),
        "mask_iou": _mean_of_chosen(ious, range(len(ious))),
        "frames": len(record.cameras),
        "measured": measured,
        "held_out": list(record.held_out),
        "size": list(record.size),
        "steps": run.step,
        "train_seconds": next((line["train_seconds"] for line in reversed(lines) if "train_seconds" in line), None),
        "peak_mib": max((line["peak_mib"] for line in lines if line.get("peak_mib")), default=None),
    }


def _mean_of_chosen(values: Sequence[float | None], chosen: Iterable[int]) -> float | None:
    """Returns the mean of the chosen values, leaving out None; None where nothing is left."""
    kept = [value for index in chosen if (value := values[index]) is not None]
    return round(float(np.mean(kept)), 5) if kept else None

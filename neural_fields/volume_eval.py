"""`unwrap eval` for scenes in space: PSNR of the views that were fitted and of those left out, and of the person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from neural_fields import metrics
from neural_fields.data.capture_folder import read_capture
from neural_fields.run import Run, read_metrics
from neural_fields.volume_run import load_scene, read_record

MOST = 16  # views that were fitted, and views that were left out, that are measured


def measured_views(count: int, held_out: Sequence[int]) -> list[int]:
    """Which views are looked at: all, or of many an even choice of those fitted and of those left out."""
    fitted = [view for view in range(count) if view not in set(held_out)]
    chosen = (kind for kind in (fitted, list(held_out)) if kind)
    places = ((kind, np.linspace(0, len(kind) - 1, min(MOST, len(kind))).round().astype(int)) for kind in chosen)
    return sorted(kind[place] for kind, some in places for place in some)


def evaluate_volume(run: Run) -> dict[str, Any]:
    """Quality of a run; plain values for JSON.

    Returns:
        `psnr`, `ssim`: mean over the views that were fitted; `psnr_held_out`: mean over those that were left out, null
        where none was; `psnr_person`, `psnr_person_held_out`: in the box around the person's mask; `mask_iou`: of the
        person's opacity with the masks. Null where there is no person. Of many views up to `MOST` of either kind are
        measured, evenly chosen: `measured` are their numbers, and `psnr_per_frame` is of these.

    Raises:
        UserError: a damaged run, or its source is gone.
    """
    record = read_record(run)
    scene, checkpoint = load_scene(run, record)
    capture = read_capture(record.source, record.size)
    moments = record.moments()
    psnrs, ssims, in_boxes, ious = [], [], [], []
    measured = measured_views(len(record.cameras), record.held_out)
    for view in measured:
        shown = scene.view(record.cameras[view], record.times[view], moments)
        truth = capture.frames[view].astype(np.float32) / 255
        found = shown.color.numpy()
        psnrs.append(metrics.psnr(found, truth))
        ssims.append(metrics.ssim(found, truth))
        mask = None if capture.masks is None else capture.masks[view]
        in_boxes.append(_psnr_in_box(found, truth, mask))
        ious.append(_iou(shown.person.numpy() >= 0.5, mask) if scene.person is not None else None)
    held = [index for index, view in enumerate(measured) if view in set(record.held_out)]
    fitted = [index for index in range(len(measured)) if index not in set(held)]
    lines = read_metrics(run)
    return {
        "run": str(run.path),
        "psnr": _mean(psnrs, fitted),
        "ssim": _mean(ssims, fitted),
        "psnr_per_frame": [round(value, 4) for value in psnrs],
        "psnr_held_out": _mean(psnrs, held),
        "psnr_person": _mean(in_boxes, fitted),
        "psnr_person_held_out": _mean(in_boxes, held),
        "mask_iou": _mean(ious, range(len(ious))),
        "frames": len(record.cameras),
        "measured": measured,
        "held_out": list(record.held_out),
        "size": list(record.size),
        "steps": checkpoint.step,
        "train_seconds": next((line["train_seconds"] for line in reversed(lines) if "train_seconds" in line), None),
        "peak_mib": max((line["peak_mib"] for line in lines if line.get("peak_mib")), default=None),
    }


def _psnr_in_box(found: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> float | None:
    """PSNR in the smallest box around a mask; None where there is none."""
    if mask is None or not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return metrics.psnr(found[box], truth[box])


def _iou(person: np.ndarray, mask: np.ndarray | None) -> float | None:
    if mask is None or not (person | mask).any():
        return None
    return float((person & mask).sum() / (person | mask).sum())


def _mean(values: Sequence[float | None], chosen: Iterable[int]) -> float | None:
    """The mean of what there is of the chosen values; None where there is nothing."""
    kept = [value for index in chosen if (value := values[index]) is not None]
    return round(float(np.mean(kept)), 5) if kept else None

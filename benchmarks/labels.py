"""Propagates the first frame's true mask to all frames of the DAVIS clips, and compares it with the true masks.

    python benchmarks/labels.py [--clips davis-blackswan ...] [--masks truth osvos auto] [--size 240p]
                                [--quality draft] [--config PRESET] [--frames A:B] [--json FILE]

The clips are read from ../shared/data beside the checkout. Each row says which masks the fit was given: with the true
masks of all frames the task is easy, as they contain the answer; `osvos` are imperfect masks, `auto` are found by
motion. IoU is the mean over all frames but the first, at the size of the fit. For comparison the table has the IoU of
the same label chained by the same optical flow, and of the masks that the fit was given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from main_job import DATA, versions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neural_fields.data.flow.compute import compute_flow
from neural_fields.data.masks.layer_masks import load_masks, mask_iou
from neural_fields.open_runs.opening import require_planar
from neural_fields.tracking.labels import chain_labels, propagate_label_map
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

GIVEN = {"truth": "masks", "osvos": "masks_osvos"}


def measure(clip: Path, masks: str, chosen: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Trains a clip, propagates its first mask, and compares the result with the true masks.

    Args:
        clip: folder of the clip.
        masks: masks that the training gets: "truth", "osvos" or "auto".
        chosen: options of the command line.
        out: folder of the run.

    Returns:
        The row of the table.
    """
    begin = time.monotonic()
    specs = ("auto",) if masks == "auto" else (f"foreground={clip / GIVEN[masks]}",)
    options = TrainOptions(
        out=out, config=chosen.config, quality=chosen.quality, size=chosen.size, masks=specs, frames=chosen.frames,
        flow="dis",
    )  # fmt: skip
    run = train(clip / "frames", options).run
    seconds = time.monotonic() - begin
    model = require_planar(run, "the benchmark").model
    source = require_planar(run, "the benchmark").video
    frames = range(*source.frame_range)
    size = model.shape.size

    def masks_of(folder: str) -> np.ndarray:
        return load_masks([f"foreground={clip / folder}"], source.metadata, size, frames).masks[0]

    truth = masks_of("masks")
    first = truth[0].astype(np.int32)
    flow = compute_flow(source.frames, run.cache, "dis", size)
    return {
        "clip": clip.name,
        "masks_given": masks,
        "iou": iou(propagate_label_map(model.eval(), first, 0, flow), truth),
        "iou_chained_flow": iou(chain_labels(flow, first, 0), truth),
        "iou_given": None if masks == "auto" else iou(iter(masks_of(GIVEN[masks])), truth),
        "layers": list(model.layers),
        "frames": len(truth),
        "seconds": round(seconds, 1),
    }


def iou(labels: Any, truth: np.ndarray) -> float:
    """Computes the mean IoU over all frames but the first."""
    each = [mask_iou(np.asarray(found) > 0, true) for found, true in zip(labels, truth, strict=True)]
    return round(float(np.mean(each[1:])), 4)


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", nargs="+")
    parser.add_argument("--masks", nargs="+", choices=(*GIVEN, "auto"), default=["truth", "osvos"])
    parser.add_argument("--size", default="240p")
    parser.add_argument("--quality", choices=("draft", "normal", "final"), default="draft")
    parser.add_argument("--config", default="atlas")
    parser.add_argument("--frames")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit("the real clips are not beside the checkout: ../shared/data")
    clips = chosen.clips or sorted(path.name for path in DATA.glob("davis-*"))
    print(f"{'clip':<18}{'masks given to the fit':<24}{'IoU':>7}{'chained flow':>14}{'masks given':>13}{'s':>7}")
    rows = []
    for masks in chosen.masks:
        for clip in clips:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(DATA / clip, masks, chosen, Path(folder) / "run")
            rows.append(row)
            given = "-" if row["iou_given"] is None else f"{row['iou_given']:.3f}"
            print(f"{clip:<18}{masks:<24}{row['iou']:>7.3f}{row['iou_chained_flow']:>14.3f}{given:>13}"
                  f"{row['seconds']:>7.1f}", flush=True)  # fmt: skip
        own = [row for row in rows if row["masks_given"] == masks]
        ours, chained = (float(np.mean([row[key] for row in own])) for key in ("iou", "iou_chained_flow"))
        print(f"{'mean':<18}{masks:<24}{ours:>7.3f}{chained:>14.3f}   asked 0.85, above chained flow", flush=True)
    settings = {key: getattr(chosen, key) for key in ("config", "quality", "size", "frames")}
    result = json.dumps({**versions(), **settings, "rows": rows})
    print(result)
    if chosen.json:
        chosen.json.write_text(result)


if __name__ == "__main__":
    main()

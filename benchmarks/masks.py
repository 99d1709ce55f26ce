"""Measures mask refinement: imperfect and true masks of the DAVIS clips, before and after it, and after training.

    python benchmarks/masks.py [--size 240p] [--clips NAME ...] [--fit] [--json FILE]

Each row: mean IoU over the frames and mean boundary F (Perazzi et al. 2016) against the true masks, of the masks as
given, of the mended masks and, with --fit, of the opacity that `unwrap train --quality draft` ends with (IoU only:
`unwrap eval` gives no boundary F). Rows "truth" refine the true masks, which should stay as they are. Processor
seconds are for the refinement alone, without flow. Clips are read from ../shared/data beside the checkout.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, GIVEN, finish, masks_of, missing, parser, table, unwrap, unwrap_json

CLIPS = ("davis-blackswan", "davis-car-shadow", "davis-kite-surf", "davis-parkour")
COLUMNS = ("clip", "masks", "IoU in", "IoU mended", "IoU fitted", "worst in", "worst mended", "F in", "F mended", "s")
LONGEST_FLOW = 480  # pixels, as in the preset `atlas`


def mended_row(clip: str, kind: str, size: str, work: Path) -> dict[str, Any]:
    """Measures the masks of a clip before and after refinement.

    Args:
        clip: name of the clip.
        kind: "truth" or "osvos".
        size: size of the frames, such as "240p".
        work: folder for the decoded frames and the flow.

    Returns:
        The row of the table.
    """
    from neural_fields.data.flow.compute import compute_flow
    from neural_fields.data.masks.layer_masks import load_masks, mask_iou
    from neural_fields.data.masks.refinement import refine_masks
    from neural_fields.data.video.io import read_video
    from neural_fields.evaluation.metrics import boundary_f

    source = read_video(DATA / clip / "frames", work, size)
    frames, facts = source.frames, source.metadata
    full = (frames.shape[2], frames.shape[1])
    shrink = min(1.0, LONGEST_FLOW / max(full))
    flow = compute_flow(frames, work, "dis", (round(full[0] * shrink), round(full[1] * shrink)))
    given, truth = (
        load_masks([masks_of(clip, name)], facts.frame_count, full, None, (facts.width, facts.height))
        for name in (kind, "truth")
    )
    begin = time.process_time()
    mended = refine_masks(frames, flow, given)
    seconds = time.process_time() - begin
    row: dict[str, Any] = {"clip": clip, "masks": kind, "s": seconds, "frames": len(frames), "size": list(full)}
    for name, masks in (("in", given), ("mended", mended)):
        ious = [mask_iou(a, b) for a, b in zip(masks.masks[0], truth.masks[0], strict=True)]
        row |= {f"IoU {name}": float(np.mean(ious)), f"worst {name}": min(ious)}
        row[f"F {name}"] = boundary_f(masks.masks[0], truth.masks[0])
    return row


def fitted_iou(clip: str, kind: str, size: str, work: Path) -> float:
    """Computes the mean IoU of the opacity after a draft training.

    Args:
        clip: name of the clip.
        kind: masks that the training gets: "truth" or "osvos".
        size: size of the training, such as "240p".
        work: folder for the run.
    """
    out = work / f"{clip}-{kind}"
    masks = masks_of(clip, kind)
    unwrap("train", DATA / clip / "frames", "--masks", masks, "--size", size, "--quality", "draft", "--out", out)
    return unwrap_json("eval", out, "--masks", masks_of(clip, "truth"), "--json")["alpha_iou"]["foreground"]


def main() -> None:
    """Measures every clip and prints the table, then one line of JSON."""
    asked = parser(__doc__)
    asked.add_argument("--size", default="240p")
    asked.add_argument("--clips", nargs="+", default=list(CLIPS))
    asked.add_argument("--fit", action="store_true", help="fit each clip with its imperfect masks too")
    options = asked.parse_args()
    absent = missing(options.clips)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in options.clips:
            if clip in absent:
                continue
            for kind in GIVEN:
                row = mended_row(clip, kind, options.size, Path(folder))
                if options.fit and kind != "truth":
                    row["IoU fitted"] = fitted_iou(clip, kind, options.size, Path(folder))
                rows.append(row)
    rounded = [{name: f"{v:.3f}" if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    print("\n".join(table(COLUMNS, ({name: row.get(name) for name in COLUMNS} for row in rounded))))
    finish(rows, options.json)


if __name__ == "__main__":
    main()

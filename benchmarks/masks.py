"""Measures masks: objects that are pointed at, and the refinement of given masks, on the DAVIS clips.

    python benchmarks/masks.py [--only pointing objects refinement] [--size 240p] [--clips NAME ...] [--fit]
                               [--json FILE]
    python benchmarks/masks.py --only pointing --ablation
    python benchmarks/masks.py --only pointing --leave-one-out

Pointing: mean IoU and boundary F over all frames at 240 lines, of masks that follow from hints: the true mask of the
first frame (which does not count then), those of three frames, a box around the largest part of the object in the
first frame with three pixels of room, one click in its middle and one beside it, or nothing (`--masks auto`; all of
its layers together, and an empty mask where it finds none). Seconds are those of the processor
for a frame in one thread, from hints to masks, flow included. --ablation leaves out a part of the engine at a time
instead, with the true mask of the first frame. --leave-one-out changes one important setting at a time by the factors
in `FACTORS`, with the same mask; of these changes and none, each clip is given the one that is best on the other clips.

Objects: synthetic clips of two and three objects that hide each other, with a box around each in the first frame: mean
and worst IoU over the frames in which at least a tenth of the object is seen, and whether the order is right.

Refinement: imperfect and true masks before and after it, and after training. Each row: mean IoU over the frames and
mean boundary F (Perazzi et al. 2016) against the true masks, of the masks as given, of the mended masks and, with
--fit, of the opacity that `unwrap train --quality draft` ends with (IoU only: `unwrap eval` gives no boundary F). Rows
"truth" refine the true masks, which should stay as they are. Processor seconds are for the refinement alone, without
flow. Clips are read from ../shared/data beside the checkout.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, GIVEN, finish, masks_of, missing, parser, table, unwrap, unwrap_json

CLIPS = ("davis-blackswan", "davis-car-shadow", "davis-kite-surf", "davis-parkour")
COLUMNS = ("clip", "masks", "IoU in", "IoU mended", "IoU fitted", "worst in", "worst mended", "F in", "F mended", "s")
KINDS = ("pointing", "objects", "refinement")
POINTING_COLUMNS = ("clip", "given", "IoU", "worst", "F", "s a frame")
OBJECTS_COLUMNS = ("clip", "object", "IoU", "worst", "in frame", "order")
POINTING_SIZE = "240p"
TUNED = (
    "window_margin",
    "carried_weight",
    "reach",
    "appearance_weight",
    "rigid_appearance_weight",
    "background_weight",
    "object_weight",
    "hint_weight",
    "smoothness",
    "cut_share",
)
FACTORS = (0.7, 1.4)
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
    given, truth = (load_masks([masks_of(clip, name)], facts, full) for name in (kind, "truth"))
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


def pointing_rows(clip: str, work: Path, trackers: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Measures the masks that follow from hints on a clip.

    Args:
        clip: name of the clip.
        work: folder for the decoded frames and the flow.
        trackers: settings of the tracker by their names, which follow the true mask of the first frame instead.

    Yields:
        A row for each kind of hint, or for each of those settings.
    """
    import cv2
    import torch

    from neural_fields.data.flow.compute import compute_flow
    from neural_fields.data.masks.layer_masks import load_masks, mask_iou
    from neural_fields.data.segmentation.moving_objects import find_moving_objects
    from neural_fields.data.segmentation.segmenter import FrameHints
    from neural_fields.data.segmentation.track_objects import TrackingSegmenter, TrackObjectsSettings
    from neural_fields.data.video.io import read_video
    from neural_fields.evaluation.metrics import boundary_f

    cv2.setNumThreads(1)  # threads that wait would count too
    torch.set_num_threads(1)
    source = read_video(DATA / clip / "frames", work, POINTING_SIZE)
    frames, facts = source.frames, source.metadata
    size = (frames.shape[2], frames.shape[1])
    begin = time.process_time()
    flow = compute_flow(frames, work / f"flow-{clip}", "dis", size)
    flow_seconds = time.process_time() - begin
    loaded = load_masks([masks_of(clip, "truth")], facts, size)
    truth, last = loaded.masks[0], len(frames) - 1
    nothing = np.zeros(truth.shape[1:], np.int8)
    inside, beside = find_clicks(truth[0])
    clicks = nothing.copy()
    for (x, y), label in ((inside, 1), (beside, -1)):
        clicks[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = label
    given = {
        "true mask of frame 0": {0: FrameHints(nothing, mask=truth[0])},
        "box on frame 0": {0: FrameHints(nothing, box=find_box(truth[0]))},
        "a click, and one beside": {0: FrameHints(clicks)},
        "true masks of 3 frames": {t: FrameHints(nothing, mask=truth[t]) for t in (0, last // 2, last)},
    }
    trials = [(name, hints, TrackObjectsSettings()) for name, hints in given.items()]
    if trackers is not None:
        parts = [(name, TrackObjectsSettings(tracker=tracker)) for name, tracker in trackers.items()]
        trials = [(name, given["true mask of frame 0"], settings) for name, settings in parts]
    else:
        trials.append(("nothing", {}, TrackObjectsSettings()))
    for name, hints, settings in trials:
        begin = time.process_time()
        if name == "nothing" and trackers is None:
            # All layers together; all False where nothing is found.
            found = np.asarray(find_moving_objects(frames, flow).layers.masks.any(0))
        else:
            found = TrackingSegmenter(settings).segment(frames, flow, {"object": hints}).shares[0] >= 128
        seconds = time.process_time() - begin + flow_seconds
        # Frames whose true mask was given do not count, but where three were: as in the literature.
        is_given = trackers is not None or name == "true mask of frame 0"
        counted = range(int(is_given), len(frames))
        ious = [mask_iou(found[t], truth[t]) for t in counted]
        yield {
            "clip": clip,
            "given": name,
            "IoU": float(np.mean(ious)),
            "worst": min(ious),
            "F": boundary_f(found[list(counted)], truth[list(counted)]),
            "s a frame": seconds / len(frames),
        }


def ablated_trackers() -> dict[str, Any]:
    """Returns `ObjectTrackerSettings` with one part left out in each, by what is left out."""
    from neural_fields.data.segmentation.appearance_model import AppearanceSettings
    from neural_fields.data.segmentation.hint_registration import RegistrationSettings
    from neural_fields.data.segmentation.object_tracker import ObjectTrackerSettings

    full = ObjectTrackerSettings()
    background: dict[str, Any] = {"background_weight": 0.0, "kept_background_weight": 0.0}
    one = AppearanceSettings(feature_sets=full.appearance.feature_sets[:1], regressions=1)
    return {
        "nothing": full,
        "appearance": replace(full, appearance_weight=0.0, rigid_appearance_weight=0.0),
        "less appearance where rigid": replace(full, rigid_appearance_weight=full.appearance_weight),
        "all regressions but one": replace(full, appearance=one),
        "motion like the background's": replace(full, **background),
        "motion like the object's": replace(full, object_weight=0.0),
        "both": replace(full, object_weight=0.0, **background),
        "the hinted mask": replace(full, registration=RegistrationSettings(min_side_px=100_000)),
        "the graph cut": replace(full, smoothness=0.0),
    }


def changed_trackers() -> dict[str, Any]:
    """Returns `ObjectTrackerSettings` with one of them smaller or larger in each, by what is changed."""
    from neural_fields.data.segmentation.object_tracker import ObjectTrackerSettings

    full = ObjectTrackerSettings()
    changes = [(name, factor) for name in TUNED for factor in FACTORS]
    return {"nothing": full} | {
        f"{name} x {factor}": replace(full, **{name: factor * getattr(full, name)}) for name, factor in changes
    }


def held_out_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Chooses for each clip the settings that are best on all other clips.

    Args:
        rows: of each clip with each of the settings.

    Yields:
        For each clip, its row with those settings.
    """
    for clip in dict.fromkeys(row["clip"] for row in rows):
        others: dict[str, list[float]] = {}
        for row in rows:
            if row["clip"] != clip:
                others.setdefault(row["given"], []).append(row["IoU"])
        best = max(others, key=lambda name: np.mean(others[name]))
        chosen = next(row for row in rows if row["clip"] == clip and row["given"] == best)
        yield chosen | {"given": f"best on the others: {best}"}


def objects_rows(work: Path) -> Iterator[dict[str, Any]]:
    """Measures the masks of several objects on synthetic clips.

    Args:
        work: folder for the flow.

    Yields:
        A row for each object.
    """
    from neural_fields.data.flow.compute import compute_flow
    from neural_fields.data.masks.layer_masks import mask_iou
    from neural_fields.data.segmentation.segmenter import FrameHints
    from neural_fields.data.segmentation.track_objects import TrackingSegmenter, find_order
    from neural_fields.data.synthetic.suite import SuiteSettings, make_crossing_clip, make_occlusion_clip

    stage = SuiteSettings(width=426, height=240)
    clips = {
        "occlusion": make_occlusion_clip(stage),
        "two that cross": make_crossing_clip(stage),
        "three that cross": make_crossing_clip(stage, 3),
    }
    for number, (clip_name, clip) in enumerate(clips.items()):
        names, labels = clip.layer_names[:-1], clip.compute_labels()
        nothing = np.zeros(labels.shape[1:], np.int8)
        # Named back to front, so that the right order is one that was found.
        hints = {
            name: {0: FrameHints(nothing, box=find_box(labels[0] == layer))}
            for layer, name in reversed(list(enumerate(names)))
        }
        flow = compute_flow(clip.frames, work / f"objects-{number}", "dis", (stage.width, stage.height))
        found = TrackingSegmenter().segment(clip.frames, flow, hints)
        order, _ = find_order(found.shares >= 128)
        ordered = tuple(found.names[k] for k in order)
        found = TrackingSegmenter().separate(clip.frames, flow, hints, found, ())
        for layer, name in enumerate(names):
            masks, truth = found.shares[found.names.index(name)] >= 128, labels == layer
            seen = np.flatnonzero(truth.sum((1, 2)) >= 0.1 * clip.masks[layer].sum((1, 2)))
            ious = [mask_iou(masks[t], truth[t]) for t in seen]
            yield {
                "clip": clip_name,
                "object": name,
                "IoU": float(np.mean(ious)),
                "worst": min(ious),
                "in frame": int(seen[int(np.argmin(ious))]),
                "order": "right" if ordered == names else ", ".join(ordered),
            }


def find_box(mask: np.ndarray, room: int = 3) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of the largest part of a mask, with some pixels of room."""
    import cv2

    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened)
    part = mask if count < 2 else labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    height, width = mask.shape
    left, top = max(0, int(columns[0]) - room), max(0, int(rows[0]) - room)
    return left, top, min(width, int(columns[-1]) + 1 + room), min(height, int(rows[-1]) + 1 + room)


def find_clicks(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns where a user clicks: the point farthest inside the mask, and one beside its box, on the roomier side."""
    import cv2

    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    left, _, right, _ = find_box(mask)
    beside = left - 12 if left > mask.shape[1] - right else right + 12
    return (int(x), int(y)), (int(np.clip(beside, 1, mask.shape[1] - 2)), int(y))


def main() -> None:
    """Measures every clip and prints the tables, then one line of JSON."""
    asked = parser(__doc__)
    asked.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    asked.add_argument("--size", default="240p", help="of the refinement")
    asked.add_argument("--clips", nargs="+", default=list(CLIPS))
    asked.add_argument("--fit", action="store_true", help="fit each clip with its imperfect masks too")
    asked.add_argument("--ablation", action="store_true", help="leave out parts of what follows an object instead")
    asked.add_argument("--leave-one-out", action="store_true", help="follow each clip with settings of the others")
    options = asked.parse_args()
    if options.leave_one_out and len(options.clips) < 2:
        asked.error("--leave-one-out needs two clips or more")
    absent = missing(options.clips)
    rows = []
    clips = [clip for clip in options.clips if clip not in absent]
    with tempfile.TemporaryDirectory() as folder:
        if "pointing" in options.only:
            trackers = changed_trackers() if options.leave_one_out else ablated_trackers() if options.ablation else None
            pointed = [row for clip in clips for row in pointing_rows(clip, Path(folder), trackers)]
            held_out = list(held_out_rows(pointed)) if options.leave_one_out else []
            for given in dict.fromkeys(row["given"] for row in pointed):
                same = [row for row in pointed if row["given"] == given]
                mean = {name: float(np.mean([row[name] for row in same])) for name in POINTING_COLUMNS[2:]}
                pointed.append({"clip": "mean", "given": given, **mean})
            if held_out:
                mean = {name: float(np.mean([row[name] for row in held_out])) for name in POINTING_COLUMNS[2:]}
                pointed += [*held_out, {"clip": "mean", "given": "best on the others", **mean}]
            print("\n".join(table(POINTING_COLUMNS, _round_values(pointed, POINTING_COLUMNS))))
            rows += pointed
        if "objects" in options.only:
            several = list(objects_rows(Path(folder)))
            print("\n".join(table(OBJECTS_COLUMNS, _round_values(several, OBJECTS_COLUMNS))))
            rows += several
        if "refinement" in options.only:
            mended = []
            for clip in clips:
                for kind in GIVEN:
                    row = mended_row(clip, kind, options.size, Path(folder))
                    if options.fit and kind != "truth":
                        row["IoU fitted"] = fitted_iou(clip, kind, options.size, Path(folder))
                    mended.append(row)
            print("\n".join(table(COLUMNS, _round_values(mended, COLUMNS))))
            rows += mended
    finish(rows, options.json)


def _round_values(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for row in rows:
        values = {name: row.get(name) for name in columns}
        yield {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in values.items()}


if __name__ == "__main__":
    main()

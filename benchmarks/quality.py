"""Measures quality, time and memory of `unwrap train` on the real clips, and compares them with targets.

    python benchmarks/quality.py [--quality draft normal final] [--clips davis-blackswan ...] [--size 240p]
                                 [--masks truth|osvos|auto|none] [--config PRESET] [--frames A:B] [--asked]
                                 [--json FILE]

--asked runs only the rows that have a target. Every row is one `unwrap train` in a separate process, on a machine that
should be idle: seconds are from the start of the process to its end, and peak memory is that of the process. PSNR (mean
and worst frame, and over the pixels of each layer) is of the 8-bit reconstruction at the size of the fit; IoU is that
of the opacity against the true masks, whichever masks the fit was given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import DATA, GIVEN, finish, masks_of, missing, parser, table, unwrap, unwrap_json

DAVIS = ("davis-blackswan", "davis-car-shadow", "davis-kite-surf", "davis-parkour")


@dataclass(frozen=True)
class Asked:
    """Holds the targets of a training with the true masks on two cores."""

    psnr: float  # dB, mean over the frames
    seconds: float  # for the whole command
    foreground: float | None = None  # dB, over the pixels of the front layer; None: no target


ASKED = {
    ("davis-blackswan", "240p", "draft"): Asked(30, 60),
    ("davis-car-shadow", "240p", "draft"): Asked(30, 60),
    ("davis-kite-surf", "240p", "draft"): Asked(27, 60),
    ("davis-parkour", "240p", "draft"): Asked(25, 60),
    **{(clip, "240p", "final"): Asked(31, 600, 27) for clip in DAVIS},
    ("davis-blackswan", "480p", "normal"): Asked(30, 360),
}
COLUMNS = (
    "clip", "size", "quality", "asked", "reached", "psnr", "worst", "front", "back", "iou", "seconds", "peak MiB",
    "steps",
)  # fmt: skip


def measure(clip: str, size: str, quality: str, chosen: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Trains a clip and measures the run.

    Args:
        clip: name of the clip.
        size: size of the training, such as "240p".
        quality: "draft", "normal" or "final".
        chosen: options of the command line.
        out: folder of the run.

    Returns:
        The row of the table.
    """
    words: list[str | Path] = ["--size", size, "--quality", quality, "--config", chosen.config, "--out", out]
    if chosen.frames:
        words += ["--frames", chosen.frames]
    frames = DATA / clip / "frames"
    done = unwrap("train", frames, *words, "--masks", masks_of(clip, chosen.masks))
    found = evaluated(out, clip, chosen.masks)
    layers, iou = found["psnr_per_layer"], found["alpha_iou"]
    row = {
        "clip": clip,
        "size": size,
        "quality": quality,
        "psnr": found["psnr"],
        "worst": min(value for value in found["psnr_per_frame"] if value is not None),
        "front": next(iter(layers.values())) if len(layers) > 1 else None,
        "back": layers["background"],
        "iou": next(iter(iou.values())) if iou else None,
        "seconds": round(done.seconds, 1),
        "peak MiB": done.peak_mib,
        "steps": found["steps"],
    }
    asked = ASKED.get((clip, size, quality)) if chosen.masks == "truth" and not chosen.frames else None
    return {**row, **({} if asked is None else verdict(row, asked))}


def evaluated(run: Path, clip: str, masks: str) -> dict[str, Any]:
    """Runs `unwrap eval`, against the true masks if the run has exactly one front layer.

    Args:
        run: folder of the run.
        clip: name of the clip.
        masks: masks that the training got.

    Returns:
        The figures.
    """
    truth = DATA / clip / "masks"
    if masks not in GIVEN:
        found = unwrap_json("eval", run)
        if len(found["layers"]) != 2 or not truth.is_dir():
            return found
    return unwrap_json("eval", run, "--masks", truth)


def verdict(row: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Formats the target of a row, and compares the row with it."""
    text = f">= {asked.psnr:g} dB in {asked.seconds:g} s"
    reached = row["psnr"] >= asked.psnr and row["seconds"] <= asked.seconds
    if asked.foreground is not None:
        text += f", front {asked.foreground:g}"
        reached = reached and row["front"] is not None and row["front"] >= asked.foreground
    return {"asked": text, "reached": reached}


def jobs(chosen: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yields (clip, size, quality) of every training."""
    wanted = ASKED if chosen.asked else ((c, chosen.size, q) for q in chosen.quality for c in chosen.clips)
    gone = missing(chosen.clips)
    for clip, size, quality in wanted:
        if clip in chosen.clips and clip not in gone and (not chosen.asked or quality in chosen.quality):
            yield clip, size, quality


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    options = parser(__doc__)
    options.add_argument("--quality", nargs="+", default=["draft"], choices=["draft", "normal", "final"])
    options.add_argument("--clips", nargs="+", default=list(DAVIS))
    options.add_argument("--size", default="240p")
    options.add_argument("--masks", default="truth", choices=["truth", "osvos", "auto", "none"])
    options.add_argument("--config", default="atlas")
    options.add_argument("--frames")
    options.add_argument("--asked", action="store_true", help="only the rows that have a target")
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs(chosen)):
            rows.append(measure(*job, chosen, Path(folder) / str(number)))
            print("\n".join(table(COLUMNS, rows[-1:])), flush=True)
    print("\n".join(table(COLUMNS, rows)))
    finish(rows, chosen.json, masks=chosen.masks, config=chosen.config)


if __name__ == "__main__":
    main()

"""Compares what `unwrap train --dry-run` says with what the training then takes: time, memory, space on the disk.

    python benchmarks/estimate.py [--clips FOLDER ...] [--size 240p] [--quality draft] [--masks none] [--seconds N]
        [--json FILE]

Without --clips a synthetic clip of 48 frames is trained (854x480 for 480p: the camera pans over a picture, and a disc
crosses it). All are asked for within a factor of two. Time is processor seconds, which other work on the machine hardly
changes: run it with OMP_NUM_THREADS=1. `--masks truth` takes the masks beside the frames of a clip.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import Row, finish, parser, print_row, table, unwrap, unwrap_json, write_pan

ASKED = {"seconds": 2.0, "peak_mib": 2.0, "kept_mib": 2.0}  # factors between the estimate and the measurement


def measure(video: Path, flags: list[str | Path], run: Path) -> dict[str, Any]:
    """Estimates and trains one clip.

    Args:
        video: the clip.
        flags: of the training.
        run: folder of the run.

    Returns:
        The row of the table: for each figure the estimate, the measurement and their ratio.
    """
    if "truth" in flags:
        flags = [f"foreground={video.parent / 'masks'}" if flag == "truth" else flag for flag in flags]
    flags = [*flags, "--out", run]
    said = unwrap_json("train", video, *flags, "--dry-run")
    trained = unwrap("train", video, *flags)
    kept = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 2**20
    taken = {"seconds": trained.processor_seconds, "peak_mib": trained.peak_mib, "kept_mib": kept}
    name = video.parent.name if video.name == "frames" else video.stem
    row: dict[str, Any] = {"clip": name, "frames": said["frames"], "size": "x".join(map(str, said["size"]))}
    for name, value in taken.items():
        figure = float(value or 0)
        row |= {f"{name} said": said[name], name: round(figure, 1), f"{name} ratio": round(figure / said[name], 2)}
    return row


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    options = parser(__doc__)
    options.add_argument("--clips", nargs="+", type=Path, default=[])
    options.add_argument("--size", default="240p")
    options.add_argument("--quality", default="draft", choices=["draft", "normal", "final"])
    options.add_argument("--masks", default="auto")
    options.add_argument("--seconds", type=float)
    chosen = options.parse_args()
    flags: list[str | Path] = ["--size", chosen.size, "--quality", chosen.quality, "--masks", chosen.masks]
    flags += [] if chosen.seconds is None else ["--seconds", str(chosen.seconds)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clips = list(chosen.clips)
        if not clips:
            clips = [Path(folder) / "pan.mp4"]
            write_pan(clips[0], 48, 854, 480)
        for number, clip in enumerate(clips):
            rows.append(measure(clip, flags, Path(folder) / f"run-{number}"))
    print("\n".join(table(tuple(rows[0]), rows)))
    verdicts = []
    for row in rows:
        for name, factor in ASKED.items():
            ratio = row[f"{name} ratio"]
            met = 1 / factor <= ratio <= factor
            verdicts.append(Row(row["clip"], name, f"within {factor:g}-fold", f"{ratio:.2f} of the estimate", met))
            print_row(verdicts[-1])
    finish(rows, chosen.json, verdicts=[vars(row) for row in verdicts], size=chosen.size, quality=chosen.quality)


if __name__ == "__main__":
    main()

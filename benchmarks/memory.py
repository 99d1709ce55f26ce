"""Measures the peak memory of `unwrap train` and `unwrap render` for clips of several lengths.

    python benchmarks/memory.py [--frames 100 1000] [--size 480p] [--masks auto] [--seconds 240] [--json FILE]

The clips are synthetic (854x480 for 480p: the camera pans over a picture, and a disc crosses it). Each command runs in
a separate process, whose peak memory is measured. --seconds ends each fit early: memory peaks during flow,
initialization, the first steps and baking, not at the end of a long refinement. Takes about ten minutes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import Row, finish, parser, print_row, table, unwrap, unwrap_json, write_pan

ASKED = 300  # MiB between the longest and the shortest clip


def measure(count: int, size: str, masks: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Trains and renders a synthetic clip, and measures the peak memory of both.

    Args:
        count: number of frames.
        size: size of clip and training, such as "480p".
        masks: "auto" or "none".
        seconds: time budget of the training.
        folder: folder for the clip and the run.

    Returns:
        The row of the table.
    """
    height = int(size.removesuffix("p"))
    clip, run = folder / f"{count}.mp4", folder / f"run-{count}"
    write_pan(clip, count, 2 * round(height * 16 / 18), height)
    trained = unwrap("train", clip, "--size", size, "--masks", masks, "--seconds", str(seconds), "--out", run)
    painted = run / "canonical" / "background.png"
    paint(painted)
    unwrap("edit", run, painted, "--layer", "background")
    rendered = unwrap("render", run, "--out", folder / f"{count}-edited.mp4")
    found = unwrap_json("eval", run)
    return {
        "frames": count,
        "train MiB": trained.peak_mib,
        "render MiB": rendered.peak_mib,
        "steps": found["steps"],
        "psnr": found["psnr"],
        "layers": len(found["layers"]),
        "seconds": round(trained.seconds, 1),
    }


def paint(picture: Path) -> None:
    """Paints a disc in the middle of a canonical picture."""
    import cv2

    image = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
    height, width = image.shape[:2]
    cv2.circle(image, (width // 2, height // 2), height // 5, (40, 60, 230, 255), -1)
    cv2.imwrite(str(picture), image)


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    options = parser(__doc__)
    options.add_argument("--frames", nargs="+", type=int, default=[100, 1000])
    options.add_argument("--size", default="480p")
    options.add_argument("--masks", default="auto", choices=["auto", "none"])
    options.add_argument("--seconds", type=float, default=240)
    chosen = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in sorted(chosen.frames):
            rows.append(measure(count, chosen.size, chosen.masks, chosen.seconds, Path(folder)))
            print("\n".join(table(tuple(rows[0]), rows[-1:])), flush=True)
    print("\n".join(table(tuple(rows[0]), rows)))
    verdicts = []
    for name in ("train", "render"):
        more = rows[-1][f"{name} MiB"] - rows[0][f"{name} MiB"]
        on = f"{name}, {rows[-1]['frames']} frames against {rows[0]['frames']}, {chosen.size}"
        verdicts.append(Row(on, "peak memory", f"within {ASKED} MiB", f"{more:+.0f} MiB", more <= ASKED))
        print_row(verdicts[-1])
    finish(rows, chosen.json, verdicts=[vars(row) for row in verdicts], size=chosen.size, masks=chosen.masks)


if __name__ == "__main__":
    main()

"""Compares the speed of training with that of another version, in turns: processor seconds of each stage, and PSNR.

    python benchmarks/speed.py --base REVISION [--clips davis-blackswan ...] [--size 240p] [--quality draft final]
        [--masks truth] [--rounds 1] [--json FILE]

The other version is checked out beside this one (git worktree), and removed afterwards. Both train the same clips, one
after the other, in processes of one thread; processor seconds are hardly changed by other work on the machine. Prints a
table with the ratios, then one line of JSON. Without --base only this version is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import DATA, ROOT, finish, parser, table

# Runs in either version: stages are told apart by the progress that the training reports.
TRAIN = """
import json, sys, time
from pathlib import Path
video, out, size, quality, *masks = sys.argv[1:]
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train
seconds, last, stage, first = {}, time.process_time(), "start", []
def report(progress):
    global last, stage
    now = time.process_time()
    seconds[stage] = seconds.get(stage, 0.0) + now - last
    last, stage = now, progress.stage
    if not first and any(Path(out).glob("canonical/*.png")):
        first.append(now)
options = TrainOptions(out=Path(out), size=size, quality=quality, masks=tuple(masks))
result = train(video, options, report)
seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - last
kept = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file()) / 2**20
print(json.dumps({"stages": seconds, "all": time.process_time(), "psnr": result.figures["psnr"], "steps": result.step,
                  "first pictures": first[0] if first else time.process_time(), "kept MiB": kept}))
"""


def train_with(tree: Path, clip: str, size: str, quality: str, masks: str, folder: Path) -> dict[str, Any]:
    """Trains a clip with the code of a folder.

    Args:
        tree: a checkout.
        clip: name of a folder of the clips beside the checkout.
        size: of the training.
        quality: draft, normal or final.
        masks: auto, none, or truth for those beside the clip.
        folder: where the run goes.

    Returns:
        Processor seconds of the stages and of all, the step, PSNR, and what is kept on the disk.
    """
    source = DATA / clip / "frames"
    video = source if source.is_dir() else DATA / clip / "video.mp4"
    chosen = f"foreground={DATA / clip / 'masks'}" if masks == "truth" else masks
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    words = [str(video), str(folder / f"{tree.name}-{clip}-{quality}"), size, quality, chosen]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *words], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    stages = found.pop("stages")
    found["fit"] = stages.get("training", 0.0)
    found["after it"] = sum(stages.get(name, 0.0) for name in ("baking", "report"))
    found["set-up"] = found["all"] - found["fit"] - found["after it"]
    return found


def main() -> None:
    """Trains what the options name with both versions, and prints the table."""
    options = parser(__doc__)
    options.add_argument("--base", help="revision to compare with")
    options.add_argument("--clips", nargs="+", default=["davis-blackswan", "davis-car-shadow"])
    options.add_argument("--size", default="240p")
    options.add_argument("--quality", nargs="+", default=["draft"], choices=["draft", "normal", "final"])
    options.add_argument("--masks", default="truth")
    chosen = options.parse_args()
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = {"this": ROOT}
        if chosen.base:
            trees["base"] = folder / "base"
            subprocess.run(
                ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(trees["base"]), chosen.base],
                check=True,
                capture_output=True,
            )
            removal = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(trees["base"])]
            stack.callback(subprocess.run, removal, check=True)
        for clip in chosen.clips:
            for quality in chosen.quality:
                found = {
                    name: train_with(tree, clip, chosen.size, quality, chosen.masks, folder)
                    for name, tree in trees.items()
                }
                for name, figures in found.items():
                    row = {"clip": clip, "quality": quality, "version": name}
                    rows.append(row | {key: round(value, 2) for key, value in figures.items()})
                if "base" in found:
                    names = ("set-up", "fit", "after it", "all", "first pictures", "kept MiB")
                    ratios = {key: round(found["this"][key] / found["base"][key], 3) for key in names}
                    rows.append({"clip": clip, "quality": quality, "version": "ratio", **ratios})
    columns = ["clip", "quality", "version", "set-up", "fit", "after it", "all", "first pictures", "psnr", "kept MiB"]
    print(*table(columns, rows), sep="\n")
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()

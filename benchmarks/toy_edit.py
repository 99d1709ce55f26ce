"""Edits by prompt with the toy model: does the region get the colour asked for, in every frame, and nothing else?

    python benchmarks/toy_edit.py [--editors inpaint img2img controlnet videdit sds mediated ...] [--prompt "blue dots"]
                                  [--clips synthetic davis-car-shadow] [--size 240p] [--json FILE]

Each clip is fitted once with `unwrap train` and its true masks, edited with `unwrap edit RUN --editor NAME`, rendered,
and measured: the least and the mean share, over the frames, of the region's pixels whose hue is that of the prompt's
first word; pixels outside that differ from the source; warp error of the edited video over that of the source (asked:
at most 1.1), of whole frames and 4 pixels inside the edit's outline. The region are the pixels that show the layer with
at least 90 % of the weight.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, ROOT, finish, missing, parser, table, unwrap, unwrap_json
from PIL import Image

sys.path.insert(0, str(ROOT))

from neural_fields.baking import Maps
from neural_fields.data.synthetic import demo_clip
from neural_fields.edit_quality import edited_frames
from neural_fields.run import Run

HUES = {"red": 0, "orange": 30, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "purple": 280}  # degrees
TOY = ROOT / "examples" / "toy_diffusion"
MORE = {  # settings of single editors
    "controlnet": ("--control", f"edges={TOY / 'controlnet'}"),
    "videdit": ("--control", str(TOY / "controlnet")),
}
ASKED = "hue >= 0.90 of the region in every frame, 0 changed outside, warp ratio <= 1.1"


def hue_share(rgb: np.ndarray, region: np.ndarray, hue: float) -> float:
    """The share of a region's pixels within 40 degrees of a hue and of some saturation."""
    values = rgb[region].astype(np.float64) / 255
    high, low = values.max(axis=1), values.min(axis=1)
    chroma = np.maximum(high - low, 1e-9)
    red, green, blue = values.T
    found = np.select(
        [high == red, high == green],
        [(green - blue) / chroma % 6, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    apart = np.abs((60 * found - hue + 180) % 360 - 180)
    return float(((apart <= 40) & (high - low > 0.15 * np.maximum(high, 1e-9))).mean()) if len(values) else 1.0


def fitted(clip: str, chosen: argparse.Namespace, folder: Path) -> Path:
    """A run of a clip with its true masks."""
    frames, masks = DATA / clip / "frames", DATA / clip / "masks"
    if clip == "synthetic":
        made = demo_clip(24, 320, 180)
        frames, masks = folder / "frames", folder / "masks"
        for path, pictures in ((frames, made.frames), (masks, 255 * np.asarray(made.masks[0], np.uint8))):
            path.mkdir(parents=True)
            for t, picture in enumerate(pictures):
                Image.fromarray(picture).save(path / f"{t:05d}.png")
    run = folder / "run"
    unwrap("train", frames, "--masks", masks, "--size", chosen.size, "--quality", "draft", "--out", run)
    return run


def measure(clip: str, editor: str, path: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """One edit of one run."""
    words = ["--model", TOY / "model", "--prompt", chosen.prompt, "--name", editor, *MORE.get(editor, ())]
    begin = time.monotonic()
    unwrap("edit", path, "--editor", editor, "--layer", "foreground", *words)
    seconds = time.monotonic() - begin
    unwrap("render", path, "--edit", editor, "-y")
    found = unwrap_json("eval", path, "--edit", editor)
    unwrap("undo", path)
    run, hue = Run.open(path), HUES[chosen.prompt.split()[0]]
    maps, shares = Maps.open(run), []
    for t, frame in enumerate(edited_frames(run, [editor])):
        size = (frame.source.shape[1], frame.source.shape[0])
        shares.append(hue_share(frame.edited, maps.weight(t, size)[maps.layers.index("foreground")] >= 0.9, hue))
    return {
        "clip": clip,
        "editor": editor,
        "hue, least frame": min(shares),
        "hue, mean": float(np.mean(shares)),
        "changed outside": found["changed_outside"],
        "warp ratio": found["warp_error_ratio"],
        "warp ratio inside": found["warp_error_ratio_inside"],
        "edit seconds": seconds,
    }


def main() -> int:
    """Prints a table and writes JSON."""
    options = parser(__doc__)
    options.add_argument("--editors", nargs="+", default=["inpaint", "img2img", "videdit", "sds", "mediated"])
    options.add_argument("--clips", nargs="+", default=["synthetic", "davis-car-shadow"])
    options.add_argument("--prompt", default="blue dots", help=f"begins with one of: {', '.join(HUES)}")
    options.add_argument("--size", default="240p")
    chosen = options.parse_args()
    gone = missing([clip for clip in chosen.clips if clip != "synthetic"])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in (clip for clip in chosen.clips if clip not in gone):
            run = fitted(clip, chosen, Path(folder) / clip)
            rows += [measure(clip, editor, run, chosen) for editor in chosen.editors]
    print("\n".join(table(list(rows[0]) if rows else [], rows)))
    finish(rows, chosen.json, prompt=chosen.prompt, size=chosen.size, asked=ASKED)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures edits by prompt with the toy model: the region must get the requested color in every frame, nothing else.

    python benchmarks/toy_edit.py [--editors inpaint img2img controlnet videdit sds mediated ...] [--prompt "blue dots"]
                                  [--clips synthetic synthetic-dis davis-car-shadow] [--size 240p] [--json FILE]

Each clip is fitted once with `unwrap train` and its true masks, edited with `unwrap edit RUN --editor NAME`, rendered,
and measured: the least and the mean share, over the frames, of the region's pixels whose hue is that of the prompt's
first word; pixels outside that differ from the source; warp error of the edited video over that of the source (asked:
at most 1.1), of whole frames and 4 pixels inside the edit's outline. The region consists of the pixels in which the
layer has at least 90 % of the weight. The synthetic clip comes with its true flow, along which errors are measured
then; "synthetic-dis" is the same clip with flow computed by DIS, which errs by fractions of a pixel at outlines: there
even the exact edited clip (its texture painted a flat blue before it was rendered) has a ratio of 1.27.
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

from examples.toy_diffusion.pictures import hue_share
from neural_fields.atlas.uv_maps import Maps
from neural_fields.data.flow.flow_files import FLO_UNKNOWN, write_flo
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.evaluation.edit_quality import render_edited_frames
from neural_fields.open_runs.opening import require_planar
from neural_fields.runs.run import Run

HUES = {"red": 0, "orange": 30, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "purple": 280}  # degrees
TOY = ROOT / "examples" / "toy_diffusion"
MADE = ("synthetic", "synthetic-dis")  # the same clip, with its true flow and without
MORE = {  # settings of single editors
    "controlnet": ("--control", f"edges={TOY / 'controlnet'}"),
    "videdit": ("--control", str(TOY / "controlnet")),
}
ASKED = "hue >= 0.90 of the region in every frame, 0 changed outside, warp ratio <= 1.1"


def fitted(clip: str, chosen: argparse.Namespace, folder: Path) -> Path:
    """Trains a run of a clip with its true masks.

    Args:
        clip: name of the clip.
        chosen: options of the command line.
        folder: folder for the clip and the run.

    Returns:
        The folder of the run.
    """
    flow: Path | str = "auto"
    frames, masks = DATA / clip / "frames", DATA / clip / "masks"
    if clip in MADE:
        frames, masks, flow = made(folder, with_flow=clip == "synthetic")
    run = folder / "run"
    fit = ("--masks", masks, "--flow", flow, "--size", chosen.size, "--quality", "draft", "--out", run)
    unwrap("train", frames, *fit)
    return run


def made(folder: Path, with_flow: bool) -> tuple[Path, Path, Path | str]:
    """Writes frames, masks and flow of the synthetic clip; returns the folders, and "dis" without flow."""
    clip = make_demo_clip(24, 320, 180)
    frames, masks, flow = folder / "frames", folder / "masks", folder / "flow"
    for path, pictures in ((frames, clip.frames), (masks, 255 * np.asarray(clip.masks[0], np.uint8))):
        path.mkdir(parents=True)
        for t, picture in enumerate(pictures):
            Image.fromarray(picture).save(path / f"{t:05d}.png")
    if not with_flow:
        return frames, masks, "dis"
    for name in ("forward", "backward"):
        (flow / name).mkdir(parents=True)
        for t, (vectors, ok) in enumerate(zip(getattr(clip, name), getattr(clip, f"{name}_ok"), strict=True)):
            unknown = np.where(np.asarray(ok)[..., None], vectors, 10 * FLO_UNKNOWN)
            write_flo(flow / name / f"{t:05d}.flo", unknown.astype(np.float32))
    return frames, masks, flow


def measure(clip: str, editor: str, path: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Makes one edit, renders it, measures it and undoes it.

    Args:
        clip: name of the clip.
        editor: name of the editor.
        path: folder of the run.
        chosen: options of the command line.

    Returns:
        The row of the table.
    """
    words = ["--model", TOY / "model", "--prompt", chosen.prompt, "--name", editor, *MORE.get(editor, ())]
    begin = time.monotonic()
    unwrap("edit", path, "--editor", editor, "--layer", "foreground", *words)
    seconds = time.monotonic() - begin
    unwrap("render", path, "--edit", editor, "-y")
    found = unwrap_json("eval", path, "--edit", editor)
    unwrap("undo", path)
    run, hue = Run.open(path), HUES[chosen.prompt.split()[0]]
    maps, shares = Maps.open(run.maps), []
    for t, frame in enumerate(render_edited_frames(require_planar(run, "the benchmark"), [editor])):
        size = (frame.source.shape[1], frame.source.shape[0])
        region = maps.read_weights(t, size)[maps.layers.index("foreground")] >= 0.9
        shares.append(hue_share(frame.edited[region] / 255.0, hue) if region.any() else 1.0)
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
    options.add_argument("--clips", nargs="+", default=[*MADE, "davis-car-shadow"])
    options.add_argument("--prompt", default="blue dots", help=f"begins with one of: {', '.join(HUES)}")
    options.add_argument("--size", default="240p")
    chosen = options.parse_args()
    gone = missing([clip for clip in chosen.clips if clip not in MADE])
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

"""Measures the main workflow: quality, opacity, drift, render rate, memory. Every row is a run of `unwrap`.

    python benchmarks/main_job.py [--only fit auto demo render memory] [--json FILE]

The real clips are read from ../shared/data beside the checkout; rows whose clip is missing are left out with a
message. Prints a table, then one line of JSON with the machine and the versions. Killed and continued trainings are
measured by `benchmarks/resume.py`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import DATA, Row, finish, machine, parser, print_row, unwrap, unwrap_json, write_pan

SECONDS = "90"
versions = machine  # the name under which other benchmarks import it


def fit(clip: str, out: Path, *more: str | Path) -> dict[str, Any]:
    """Fits a DAVIS clip at 240p within 90 s and measures it against the true masks."""
    done = unwrap("train", DATA / clip / "frames", "--size", "240p", "--seconds", SECONDS, "--out", out, *more)
    return {**unwrap_json("eval", out, "--masks", DATA / clip / "masks"), "wall": done.seconds}


def fit_rows(work: Path) -> Iterator[Row]:
    """Measures the quality of trainings with the true masks."""
    for clip, asked in (("davis-blackswan", "28.5 dB"), ("davis-car-shadow", "29 dB, IoU 0.90")):
        found = fit(clip, work / clip, "--masks", DATA / clip / "masks")
        iou = found["alpha_iou"]["foreground"]
        measured = f"{found['psnr']:.2f} dB, IoU {iou:.3f} ({found['steps']} steps, {found['wall']:.0f} s)"
        yield Row(f"{clip}, 240p, masks, {SECONDS} s", "PSNR, IoU", asked, measured)


def auto_rows(work: Path) -> Iterator[Row]:
    """Measures the opacity of an object that is found by motion alone."""
    found = fit("davis-car-shadow", work / "auto", "--masks", "auto")
    iou = found["alpha_iou"]["foreground"]
    yield Row("davis-car-shadow, --masks auto", "IoU", "0.70", f"{iou:.3f} ({found['psnr']:.2f} dB)")


def demo_rows(work: Path) -> Iterator[Row]:
    """Measures drift and edits on the synthetic clip with known truth."""
    found = unwrap_json("demo", "--out", work / "demo")
    drift = f"{found['mean drift (px)']} px (worst {found['worst drift (px)']}), {found['edit PSNR (dB)']} dB"
    yield Row("demo clip", "drift, edit PSNR", "1 px, 30 dB", f"{drift}; fit {found['fit (s)']} s")


def render_rows(work: Path) -> Iterator[Row]:
    """Measures rendering beside plain decoding and encoding of the same clip, in turns."""
    from neural_fields.core.threads import prepare_threads

    prepare_threads()
    import cv2

    from neural_fields.core.prefetch import prefetch
    from neural_fields.data.video.io import source_frames, write_video
    from neural_fields.open_runs.opening import require_planar
    from neural_fields.rendering.options import RenderOptions
    from neural_fields.rendering.render_planar import render

    out = work / "davis-blackswan"
    if not (out / "run.yaml").is_file():
        fit("davis-blackswan", out, "--masks", DATA / "davis-blackswan" / "masks")
    for layer in ("foreground", "background"):
        picture = cv2.imread(str(out / "canonical" / f"{layer}.png"), cv2.IMREAD_UNCHANGED)
        middle = (picture.shape[1] // 2, picture.shape[0] // 2)
        cv2.circle(picture, middle, picture.shape[0] // 4, (40, 60, 230, 255), -1)
        painted = work / f"{layer}-painted.png"
        cv2.imwrite(str(painted), picture)
        unwrap("edit", out, painted, "--layer", layer)
    run = require_planar(out, "the benchmark")
    facts, chosen = run.metadata, run.frames
    rates: dict[str, list[float]] = {"render": [], "plain": []}
    for _ in range(6):
        begin = time.perf_counter()
        render(run, RenderOptions(out=work / "edited.mp4", overwrite=True))
        rates["render"].append(len(chosen) / (time.perf_counter() - begin))
        begin = time.perf_counter()
        write_video(work / "plain.mp4", prefetch(source_frames(facts, chosen)), facts, overwrite=True)
        rates["plain"].append(len(chosen) / (time.perf_counter() - begin))
    shares = [edited / plain for edited, plain in zip(rates["render"], rates["plain"], strict=True)]
    edited, plain, share = (statistics.median(values) for values in (rates["render"], rates["plain"], shares))
    measured = f"{share:.2f} ({min(shares):.2f} to {max(shares):.2f}; {edited:.0f} of {plain:.0f} fps)"
    on = f"{facts.width}x{facts.height}, edits on both layers, H.264"
    yield Row(on, "share of plain", "0.6", measured, share >= 0.6)


def memory_rows(work: Path) -> Iterator[Row]:
    """Measures the peak memory of a training on 240 frames of 720p at 480p, with and without masks by motion."""
    clip = work / "pan.mp4"
    write_pan(clip, 240, 1280, 720)
    out = work / "pan"
    for masks in ("auto", "none"):
        unwrap("train", clip, "--size", "480p", "--masks", masks, "--seconds", "150", "--out", f"{out}-{masks}")
        found = unwrap_json("eval", f"{out}-{masks}")
        measured = f"{found['peak_mib'] / 1024:.2f} GiB ({found['steps']} steps, {found['psnr']:.1f} dB)"
        yield Row(f"240 frames of 1280x720 at 480p, --masks {masks}", "peak memory", "2.5 GiB", measured)


PARTS = {"fit": fit_rows, "auto": auto_rows, "demo": demo_rows, "render": render_rows, "memory": memory_rows}
NEEDS_DATA = ("fit", "auto", "render")


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    chosen = options.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only:
            if name in NEEDS_DATA and not DATA.is_dir():
                print(f"{name}: left out, the real clips are not beside the checkout", file=sys.stderr)
                continue
            for row in PARTS[name](Path(folder)):
                rows.append(row)
                print_row(row)
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
